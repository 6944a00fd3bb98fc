"""The one table: which operation has which handler, whatever name a model calls it by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from relprop.operations import activations as act
from relprop.operations import attention, composites, losses, products, recurrent, rounding, sums
from relprop.operations import contractions as con
from relprop.operations import elementary as ele
from relprop.operations import linear as lin
from relprop.operations import normalization as norm
from relprop.operations import pooling as pool
from relprop.operations import quotients as quo
from relprop.operations import reductions as red
from relprop.propagation.handler import native
from relprop.propagation.inherit import Keeps, keeps_nothing
from relprop.propagation.keeps import keeps_of
from relprop.propagation.writes import copied, filled_diagonal, set_item


@dataclass(frozen=True)
class Operation:
    """An operation and what runs it.

    Attributes:
        name: as plans and reports show it.
        kind: says which rules serve it. "affine" needs no rule: it is ``A x + b`` or
            piecewise so, or homogeneous, and autograd's own backward is right. A "view" moves values, or drops
            some, and loses nothing.
        handler: runs one call of it.
        composite: it is made of other operations, each with a handler of its own; its handler calls them.
        deterministic: running it twice gives the same.
        keeps: says what its output keeps of what is known of its arguments.
    """

    name: str
    kind: str
    handler: Callable[..., Any]
    composite: bool = False
    deterministic: bool = True
    keeps: Keeps = keeps_nothing


_SPARSE = torch._C._sparse  # type: ignore[attr-defined]
_SPACES = (
    torch, torch.Tensor, F, torch.special, torch.linalg, torch.fft, torch._C._nn, torch._C._VariableFunctions,
)  # fmt: skip
_TABLE: dict[Any, Operation] = {}


def _enter(
    kind: str,
    handler: Callable[..., Any],
    *names: str,
    label: str | None = None,
    spaces: Sequence[Any] = _SPACES,
    **flags: bool,
) -> None:
    """Enter every function of these names, in whatever namespace; each name is an operation of its own."""
    for name in names:
        operation = Operation(label or name, kind, handler, keeps=keeps_of(name, kind), **flags)
        for function in functions_named(name, spaces):
            _TABLE[function] = operation


def _enter_one(function: Callable[..., Any], kind: str, handler: Callable[..., Any], name: str) -> None:
    """Enter one function."""
    _TABLE[function] = Operation(name, kind, handler, keeps=keeps_of(name, kind))


def functions_named(name: str, spaces: Sequence[Any] = _SPACES) -> Iterator[Callable[..., Any]]:
    """Yield every function of this name that a model may call."""
    for space in spaces:
        found = getattr(space, name, None)
        if found is not None and callable(found):
            yield found


def _enter_layers() -> None:
    """Enter linear maps with parameters, products of matrices, batch norm and embeddings."""
    for d in (1, 2, 3):
        _enter("linear", lin.convolution(d), f"conv{d}d")
        _enter("linear", lin.transposed_convolution(d), f"conv_transpose{d}d")
    _enter("linear", lin.linear, "linear")
    _enter("product", con.matmul, "matmul", "mm", "bmm", "mv", "dot", "__matmul__", label="matmul")
    _enter("product", con.matmul, "_sparse_mm", label="matmul", spaces=(_SPARSE,))
    _enter("view", native, "sparse_coo_tensor", "coalesce", "to_sparse", "to_sparse_coo", "to_sparse_csr")
    _enter("product", con.reversed_matmul, "__rmatmul__", label="matmul")
    _enter("product", con.addmm, "addmm", "addmv", "baddbmm")
    _enter("product", con.addmm, "_sparse_addmm", label="addmm", spaces=(_SPARSE,))
    _enter("product", con.addbmm, "addbmm")
    _enter("product", con.addr, "addr")
    _enter("product", con.einsum, "einsum")
    _enter("product", con.bilinear, "bilinear")
    _enter("product", con.contraction, "tensordot", "inner", "outer", "ger", "kron", "cross", "vdot", "vecdot")
    _enter("batch_norm", lin.batch_norm, "batch_norm")
    _TABLE[torch.batch_norm] = Operation(
        "batch_norm", "batch_norm", lin.torch_batch_norm, keeps=keeps_of("batch_norm", "batch_norm")
    )
    _TABLE[F.embedding] = Operation("embedding", "view", lin.embedding, keeps=keeps_of("embedding", "view"))
    _TABLE[torch.embedding] = Operation("embedding", "view", lin.torch_embedding, keeps=keeps_of("embedding", "view"))


def _enter_activations() -> None:
    """Enter elementwise functions, by their quotients ``(f(z) - f(0)) / z``."""
    quotients: dict[str, Callable[..., Tensor]] = {
        "gelu": quo.gelu, "silu": quo.silu, "mish": quo.mish, "hardswish": quo.hardswish, "elu": quo.elu,
        "celu": quo.celu, "selu": quo.selu, "softplus": quo.softplus, "logsigmoid": quo.logsigmoid,
        "softsign": quo.softsign, "tanhshrink": quo.tanhshrink, "softshrink": quo.softshrink,
        "hardshrink": quo.hardshrink, "hardtanh": quo.hardtanh, "relu6": quo.relu6, "log_sigmoid": quo.logsigmoid,
        "tanh": ele.tanh, "sinh": ele.sinh, "cosh": ele.cosh, "sin": ele.sin, "cos": ele.cos, "tan": ele.tan,
        "asin": ele.asin, "arcsin": ele.asin, "acos": ele.acos, "arccos": ele.acos, "atan": ele.atan,
        "arctan": ele.atan, "asinh": ele.asinh, "arcsinh": ele.asinh, "atanh": ele.atanh, "arctanh": ele.atanh,
        "sinc": ele.sinc, "exp2": ele.exp2, "expm1": ele.expm1, "log1p": ele.log1p,
        "erf": ele.erf, "erfc": ele.erfc, "erfcx": ele.erfcx, "erfinv": ele.erfinv, "ndtr": ele.ndtr,
        "log_ndtr": ele.log_ndtr, "entr": ele.entr, "i0": ele.i0, "i0e": ele.i0e, "i1": ele.i1, "i1e": ele.i1e,
        "square": ele.square, "sqrt": ele.sqrt,
    }  # fmt: skip
    for name, quotient in quotients.items():
        _enter("activation", partial(act.elementwise, quotient), name)
    _enter("activation", act.exponential_function, "exp")
    for name, quotient in {"log": ele.log, "log2": ele.log2, "log10": ele.log10, "acosh": ele.acosh}.items():
        _enter("activation", partial(act.about, 1.0, quotient), name)
    _enter("activation", partial(act.about, 1.0, ele.acosh), "arccosh")
    _enter("activation", partial(act.about, 0.5, ele.logit), "logit")
    _enter("activation", partial(act.about, 0.5, ele.ndtri), "ndtri")
    _enter("activation", act.sigmoid, "sigmoid", "expit", label="sigmoid")
    _enter("activation", act.hard_sigmoid, "hardsigmoid")
    _enter("activation", act.relu, "relu")
    _enter("activation", act.piecewise, "leaky_relu", "rrelu", "abs", "absolute")
    _enter("activation", act.prelu, "prelu")
    _enter("activation", partial(act.clamp, quo.clamp), "clamp", "clip")
    _enter("activation", partial(act.elementwise, quo.clamp_min), "clamp_min")
    _enter("activation", partial(act.elementwise, quo.clamp_max), "clamp_max")
    _enter("affine", act.threshold, "threshold")
    _enter("activation", act.raise_to, "pow", "__pow__", label="pow")
    _enter("activation", act.reversed_power, "__rpow__", label="pow")
    _enter("activation", act.float_power, "float_power")
    _enter(
        "activation", act.stepwise, "sign", "sgn", "round", "floor", "ceil", "trunc", "fix", "frac",
        "fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine",
    )  # fmt: skip
    _enter("activation", rounding.heaviside, "heaviside")
    _enter("activation", rounding.remainder, "fmod")
    _enter("activation", rounding.remainder, "remainder", "__mod__", label="remainder")
    _enter("activation", rounding.reversed_remainder, "__rmod__", label="remainder")
    _enter("product", rounding.floor_divide, "floor_divide", "__floordiv__", label="floor_divide")
    _enter("product", rounding.reversed_floor_divide, "__rfloordiv__", label="floor_divide")


def _enter_products() -> None:
    """Enter products, quotients, norms and softmax."""
    _enter("product", products.multiply, "mul", "multiply", "__mul__", "__rmul__", label="mul")
    _enter("product", rounding.divide, "div", "divide", "true_divide", "__truediv__", "__div__", label="div")
    _enter("product", products.reversed_divide, "__rdiv__", "__rtruediv__", label="div")
    _enter("norm", products.inverse, "rsqrt", "reciprocal")
    _enter("product", red.prod, "prod")
    _enter("product", red.cumprod, "cumprod")
    _enter("product", red.of_degree(2), "var", "var_mean", "cov")
    _enter("product", red.of_degree(lambda x, *_, **__: x.shape[-1]), "det")
    _enter("product", red.of_degree(lambda x, n: n), "matrix_power")
    _enter("norm", norm.layer_norm, "layer_norm")
    _enter("norm", norm.rms_norm, "rms_norm")
    _enter("norm", norm.group_norm, "group_norm")
    _TABLE[F.instance_norm] = Operation(
        "instance_norm", "norm", norm.instance_norm, keeps=keeps_of("instance_norm", "norm")
    )
    _TABLE[torch.instance_norm] = Operation(
        "instance_norm", "norm", norm.torch_instance_norm, keeps=keeps_of("instance_norm", "norm")
    )
    _enter("softmax", attention.softmax, "softmax")
    _enter("norm", attention.log_softmax, "log_softmax")
    _enter("affine", attention.logsumexp, "logsumexp")
    _enter("affine", attention.logcumsumexp, "logcumsumexp")
    _enter("attention", attention.scaled_dot_product_attention, "scaled_dot_product_attention")


def _enter_sums() -> None:
    """Enter what is linear, or takes the largest: autograd is right, but at sums of zero."""
    for d in (1, 2, 3):
        _enter("pooling", pool.max_pool(d), f"max_pool{d}d", f"max_pool{d}d_with_indices")
        _enter("pooling", pool.adaptive_max_pool(d), f"adaptive_max_pool{d}d", f"adaptive_max_pool{d}d_with_indices")
        _enter("affine", pool.lp_pool(d), f"lp_pool{d}d")
        _enter("affine", pool.average_pool, f"avg_pool{d}d")
        _enter("affine", sums.total, f"adaptive_avg_pool{d}d")
    _enter("affine", sums.add, "add", "__add__", "__radd__", label="add")
    _enter("affine", sums.sub, "sub", "subtract", "__sub__", label="sub")
    _enter("affine", sums.rsub, "rsub", "__rsub__", label="sub")
    _enter("affine", sums.neg, "neg", "negative", "__neg__", label="neg")
    _enter("affine", sums.factor, "deg2rad", "rad2deg")
    _enter("affine", sums.total, "sum", "nansum", "cumsum", "mean", "nanmean", "trace", "fold", "sum_to_size")
    _enter("affine", red.summed, "index_add", "scatter", "scatter_add", "scatter_reduce", "index_reduce", "index_put",
           "put", "segment_reduce")  # fmt: skip
    _enter("affine", sums.extremum, "maximum", "minimum", "fmax", "fmin")
    _enter("affine", red.largest, "max", "min")
    _enter("affine", red.norm, "norm", "vector_norm", "matrix_norm")
    _enter("affine", red.nan_to_num, "nan_to_num")
    _enter("affine", red.grid_sample, "grid_sample", "grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
    _enter("affine", red.linear_in(0, "abs"), "polar")
    _enter(
        "affine",
        red.linear_in(0, "input"),
        "copysign",
        "cholesky_solve",
        "triangular_solve",
        spaces=(torch, torch.Tensor),
    )
    _enter("affine", red.linear_in(0, "b"), "lu_solve", spaces=(torch, torch.Tensor))
    _enter("affine", red.linear_in(1, "B"), "solve", "solve_ex", "solve_triangular", "lstsq", "tensorsolve",
           spaces=(torch.linalg,))  # fmt: skip
    _enter("affine", red.linear_in(2, "B"), "lu_solve", spaces=(torch.linalg,))
    _enter("affine", red.linear_in(2, "other"), "ormqr")
    _enter(
        "affine", native, "interpolate", "upsample", "max_unpool1d", "max_unpool2d", "max_unpool3d",
        "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d", "upsample_nearest",
        "upsample_bilinear", "pad", "constant_pad_nd", "masked_fill", "where", "cat", "concat", "concatenate", "stack",
        "hstack", "vstack", "dstack", "row_stack", "column_stack",
    )  # fmt: skip
    _enter(
        "affine", native, "amax", "amin", "aminmax", "cummax", "cummin", "median", "nanmedian", "quantile",
        "nanquantile", "kthvalue", "mode", "std", "std_mean", "nuclear_norm", "frobenius_norm", "norm_except_dim",
        "svdvals", "eigvalsh", "gradient", "index_copy", "index_fill", "masked_scatter", "select_scatter",
        "slice_scatter", "diagonal_scatter", "fill", "nll_loss", "nll_loss_nd", "affine_grid",
        "affine_grid_generator", "frexp", "meshgrid", "cartesian_prod", "combinations", "block_diag", "complex",
        "broadcast_tensors",
        "fft", "ifft", "rfft", "irfft", "hfft", "ihfft", "fft2", "ifft2", "rfft2", "irfft2", "hfft2", "ihfft2", "fftn",
        "ifftn", "rfftn", "irfftn", "hfftn", "ihfftn", "stft", "istft",
    )  # fmt: skip
    _enter("affine", native, "fractional_max_pool2d", "fractional_max_pool3d", "fractional_max_pool2d_with_indices",
           "fractional_max_pool3d_with_indices", deterministic=False)  # fmt: skip
    _enter("affine", red.random_affine, "alpha_dropout", "feature_alpha_dropout", deterministic=False)
    for function in (set_item, copied, filled_diagonal):
        _enter_one(function, "affine", native, function.__name__)


def _enter_views() -> None:
    """Enter what moves values, or drops some."""
    _enter(
        "view", native, "as_tensor", "asarray", "view", "view_as", "reshape", "reshape_as", "flatten",
        "ravel", "unflatten", "real", "imag",
        "squeeze", "unsqueeze", "transpose", "swapaxes", "swapdims", "permute", "movedim", "moveaxis", "t",
        "adjoint", "contiguous", "clone", "to", "type", "type_as", "float", "double", "half", "bfloat16", "cpu",
        "cuda", "xpu", "ipu", "mtia", "cfloat", "cdouble", "chalf", "expand", "expand_as", "broadcast_to", "repeat",
        "tile", "repeat_interleave", "roll", "flip", "fliplr", "flipud", "rot90", "narrow", "select", "index_select",
        "gather", "take", "take_along_dim", "masked_select", "unfold", "diagonal", "diag", "diagflat",
        "diag_embed", "tril", "triu", "topk", "sort", "msort", "__getitem__", "__reversed__",
        "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "fftshift", "ifftshift",
        "atleast_1d", "atleast_2d", "atleast_3d", "as_strided", "conj", "conj_physical", "resolve_conj",
        "resolve_neg", "view_as_real", "view_as_complex", "positive", "requires_grad_", "detach",
        "unsafe_chunk", "unsafe_split", "unsafe_split_with_sizes", "split_with_sizes", "to_dense", "pin_memory",
        "alias_copy", "as_strided_copy", "diagonal_copy", "expand_copy", "narrow_copy", "permute_copy",
        "select_copy", "slice_copy", "split_copy", "split_with_sizes_copy", "squeeze_copy", "t_copy",
        "transpose_copy", "unbind_copy", "unfold_copy", "unsqueeze_copy", "view_as_real_copy",
        "view_copy", "slice_inverse",
    )  # fmt: skip
    _enter("view", sums.parts, "unbind", "chunk", "split", "tensor_split", "hsplit", "vsplit", "dsplit", "__iter__")
    for name in ("T", "mT", "H", "mH", "real", "imag"):
        _enter_one(getattr(torch.Tensor, name).__get__, "view", native, name)
    _enter("view", native, "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout")
    _enter("view", native, "native_dropout", deterministic=False)


def _enter_composites() -> None:
    """Enter what is made of others: Python functions run their own body, the rest is written in ``composites.py``."""
    bodies = (torch, torch.Tensor, F, torch.special, torch._C._VariableFunctions, torch._C._nn)
    for name in (
        "addcmul", "addcdiv", "lerp", "ldexp", "xlogy", "xlog1py", "multi_dot", "chain_matmul", "conv_tbc", "hypot",
        "dist", "cdist", "pdist", "pairwise_distance", "cosine_similarity", "renorm", "corrcoef", "logaddexp",
        "logaddexp2", "trapezoid", "cumulative_trapezoid", "vander", "diff",
    ):  # fmt: skip
        body = getattr(composites, name)
        _enter("composite", composites.rewritten(body), name, spaces=(*bodies, torch.linalg), composite=True)
    _enter("composite", composites.rewritten(composites.trapezoid), "trapz", composite=True)
    _enter(
        "composite", composites.rewritten(composites.linalg_vander), "vander", spaces=(torch.linalg,), composite=True
    )
    _enter("composite", composites.rewritten(composites.glu), "glu", spaces=(torch._C._nn,), composite=True)
    _enter("composite", composites.rewritten(composites.convolution), "convolution", composite=True)
    for name in _FOREACH:
        _enter("composite", composites.each(_FOREACH[name]), f"_foreach_{name}", spaces=(torch,), composite=True)
    for name in (
        "mse_loss", "l1_loss", "huber_loss", "smooth_l1_loss", "soft_margin_loss", "binary_cross_entropy",
        "multi_margin_loss",
    ):  # fmt: skip
        body = getattr(losses, name)
        _enter("composite", composites.rewritten(body), name, spaces=(torch._C._nn,), composite=True)
    for name in (
        "binary_cross_entropy_with_logits", "kl_div", "poisson_nll_loss", "hinge_embedding_loss",
        "cosine_embedding_loss", "margin_ranking_loss", "triplet_margin_loss",
    ):  # fmt: skip
        body = getattr(losses, name)
        _enter("composite", composites.rewritten(body), name, spaces=(torch,), composite=True)
    _enter("composite", composites.rewritten(composites.embedding_bag), "embedding_bag", spaces=(F,), composite=True)
    body = composites.rewritten(losses.cross_entropy)
    _enter("composite", body, "cross_entropy_loss", spaces=(torch._C._nn,), composite=True)
    _enter(
        "composite", composites.opened, "normalize", "local_response_norm", "multi_head_attention_forward", "glu",
        "softmin", "gumbel_softmax", "mse_loss", "l1_loss", "huber_loss", "smooth_l1_loss", "soft_margin_loss",
        "binary_cross_entropy", "binary_cross_entropy_with_logits", "cross_entropy", "kl_div", "poisson_nll_loss",
        "gaussian_nll_loss", "hinge_embedding_loss", "cosine_embedding_loss", "margin_ranking_loss",
        "triplet_margin_loss", "triplet_margin_with_distance_loss", "multi_margin_loss", "multilabel_soft_margin_loss",
        spaces=(F,), composite=True,
    )  # fmt: skip
    for name in recurrent.STEPS:
        _enter("composite", recurrent.sequence, name, composite=True)
        _enter("composite", recurrent.cell, f"{name}_cell", composite=True)
    _enter("view", native, "_pack_padded_sequence")
    _enter("affine", native, "_pad_packed_sequence")


_FOREACH: dict[str, Callable[..., Any]] = {
    "addcmul": composites.foreach_addcmul,
    "addcdiv": composites.foreach_addcdiv,
    "clamp_max": lambda x, bound: torch.clamp(x, max=bound),
    "clamp_min": lambda x, bound: torch.clamp(x, min=bound),
    "norm": torch.linalg.vector_norm,
} | {
    name: getattr(torch, name)
    for name in (
        "abs", "acos", "add", "asin", "atan", "ceil", "clone", "cos", "cosh", "div", "erf", "erfc", "exp", "expm1",
        "floor", "frac", "lerp", "log", "log10", "log1p", "log2", "max", "maximum", "minimum", "mul", "neg", "pow",
        "reciprocal", "round", "rsqrt", "sigmoid", "sign", "sin", "sinh", "sqrt", "sub", "tan", "tanh", "trunc",
    )
}  # fmt: skip
"""Functions on lists of tensors, by what they are for one."""

for _enter_all in (
    _enter_layers,
    _enter_activations,
    _enter_products,
    _enter_sums,
    _enter_views,
    _enter_composites,
):
    _enter_all()


def operation_of(func: Callable[..., Any]) -> Operation | None:
    """Return what a function does, or None for a function the table does not know."""
    return _TABLE.get(func)


def all_operations() -> Mapping[Any, Operation]:
    """Return the operations of the rules, by function."""
    return MappingProxyType(_TABLE)


def makes_constants(func: Callable[..., Any]) -> bool:
    """Say whether a function is meant to give a constant, whatever tensor it is given."""
    name: str = getattr(func, "__name__", "")
    if name == "__get__":
        name = getattr(getattr(func, "__self__", None), "__name__", "")
    return (
        name in ("data", "grad", "tensor", "detach", "detach_", "__deepcopy__")
        or name.startswith("new_")
        or name.endswith("_like")
    )
