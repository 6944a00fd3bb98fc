"""What is named to the user: operations that no rule covers, and hooks that see coefficients."""

from __future__ import annotations

from torch import nn

from relprop.errors import (
    BackwardHookWarning,
    ProbabilityWarning,
    RelpropWarning,
    UncoveredOperationError,
    UncoveredOperationWarning,
    warn,
)
from relprop.propagation.call.returned import Where
from relprop.propagation.call.trace import Trace


class Coverage:
    """What was named in one call: each thing once.

    Attributes:
        trace: says where the forward pass is.
        strict: an operation without a rule is an error.
        hooks_see_coefficients: relevance passes by rules, so that hooks on gradients are given coefficients.
    """

    def __init__(self, trace: Trace, strict: bool, hooks_see_coefficients: bool) -> None:
        self.trace, self.strict, self.hooks_see_coefficients = trace, strict, hooks_see_coefficients
        self._said: set[str] = set()

    def uncovered(self, operation: str, why: str, place: tuple[str, nn.Module | None] | None = None) -> bool:
        """Warn, once an operation and place, that no rule covers it; with ``strict`` raise. Say whether it was new."""
        name, module = place or self.trace.place
        where = f"module {name!r} ({type(module).__name__})" if name else f"{type(module).__name__}"
        message = f"{operation} in {where} {why}"
        if self.strict:
            raise UncoveredOperationError(message)
        return self._say(message, UncoveredOperationWarning)

    def backward_hooks(self, where: str) -> None:
        """Warn, once a place, that backward hooks are called with coefficients."""
        if self.hooks_see_coefficients:
            self._say(
                f"{where} has backward hooks, which are called with coefficients "
                "(relevance over activation) in place of gradients while relevance is explained; what they return "
                "stands for the coefficients. Remove the hooks if that is not meant.",
                BackwardHookWarning,
            )

    def probability(self, where: Where, layer: str) -> None:
        """Warn, once a place, that what is explained is a softmax or a sigmoid."""
        unit = (
            f"with target=relprop.Unit({layer!r}, index), the output of the layer before"
            if layer
            else "with target=relprop.Unit(layer, index) for the layer that returns them"
        )
        self._say(
            f"What is explained comes from a {where.operation} ({where}), and the rules absorb most of a probability, "
            "as a report shows: the map explains what is left. Explain the scores that the probability is made of: "
            f"{unit}, or a model without this last step.",
            ProbabilityWarning,
        )

    def _say(self, message: str, category: type[RelpropWarning]) -> bool:
        new = message not in self._said
        if new:
            self._said.add(message)
            warn(message, category)
        return new
