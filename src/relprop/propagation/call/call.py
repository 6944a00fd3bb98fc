"""The state of one attribution. It is made with the call and gone with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from relprop.errors import ModelError, UncoveredOperationError
from relprop.propagation.call.autograd_functions import Below, Scale, Switch, apply
from relprop.propagation.call.coverage import Coverage
from relprop.propagation.call.options import Options
from relprop.propagation.call.returned import Where
from relprop.propagation.call.trace import Record, Trace
from relprop.propagation.call.unseen import filter_unseen
from relprop.propagation.call.visible import made_by_user, once_differentiable
from relprop.propagation.call.way import Autograd, Way, Zeros
from relprop.propagation.facts.graph import Reach
from relprop.propagation.facts.known import Known
from relprop.propagation.facts.operation import Kind, Table
from relprop.propagation.facts.protection import Protected
from relprop.propagation.math.numerics import safe
from relprop.trees import tensors_in

if TYPE_CHECKING:
    from relprop.propagation.call.linear_call import LinearCall
    from relprop.propagation.run.module_hooks import ModuleHooks


class Call:
    """One attribution on one thread: what a method's ``make_call`` returns, and its ``result`` is given.

    Attributes:
        model: what is explained.
        way: how the method passes through it: by rules, or as autograd does.
        operations: the rows of what the model may call, by function.
        options: what was asked.
        known: what is known of tensors.
        trace: where the forward pass is, and what it has met.
        coverage: what was named to the user.
        explaining: the phase; see :mod:`relprop.propagation.call.autograd_functions`.
        ended: nothing that is explained is still to come in the forward pass, which goes on natively.
        without_gradient: a part of the model ran under ``no_grad`` or ``inference_mode``.
        starts: the tensors that the model was given, from which activity starts.
        linear_calls: the linear calls of the forward pass.
        before_last: the nodes from which some path to the target passes a linear map.
        below_zeros: the marks of what relevance of a rule that reaches zeros may come to; None where that is not known.
        zeros_reach_input, reading_input: whether relevance may have come to inputs of zero, and is read there now.
        above: by the mark of a function with a constant, the rule of a layer above it that shares by sign.
        blocked: a filter stands somewhere that lets no relevance pass.
        passed_whole: a filter stands somewhere that hands relevance on whole, to units of zero too.
        around: the filters at what the running operation is part of: they act on that as one.
        hooks: the hooks on the modules, while the model runs.
        squashed: the nodes of softmax and sigmoid behind linear maps: where each stands, and the layer that makes its
            scores, where one is known.
        unseen: the filters at autograd nodes that no seen call made, by node.

    >>> from relprop import Attribution, Contract
    >>> class CoefficientTimesInput(Attribution):
    ...     '''Gradient x Input.'''
    ...     contract = Contract("1", "relevance")
    ...     def result(self, call: Call, x: Tensor, c: Tensor) -> Tensor:
    ...         return call.relevance(x, c)
    >>> model = nn.Linear(2, 1)
    >>> _ = model.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    >>> CoefficientTimesInput(model).attribute(torch.tensor([[1.0, 2.0]]))
    tensor([[ 3., -2.]])
    """

    def __init__(self, model: nn.Module, way: Way, operations: Table, options: Options | None = None) -> None:
        self.model, self.way, self.operations = model, way, operations
        self.options = options or Options()
        self.known = Known(model, _is_input if self.options.open_ended else None)
        self.trace = Trace(model, self.options.recording or self.options.measuring)
        self.coverage = Coverage(self.trace, self.options.strict, way.explains)
        self.explaining = True
        self.ended = False
        self.without_gradient = False
        self.starts: list[Tensor] = []
        self.linear_calls: list[LinearCall] = []
        self.before_last: set[Any] = set()
        self.below_zeros: set[Any] | None = None
        self.zeros_reach_input = False
        self.reading_input = False
        self.above: dict[Any, Any] | None = None
        self.blocked = False
        self.passed_whole = False
        self.around: tuple[Any, ...] = ()
        self.hooks: ModuleHooks | None = None
        self.squashed: dict[Any, tuple[Where, str]] = {}
        self.unseen: dict[Any, tuple[Any, Where, Record | None, set[int]]] = {}

    def handles_zeros(self, x: Tensor) -> bool:
        """Say whether relevance may reach entries of zero in ``x``.

        Where only rules for the first layer give relevance to zeros, what lies beyond a linear map receives none:
        relevance flows from it to the first layer, not back.
        """
        if self.way.zeros is Zeros.NOWHERE or x.layout != torch.strided:  # a sparse matrix leaves its zeros out
            return False
        return self.way.zeros is Zeros.EVERYWHERE or self.known.graph.reach(x) is not Reach.BEYOND_LINEAR

    def zeros_above(self, mark: object) -> bool:
        """Say whether relevance may come there from a rule that reaches zeros, now that the graph is complete."""
        return self.below_zeros is None or mark in self.below_zeros

    @property
    def place(self) -> tuple[str, nn.Module | None]:
        """The name and the innermost module that is running."""
        return self.trace.place

    @property
    def outside_model(self) -> bool:
        """Say whether what runs is the user's own code in an ``attach`` block, in no module."""
        return self.options.open_ended and not self.trace.stack

    # What rules and handlers explain with ------------------------------------------------------

    def constant(self, x: Tensor) -> Tensor:
        """Return ``x`` as a constant: nothing passes while explaining, everything afterwards."""
        self.known.graph.hold(x)
        if not self.options.create_graph:
            return x.detach()
        out = self.scale(x, 0.0)
        self.known.graph.overwrite(out, x.detach())  # to the rules it depends on nothing, whatever its node says
        return out

    def scale(self, x: Tensor, factor: float | Tensor) -> Tensor:
        """Return ``x``; the coefficient that passes back is multiplied by ``factor``."""
        return apply(Scale, self, x, factor)

    def switch(self, native: Tensor, surrogate: Tensor) -> Tensor:
        """Return the value of ``native``, explained as ``surrogate``."""
        return apply(Switch, self, native if self.options.create_graph else native.detach(), surrogate)

    def even(self, native: Tensor, even: Tensor, mark: object) -> Tensor:
        """Return ``native``, explained as ``even`` where relevance may come from a rule that reaches zeros.

        :meth:`zeros_above` says of the ``mark`` whether it does; nobody need hold the node for that.
        """
        return apply(Below, self, native, even, mark)

    def safe(self, a: Tensor) -> Tensor:
        """Return ``a``, made safe to divide by where relevance reaches units of zero."""
        return safe(a) if self.handles_zeros(a) else a

    def relevance(self, a: Tensor, c: Tensor) -> Tensor:
        """Return ``R = a c``; of complex numbers, for which autograd conjugates, the real part of ``a conj(c)``."""
        if a.is_complex():
            return (a * c.conj()).real
        if self.way.zeros is Zeros.NOWHERE or (self.reading_input and not self.zeros_reach_input):
            return a * c
        return safe(a) * c

    # Roots -------------------------------------------------------------------------------------

    def root(self, value: Tensor, connected: bool) -> Tensor:
        """Return a non-leaf copy of the value, from which activity starts."""
        source = value if connected else value.detach().requires_grad_()
        with torch.enable_grad():
            start = source.clone()
        self.known.graph.add_root(start)
        self.starts.append(start)
        return start

    def give(self, given: Any) -> None:
        """Note what the model is given beside what is explained: it is data."""
        for tensor in tensors_in(given):
            if not self.known.graph.active(tensor):
                self.known.origins.note_data(tensor)
                self.known.protected.give(tensor)

    def view(self, x: Tensor) -> Tensor:
        """Return the same values with a node of their own."""
        out = x.view_as(x)
        self.known.graph.reach(out)
        self.known.origins.note(out, self.known.origins.with_itself(x))
        return out

    # What no call that was seen has made ---------------------------------------------------------

    def active_seen(self, tensor: Tensor) -> bool:
        """Say whether a tensor with a node depends on the input; name it where no seen call made it."""
        graph, base = self.known.graph, tensor._base  # views get new nodes when their base changes
        viewed = base is not None and base.grad_fn is not None and graph.knows(base)
        seen = graph.knows(tensor) or (viewed and not made_by_user(tensor.grad_fn))
        active = graph.active(tensor)
        if active and not seen:
            self._name_unseen(tensor)
        if self.unseen and tensor.grad_fn in self.unseen:
            self._filter_unseen(tensor)
            return graph.active(tensor)
        return active

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
        if self.options.create_graph and once_differentiable(made_by):
            raise UncoveredOperationError(f"{title} is once_differentiable; create_graph needs its second derivative.")
        choice = self.way.choose(Kind.UNSEEN, title, *self.place)
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
            self.coverage.uncovered(title, why)
        record = None
        if self.trace.recording:
            name, module = self.place
            shape = tuple(tensor.shape)
            record = Record(name, type(module).__name__, title, Kind.UNSEEN, covered=covered, output=shape)
            record.rule = "" if choice.filter is None else repr(choice.filter)
            self.trace.records.append(record)
        if choice.filter is not None:
            self.unseen[node] = choice.filter, Where(title, *self.place), record, set()

    def _filter_unseen(self, tensor: Tensor) -> None:
        """Put the filter that stands at an unseen node behind one of its outputs, once."""
        rule, where, record, done = self.unseen[tensor.grad_fn]
        if tensor.output_nr not in done:
            done.add(tensor.output_nr)
            filter_unseen(self, rule, where, tensor, record)

    # The end -----------------------------------------------------------------------------------

    def end_forward(self) -> None:
        """Let the rest of the forward pass take no part: all that is explained was read."""
        self.ended = True
        self.trace.end()

    def forget_forward(self) -> None:
        """Let go of what only the forward needed."""
        self.known.forget_forward()
        self.trace.stack.clear()
        self.starts.clear()
        self.unseen.clear()
        self.squashed.clear()
        for linear in self.linear_calls:
            linear.release()

    def close(self) -> None:
        """End the explanation: from here on every primitive differentiates truly."""
        self.explaining = False
        self.before_last, self.below_zeros, self.above = set(), None, None
        self.forget_forward()
        self.known.forget()
        self.linear_calls.clear()  # which hold this call, as its way may: nothing waits for the garbage collector
        self.way.close()
        self.way = Autograd()


def _is_input(protected: Protected, leaf: Tensor) -> bool:
    """Say whether a leaf of an open-ended call is an input: whatever asks for a gradient and is no parameter."""
    return leaf.requires_grad and not protected.registers(leaf)
