"""What a handler is given: one call of one operation, and the rule that is chosen for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from relprop.propagation.call.call import Call
from relprop.propagation.call.flow import Flow
from relprop.propagation.call.returned import (
    Where,
    check_connected,
    check_finite,
    check_shares,
    check_tensor,
    check_unwritten,
    versions,
)
from relprop.propagation.call.trace import Record
from relprop.propagation.call.way import Choice
from relprop.propagation.facts.operation import Kind
from relprop.propagation.facts.origins import Origin
from relprop.trees import map_tensors, tensors_in

Shares = dict[str, Tensor]


@dataclass
class Here:
    """One call of a function with active arguments: what a handler is given, as one of :func:`relprop.operation` is.

    Attributes:
        call: the attribution it is part of.
        func: the function as the model called it.
        operation, kind: name and kind of the operation.
        choice: the rule chosen for it.
        record: its row in the plan and the report, if one is kept.
        account: the row its output is measured in: its own, unless it was folded into another.
        declared: the shares its rule declares as gone, from the coefficient and the value of the output.
        given: where a report taps an argument, by the identity of its tap, what the model gave.
        filters: rules for the output besides the one that was chosen here.
        sends: its row is that of a filter alone, which sends on what it lets pass.
        watchers: are to be shown the output, once it is measured.
        folds: it was folded into the linear call that made what it takes.
        factors: where it multiplies tensors that depend on the input, of how many such factors its terms are made.
        kept: what its output keeps, where its handler found that it is another operation than its row says.
        mode: within it, functions run as if the model called them; while the handler runs.
    """

    call: Call
    func: Callable[..., Any]
    operation: str
    kind: Kind
    choice: Choice = field(default_factory=Choice)
    record: Record | None = None
    account: Record | None = None
    declared: Callable[[Tensor, Tensor], Shares] | None = None
    given: dict[int, Tensor] = field(default_factory=dict)
    filters: list[Any] = field(default_factory=list)
    sends: bool = False
    watchers: list[Callable[[Tensor], None]] = field(default_factory=list)
    folds: bool = False
    factors: int | None = None
    kept: Origin | None = None
    mode: AbstractContextManager[Any] | None = None

    @property
    def rule(self) -> Any:
        return self.choice.rule

    def choose(self, layer_type: type[nn.Module] | None = None, first: bool = False) -> None:
        """Choose the rule by the place where the call runs."""
        if self.call.way.explains:
            self.choice = self.call.way.choose(
                self.kind,
                self.operation,
                *self.call.place,
                layer_type,
                first,
                self.call.trace.linear,
                self.call.trace.parts_of,
            )
            if any(self.choice.filter is outer for outer in self.call.around):
                self.choice = replace(self.choice, filter=None)
        self.show_rule()

    def show_rule(self) -> None:
        """Show the rule in the row of this call."""
        if self.record is not None:
            shown = [repr(rule) for rule in (self.choice.rule, self.choice.filter) if rule is not None]
            self.record.rule, self.record.default = " then ".join(shown), self.choice.default

    @property
    def where(self) -> Where:
        """The place of this call, as errors name it."""
        return Where(self.operation, *self.call.place)

    def asked(self, method: Callable[..., Any], like: str, **given: Any) -> Tensor:
        """Return what a rule makes of a tensor, checked: of its shape, its type and its device.

        Args:
            method: of the rule.
            like: which of those given it makes something of.
            given: what the method takes behind the flow, in its order.
        """
        before, where, x = versions(given.values()), self.where, given[like]
        answer = method(Flow(self.operation, where.name, self.call), *given.values())
        found = check_tensor(answer, x, like, method, where, "It says how each entry of that is explained.")
        check_unwritten(given, before, method, where)
        if self.call.options.create_graph:
            check_connected(found, [x], method, where)
        if self.call.options.looking:
            check_finite(found, [y for y in given.values() if isinstance(y, Tensor)], method, where)
        return found

    def explained(self, method: Callable[..., Any], like: str, **given: Any) -> Tensor:
        """Return a tensor as a rule explains it: the value stays that of the model, whatever the rule computed."""
        found, x = self.asked(method, like, **given), given[like]
        return found if found is x or not self.active(found) else self.call.switch(x, found)

    def shares(self, counts: Sequence[int], gates: Sequence[bool]) -> tuple[float, ...]:
        """Return the share of every factor of a product, by the rule for it."""
        method = self.rule.shares
        return check_shares(method(counts, gates), len(counts), method, self.where)

    def active(self, x: Any) -> bool:
        """Say whether an argument depends on the explained input."""
        return isinstance(x, Tensor) and self.call.known.graph.active(x) > 0

    def original(self, x: Any) -> Any:
        """Return what the model gave for an argument, which a report taps."""
        return self.given.get(id(x), x)

    def note(self, text: str) -> None:
        """Add a remark to the row of this call."""
        if self.record is not None:
            self.record.notes.append(text)

    def by_autograd(self) -> None:
        """Say in the row of this call that autograd's own backward is the rule, before a filter if one stands there."""
        if self.record is not None:
            self.record.rule = "" if self.choice.filter is None else repr(self.choice.filter)

    def uncovered(self, why: str) -> None:
        """Say that no rule covers this call; plain autograd carries its relevance."""
        self.by_autograd()
        self.declared = declares_nothing
        if self.record is not None:
            self.record.covered = False
        if self.call.way.explains:
            self.call.coverage.uncovered(self.operation, f"{why}; plain autograd carries its relevance.")

    def absorbs_nothing(self) -> None:
        """Declare that the operation, as it is explained, absorbs nothing."""
        self.declared = declares_nothing

    def absorbs(self, *terms: Tensor) -> None:
        """Declare that these terms of the output are kept, as a bias keeps its share."""
        self.declared = lambda c, value: {"bias": sum((c * term.detach() for term in terms), torch.zeros_like(value))}

    def biases(self, args: tuple[Any, ...], kwargs: dict[str, Any], at: float = 0.0) -> list[Tensor]:
        """Return what the function gives where its active arguments are zero, or another number ``at`` all entries."""

        def replaced(tensor: Tensor) -> Tensor:
            if not self.active(tensor):
                return tensor.detach()
            return torch.full_like(tensor, at) if at else torch.zeros_like(tensor)  # of a sparse one, only zeros

        with torch.no_grad():
            args, kwargs = map_tensors(replaced, (args, kwargs))
            return tensors_in(self.func(*args, **kwargs))


def declares_nothing(c: Tensor, value: Tensor) -> Shares:
    """Declare that the operation absorbs nothing (or that another row declares it)."""
    return {}


def native(here: Here, *args: Any, **kwargs: Any) -> Any:
    """Run a function as it is: autograd's own backward carries its relevance.

    Args:
        here: the call.
        args, kwargs: what the model called it with.

    Returns: what the function returns.

    >>> from relprop import LRP, operation
    >>> @operation(kind="pooling", handler=native)
    ... def strongest(x):
    ...     return x.amax(1)
    >>> class Strongest(nn.Module):
    ...     def forward(self, x):
    ...         return strongest(x)
    >>> LRP(Strongest()).attribute(torch.tensor([[1.0, 3.0]]))
    tensor([[0., 3.]])
    """
    here.by_autograd()
    return here.func(*args, **kwargs)
