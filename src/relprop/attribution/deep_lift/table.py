"""The table of DeepLIFT: what runs each function, by what its row says of differences; the unknown it names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from relprop.attribution.deep_lift import extremes as ext
from relprop.attribution.deep_lift import handlers as dif
from relprop.attribution.deep_lift import layers as lay
from relprop.attribution.deep_lift import linear
from relprop.attribution.deep_lift.secants import (
    KINKED,
    POLES,
    SCALED,
    SMOOTH,
    of_inverse_root,
    of_reciprocal,
    of_root,
    stepped,
)
from relprop.propagation.call.operation_call import native
from relprop.propagation.call.relus import comparisons
from relprop.propagation.facts.operation import Difference, Handler, Kind, Operation, Table, question

HANDLERS: dict[Difference, Handler] = {
    Difference.LINEAR: native,
    Difference.REPLACES: native,
    Difference.AVERAGES: linear.nonnegative,
    Difference.STEERED: dif.steered,
    Difference.KINKED: partial(dif.elementwise, KINKED),
    Difference.SMOOTH: partial(dif.elementwise, SMOOTH),
    Difference.POLES: partial(dif.elementwise, POLES),
    Difference.SCALED: partial(dif.elementwise, SCALED),
    Difference.STEPPED: partial(dif.elementwise, stepped),
    Difference.SQUARE: dif.square,
    Difference.SQUARE_ROOT: partial(dif.elementwise, of_root),
    Difference.INVERSE_ROOT: partial(dif.elementwise, of_inverse_root),
    Difference.RECIPROCAL: partial(dif.elementwise, of_reciprocal),
    Difference.POWER: dif.raised,
    Difference.REVERSED_POWER: dif.reversed_raised,
    Difference.HARD_SIGMOID: dif.hardsigmoid,
    Difference.RRELU: dif.rrelu,
    Difference.ADD: linear.add,
    Difference.REVERSED_SUBTRACT: linear.reversed_subtract,
    Difference.NEGATE: linear.negate,
    Difference.MULTIPLY: linear.multiply,
    Difference.DIVIDE: linear.divide,
    Difference.REVERSED_DIVIDE: dif.reversed_quotient,
    Difference.PRODUCT: dif.product,
    Difference.CONTRACTION: dif.contraction,
    Difference.DEGREE_TWO: dif.halfway,
    Difference.DEVIATION: dif.deviation,
    Difference.LAYER: linear.layer,
    Difference.MATMUL: linear.matmul,
    Difference.ADDMM: linear.addmm,
    Difference.BATCH_NORM: linear.batch_norm,
    Difference.TORCH_BATCH_NORM: linear.torch_batch_norm,
    Difference.LAYER_NORM: lay.layer_norm,
    Difference.RMS_NORM: lay.rms_norm,
    Difference.GROUP_NORM: lay.group_norm,
    Difference.INSTANCE_NORM: lay.instance_norm,
    Difference.NORM: lay.norm,
    Difference.SOFTMAX: lay.softmax,
    Difference.LOG_SOFTMAX: lay.log_softmax,
    Difference.LOGSUMEXP: lay.logsumexp,
    Difference.GLU: lay.glu,
    Difference.ATTENTION: lay.scaled_dot_product_attention,
    Difference.LARGEST: ext.extreme(True),
    Difference.SMALLEST: ext.extreme(False),
    Difference.LARGER: ext.either(True),
    Difference.SMALLER: ext.either(False),
    Difference.MAX_POOL_1D: ext.max_pool(1),
    Difference.MAX_POOL_2D: ext.max_pool(2),
    Difference.MAX_POOL_3D: ext.max_pool(3),
    Difference.ADAPTIVE_MAX_POOL_1D: ext.adaptive_max_pool(1),
    Difference.ADAPTIVE_MAX_POOL_2D: ext.adaptive_max_pool(2),
    Difference.ADAPTIVE_MAX_POOL_3D: ext.adaptive_max_pool(3),
    Difference.POWER_POOL_1D: lay.power_average_pool(1),
    Difference.POWER_POOL_2D: lay.power_average_pool(2),
    Difference.POWER_POOL_3D: lay.power_average_pool(3),
}
"""What runs an operation; of what is left, :func:`_run` says it."""

_UNCHECKED = (Difference.STEERED, Difference.MULTIPLY, Difference.DIVIDE, Difference.REPLACES)
"""What looks itself at constants, which the input may have decided, or takes no values of any."""


def _run(row: Operation) -> Operation:
    """Return a row as DeepLIFT runs it; what no rule covers may have a secant."""
    if row.difference is Difference.AS_RULES:
        return row
    if row.kind in (Kind.CONSTANT, Kind.UNKNOWN):
        row = replace(row, kind=Kind.AFFINE)
    if row.difference is Difference.UNCOVERED:
        return replace(row, handler=dif.uncovered, composite=False)
    moves = row.difference is Difference.MOVES
    handler = linear.view(row.handler) if moves else HANDLERS[row.difference]
    checked = handler if row.difference in _UNCHECKED else partial(dif.checked, handler)
    return replace(row, handler=checked, composite=False)


_UNKNOWN = question("unknown", dif.uncovered)


class Differences(Mapping[Any, Operation]):
    """What runs every function; what has no row is named where it makes something that depends on the input."""

    def __init__(self, operations: Table) -> None:
        self._known = {function: _run(row) for function, row in operations.items()}
        self._known |= dict(comparisons(operations))

    def __getitem__(self, function: Any) -> Operation:
        return self._known.get(function, _UNKNOWN)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)
