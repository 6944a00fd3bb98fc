"""The operations of PyTorch that networks of the zoo use, by what they are to relevance; see `_zoo_reference.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def words(text: str) -> tuple[str, ...]:
    """Return the words of a list that is easier to read as a text."""
    return tuple(text.split())


# Values are moved, repeated or left out; nothing is computed from them.
VIEWS = words(
    """
    view view_as reshape reshape_as flatten ravel unflatten squeeze unsqueeze transpose swapaxes swapdims permute
    movedim moveaxis t contiguous clone to type type_as float double expand expand_as broadcast_to repeat tile
    repeat_interleave roll flip narrow select index_select gather take getitem pixel_shuffle pixel_unshuffle
    channel_shuffle chunk split tensor_split unbind iter diagonal unfold dropout get T mT topk sort masked_select
    dropout2d dropout3d real as_strided detach requires_grad contiguous cuda cpu
    """
)

# Linear in what depends on the input, by weights of either sign.
MAPS = words(
    "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d batch_norm grid_sample diff"
)

# Linear in what depends on the input, up to constants.
LINEAR = MAPS + words(
    """
    add sub rsub neg negative sum mean cumsum avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d interpolate upsample pad fold im2col col2im cat concat stack hstack
    vstack where masked_fill scatter scatter_add index_add index_copy setitem copy zero fill
    """
)

# Homogeneous of degree one: their derivative times their input is their value.
PIECEWISE = words(
    """
    relu leaky_relu prelu rrelu abs max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d max min amax amin maximum minimum norm vector_norm linalg_vector_norm std
    """
)

# One number in, one number out, and no line.
ELEMENTWISE = words(
    """
    gelu silu mish tanh hardswish relu6 hardtanh clamp clip clamp_min clamp_max elu celu selu softplus logsigmoid
    softsign hardshrink softshrink exp expm1 log1p erf sin cos sqrt square
    """
)

_SAME = {
    "matmul": ("mm", "bmm", "mv", "dot"),
    "mul": ("multiply",),
    "div": ("truediv", "divide", "true_divide"),
    "sub": ("subtract",),
    "sigmoid": ("expit",),
    "pad": ("constant_pad_nd",),
}
SPELLINGS = {other: name for name, others in _SAME.items() for other in others}
OPERATORS = words("add sub mul div matmul pow")

# What computes for an in-place call, which must leave its argument alone.
OUT_OF_PLACE: dict[str, Callable[..., Any]] = {
    "mul": torch.mul,
    "div": torch.div,
    "sigmoid": torch.sigmoid,
    "pow": torch.pow,
    "clamp": torch.clamp,
    "sqrt": torch.sqrt,
    "exp": torch.exp,
    "tanh": torch.tanh,
}


def spelling(func: Callable[..., Any]) -> tuple[str, bool]:
    """Return the plain name of an operation, and whether the call writes into its first argument.

    >>> spelling(torch.Tensor.__imul__), spelling(torch.Tensor.mul_), spelling(torch.multiply)
    (('mul', True), ('mul', True), ('mul', False))
    """
    written: str = getattr(func, "__name__", str(func))
    name = written.strip("_")
    in_place = written.endswith("_") and not written.endswith("__")
    if written.startswith("__") and name[:1] in ("i", "r"):
        plain = SPELLINGS.get(name[1:], name[1:])
        if plain in OPERATORS:
            in_place, name = name[0] == "i", plain if name[0] == "i" or plain in ("add", "mul") else f"r{plain}"
    return SPELLINGS.get(name, name), in_place
