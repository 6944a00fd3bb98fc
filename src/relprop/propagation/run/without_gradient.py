"""What was computed without gradients from the explained input: its relevance is cut, and that is named once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from relprop.propagation.call.call import Call
from relprop.propagation.call.trace import Record
from relprop.propagation.facts.operation import Kind, Operation
from relprop.trees import tensors_in


@dataclass(frozen=True)
class Cut:
    """Where something was computed without gradients: the operation, the module, the shape of what it made, and why."""

    operation: str
    name: str
    module: nn.Module | None
    shape: tuple[int, ...]
    why: str = (
        "ran under torch.no_grad (or inference_mode); what it makes of the input counts as a constant, and its "
        "relevance is cut. Let it record gradients, or say by .detach() that a constant is meant."
    )


class Cuts:
    """The floating tensors that depend on the input without a gradient that says so, as long as they live.

    Comparisons and indices are no cuts, since they have no slope; nor is what the model detaches itself.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    @property
    def exist(self) -> bool:
        """Say whether there is one at all."""
        return bool(self._known)

    def note(self, operation: str, tensors: Sequence[Tensor], made: Any, recording: bool) -> None:
        """Follow a call that carries no relevance; where it is not ``recording`` gradients, it may begin a cut."""
        call = self._call
        cut: Cut | None = next((self._known[x] for x in tensors if x in self._known), None)
        if cut is None and not recording:
            embeds = operation == "embedding" and any(tokens.holds(x) for tokens in call.known.tokens for x in tensors)
            if embeds or any(map(call.known.graph.active, tensors)):
                cut = Cut(operation, *call.place, tuple(found[0].shape) if (found := tensors_in(made)) else ())
        if cut is None:
            return
        self.begin(cut, made)

    def begin(self, cut: Cut, made: Any) -> None:
        """Follow what was made of numbers that were read from the input."""
        for tensor in tensors_in(made):
            if (tensor.is_floating_point() or tensor.is_complex()) and not self._call.known.graph.active(tensor):
                self._call.known.origins.note_data(tensor)
                self._known[tensor] = cut

    def among(self, tensors: Sequence[Tensor]) -> list[Cut]:
        """Return the cuts among the arguments of a call; what a filter made a constant is none."""
        graph, hidden = self._call.known.graph, self._call.unseen
        return [self._known[x] for x in tensors if x in self._known and not graph.active(x) and x.grad_fn not in hidden]

    def name(self, cuts: list[Cut], made: Any) -> None:
        """Name the cuts that a call with relevance has taken in, if what it made carries relevance."""
        call = self._call
        if not call.way.explains or not any(map(call.known.graph.active, tensors_in(made))):
            return
        for cut in cuts:
            named = call.coverage.uncovered(cut.operation, cut.why, (cut.name, cut.module))
            if named and call.trace.recording:
                record = Record(cut.name, type(cut.module).__name__, cut.operation, "no_grad", covered=False)
                record.output, record.notes = cut.shape, ["its relevance is cut"]
                call.trace.records.append(record)


def makes_constants(row: Operation | None) -> bool:
    """Say whether an operation is meant to give a constant, whatever tensor it is given."""
    return row is not None and (row.kind is Kind.CONSTANT or row.name == "detach")
