"""Backward variants of the ReLU, for methods that differentiate all else as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from relprop.errors import NoEffectWarning, warn
from relprop.propagation.call.operation_call import Here
from relprop.propagation.call.relus import comparisons, like_output, rectified, rectifiers
from relprop.propagation.facts.graph import any_node
from relprop.propagation.facts.operation import Holds, Table
from relprop.propagation.run.forward import Forward

Variant = Callable[[Here, Tensor], Tensor]
"""From what is rectified to what its ReLU is explained as."""


def name_without_relu(passed: Forward, title: str) -> None:
    """Warn where no ReLU lies between the input and what is explained."""
    if not any_node(passed.selected, lambda node: hasattr(node, "rectifies")):
        warn(
            f"{title} met no ReLU between the input and the explained output, and is the plain gradient there. It is "
            "defined for ReLU networks: of a model with other activations take LRP, or Gradient for the gradient.",
            NoEffectWarning,
        )


def variants(variant: Variant, operations: Table) -> Table:
    """Return the table of a method that explains every ReLU otherwise; those of recurrent layers count too."""

    def run(here: Here, *args: Any, **kwargs: Any) -> Any:
        out = here.func(*args, **kwargs)
        h = rectified(here, args, kwargs)
        return out if h is None else here.call.switch(out, variant(here, like_output(h, out)))

    return {
        **{function: replace(row, handler=run) for function, row in rectifiers(operations)},
        **dict(comparisons(operations)),
        **{function: row for function, row in operations.items() if Holds.RELU in row.holds},
    }
