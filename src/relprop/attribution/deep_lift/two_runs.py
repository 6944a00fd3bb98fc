"""Two passes side by side: the pass that is explained finds, call by call, what the pass on the baselines computed."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from relprop.errors import ModelError
from relprop.propagation.call.call import Call
from relprop.propagation.call.options import Options
from relprop.propagation.call.way import Way
from relprop.propagation.facts.operation import Table
from relprop.propagation.facts.origins import Origin
from relprop.propagation.facts.saved import Saved
from relprop.propagation.run.forward import Forward

if TYPE_CHECKING:
    from relprop.propagation.call.operation_call import Here


@dataclass(frozen=True)
class Noted:
    """What one call of an operation was given in the pass on the baselines."""

    operation: str
    module: str
    given: tuple[Saved, ...]


class PairedCall(Call):
    """One of two passes: that on the baselines, which notes, or the one that is explained, which follows it.

    The two run one after the other and not as one batch, so that a model may mix samples, fix the size of its batch,
    or put the batch in any dimension.

    Attributes:
        reference: the call of the pass on the baselines; None in that pass.
        reveal: of what a linear map adds up, the size of the terms is kept too, for RevealCancel.
        noted: what the pass on the baselines met, in order, until it is followed.
        counterparts: the values at which relevance is read, each with its value in the other pass.
    """

    def __init__(self, model: nn.Module, way: Way, operations: Table, options: Options, *, reveal: bool) -> None:
        super().__init__(model, way, operations, options)
        self.reveal = reveal
        self.reference: PairedCall | None = None
        self.noted: deque[Noted] = deque()
        self.counterparts: list[tuple[Tensor, Tensor]] = []

    def follow(self, reference: PairedCall) -> None:
        """Go where the pass on the baselines went."""
        self.reference = reference

    def others(self, here: Here, *tensors: Tensor) -> tuple[Tensor, ...] | None:
        """Return what these arguments were in the pass on the baselines; None in that pass, which notes them.

        Raises:
            ModelError: where the passes differ in what they call.
        """
        if self.reference is None:
            given = (
                self.known.saving.save(tensor if self.options.create_graph else tensor.detach()) for tensor in tensors
            )
            self.noted.append(Noted(here.operation, self.trace.place[0], tuple(given)))
            return None
        if not self.reference.noted:
            raise ModelError(f"{_strays(here.operation, self.trace.place[0])}, and for the baselines nothing more.")
        noted = self.reference.noted.popleft()
        found = tuple(saved.tensor for saved in noted.given)
        same = (noted.operation, noted.module) == (here.operation, self.trace.place[0])
        if not same or [x.shape for x in found] != [x.shape for x in tensors]:
            raise ModelError(
                f"{_strays(here.operation, self.trace.place[0])}, and for the baselines {noted.operation} in module "
                f"{noted.module!r} on {[tuple(x.shape) for x in found]}. Give baselines that go the same way."
            )
        return found

    def finish(self, before: Forward, passed: Forward) -> None:
        """Pair what relevance is read at, now that both passes are over.

        Raises:
            ModelError: where the pass on the baselines went on.
        """
        if self.reference is not None and self.reference.noted:
            noted = self.reference.noted[0]
            raise ModelError(f"{_strays('nothing more', '', noted)}. Give baselines that go the same way.")
        for start, other in zip(passed.starts, before.starts, strict=True):
            roots = zip(start.roots, other.roots, strict=True)
            self.counterparts.extend((root.value, there.value) for root, there in roots)
        for name, passages in passed.passages.items():
            for passage, there in zip(passages, before.passages[name], strict=True):
                values = zip(passage.values, there.values, strict=True)
                self.counterparts.extend((saved.tensor, other.tensor) for saved, other in values)
        passed.references = [tensor if self.options.create_graph else tensor.detach() for tensor in before.selected]

    def close(self) -> None:
        super().close()
        if self.reference is not None:
            self.reference.close()
        self.counterparts.clear()
        self.noted.clear()

    def counterpart(self, value: Tensor) -> Tensor:
        """Return what a value is in the pass on the baselines."""
        return next(other for own, other in self.counterparts if own is value)

    # What linear maps add up -------------------------------------------------------------------

    def note_spread(self, out: Tensor, spread: Tensor | None) -> None:
        """Remember the sum of the sizes of the terms of an output; in the pass on the baselines, that there is one."""
        self.known.origins.note(out, Origin(spread=torch.empty(0) if spread is None else spread))

    def spread(self, x: Tensor) -> Tensor | None:
        """Return the sum of the sizes of the terms that a value was added up from, where that is known."""
        return self.known.origins.of(x).spread


def _strays(operation: str, module: str, noted: Noted | None = None) -> str:
    start = "The model goes another way for the inputs than for the baselines: for the inputs it calls"
    if noted is not None:
        return f"{start} {operation}, and for the baselines {noted.operation} in module {noted.module!r}"
    return f"{start} {operation} in module {module!r}"
