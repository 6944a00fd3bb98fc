"""`Rules`: which rule goes where."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from torch import nn

from relprop.arguments import Registered
from relprop.errors import RuleError, near
from relprop.inputs import as_model
from relprop.operations.table import operation_of
from relprop.propagation.call.call import Choice
from relprop.rules.input import Flat, WSquare, ZBox
from relprop.rules.linear import Epsilon, Gamma, Rho, Zero
from relprop.rules.nonlinear import (
    CPLRP,
    AttnLRP,
    AveragePool,
    Norm,
    SignalTakesAll,
    TaylorSoftmax,
    Uniform,
    WinnerTakesAll,
)
from relprop.rules.rule import FilterRule, LinearRule, Rule
from relprop.rules.selectors import ByName, ByOperation, ByPredicate, ByType, First, Last, Place, Selector, Until
from relprop.rules.signed import AlphaBeta, Contrast, RescaledExcitation, ZPlus
from relprop.rules.universal import Block, Detach, Mask, Pass

if TYPE_CHECKING:
    from relprop.rules.attached import Attached
    from relprop.rules.plan import Plan
    from relprop.rules.presets import PresetName

Selectable: TypeAlias = "str | type[nn.Module] | tuple[type[nn.Module], ...] | Callable[..., Any]"
RuleName = Literal[
    "lrp0", "zero", "epsilon", "gamma", "alpha_beta", "alpha2_beta1", "alpha1_beta0", "zplus", "contrast",
    "rescaled_excitation", "zbox", "wsquare", "flat", "rho", "pass", "block", "mask", "detach", "average_pool",
    "winner_takes_all", "uniform", "signal_takes_all", "norm", "taylor_softmax", "attnlrp", "cp_lrp",
]  # fmt: skip
"""The names of relprop's own rules, one by one, for editors and type checkers; yours are :class:`Registered`."""

RuleLike: TypeAlias = "Rule | RuleName | Registered"

DEFAULTS: dict[str, Rule] = {
    "linear": Zero(),
    "activation": Pass(),
    "pooling": WinnerTakesAll(),
    "product": Uniform(),
    "gate": SignalTakesAll(),
    "norm": Norm(),
    "softmax": TaylorSoftmax(),
    "attention": AttnLRP(),
}
"""What each kind of operation does where no entry says otherwise; other kinds need no rule."""

_NAMED: dict[str, Callable[..., Rule]] = {
    "lrp0": Zero,
    "zero": Zero,
    "epsilon": Epsilon,
    "gamma": Gamma,
    "alpha_beta": AlphaBeta,
    "alpha2_beta1": AlphaBeta,
    "alpha1_beta0": lambda: AlphaBeta(1.0, 0.0),
    "zplus": ZPlus,
    "contrast": Contrast,
    "rescaled_excitation": RescaledExcitation,
    "zbox": ZBox,
    "wsquare": WSquare,
    "flat": Flat,
    "rho": Rho,
    "pass": Pass,
    "block": Block,
    "mask": Mask,
    "detach": Detach,
    "average_pool": AveragePool,
    "winner_takes_all": WinnerTakesAll,
    "uniform": Uniform,
    "signal_takes_all": SignalTakesAll,
    "norm": Norm,
    "taylor_softmax": TaylorSoftmax,
    "attnlrp": AttnLRP,
    "cp_lrp": CPLRP,
}


_WITHOUT_RULES = ("unknown", "unseen", "composite")
"""Kinds of operations that only filters serve."""

_OPTIONAL = "If the entry may stand idle, write .set(..., optional=True)."


@dataclass(frozen=True)
class Entry:
    """One line of a registry.

    Attributes:
        optional: it may stand idle: it is meant for such layers where there are any.
    """

    selector: Selector
    rule: Rule
    optional: bool = False


@dataclass(frozen=True)
class Rules:
    """An ordered, immutable registry of rules.

    Every call returns a new registry. The last entry that matches a call wins; that is the only precedence.
    Entries are asked about the innermost module that is running. A linear call in no module of a matching type is
    selected as the layer it is (``F.conv2d`` as ``nn.Conv2d``). A linear layer that nothing matches gets
    :class:`Zero`; what the other operations do by themselves is in ``DEFAULTS``.

    >>> from relprop.rules import Epsilon, Gamma, ZBox
    >>> rules = Rules().set(nn.Linear, Epsilon(0.25)).set("features.*", "gamma").first(ZBox(0.0, 1.0))
    >>> print(rules)
    Linear       => Epsilon(epsilon=0.25, relative=False, bias='absorb')
    'features.*' => Gamma(gamma=0.25, bias='absorb', stabilizer=1e-06)
    first        => ZBox(low=0.0, high=1.0, stabilizer=1e-06)
    """

    entries: tuple[Entry, ...] = ()
    named: ClassVar[dict[str, Callable[..., Rule]]] = _NAMED

    def set(self, selector: Selectable, rule: RuleLike, *, optional: bool = False) -> Rules:
        """Return these rules with one more entry.

        An entry by name, type or operation that serves nothing in a whole forward pass is an error, since it looks as
        if it had worked; one that later entries replace everywhere is none. The entries of presets are optional.

        Args:
            selector: a module type or a tuple of types (subclasses match), a glob over module names, an operation
                such as ``torch.softmax`` (wherever and however it is called), or a predicate of a module's name
                and the module.
            rule: a rule, or the registered name of one.
            optional: the entry may serve nothing, as where the rules are for many models, or where which modules run
                depends on the input.

        Raises:
            RuleError: for a selector or a rule that is none of these; while explaining, where the entry serves nothing.
        """
        return Rules((*self.entries, Entry(_selector(selector), as_rule(rule), optional)))

    def first(self, rule: RuleLike) -> Rules:
        """Return these rules with ``rule`` for the first linear layers: no path from the input passes another."""
        return Rules((*self.entries, Entry(First(), as_rule(rule, LinearRule))))

    def last(self, rule: RuleLike) -> Rules:
        """Return these rules with ``rule`` for the last linear layers: no path to the target passes another."""
        return Rules((*self.entries, Entry(Last(), as_rule(rule, LinearRule))))

    def until(self, end: int | str, rule: RuleLike) -> Rules:
        """Return these rules with ``rule`` for the linear layers from the first that runs to a given one, included.

        Args:
            end: the index of that layer among the linear layers in the order in which they run, from 0; or the name of
                a module: that layer, or the block that holds it.
            rule: a rule for linear layers, or the registered name of one.

        Raises:
            RuleError: for an ``end`` that is neither; while explaining, where no such layer runs.
        """
        given: Any = end
        if isinstance(given, bool) or not isinstance(given, (int, str)) or (isinstance(given, int) and given < 0):
            raise RuleError(f"until needs the index of a linear layer (from 0) or the name of a module, got {given!r}.")
        return Rules((*self.entries, Entry(Until(end), as_rule(rule, LinearRule))))

    @classmethod
    def preset(cls, name: PresetName, **options: Any) -> Rules:
        """Return the rules that the field knows by this name; see :mod:`relprop.rules.presets`."""
        from relprop.rules.presets import preset

        return preset(name, **options)

    @classmethod
    def register(cls, name: str, rule: Callable[..., Rule]) -> Registered:
        """Make a rule known by a name: ``Rules.register("my_rule", MyRule)``, then ``.set(nn.Linear, "my_rule")``.

        A class (or a function that makes the rule) that is defined again, as in a notebook, takes its own place.
        It is called without arguments; ``functools.partial(MyRule, weight=0.5)`` fixes those that have no default.

        Returns:
            the name, as type checkers take it: they know those of relprop, and find a misspelled one.

        Raises:
            RuleError: where the name is taken by another rule or is no string, or where ``rule`` can make no rule.
        """
        given: Any = name
        if given == "" or not isinstance(given, str):
            raise RuleError(f"register needs a name, a string that is not empty, got {name!r}.")
        made: Any = rule
        if not callable(made) or (isinstance(made, type) and not issubclass(made, Rule)):
            raise RuleError(f"register needs a name and a rule class, got {rule!r}. A function that makes one will do.")
        taken = cls.named.get(name, rule)
        if taken is not rule and (_place(taken) is None or _place(taken) != _place(rule)):
            raise RuleError(f"{name!r} is already registered; choose another name.")
        cls.named[name] = rule
        return Registered(name)

    def plan(self, model: nn.Module, inputs: Any, target: Any = None, **options: Any) -> Plan:
        """Return what will happen to these inputs: every call, in order, with its module, shapes and rule.

        ``options`` are those of ``attribute`` (``additional_forward_args``, ``forward_kwargs``).
        """
        from relprop.rules.plan import make_plan

        return make_plan(self, model, inputs, target, **options)

    def attach(self, model: nn.Module) -> Attached:
        """Return a context in which the user's own forward passes build graphs that explain.

        Inside, every leaf that asks for a gradient and is no parameter is an explained input. The gradient of an
        output by it, times it, is the relevance, until ``attached.finish()`` makes the graph differentiate truly.
        """
        from relprop.rules.attached import Attached

        return Attached(self, model)

    def bind(self, model: nn.Module) -> Selection:
        """Return these rules for one call on a model.

        Raises:
            RuleError: where a glob matches no module.
        """
        return Selection(self, model)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __str__(self) -> str:
        if not self.entries:
            return "no entries: LRP-0 on every linear layer"
        width = max(len(str(entry.selector)) for entry in self.entries)
        return "\n".join(f"{entry.selector!s:<{width}} => {entry.rule!r}" for entry in self.entries)


class Selection:
    """The rules of one call on one model; see :class:`relprop.propagation.call.call.Selector`."""

    def __init__(self, rules: Rules, model: nn.Module) -> None:
        self._entries = rules.entries
        self._served: set[int] = set()
        self._refused: dict[int, Place] = {}
        self._known: dict[Any, Choice] = {}
        self._ordered = any(isinstance(entry.selector, Until) for entry in rules.entries)
        self._ends: set[int] = set()
        zeros = [entry.selector for entry in rules.entries if _reaches_zeros(entry)]
        only_first = all(isinstance(selector, First) for selector in zeros)
        self.reaches_zeros = "nowhere" if not zeros else "first" if only_first else "everywhere"
        lasts = [index for index, entry in enumerate(rules.entries) if isinstance(entry.selector, Last)]
        self.last = Choice(rules.entries[lasts[-1]].rule, lasts[-1], False) if lasts else None
        self._modules = dict(as_model(model).named_modules())
        self._check_names()

    def select(
        self,
        kind: str,
        operation: str,
        name: str,
        module: nn.Module | None,
        layer_type: type[nn.Module] | None = None,
        first: bool = False,
        earlier: Sequence[str] = (),
    ) -> Choice:
        """Return the rule of one call; see :class:`relprop.propagation.call.call.Choice`."""
        before = tuple(earlier) if self._ordered and kind == "linear" else ()
        key = (kind, operation, name, id(module), layer_type, first, before)
        if key not in self._known:
            self._known[key] = self._search(Place(kind, operation, name, module, layer_type, first, before))
        return self._known[key]

    def _search(self, place: Place) -> Choice:
        chosen: Choice | None = None
        found: FilterRule | None = None
        for index in range(len(self._entries) - 1, -1, -1):  # the last entry that matches wins
            entry = self._entries[index]
            if isinstance(entry.selector, Until) and entry.selector.reached(place):
                self._ends.add(index)
            if isinstance(entry.selector, Last) or not entry.selector.matches(place):
                continue
            rule = entry.rule
            if place.kind in rule.serves:
                self._served.add(index)
                chosen = chosen or Choice(rule, index, False, found)
            elif isinstance(rule, FilterRule) and rule.filters(place.kind):
                self._served.add(index)
                found = found if chosen else found or rule
            elif index not in self._refused or self._refused[index].kind in ("view", "composite"):
                self._refused[index] = place
        return chosen or Choice(DEFAULTS.get(place.kind), -1, True, found)

    def _check_names(self) -> None:
        for entry in self._entries:
            selector, known = entry.selector, [name for name in self._modules if name]
            if entry.optional:
                continue
            if isinstance(selector, ByName) and not any(map(selector.matches_name, self._modules)):
                raise RuleError(
                    f"{selector.pattern!r} matches no module of {type(self._modules['']).__name__}."
                    f"{near(selector.pattern, known)}"
                )
            if isinstance(selector, Until) and isinstance(selector.end, str) and selector.end not in self._modules:
                raise RuleError(
                    f"{type(self._modules['']).__name__} has no module {selector.end!r}.{near(selector.end, known)}"
                )

    def verify(self, called: set[str], ended: bool = False) -> None:
        """Raise where an entry met only calls that its rule cannot serve, or none in modules that were called.

        With ``ended``, the forward pass took part to some point only, and what comes above it was not met.
        """
        for index, entry in enumerate(self._entries):
            if isinstance(entry.selector, Until) and index not in self._ends and not ended:
                raise RuleError(f"{entry.rule!r} was set {entry.selector}, where no linear layer runs.")
            if index in self._served or isinstance(entry.selector, (ByPredicate, First, Last)):
                continue
            place = self._refused.get(index)
            if place is not None and not (entry.optional and place.kind in _WITHOUT_RULES):
                raise RuleError(
                    f"{entry.rule!r} was set at {entry.selector}, where {place.operation!r} ({place.kind}) runs in "
                    f"module {place.name!r}; it serves operations of kind {', '.join(sorted(entry.rule.serves))}."
                )
            if not entry.optional:
                self._check_idle(entry, called)

    def _check_idle(self, entry: Entry, called: set[str]) -> None:
        """Raise where an entry that served nothing was meant for something."""
        selector, whole = entry.selector, "" in called
        if isinstance(selector, (ByName, ByType)):
            matching = [name for name, module in self._modules.items() if selector.means(name, module)]
            idle = [name for name in matching if name in called]
            if idle:
                raise RuleError(f"{selector} matches {self._why_idle(selector, idle)}")
            if whole:
                raise RuleError(f"{entry.rule!r} was set at {selector}{self._why_absent(matching)} {_OPTIONAL}")
        elif whole:
            ran = ", ".join(dict.fromkeys(operation for _, operation, *_ in self._known))
            raise RuleError(
                f"{entry.rule!r} was set at {selector}, which is called with nothing that depends on the input. "
                f"What is: {ran}. {_OPTIONAL}"
            )

    def _why_idle(self, selector: ByName | ByType, idle: Sequence[str]) -> str:
        """Say why nothing was served in modules that ran."""
        if any(inner.startswith(f"{name}." if name else "") and inner for name in idle for inner in self._modules):
            parts = f" For the parts write {f'{selector.pattern}.*'!r}." if isinstance(selector, ByName) else ""
            return f"modules in which nothing runs but their parts.{parts}"
        return f"{', '.join(map(repr, idle[:3]))}, where nothing runs that depends on the input."

    def _why_absent(self, matching: Sequence[str]) -> str:
        """Say what the model has where no module that was meant ran."""
        if matching:
            listed = ", ".join(map(repr, matching[:3]))
            return f": {listed}, not called in this forward pass. Set the rule where the operation runs."
        types = ", ".join(dict.fromkeys(type(module).__name__ for name, module in self._modules.items() if name))
        model = type(self._modules[""]).__name__
        return (
            f", and {model} has no such module, nor calls such a layer as a function. It has {types or 'no modules'}."
        )


def _place(rule: Any) -> tuple[str, ...] | None:
    """Return where a class or function was defined, by which it is known when defined again; None for a lambda."""
    if isinstance(rule, partial):
        inner = _place(rule.func)
        return None if inner is None else (*inner, repr(rule.args), repr(rule.keywords))
    name = getattr(rule, "__qualname__", "<lambda>")
    return None if name.endswith("<lambda>") else (rule.__module__, name)


def _reaches_zeros(entry: Entry) -> bool:
    """Say whether an entry may give relevance to activations of zero."""
    identity = isinstance(entry.rule, Pass) and not entry.selector.means_activations()
    return entry.rule.reaches_zeros or identity


def as_rule(rule: RuleLike, kind: type[Rule] = Rule) -> Rule:
    """Return a rule from a rule or its registered name.

    Raises:
        RuleError: for an unknown name, a name whose rule needs arguments, or something that is no rule.
    """
    if isinstance(rule, str):
        rule = _made(rule)
    if not isinstance(rule, kind):
        hint = " (an instance, not the class)" if isinstance(rule, type) else ""
        raise RuleError(f"Expected a {kind.__name__}{hint} or a registered name, got {rule!r}.")
    return rule


def _made(name: str) -> Rule:
    """Return a rule from its name.

    Raises:
        RuleError: for a name that is not known, needs arguments, or was given to what makes no rule.
    """
    if name not in Rules.named:
        raise RuleError(f"No rule is registered as {name!r}.{near(name, Rules.named)}")
    make = Rules.named[name]
    title = getattr(make, "__name__", type(make).__name__)
    try:
        inspect.signature(make).bind()
    except TypeError:
        needed = [p for p in inspect.signature(make).parameters.values() if p.default is p.empty]
        given = ", ".join(f"{p.name}=..." for p in needed if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
        raise RuleError(
            f"The rule {name!r} needs arguments; pass an instance of it, {title}({given}), not its name, or register a "
            f"name with them: Rules.register({name + '_1'!r}, functools.partial({title}, {given}))."
        ) from None
    made: Any = make()
    if not isinstance(made, Rule):
        raise RuleError(
            f"{name!r} was registered for {title}, which returned {made!r:.80}; expected a rule, such as Epsilon(). "
            "Register the class of a rule, or a function that returns one."
        )
    return made


def _selector(selector: Any) -> Selector:
    if isinstance(selector, str):
        return ByName(selector)
    types = selector if isinstance(selector, tuple) else (selector,)
    if types and all(isinstance(item, type) and issubclass(item, nn.Module) for item in types):
        return ByType(types)
    operation = operation_of(selector) if callable(selector) else None
    if operation is not None and operation.composite:
        raise RuleError(
            f"{operation.name} is made of other operations, each with a rule of its own. Set the rule for those, or "
            "for the module in which it runs."
        )
    if operation is not None:
        return ByOperation(operation.name, operation.kind)
    if callable(selector) and not isinstance(selector, (type, nn.Module)):
        if (getattr(selector, "__module__", None) or "torch").split(".")[0] == "torch":
            raise RuleError(f"{selector!r} is no operation relprop knows.")
        return ByPredicate(selector)
    raise RuleError(
        f"A selector is a module type, a tuple of types, a glob over module names, an operation or a predicate; "
        f"got {selector!r}."
    )
