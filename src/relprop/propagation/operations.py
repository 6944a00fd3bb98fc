"""The one table: which operation has which handler, whatever name a model calls it by."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from relprop.propagation import activations as act
from relprop.propagation import attention, products, recurrent, sums
from relprop.propagation import linear_calls as lin
from relprop.propagation import normalization as norm
from relprop.propagation import pooling as pool
from relprop.propagation.handler import Here, native
from relprop.propagation.writes import copied, set_item


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
    """

    name: str
    kind: str
    handler: Callable[..., Any]
    composite: bool = False
    deterministic: bool = True


def _dropout(here: Here, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Dropout: linear in what it keeps."""
    if not training:
        return sums.keep_origin(here, input, p, training)  # type: ignore[no-any-return]
    return sums.keep_sign(here, input, p, training)  # type: ignore[no-any-return]


def decomposed(here: Here, *args: Any, **kwargs: Any) -> Any:
    """Run the body of a Python function of torch."""
    return body_of(here.func)(*args, **kwargs)


@cache
def body_of(func: Callable[..., Any]) -> Callable[..., Any]:
    """Return a Python function of torch that runs its body, where the original would call the mode once more.

    The same code with the same globals, but for the question whether anybody overrides it.
    """
    assert isinstance(func, types.FunctionType)
    never = {name: _no for name in func.__globals__ if name.startswith("has_torch_function")}
    copy = types.FunctionType(
        func.__code__, {**func.__globals__, **never}, func.__name__, func.__defaults__, func.__closure__
    )
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy


def _no(*args: Any) -> bool:
    return False


_SPACES = (torch, torch.Tensor, F, torch.special, torch.linalg, torch._C._nn)
_TABLE: dict[Any, Operation] = {}


def _enter(kind: str, handler: Callable[..., Any], *names: str, label: str | None = None, **flags: bool) -> None:
    """Enter every function of these names, in whatever namespace; each name is an operation of its own."""
    for name in names:
        operation = Operation(label or name, kind, handler, **flags)
        for function in functions_named(name):
            _TABLE[function] = operation


def functions_named(name: str) -> Iterator[Callable[..., Any]]:
    """Yield every function of this name that a model may call."""
    for space in _SPACES:
        found = getattr(space, name, None)
        if found is not None and callable(found):
            yield found


def _fill() -> None:
    for d in (1, 2, 3):
        _enter("linear", lin.convolution(d), f"conv{d}d")
        _enter("linear", lin.transposed_convolution(d), f"conv_transpose{d}d")
        _enter("pooling", pool.max_pool(d), f"max_pool{d}d", f"max_pool{d}d_with_indices")
        _enter(
            "pooling",
            pool.adaptive_max_pool(d),
            f"adaptive_max_pool{d}d",
            f"adaptive_max_pool{d}d_with_indices",
        )
        _enter("affine", pool.lp_pool(d), f"lp_pool{d}d")
        _enter("affine", pool.average_pool, f"avg_pool{d}d")
        _enter("affine", sums.average, f"adaptive_avg_pool{d}d")
    _enter("linear", lin.linear, "linear")
    _enter("product", lin.matmul, "matmul", "mm", "bmm", "mv", "dot", "__matmul__", label="matmul")
    _enter("product", lin.addmm, "addmm", "addmv", "baddbmm")
    _enter("product", lin.einsum, "einsum")
    _enter("batch_norm", lin.batch_norm, "batch_norm")
    _TABLE[torch.batch_norm] = Operation("batch_norm", "batch_norm", lin.torch_batch_norm)
    _TABLE[F.embedding] = Operation("embedding", "view", lin.embedding)

    quotients: dict[str, Callable[..., Tensor]] = {
        "gelu": act.gelu, "silu": act.silu, "mish": act.mish, "tanh": act.tanh, "hardswish": act.hardswish,
        "hardtanh": act.hardtanh, "relu6": act.relu6, "clamp": act.clamp, "clip": act.clamp,
        "clamp_min": act.clamp_min, "clamp_max": act.clamp_max, "elu": act.elu, "celu": act.celu,
        "selu": act.selu, "softplus": act.softplus, "logsigmoid": act.logsigmoid, "softsign": act.softsign,
        "tanhshrink": act.tanhshrink, "softshrink": act.softshrink, "hardshrink": act.hardshrink,
        "exp": act.exp, "expm1": act.expm1, "log1p": act.log1p, "erf": act.erf, "sin": act.sin, "cos": act.cos,
        "sinh": act.sinh, "arctan": act.atan, "atan": act.atan, "square": act.square, "sqrt": act.sqrt,
    }  # fmt: skip
    for name, quotient in quotients.items():
        _enter("activation", partial(act.elementwise, quotient), name)
    _enter("activation", partial(act.gate, act.sigmoid), "sigmoid", "expit", label="sigmoid")
    _enter("activation", act.hard_gate, "hardsigmoid")
    _enter("activation", act.relu, "relu")
    _enter("affine", act.threshold, "threshold")
    _enter("affine", sums.extremum, "maximum", "minimum")
    _enter("activation", act.piecewise, "leaky_relu", "rrelu", "prelu", "abs", "absolute")
    _enter("activation", act.raise_to, "pow", "__pow__", label="pow")

    _enter("product", products.multiply, "mul", "multiply", "__mul__", "__rmul__", label="mul")
    _enter("product", products.divide, "div", "divide", "true_divide", "__truediv__", label="div")
    _enter("product", products.reversed_divide, "__rdiv__", "__rtruediv__", label="div")
    _enter("norm", products.inverse, "rsqrt", "reciprocal")
    _enter("norm", norm.layer_norm, "layer_norm")
    _enter("norm", norm.rms_norm, "rms_norm")
    _enter("norm", norm.group_norm, "group_norm")
    _TABLE[F.instance_norm] = Operation("instance_norm", "norm", norm.instance_norm)
    _enter("softmax", attention.softmax, "softmax")
    _enter("attention", attention.scaled_dot_product_attention, "scaled_dot_product_attention")

    _enter("affine", sums.add, "add", "__add__", "__radd__", label="add")
    _enter("affine", sums.sub, "sub", "subtract", "__sub__", label="sub")
    _enter("affine", sums.rsub, "rsub", "__rsub__", label="sub")
    _enter("affine", sums.neg, "neg", "negative", "__neg__", label="neg")
    _enter("affine", sums.total, "sum", "cumsum")
    _enter("affine", sums.average, "mean")
    _enter(
        "affine", sums.keep_sign, "interpolate", "upsample", "max_unpool1d", "max_unpool2d", "max_unpool3d",
        "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d", "pad",
        "masked_fill", "where", "fold",
    )  # fmt: skip
    _enter(
        "affine", native, "amax", "amin", "max", "min", "scatter", "scatter_add",
        "index_add", "index_copy", "index_fill", "index_put", "masked_scatter", "norm", "vector_norm", "nansum",
        "trace", "diff",
    )  # fmt: skip
    for function in (set_item, copied):
        _TABLE[function] = Operation(function.__name__, "affine", native)

    _enter(
        "view", sums.keep_origin, "view", "view_as", "reshape", "reshape_as", "flatten", "ravel", "unflatten",
        "squeeze", "unsqueeze", "transpose", "swapaxes", "swapdims", "permute", "movedim", "moveaxis", "t",
        "adjoint", "contiguous", "clone", "to", "type", "type_as", "float", "double", "half", "bfloat16", "cpu",
        "cuda", "expand", "expand_as", "broadcast_to", "broadcast_tensors", "repeat", "tile",
        "repeat_interleave", "roll", "flip", "fliplr", "flipud", "rot90", "narrow", "select", "index_select",
        "gather", "take", "take_along_dim", "masked_select", "hsplit",
        "unfold", "diagonal", "diag", "diag_embed", "tril", "triu", "topk", "sort", "__getitem__",
        "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle",
        "atleast_1d", "atleast_2d", "atleast_3d", "as_strided", "real", "positive", "requires_grad_",
        "detach",
    )  # fmt: skip
    _enter("view", sums.parts, "unbind", "chunk", "split", "tensor_split", "hsplit", "vsplit", "dsplit", "__iter__")
    for descriptor in (torch.Tensor.T, torch.Tensor.mT, torch.Tensor.H, torch.Tensor.mH, torch.Tensor.real):
        _TABLE[descriptor.__get__] = Operation(descriptor.__name__, "view", sums.keep_origin)  # type: ignore[attr-defined]
    _enter("view", sums.keep_sign, "cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack")
    _enter("view", _dropout, "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout")
    _enter("affine", native, "alpha_dropout", "feature_alpha_dropout", deterministic=False)
    _enter(
        "composite",
        decomposed,
        "normalize",
        "local_response_norm",
        "multi_head_attention_forward",
        composite=True,
    )
    for name in recurrent.STEPS:
        _enter("composite", recurrent.sequence, name, composite=True)
        _enter("composite", recurrent.cell, f"{name}_cell", composite=True)
    _enter("view", sums.keep_origin, "_pack_padded_sequence")
    _enter("affine", native, "_pad_packed_sequence")


_fill()


def operation_of(func: Callable[..., Any]) -> Operation | None:
    """Return what a function does, or None for a function the table does not know."""
    return _TABLE.get(func)
