"""The state of one attribution. It is made with the call and gone with it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from relprop.errors import BackwardHookWarning, ModelError, UncoveredOperationError, UncoveredOperationWarning, warn
from relprop.propagation.call.autograd_functions import Scale, Switch, apply
from relprop.propagation.call.returned import Where
from relprop.propagation.call.trace import Entered, Record
from relprop.propagation.call.unseen import filter_unseen
from relprop.propagation.call.visible import once_differentiable
from relprop.propagation.facts.exponentials import Formulas
from relprop.propagation.facts.graph import BEYOND_LINEAR, Graph
from relprop.propagation.facts.operation import Kind, Table
from relprop.propagation.facts.origins import Origins
from relprop.propagation.facts.protection import Protected
from relprop.propagation.facts.storage import CopyOnWrite
from relprop.propagation.facts.token_ids import Tokens
from relprop.propagation.math.numerics import safe

if TYPE_CHECKING:
    from relprop.propagation.run.module_hooks import ModuleHooks
from relprop.trees import tensors_in


@dataclass(frozen=True)
class Choice:
    """The rule that was chosen for one call of an operation.

    Attributes:
        rule: the rule; None where autograd alone is right.
        position: where its entry stands in the registry, -1 for none.
        default: it is what the operation does without any entry.
        filter: a rule that acts on the output, whatever the operation (Block, Mask, ...).
    """

    rule: Any = None
    position: int = -1
    default: bool = True
    filter: Any = None


class Selector(Protocol):
    """What a call asks of a registry of rules that was bound to a model.

    Attributes:
        reaches_zeros: where rules give relevance to inputs of zero: "nowhere", at the "first" layers, "everywhere".
        last: the rule for the last layers, if there is one.
    """

    reaches_zeros: str
    last: Choice | None

    def select(
        self,
        kind: str,
        operation: str,
        name: str,
        module: nn.Module | None,
        layer_type: type[nn.Module] | None = None,
        first: bool = False,
        earlier: Sequence[str] = (),
    ) -> Choice: ...


class LinearCall(Protocol):
    """A linear call of the forward pass; see :class:`relprop.propagation.call.linear_call.Site`."""

    key: tuple[str, int]
    superseded: bool

    def release(self) -> None: ...

    def record_last(self, reached: set[Any]) -> None: ...

    def effective_bias(self) -> Tensor | None: ...


class Cache(Protocol):
    """What keeps modified weights between calls."""

    def get(self, key: Hashable, weight: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor: ...


@dataclass
class Call:
    """One attribution on one thread.

    Attributes:
        selector: the rules; None lets autograd differentiate everything as it is.
        operations: the rows of what the model may call, by function.
        create_graph: the relevance will be part of a loss.
        measuring: relevance is measured at every call (for a report).
        strict: an operation without a rule is an error.
        looking: what the rules return is looked at, number by number, for the first that is not finite.
        recording: every call is recorded (for a plan); measuring implies it.
        cache: keeps modified weights from call to call.
        table: the rows that a method runs, where these are not those of the rules; what they miss is run as it is.
        make_site: gives the site of a linear call where there are no rules, from its ``Here``, geometry, input, and
            weight and bias; None, or a result of None, lets autograd differentiate the call.
        open_ended: somebody else runs the forward and the backward, so that not every consumer of a tensor is
            seen, and every leaf that asks for a gradient is an input.
        ended: nothing that is explained is still to come in the forward pass, which goes on natively.
        called: the names of the modules that ran.
        linear: the names of the modules of the linear calls that ran, in order.
        without_gradient: a part of the model ran under ``no_grad`` or ``inference_mode``.
        blocked: a filter stands somewhere that lets no relevance pass.
        around: the filters at what the running operation is part of: they act on that as one.
        loop: the loop whose steps are running, if any: their records are shown together.
        hooks: the hooks on the modules, while the model runs.
        explaining: the phase; see :mod:`relprop.propagation.call.autograd_functions`.
    """

    model: nn.Module
    selector: Selector | None
    operations: Table
    create_graph: bool = False
    measuring: bool = False
    strict: bool = False
    looking: bool = False
    recording: bool = False
    cache: Cache | None = None
    table: Table | None = None
    make_site: Callable[[Any, Any, Tensor, tuple[Tensor | None, ...]], Any] | None = None
    open_ended: bool = False
    without_gradient: bool = False
    blocked: bool = False
    around: tuple[Any, ...] = ()
    loop: object = None
    hooks: ModuleHooks | None = None
    explaining: bool = True
    zeros_reach_input: bool = False
    reading_input: bool = False
    ended: bool = False
    stack: list[tuple[str, nn.Module]] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    entered: list[Entered] = field(default_factory=list)
    before_last: set[Any] = field(default_factory=set)
    called: set[str] = field(default_factory=set)
    linear: list[str] = field(default_factory=list)
    warned: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.protected = Protected(self.model)
        self.graph = Graph(partial(_is_input, self.protected) if self.open_ended else None)
        self.origins = Origins()
        self.saving = CopyOnWrite()
        self.formulas = Formulas(self.saving)
        self.tokens: list[Tokens] = []
        self.starts: list[Tensor] = []
        self.recording = self.recording or self.measuring
        self.sites: list[LinearCall] = []
        self.hidden: dict[Any, tuple[Any, Where, Record | None, set[int]]] = {}

    def handles_zeros(self, x: Tensor) -> bool:
        """Say whether relevance may reach entries of zero in ``x``.

        Where only rules for the first layer give relevance to zeros, what lies beyond a linear map receives none:
        relevance flows from it to the first layer, not back.
        """
        if self.selector is None or self.selector.reaches_zeros == "nowhere":
            return False
        return self.selector.reaches_zeros == "everywhere" or self.graph.reach(x) != BEYOND_LINEAR

    @property
    def place(self) -> tuple[str, nn.Module | None]:
        """The name and the innermost module that is running."""
        return self.stack[-1] if self.stack else ("", self.model)

    @contextmanager
    def repeating(self) -> Iterator[None]:
        """Show what is alike in the steps that run inside as one row of a plan or report."""
        outer, self.loop = self.loop, object()
        try:
            yield
        finally:
            self.loop = outer

    @property
    def outside_model(self) -> bool:
        """Say whether what runs is the user's own code in an ``attach`` block, in no module."""
        return self.open_ended and not self.stack

    # What rules and handlers explain with ------------------------------------------------------

    def constant(self, x: Tensor) -> Tensor:
        """Return ``x`` as a constant: nothing passes while explaining, everything afterwards."""
        self.graph.hold(x)
        if not self.create_graph:
            return x.detach()
        out = self.scale(x, 0.0)
        self.graph.overwrite(out, x.detach())  # to the rules it depends on nothing, whatever its node says
        return out

    def scale(self, x: Tensor, factor: float | Tensor) -> Tensor:
        """Return ``x``; the coefficient that passes back is multiplied by ``factor``."""
        return apply(Scale, self, x, factor)

    def switch(self, native: Tensor, surrogate: Tensor) -> Tensor:
        """Return the value of ``native``, explained as ``surrogate``."""
        return apply(Switch, self, native if self.create_graph else native.detach(), surrogate)

    def safe(self, a: Tensor) -> Tensor:
        """Return ``a``, made safe to divide by where relevance reaches units of zero."""
        return safe(a) if self.handles_zeros(a) else a

    def relevance(self, a: Tensor, c: Tensor) -> Tensor:
        """Return ``R = a c``; of complex numbers, for which autograd conjugates, the real part of ``a conj(c)``."""
        if a.is_complex():
            return (a * c.conj()).real
        nowhere = self.selector is None or self.selector.reaches_zeros == "nowhere"
        if nowhere or (self.reading_input and not self.zeros_reach_input):
            return a * c
        return safe(a) * c

    # Roots -------------------------------------------------------------------------------------

    def root(self, value: Tensor, connected: bool) -> Tensor:
        """Return a non-leaf copy of the value, from which activity starts."""
        source = value if connected else value.detach().requires_grad_()
        with torch.enable_grad():
            start = source.clone()
        self.graph.add_root(start)
        self.starts.append(start)
        return start

    def give(self, given: Any) -> None:
        """Note what the model is given beside what is explained: it is data."""
        for tensor in tensors_in(given):
            if not self.graph.reach(tensor):
                self.origins.note_data(tensor)
                self.protected.give(tensor)

    def view(self, x: Tensor) -> Tensor:
        """Return the same values with a node of their own."""
        out = x.view_as(x)
        self.graph.reach(out)
        self.origins.note(out, self.origins.with_itself(x))
        return out

    # Names of what is not covered ---------------------------------------------------------------

    def name_uncovered(self, operation: str, why: str, place: tuple[str, nn.Module | None] | None = None) -> bool:
        """Warn, once an operation and place, that no rule covers it; with ``strict`` raise. Say whether it was new."""
        name, module = place or self.place
        where = f"module {name!r} ({type(module).__name__})" if name else f"{type(module).__name__}"
        message = f"{operation} in {where} {why}"
        if self.strict:
            raise UncoveredOperationError(message)
        new = message not in self.warned
        if new:
            self.warned.add(message)
            warn(message, UncoveredOperationWarning)
        return new

    def name_backward_hooks(self, where: str) -> None:
        """Warn, once a place, that backward hooks are called with coefficients."""
        message = (
            f"{where} has backward hooks, which are called with coefficients "
            "(relevance over activation) in place of gradients while relevance is explained; what they return stands "
            "for the coefficients. Remove the hooks if that is not meant."
        )
        if self.selector is not None and message not in self.warned:
            self.warned.add(message)
            warn(message, BackwardHookWarning)

    def reach_seen(self, tensor: Tensor) -> int:
        """Return how far a tensor with a node is from the input; name it where no seen call made it."""
        base = tensor._base  # views get new nodes when their base changes
        seen = self.graph.knows(tensor) or (base is not None and base.grad_fn is not None and self.graph.knows(base))
        reach = self.graph.reach(tensor)
        if reach and not seen:
            self._name_unseen(tensor)
        if self.hidden and tensor.grad_fn in self.hidden:
            self._filter_unseen(tensor)
            return self.graph.reach(tensor)
        return reach

    def _name_unseen(self, tensor: Tensor) -> None:
        """Name the autograd node that made an active tensor outside every call that was seen."""
        node = tensor.grad_fn
        assert node is not None
        title = node.name()
        if title == "CheckpointFunctionBackward":
            raise ModelError(
                "Reentrant gradient checkpointing hides the network from relprop. "
                "Call torch.utils.checkpoint.checkpoint(..., use_reentrant=False)."
            )
        made_by = getattr(node, "_forward_cls", None)
        if self.create_graph and once_differentiable(made_by):
            raise UncoveredOperationError(f"{title} is once_differentiable; create_graph needs its second derivative.")
        choice = Choice() if self.selector is None else self.selector.select(Kind.UNSEEN, title, *self.place)
        covered = choice.filter is not None and choice.filter.blocks
        if not covered:
            why = (
                "was made by no call relprop can see; plain autograd carries its relevance. If that is a kernel or an "
                "autograd function of your own, relprop.operation says what it is."
            )
            if made_by is not None and made_by in self.operations:
                apply = f"{made_by.__name__}.apply"
                why = (
                    f"was made by an earlier {apply}, taken before relprop.operation made it visible; plain autograd "
                    f"carries its relevance. Declare the operation before the model takes {apply}, or take it anew."
                )
            self.name_uncovered(title, why)
        record = None
        if self.recording:
            name, module = self.place
            shape = tuple(tensor.shape)
            record = Record(name, type(module).__name__, title, Kind.UNSEEN, covered=covered, output=shape)
            record.rule = "" if choice.filter is None else repr(choice.filter)
            self.records.append(record)
        if choice.filter is not None:
            self.hidden[node] = choice.filter, Where(title, *self.place), record, set()

    def _filter_unseen(self, tensor: Tensor) -> None:
        """Put the filter that stands at an unseen node behind one of its outputs, once."""
        rule, where, record, done = self.hidden[tensor.grad_fn]
        if tensor.output_nr not in done:
            done.add(tensor.output_nr)
            filter_unseen(self, rule, where, tensor, record)

    # The end -----------------------------------------------------------------------------------

    def end_forward(self) -> None:
        """Let the rest of the forward pass take no part: all that is explained was read."""
        self.ended, self.recording = True, False
        self.called.difference_update(name for name, _ in self.stack)  # in which something may be to come

    def forget_forward(self) -> None:
        """Let go of what only the forward needed."""
        self.graph.clear()
        self.origins.clear()
        self.formulas.clear()
        self.stack.clear()
        self.starts.clear()
        self.hidden.clear()
        for site in self.sites:
            site.release()

    def close(self) -> None:
        """End the explanation: from here on every primitive differentiates truly."""
        self.explaining = False
        self.before_last = set()
        self.forget_forward()
        self.saving.clear()
        self.protected.clear()
        self.sites.clear()  # which hold this call, as methods of these may: nothing waits for the garbage collector
        self.table = self.make_site = None
        for tokens in self.tokens:
            tokens.clear()


def _is_input(protected: Protected, leaf: Tensor) -> bool:
    """Say whether a leaf of an open-ended call is an input: whatever asks for a gradient and is no parameter."""
    return leaf.requires_grad and not protected.registers(leaf)
