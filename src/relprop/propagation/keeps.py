"""What the output of an operation keeps of what is known of its arguments: the one table.

How it is decided stands in :mod:`relprop.propagation.inherit`.
Every operation is asked with all values that enter its output: tensors that depend on the input, constant tensors
(whose entries are never looked at) and numbers (what is filled in, padded with, added, multiplied by).
An operation that the table does not hold keeps nothing.

==================  ================================  =======================  ================  ======================
operation           bounds                            gate                     factors           function of
==================  ================================  =======================  ================  ======================
copies, same shape  as they were                      as it was                as they were      what it was, and itself
moves values        those of all values and of zero   all active ones are      all have as many  -
adds up, averages   zero, where no term is below      all active ones are      all have as many  -
adds, takes         the sum; the multiple             all active ones are,     all have as many  what all are
numbers times                                         or lifted to one sign
multiplies,         zero, where no factor is below    all active ones are      as the rule       what all are
divides                                                                        shares
clips               the clipped ones                  shifted, to one sign     if at zero        what it was
other functions     those of the function             sigmoids, and of gates   if homogeneous    what it was
linear maps         none                              no                       all have as many  -
==================  ================================  =======================  ================  ======================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from relprop.propagation.inherit import (
    GATES,
    RANGES,
    Keeps,
    Values,
    averaged,
    clipped,
    copied,
    divided,
    elementwise,
    function,
    keeps_nothing,
    linear,
    moved,
    multiplied,
    of,
    of_active,
    of_all,
    powered,
    summed,
)  # fmt: skip
from relprop.propagation.provenance import Origin

# The arguments of the functions whose values enter, each with what it is multiplied by -------------


def _add(input: Any, other: Any, *, alpha: float = 1) -> Values:
    return (input, 1), (other, alpha)


def _sub(input: Any, other: Any, *, alpha: float = 1) -> Values:
    return (input, 1), (other, -alpha)


def _rsub(input: Any, other: Any, *, alpha: float = 1) -> Values:
    return (other, 1), (input, -alpha)


def _pad(input: Any, pad: Any, mode: str = "constant", value: Any = None) -> Values:
    return (input, 1), (value if mode == "constant" else None, 1)


def _constant_pad(input: Any, pad: Any, value: Any = 0) -> Values:
    return (input, 1), (value, 1)


def _scatter(input: Any, dim: Any, index: Any, src: Any = None, *, value: Any = None, reduce: Any = None) -> Values:
    return (input, 1), (src, 1), (value, 1)


def _index_add(input: Any, dim: Any, index: Any, source: Any, *, alpha: float = 1) -> Values:
    return (input, 1), (source, alpha)


def _index_fill(input: Any, dim: Any, index: Any, value: Any) -> Values:
    return (input, 1), (value, 1)


def _masked_fill(input: Any, mask: Any, value: Any) -> Values:
    return (input, 1), (value, 1)


def _set_item(x: Any, index: Any, value: Any) -> Values:
    return (x, 1), (value, 1)


def _filled_diagonal(x: Any, fill_value: Any, wrap: bool = False) -> Values:
    return (x, 1), (fill_value, 1)


def _segments(data: Any, reduce: Any, *, initial: Any = None, **rest: Any) -> Values:
    return (data, 1), (initial, 1)


def _padded(data: Any, batch_sizes: Any, batch_first: Any, padding_value: Any, *rest: Any) -> Values:
    return (data, 1), (padding_value, 1)


def _pool(
    input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: Any = False,
    count_include_pad: Any = True, divisor_override: float | None = None,
) -> Values:  # fmt: skip
    return ((input, 1 if divisor_override is None else divisor_override),)


def _interpolate(
    input: Any, size: Any = None, scale_factor: Any = None, mode: str = "nearest", *rest: Any, **more: Any
) -> Values:
    return ((input, math.nan if mode == "bicubic" else 1),)  # some weights are negative


def _sampled(input: Any, *rest: Any, **more: Any) -> Values:
    return ((input, math.nan),)


def _chosen(*args: Any, **kwargs: Any) -> Values:
    """Return the values of ``where``, whose condition comes first or second."""
    values = (*args, *kwargs.values())
    return [(x, 1) for x in values if not (isinstance(x, Tensor) and x.dtype == torch.bool)]


def _first(x: Any, *rest: Any, **more: Any) -> Values:
    return ((x, 1),)


def _second(x: Any, value: Any) -> Values:
    return ((value, 1),)


def _negative(input: Any) -> Values:
    return ((input, -1),)


# Between what functions clip -----------------------------------------------------------------------


def _relu(input: Any, inplace: bool = False) -> tuple[Any, Any]:
    return 0.0, None


def _relu6(input: Any, inplace: bool = False) -> tuple[Any, Any]:
    return 0.0, 6.0


def _hardtanh(input: Any, min_val: Any = -1.0, max_val: Any = 1.0, inplace: bool = False) -> tuple[Any, Any]:
    return min_val, max_val


def _clamp(input: Any, min: Any = None, max: Any = None) -> tuple[Any, Any]:
    return min, max


def _clamp_max(input: Any, max: Any) -> tuple[Any, Any]:
    return None, max


# The table ---------------------------------------------------------------------------------------

_COPIES = (
    "as_tensor", "asarray", "view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "ravel", "squeeze",
    "unsqueeze", "contiguous", "clone", "to", "type", "type_as", "float", "double", "half", "bfloat16", "cpu", "cuda",
    "xpu", "ipu", "mtia", "positive", "requires_grad_", "detach", "alias_copy", "view_copy", "pin_memory", "real",
    "conj", "resolve_conj", "resolve_neg", "expand", "expand_as", "broadcast_to", "expand_copy", "squeeze_copy",
    "unsqueeze_copy", "to_dense", "conj_physical", "atleast_1d", "atleast_2d", "atleast_3d",
)  # fmt: skip
_MOVES = (
    "cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "row_stack", "column_stack", "index_copy",
    "masked_scatter", "select_scatter", "slice_scatter", "diagonal_scatter", "max_unpool1d", "max_unpool2d",
    "max_unpool3d", "amax", "amin", "aminmax", "cummax", "cummin", "median", "nanmedian", "kthvalue", "mode", "max",
    "min", "quantile", "nanquantile", "meshgrid", "cartesian_prod", "combinations", "block_diag", "broadcast_tensors",
    "fractional_max_pool2d", "fractional_max_pool3d", "fractional_max_pool2d_with_indices",
    "fractional_max_pool3d_with_indices", "max_pool1d", "max_pool2d", "max_pool3d", "max_pool1d_with_indices",
    "max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "adaptive_max_pool3d", "adaptive_max_pool1d_with_indices", "adaptive_max_pool2d_with_indices",
    "adaptive_max_pool3d_with_indices",
)  # fmt: skip
_SUMS = (
    "sum", "nansum", "cumsum", "mean", "nanmean", "trace", "fold", "sum_to_size", "scatter_add", "scatter_reduce",
    "index_reduce", "index_put", "put", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d", "upsample_nearest",
    "upsample_bilinear", "lp_pool1d", "lp_pool2d", "lp_pool3d",
)  # fmt: skip
_LINEAR = (
    "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "matmul", "mm",
    "bmm", "mv", "dot", "__matmul__", "__rmatmul__", "_sparse_mm", "addmm", "addmv", "baddbmm", "_sparse_addmm",
    "addbmm", "addr", "einsum", "bilinear", "tensordot", "inner", "outer", "ger", "kron", "cross", "vdot", "vecdot",
    "batch_norm", "layer_norm", "rms_norm", "group_norm", "instance_norm", "gradient", "fft", "ifft", "rfft", "irfft",
    "hfft", "ihfft", "fft2", "ifft2", "rfft2", "irfft2", "hfft2", "ihfft2", "fftn", "ifftn", "rfftn", "irfftn", "hfftn",
    "ihfftn", "stft", "istft", "alpha_dropout", "feature_alpha_dropout",
)  # fmt: skip
_FUNCTIONS = (
    "gelu", "silu", "mish", "hardswish", "elu", "celu", "selu", "logsigmoid", "tanhshrink", "softshrink",
    "hardshrink", "log_sigmoid", "threshold", "sinh", "cosh", "sin", "cos", "tan", "asin", "arcsin", "acos",
    "arccos", "atan", "arctan", "asinh", "arcsinh", "atanh", "arctanh", "sinc", "expm1", "log1p", "erfcx", "erfinv",
    "log_ndtr", "entr", "i0", "i0e", "i1", "i1e", "log", "log2", "log10", "acosh", "arccosh", "logit", "ndtri",
    "leaky_relu", "rrelu", "prelu", "pow", "__pow__", "__rpow__", "float_power", "sign", "sgn", "round", "floor",
    "ceil", "trunc", "fix", "frac", "nan_to_num",
)  # fmt: skip
_PRODUCTS = ("mul", "multiply", "__mul__", "__rmul__")
_QUOTIENTS = ("div", "divide", "true_divide", "__truediv__", "__div__")


def _each(names: Sequence[str], keeps: Keeps) -> dict[str, Keeps]:
    return dict.fromkeys(names, keeps)


_TABLE: dict[str, Keeps] = {
    **_each(_COPIES, copied),
    **_each(_MOVES, of_all(moved, indices=False)),
    "where": of(elementwise(moved), _chosen),
    "masked_fill": of(elementwise(moved), _masked_fill),
    **_each(("maximum", "minimum", "fmax", "fmin"), of(elementwise(moved), _add)),
    "pad": of(moved, _pad),
    "constant_pad_nd": of(moved, _constant_pad),
    "index_fill": of(moved, _index_fill),
    "set_item": of(moved, _set_item),
    "copied": of(moved, _second),
    "fill": of(moved, _second),
    "filled_diagonal": of(moved, _filled_diagonal),
    "_pad_packed_sequence": of(moved, _padded),
    **_each(_SUMS, of_all(averaged)),
    **_each(("avg_pool1d", "avg_pool2d", "avg_pool3d"), of(averaged, _pool)),
    **_each(("interpolate", "upsample"), of(averaged, _interpolate)),
    **_each(("grid_sample", "grid_sampler", "grid_sampler_2d", "grid_sampler_3d"), of(averaged, _sampled)),
    "index_add": of(averaged, _index_add),
    "scatter": of(averaged, _scatter),
    "segment_reduce": of(averaged, _segments),
    **_each(("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "native_dropout"),
            of(elementwise(averaged), _first)),
    **_each(("add", "__add__", "__radd__"), of(summed, _add)),
    **_each(("sub", "subtract", "__sub__"), of(summed, _sub)),
    **_each(("rsub", "__rsub__"), of(summed, _rsub)),
    **_each(("neg", "negative", "__neg__"), of(summed, _negative)),
    **_each(("deg2rad", "rad2deg"), of(elementwise(averaged), _first)),
    **_each(_PRODUCTS, multiplied),
    **_each(("prod", "cumprod"), of_active(powered)),
    **_each(_QUOTIENTS, divided),
    "softmax": of_active(lambda terms: Origin(low=0.0)),
    **_each(_LINEAR, of_active(linear)),
    **{name: function(name) for name in (*GATES, *RANGES, *_FUNCTIONS)},
    "expit": function("sigmoid"),
    "relu": clipped(_relu, homogeneous=True),
    "relu6": clipped(_relu6),
    "hardtanh": clipped(_hardtanh),
    **_each(("clamp", "clip"), clipped(_clamp)),
    "clamp_min": clipped(_clamp),
    "clamp_max": clipped(_clamp_max),
}  # fmt: skip


def keeps_of(name: str, kind: str) -> Keeps:
    """Return what the operation of a name keeps; to be asked before it runs, since it may write over its arguments."""
    return _TABLE.get(name) or (of_all(moved) if kind == "view" else keeps_nothing)
