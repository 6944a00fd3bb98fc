"""The table of DeepLIFT: which function of torch is run by which handler. What it does not know, it names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from relprop.operations.table import Operation, functions_named, operation_of
from relprop.propagation import difference_extremes as ext
from relprop.propagation import difference_layers as lay
from relprop.propagation import difference_sums as sums
from relprop.propagation import differences as dif
from relprop.propagation.handler import native
from relprop.propagation.rectifiers import comparisons
from relprop.propagation.secants import KINKED, POLES, SCALED, SMOOTH, of_inverse_root, of_reciprocal, of_root, stepped
from relprop.propagation.writes import copied, set_item

_KINKED = (
    "relu", "relu6", "hardtanh", "leaky_relu", "prelu", "elu", "celu", "selu", "abs", "absolute", "clamp", "clip",
    "clamp_min", "clamp_max", "threshold", "softshrink", "hardshrink", "hardswish",
    "frac", "nan_to_num", "fmod", "remainder", "__mod__",
)  # fmt: skip
_STEPS = ("sign", "sgn", "floor", "ceil", "round", "trunc", "fix", "heaviside", "floor_divide", "__floordiv__")
_SMOOTH = (
    "gelu", "silu", "mish", "tanh", "sigmoid", "expit", "softplus", "logsigmoid", "log_sigmoid", "softsign",
    "tanhshrink", "exp", "exp2", "expm1", "erf", "erfc", "sin", "cos", "sinh", "cosh", "atan", "arctan", "asinh",
    "arcsinh", "sinc", "ndtr",
)  # fmt: skip
_POLES = (
    "tan", "asin", "arcsin", "acos", "arccos", "acosh", "arccosh", "atanh", "arctanh", "log1p", "logit", "erfinv",
    "lgamma", "digamma", "polygamma", "i0", "i0e", "i1", "i1e", "ndtri", "log_ndtr", "entr",
)  # fmt: skip
_LINEAR = (
    "trace", "diff", "gradient", "fold", "interpolate", "upsample", "upsample_bilinear2d", "select_scatter",
    "slice_scatter", "diagonal_scatter", "fill", "grid_sample", "grid_sampler", "grid_sampler_2d", "grid_sampler_3d",
    "affine_grid", "conv_tbc", "complex", "deg2rad", "rad2deg", "alpha_dropout", "feature_alpha_dropout", "fft",
    "ifft", "rfft", "irfft", "fft2", "ifft2", "rfft2", "irfft2", "fftn", "ifftn", "rfftn", "irfftn", "stft", "istft",
    "meshgrid", "cartesian_prod", "combinations", "block_diag", "_pad_packed_sequence",
)  # fmt: skip
_AVERAGES = (
    "sum", "nansum", "cumsum", "mean", "nanmean", "sum_to_size", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "upsample_nearest", "upsample_nearest1d",
    "upsample_nearest2d", "upsample_nearest3d",
)  # fmt: skip
_PUTS = ("scatter", "scatter_add", "index_add", "index_copy", "index_fill", "index_put", "masked_scatter",
         "max_unpool1d", "max_unpool2d", "max_unpool3d")  # fmt: skip
_MOVES = (
    "cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "row_stack", "column_stack", "pad",
    "constant_pad_nd", "broadcast_tensors",
)  # fmt: skip
_REORDERS = {"topk", "sort", "msort"}
_DRAWS = {"dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "native_dropout", "embedding"}


def _entries() -> Iterator[tuple[Callable[..., Any], tuple[str, ...]]]:
    """Yield every handler with the names of what it runs."""
    yield partial(dif.elementwise, KINKED), _KINKED
    yield partial(dif.elementwise, stepped), _STEPS
    yield partial(dif.elementwise, SMOOTH), _SMOOTH
    yield partial(dif.elementwise, POLES), _POLES
    yield partial(dif.elementwise, SCALED), ("log", "log2", "log10")
    yield partial(dif.elementwise, of_root), ("sqrt",)
    yield partial(dif.elementwise, of_inverse_root), ("rsqrt",)
    yield partial(dif.elementwise, of_reciprocal), ("reciprocal",)
    yield dif.square, ("square",)
    yield dif.raised, ("pow", "__pow__", "float_power")
    yield dif.reversed_raised, ("__rpow__",)
    yield dif.hardsigmoid, ("hardsigmoid",)
    yield dif.rrelu, ("rrelu",)

    for d in (1, 2, 3):
        yield sums.layer, (f"conv{d}d", f"conv_transpose{d}d")
        yield ext.max_pool(d), (f"max_pool{d}d", f"max_pool{d}d_with_indices")
        yield ext.adaptive_max_pool(d), (f"adaptive_max_pool{d}d", f"adaptive_max_pool{d}d_with_indices")
        yield lay.power_average_pool(d), (f"lp_pool{d}d",)
    yield sums.layer, ("linear", "convolution")
    yield sums.matmul, ("matmul", "mm", "bmm", "mv", "dot", "__matmul__", "__rmatmul__")
    yield sums.addmm, ("addmm", "addmv", "baddbmm")
    yield dif.product, ("addbmm", "addr", "outer", "ger", "inner", "tensordot", "kron", "cross", "vdot", "vecdot",
                        "addcmul")  # fmt: skip
    yield dif.contraction, ("einsum", "bilinear")
    yield dif.halfway, ("var", "cov")
    yield dif.deviation, ("std",)
    yield sums.multiply, ("mul", "multiply", "__mul__", "__rmul__")
    yield sums.divide, ("div", "divide", "true_divide", "__truediv__")
    yield dif.reversed_quotient, ("__rdiv__", "__rtruediv__")
    yield sums.add, ("add", "__add__", "__radd__", "sub", "subtract", "__sub__", "rsub", "__rsub__")
    yield sums.negate, ("neg", "negative", "__neg__")
    yield sums.nonnegative, _AVERAGES
    yield sums.view(native), _MOVES
    yield native, _LINEAR
    yield native, _PUTS
    yield dif.steered, ("where", "masked_fill")

    yield lay.softmax, ("softmax",)
    yield lay.log_softmax, ("log_softmax",)
    yield lay.logsumexp, ("logsumexp",)
    yield lay.glu, ("glu",)
    yield lay.scaled_dot_product_attention, ("scaled_dot_product_attention",)
    yield lay.layer_norm, ("layer_norm",)
    yield lay.rms_norm, ("rms_norm",)
    yield lay.group_norm, ("group_norm",)
    yield lay.norm, ("norm", "vector_norm")
    yield sums.batch_norm, ("batch_norm",)
    for largest, names in ((True, ("max", "amax")), (False, ("min", "amin"))):
        yield ext.extreme(largest), names
    for largest, names in ((True, ("maximum", "fmax")), (False, ("minimum", "fmin"))):
        yield ext.either(largest), names


def _checked(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Return the handler of a function that may take constants, which the input may have decided."""
    return handler if handler in _STEERED else partial(dif.checked, handler)


_STEERED = (dif.steered, sums.multiply, sums.divide)
"""The handlers that look at constants themselves."""


class Differences(Mapping[Any, Operation]):
    """The operation of every function: one of its own, or what moves values, or is made of others, for every method.

    Any other function is named where it makes something that depends on the input.
    """

    def __init__(self) -> None:
        self._known: dict[Any, Operation] = {}
        for handler, names in _entries():
            for name in names:
                for function in functions_named(name):
                    self._known[function] = Operation(name, "difference", _checked(handler))
        self._known.update(comparisons())
        self._known[torch.batch_norm] = Operation("batch_norm", "difference", sums.torch_batch_norm)
        self._known[F.instance_norm] = Operation("instance_norm", "difference", lay.instance_norm)
        self._known[set_item] = Operation("set_item", "difference", dif.steered)
        self._known[copied] = Operation("copied", "difference", native)

    def __getitem__(self, function: Any) -> Operation:
        found = self._known.get(function)
        if found is None:
            found = self._known[function] = self._borrowed(operation_of(function))
        return found

    def _borrowed(self, shared: Operation | None) -> Operation:
        """Return what a function is that has no entry here."""
        if shared is None or shared.name in _REORDERS:
            return _UNKNOWN if shared is None else Operation(shared.name, "difference", dif.uncovered)
        if shared.composite or shared.name in _DRAWS:
            return shared
        if shared.kind == "view":
            return Operation(shared.name, "view", _checked(sums.view(shared.handler)))
        return Operation(shared.name, "difference", dif.uncovered)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


_UNKNOWN = Operation("unknown", "difference", dif.uncovered)
DIFFERENCES = Differences()
