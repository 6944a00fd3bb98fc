"""What is explained: numbers read off the model's output, or off that of one of its modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

from relprop.errors import TargetError, TargetIndexError
from relprop.propagation.call.call import Call

Pick: TypeAlias = Callable[[Any], Tensor]


@dataclass(frozen=True)
class ReadLayer:
    """A reading of the output of a module, in the place of the model's.

    Attributes:
        layer: the name of the module.
        pick: from that output to one number per sample.
        number: which of its calls is meant, from 0; None where it is called once.
    """

    layer: str
    pick: Pick
    number: int | None = None


Reading: TypeAlias = "Pick | ReadLayer"


class Target(nn.Module):
    """What runs while a target is read: no module of the model, so that no rule set at one acts on it."""


_TARGET = Target()


class Readings:
    """The readings of one forward pass.

    The output of a module is read as the module returns it: what the model writes into it later changes nothing. As
    soon as nothing is left to read, the rest of the forward pass takes no part in the explanation.

    Attributes:
        layers: the modules whose outputs are read.
    """

    def __init__(self, call: Call, readings: Sequence[Reading]) -> None:
        self.layers = frozenset(reading.layer for reading in readings if isinstance(reading, ReadLayer))
        self._call = call
        self._readings = tuple(readings)
        self._found: dict[int, Tensor] = {}
        self._calls: Counter[str] = Counter()

    def take(self, name: str, output: Any) -> None:
        """Read what is asked of the output of a module."""
        number = self._calls[name]
        self._calls[name] += 1
        for position, reading in enumerate(self._readings):
            if isinstance(reading, ReadLayer) and reading.layer == name and (reading.number or 0) == number:
                self._found[position] = self._pick(reading.pick, output)
        if len(self._found) == len(self._readings):
            self._call.end_forward()

    def finish(self, output: Any) -> list[Tensor]:
        """Return every reading, now that the model has returned its output.

        Raises:
            TargetError: where a module was not called, or more than once without a word on which call is meant.
            TargetIndexError: where it was called less often.
        """
        for position, reading in enumerate(self._readings):
            if isinstance(reading, ReadLayer):
                self._check(reading)
            else:
                self._found[position] = self._pick(reading, output)
        return [self._found[position] for position in range(len(self._readings))]

    def _pick(self, pick: Pick, output: Any) -> Tensor:
        """Pick the numbers as part of no module, so that no rule set at one acts on the selection."""
        call = self._call
        stack, recording = call.trace.stack, call.trace.recording
        # What the target does is part of a report, not of the model's plan.
        call.trace.stack, call.trace.recording = [("", _TARGET)], call.options.measuring
        try:
            return pick(output).clone()  # the model may go on to write into what it returned so far
        finally:
            call.trace.stack, call.trace.recording = stack, recording

    def _check(self, reading: ReadLayer) -> None:
        name, calls, number = reading.layer, self._calls[reading.layer], reading.number
        if not calls:
            raise TargetError(
                f"Module {name!r} was not called in this forward pass, or returned nothing; it has no unit to explain."
            )
        if number is None and calls > 1:
            raise TargetError(
                f"Module {name!r} was called {calls} times in this forward pass; say which call is meant: "
                f"Unit({name!r}, ..., call=0) is the first, call={calls - 1} the last."
            )
        if number is not None and number >= calls:
            raise TargetIndexError(
                f"Module {name!r} was called {calls} time{'s' if calls > 1 else ''} in this forward pass; there is no "
                f"call={number} (they count from 0)."
            )


# A softmax or a sigmoid that is explained -------------------------------------------------------------

_MOVES = (
    "Alias", "Clone", "Copy", "Expand", "Gather", "Index", "IndexSelect", "Permute", "ReshapeAlias", "Select", "Slice",
    "Squeeze", "T", "Tap", "ToCopy", "Transpose", "Unbind", "UnsafeView", "Unsqueeze", "View",
)  # fmt: skip
"""The autograd nodes of what moves values; where there are two sources, the last is what takes the place."""


def name_probabilities(call: Call, explained: Tensor) -> None:
    """Warn where what is explained is a softmax or a sigmoid, from which nothing but a selection leads to it."""
    node: Any = explained.grad_fn if call.squashed else None
    while node is not None:
        found = call.squashed.get(node)
        if found is not None:
            call.coverage.probability(*found)
            return
        sources = [source for source, _ in node.next_functions if source is not None]
        node = sources[-1] if sources and type(node).__name__.rpartition("Backward")[0] in _MOVES else None
