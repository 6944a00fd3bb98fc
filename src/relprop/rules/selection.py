"""Which rule serves a call: the entries of a registry, bound to one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from relprop.errors import RuleError, near
from relprop.inputs import as_model
from relprop.propagation.call.way import Choice, Way, Zeros
from relprop.propagation.facts.operation import Kind, Table
from relprop.rules.linear import Zero
from relprop.rules.norms import Norm
from relprop.rules.pooling import WinnerTakesAll
from relprop.rules.products import SignalTakesAll, Uniform
from relprop.rules.rule import FilterRule, LinearRule, Rule
from relprop.rules.selectors import (
    ByName,
    ByOperation,
    ByPredicate,
    ByType,
    First,
    Joins,
    Last,
    PartsOf,
    Place,
    Selector,
    Until,
)
from relprop.rules.softmax import AttnLRP, TaylorSoftmax
from relprop.rules.universal import Pass

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


_WITHOUT_RULES = ("unknown", "unseen", "composite")
"""Kinds of operations that only filters serve."""


_AT_SUMS = (
    " Rules for linear maps serve sums, set at the operation itself: .set(torch.add, Flat()) gives all terms equal "
    "parts, AbsoluteValue() shares by size, ZPlus() among those above zero."
)


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


class Selection(Way):
    """Relevance passes by rules: those of a registry, for one call on one model."""

    explains = True

    def __init__(self, entries: Sequence[Entry], model: nn.Module, table: Table | None = None) -> None:
        self.table = table
        self._entries = tuple(entries)
        self._served: set[int] = set()
        self._refused: dict[int, Place] = {}
        self._known: dict[Any, Choice] = {}
        self._ordered = any(isinstance(entry.selector, Until) for entry in self._entries)
        self._ends: set[int] = set()
        zeros = [entry.selector for entry in self._entries if _reaches_zeros(entry)]
        only_first = all(isinstance(selector, First) for selector in zeros)
        self.zeros = Zeros.NOWHERE if not zeros else Zeros.FIRST if only_first else Zeros.EVERYWHERE
        self.by_sign = any(isinstance(entry.rule, LinearRule) and entry.rule.by_sign for entry in self._entries)
        lasts = [index for index, entry in enumerate(self._entries) if isinstance(entry.selector, Last)]
        self.last = Choice(self._entries[lasts[-1]].rule, lasts[-1], False) if lasts else None
        self._modules = dict(as_model(model).named_modules())
        self._check_names()

    def choose(
        self,
        kind: str,
        operation: str,
        name: str,
        module: nn.Module | None,
        layer_type: type[nn.Module] | None = None,
        first: bool = False,
        earlier: Sequence[str] = (),
        parts_of: tuple[str, ...] = (),
    ) -> Choice:
        """Return the rule of one call; see :class:`relprop.propagation.call.way.Choice`."""
        before = tuple(earlier) if self._ordered and kind == "linear" else ()
        key = (kind, operation, name, id(module), layer_type, first, before, parts_of)
        if key not in self._known:
            self._known[key] = self._search(Place(kind, operation, name, module, layer_type, first, before, parts_of))
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
            if _serves(entry, place):
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
            if index in self._served or isinstance(entry.selector, (ByPredicate, PartsOf, Joins, First, Last)):
                continue
            place = self._refused.get(index)
            if place is not None and not (entry.optional and place.kind in _WITHOUT_RULES):
                raise RuleError(
                    f"{entry.rule!r} was set at {entry.selector}, where {place.operation!r} ({place.kind}) runs in "
                    f"module {place.name!r}; it serves operations of kind {', '.join(sorted(entry.rule.serves))}."
                    f"{_AT_SUMS if place.kind in (Kind.SUM, Kind.SHIFT) else ''}"
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


def _serves(entry: Entry, place: Place) -> bool:
    """Say whether the rule of an entry can stand at a call: at sums only where the operation itself was named."""
    named = place.kind not in (Kind.SUM, Kind.SHIFT) or isinstance(entry.selector, (ByOperation, Joins))
    return named and place.kind in entry.rule.serves


def _reaches_zeros(entry: Entry) -> bool:
    """Say whether an entry may give relevance to activations of zero."""
    identity = isinstance(entry.rule, Pass) and not entry.selector.means_activations()
    return entry.rule.reaches_zeros or identity
