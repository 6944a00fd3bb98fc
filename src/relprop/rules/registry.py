"""`Rules`: which rule goes where."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, TypeAlias

from torch import nn

from relprop.arguments import Registered
from relprop.errors import RuleError, near
from relprop.operations.table import operation_of
from relprop.propagation.facts.operation import Table
from relprop.rules.attached import Attached
from relprop.rules.input import Flat, WSquare, ZBox
from relprop.rules.linear import Epsilon, Gamma, Rho, Zero
from relprop.rules.norms import Norm
from relprop.rules.plan import Plan, make_plan
from relprop.rules.pooling import AveragePool, WinnerTakesAll
from relprop.rules.products import Equal, SignalTakesAll, Uniform
from relprop.rules.rule import LinearRule, Rule
from relprop.rules.selection import Entry, Selection
from relprop.rules.selectors import ByName, ByOperation, ByPredicate, ByType, First, Last, Selector, Until
from relprop.rules.signed import AbsoluteValue, AlphaBeta, Contrast, RescaledExcitation, ZPlus
from relprop.rules.softmax import CPLRP, AttnLRP, TaylorSoftmax
from relprop.rules.universal import Block, Detach, Mask, Pass

PresetName = Literal[
    "lrp0", "epsilon", "epsilon_plus", "epsilon_plus_flat", "epsilon_gamma", "epsilon_gamma_box",
    "epsilon_alpha2_beta1", "epsilon_alpha2_beta1_flat", "alpha1_beta0", "alpha2_beta1", "zplus", "wsquare",
    "flat", "lrp0_ignore_bias", "epsilon_ignore_bias", "alpha1_beta0_ignore_bias", "alpha2_beta1_ignore_bias",
    "preset_a", "preset_b", "preset_a_flat", "preset_b_flat", "preset_a_flat_until_idx",
    "preset_b_flat_until_idx", "deep_taylor", "deep_taylor_bounded", "attnlrp", "cp_lrp",
]  # fmt: skip
"""The names of relprop's presets, one by one, for editors and type checkers."""

Selectable: TypeAlias = "str | type[nn.Module] | tuple[type[nn.Module], ...] | Callable[..., Any]"
RuleName = Literal[
    "lrp0", "zero", "epsilon", "gamma", "alpha_beta", "alpha2_beta1", "alpha1_beta0", "zplus", "contrast",
    "absolute_value", "rescaled_excitation", "zbox", "wsquare", "flat", "rho", "pass", "block", "mask", "detach",
    "average_pool", "winner_takes_all", "uniform", "equal", "signal_takes_all", "norm", "taylor_softmax", "attnlrp",
    "cp_lrp",
]  # fmt: skip
"""The names of relprop's own rules, one by one, for editors and type checkers; yours are :class:`Registered`."""

RuleLike: TypeAlias = "Rule | RuleName | Registered"


_NAMED: dict[str, Callable[..., Rule]] = {
    "lrp0": Zero,
    "zero": Zero,
    "epsilon": Epsilon,
    "gamma": Gamma,
    "alpha_beta": AlphaBeta,
    "alpha2_beta1": AlphaBeta,
    "alpha1_beta0": lambda: AlphaBeta(1.0, 0.0),
    "zplus": ZPlus,
    "absolute_value": AbsoluteValue,
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
    "equal": Equal,
    "signal_takes_all": SignalTakesAll,
    "norm": Norm,
    "taylor_softmax": TaylorSoftmax,
    "attnlrp": AttnLRP,
    "cp_lrp": CPLRP,
}


@dataclass(frozen=True)
class Rules:
    """An ordered, immutable registry of rules.

    Every call returns a new registry. The last entry that matches a call wins; that is the only precedence.
    Entries are asked about the innermost module that is running. A linear call in no module of a matching type is
    selected as the layer it is (``F.conv2d`` as ``nn.Conv2d``). A linear layer that nothing matches gets
    :class:`Zero`; what the other operations do by themselves is in ``DEFAULTS``.

    Args:
        entries: the lines, in order, as :meth:`set`, :meth:`first`, :meth:`last` and :meth:`until` make them; none by
            default, which is LRP-0 on every linear layer.

    >>> from relprop.rules import Epsilon, Gamma, ZBox
    >>> rules = Rules().set(nn.Linear, Epsilon(0.25)).set("features.*", "gamma").first(ZBox(0.0, 1.0))
    >>> print(rules)
    Linear       => Epsilon(epsilon=0.25, relative=False, bias='absorb')
    'features.*' => Gamma(gamma=0.25, bias='absorb', stabilizer=1e-06)
    first        => ZBox(low=0.0, high=1.0, stabilizer=1e-06)
    """

    entries: tuple[Entry, ...] = ()
    named: ClassVar[dict[str, Callable[..., Rule]]] = _NAMED
    presets: ClassVar[dict[str, Callable[..., Rules]]] = {}

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
        """Return these rules with another one for the first linear layers: no path from the input passes another.

        Args:
            rule: a rule for linear layers, or the registered name of one.

        Raises:
            RuleError: for anything else.
        """
        return Rules((*self.entries, Entry(First(), as_rule(rule, LinearRule))))

    def last(self, rule: RuleLike) -> Rules:
        """Return these rules with another one for the last linear layers: no path to the target passes another.

        Args:
            rule: as in ``first``.

        Raises:
            RuleError: as ``first``.
        """
        return Rules((*self.entries, Entry(Last(), as_rule(rule, LinearRule))))

    def until(self, end: int | str, rule: RuleLike) -> Rules:
        """Return these rules with another one for the linear layers from the first that runs to a given one, included.

        Args:
            end: the index of that layer among the linear layers in the order in which they run, from 0; or the name of
                a module: that layer, or the block that holds it.
            rule: as in ``first``.

        Raises:
            RuleError: for an ``end`` that is neither, and as ``first``; while explaining, where no such layer runs.
        """
        given: Any = end
        if isinstance(given, bool) or not isinstance(given, (int, str)) or (isinstance(given, int) and given < 0):
            raise RuleError(f"until needs the index of a linear layer (from 0) or the name of a module, got {given!r}.")
        return Rules((*self.entries, Entry(Until(end), as_rule(rule, LinearRule))))

    @classmethod
    def preset(cls, name: PresetName, **options: Any) -> Rules:
        """Return the rules that the field knows by this name; see :mod:`relprop.rules.presets`.

        Args:
            name: one of ``Rules.presets``.
            options: ``low`` and ``high`` for the presets with zB at the input (see :class:`ZBox`), ``epsilon`` and
                ``gamma`` for those that use them, ``until`` for ``preset_*_flat_until_idx`` (see :meth:`Rules.until`).

        Raises:
            RuleError: for an unknown name, and for options that are missing or that the preset does not take.

        >>> from relprop import Rules
        >>> print(Rules.preset("epsilon"))
        every linear layer => Epsilon(epsilon=1e-06, relative=True, bias='absorb')
        """
        if name not in cls.presets:
            raise RuleError(f"No preset is named {name!r}.{near(name, cls.presets)} Known: {', '.join(cls.presets)}.")
        make = cls.presets[name]
        try:
            inspect.signature(make).bind(**options)
        except TypeError as error:
            takes = ", ".join(inspect.signature(make).parameters) or "no options"
            raise RuleError(f"The preset {name!r} takes {takes}: {error}.") from None
        return make(**options)

    @classmethod
    def register(cls, name: str, rule: Callable[..., Rule]) -> Registered:
        """Make a rule known by a name: ``Rules.register("my_rule", MyRule)``, then ``.set(nn.Linear, "my_rule")``.

        A class (or a function that makes the rule) that is defined again, as in a notebook, takes its own place.

        Args:
            name: a string that is not empty.
            rule: a class of rules, or a function that makes a rule. It is called without arguments;
                ``functools.partial(MyRule, weight=0.5)`` fixes those that have no default.

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

        Args:
            model: any ``nn.Module``.
            inputs: as those of ``attribute``.
            target: as that of ``attribute``; with None, which layer is ``last`` is not known, and its rule not shown.
            options: ``additional_forward_args`` and ``forward_kwargs``, as those of ``attribute``.

        Raises:
            RelpropError: what explaining these inputs raises.

        >>> import torch
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
        >>> print(Rules().set(nn.Linear, "zplus").plan(model, torch.ones(1, 3)))
        module               call    in   out  rule                                       notes
        -------------------  ------  ---  ---  -----------------------------------------  -----
        (model): Sequential          1x3  1x2
        0: Linear            linear  1x3  1x2  => ZPlus(bias='absorb', stabilizer=1e-06)
        1: ReLU              relu    1x2  1x2  => autograd
        2 calls; folded into layers: 0; linear maps of inputs known to be >= 0: 0; without a rule: none
        """
        return make_plan(self.bind(model), model, inputs, target, **options)

    def attach(self, model: nn.Module) -> Attached:
        """Return a context in which the user's own forward passes build graphs that explain.

        Inside, every leaf that asks for a gradient and is no parameter is an explained input. The gradient of an
        output by it, times it, is the relevance, until ``attached.finish()`` makes the graph differentiate truly.

        Args:
            model: what runs inside.

        Raises:
            ModelError: where the model is no ``nn.Module``, or one that cannot be explained.
            RuleError: for a rule at ``last``, or a glob that matches no module; when the block ends, for an entry that
                served nothing.
        """
        return Attached(self.bind(model), model)

    def bind(self, model: nn.Module, table: Table | None = None) -> Selection:
        """Return these rules for one call on a model.

        Args:
            table: the rows that run, where these are not those of the rules.

        Raises:
            RuleError: where a glob matches no module.
        """
        return Selection(self.entries, model, table)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __str__(self) -> str:
        if not self.entries:
            return "no entries: LRP-0 on every linear layer"
        width = max(len(str(entry.selector)) for entry in self.entries)
        return "\n".join(f"{entry.selector!s:<{width}} => {entry.rule!r}" for entry in self.entries)


def _place(rule: Any) -> tuple[str, ...] | None:
    """Return where a class or function was defined, by which it is known when defined again; None for a lambda."""
    if isinstance(rule, partial):
        inner = _place(rule.func)
        return None if inner is None else (*inner, repr(rule.args), repr(rule.keywords))
    name = getattr(rule, "__qualname__", "<lambda>")
    return None if name.endswith("<lambda>") else (rule.__module__, name)


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
