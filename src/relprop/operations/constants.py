"""What has no slope, and what no rule covers: no relevance passes it, and something is known of it all the same."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from relprop.operations.rows import Rows, constant, without_rule
from relprop.propagation.facts.operation import Difference, Function, Ids, Kind, Truth, Writes
from relprop.propagation.run.in_place import copied


def _function(function: Function, name: str, ids: Ids) -> Rows:
    """Return the row of one function, or property of tensors, whose value is a constant."""
    _, row = constant("new_empty", ids=ids, truth=Truth.NOTHING)[0]
    return [(function, replace(row, name=name))]


def _property(name: str) -> Function:
    """Return the function that gets a property of tensors."""
    getter: Function = getattr(Tensor, name).__get__
    return getter


def _uncovered(*names: str, difference: Difference, ids: Ids) -> Rows:
    """What no rule covers: it is named where it runs, and plain autograd carries its relevance."""
    return without_rule(
        *names, kind=Kind.UNKNOWN, difference=difference, ids=ids, truth=Truth.NOTHING, writes=Writes.NOTHING, pure=None
    )


# The rows ----------------------------------------------------------------------------------------

ROWS: Rows = [
    # Questions, answered by truth values: against zero the answer is a mask.
    *constant("gt", "greater", "ge", "greater_equal", "__gt__", "__ge__", ids=Ids.COMPARES, truth=Truth.ABOVE),
    *constant("lt", "less", "le", "less_equal", "__lt__", "__le__", ids=Ids.COMPARES, truth=Truth.BELOW),
    *constant("logical_not", "bitwise_not", "__invert__", ids=Ids.NONE, truth=Truth.NEGATES),
    *constant("bool", ids=Ids.NONE, truth=Truth.KEEPS),
    # Integers.
    *constant("long", "int", "short", "byte", ids=Ids.COPIES, truth=Truth.KEEPS),
    *constant(
        "bitwise_and", "__and__", "__rand__", "bitwise_or", "__or__", "__ror__", "bitwise_xor", "__xor__", "__rxor__",
        "bitwise_left_shift", "__lshift__", "__rlshift__", "bitwise_right_shift", "__rshift__", "__rrshift__",
        "bucketize", ids=Ids.CHANGES, truth=Truth.NOTHING,
    ),
    *constant("ne", "not_equal", "__ne__", "isnan", ids=Ids.COMPARES, truth=Truth.NOTHING),
    *constant("eq", "__eq__", ids=Ids.COMPARES, truth=Truth.NOTHING),
    *constant("one_hot", ids=Ids.ONE_HOT, truth=Truth.NOTHING),
    # New tensors, and the same without its past.
    *constant("__deepcopy__", "detach_", ids=Ids.COPIES, truth=Truth.NOTHING),
    *_function(_property("data"), "data", Ids.COPIES),
    *_function(_property("grad"), "grad", Ids.NONE),
    *_function(torch.autograd.grad, "grad", Ids.NONE),
    *constant(
        "new", "tensor", "new_tensor", "new_empty", "new_empty_strided", "new_full", "new_ones", "new_zeros",
        "empty_like", "full_like", "ones_like", "zeros_like", "rand_like", "randint_like", "randn_like", ids=Ids.NONE,
        truth=Truth.NOTHING,
    ),
    # Numbers written over a whole tensor.
    *constant("fill_", ids=Ids.NONE, truth=Truth.NOTHING, writes=Writes.FILLS, pure=copied),
    *constant(
        "zero_", "normal_", "uniform_", "random_", "exponential_", "geometric_", "cauchy_", "log_normal_",
        "bernoulli_", ids=Ids.NONE, truth=Truth.NOTHING, writes=Writes.FILLS,
    ),
    # Of what no rule covers: where it moves ids, and where its secant is exact.
    *_uncovered("unique", "unique_consecutive", difference=Difference.UNCOVERED, ids=Ids.LOSES),
    *_uncovered("lgamma", "digamma", "polygamma", difference=Difference.POLES, ids=Ids.CHANGES),
]  # fmt: skip
