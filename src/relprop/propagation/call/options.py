"""What one attribution was asked for."""

from __future__ import annotations

from dataclasses import dataclass

from relprop.propagation.call.weight_cache import WeightCache


@dataclass(frozen=True)
class Options:
    """What one attribution was asked for; it does not change while it runs.

    Attributes:
        create_graph: the relevance will be part of a loss.
        measuring: relevance is measured at every call, for a report.
        recording: every call is recorded, for a plan; measuring implies it.
        strict: an operation without a rule is an error.
        looking: the second look at a map that is not finite: nothing arrives from a coefficient of zero, and what the
            rules return and every call sends on is looked at, number by number, for the first that is not finite.
        open_ended: somebody else runs the forward and the backward, so that not every consumer of a tensor is seen,
            and every leaf that asks for a gradient is an input.
        cache: keeps modified weights from call to call.
    """

    create_graph: bool = False
    measuring: bool = False
    recording: bool = False
    strict: bool = False
    looking: bool = False
    open_ended: bool = False
    cache: WeightCache | None = None
