"""What moves values, drops some, joins or fills: autograd's own backward is right for all of it."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from relprop.operations.rows import Rows, affine, declared, joins, rows, view, without_rule
from relprop.operations.sums import total
from relprop.propagation.call import relus
from relprop.propagation.call.operation_call import Here, native
from relprop.propagation.facts.inheritance import (
    Keeps,
    Values,
    averaged_terms,
    by_entry,
    copied,
    moved,
    of,
    of_all,
    permuted,
    unfolded,
)
from relprop.propagation.facts.operation import (
    Difference,
    Excitation,
    Function,
    Holds,
    Ids,
    Image,
    Kind,
    Operation,
    Rectifies,
    Truth,
    Writes,
)
from relprop.propagation.run.in_place import copied as written
from relprop.propagation.run.in_place import filled_diagonal, set_item


def parts(here: Here, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    """``chunk``, ``split``, ``unbind``, iteration: every part a view of its own, so that a model may write into it."""
    call = here.call
    here.by_autograd()
    with torch.no_grad():
        found = list(here.func(input, *args, **kwargs))
    origin = call.known.origins.of(input).elsewhere
    views = []
    for part in found:
        view = input.as_strided(part.size(), part.stride(), part.storage_offset())
        call.known.origins.note(view, origin)
        views.append(view)
    return iter(views) if here.operation == "__iter__" else tuple(views)


# The rows ----------------------------------------------------------------------------------------


def _padded(input: Any, pad: Any, mode: str = "constant", value: Any = None) -> Values:
    return (input, 1), (value if mode == "constant" else None, 1)


def _constant_padded(input: Any, pad: Any, value: Any = 0) -> Values:
    return (input, 1), (value, 1)


def _filled_at(input: Any, dim: Any, index: Any, value: Any) -> Values:
    return (input, 1), (value, 1)


def _filled(input: Any, mask: Any, value: Any) -> Values:
    return (input, 1), (value, 1)


def _set(x: Any, index: Any, value: Any) -> Values:
    return (x, 1), (value, 1)


def _filled_along(x: Any, fill_value: Any, wrap: bool = False) -> Values:
    return (x, 1), (fill_value, 1)


def _unpacked(data: Any, batch_sizes: Any, batch_first: Any, padding_value: Any, *rest: Any) -> Values:
    return (data, 1), (padding_value, 1)


def _interpolated(
    input: Any, size: Any = None, scale_factor: Any = None, mode: str = "nearest", *rest: Any, **more: Any
) -> Values:
    return ((input, math.nan if mode == "bicubic" else 1),)  # some weights are negative


def _chosen(*args: Any, **kwargs: Any) -> Values:
    """Return the values of ``where``, whose condition comes first or second."""
    values = (*args, *kwargs.values())
    return [(x, 1) for x in values if not (isinstance(x, Tensor) and x.dtype == torch.bool)]


def _first(x: Any, *rest: Any, **more: Any) -> Values:
    return ((x, 1),)


def _second(x: Any, value: Any, non_blocking: bool = False) -> Values:
    return ((value, 1),)


def _copies(*names: str) -> Rows:
    """The same entries at the same places, of another type or on another device."""
    return view(*names, handler=native, keeps=copied, difference=Difference.MOVES, ids=Ids.COPIES)


def _reshapes(*names: str) -> Rows:
    """The same entries, in a shape that may be another."""
    return view(*names, handler=native, keeps=copied, difference=Difference.MOVES, ids=Ids.MOVES)


def _reshapes_in_place(*names: str, ids: Ids) -> Rows:
    """What gives the tensor that it is called on another shape."""
    return without_rule(
        *names, kind=Kind.UNKNOWN, difference=Difference.UNCOVERED, ids=ids, truth=Truth.NOTHING,
        writes=Writes.RESHAPES, pure=None,
    )  # fmt: skip


def _moves(*names: str) -> Rows:
    """Entries in another order, some of them, or more of them."""
    return view(*names, handler=native, keeps=of_all(moved), difference=Difference.MOVES, ids=Ids.MOVES)


def _permutes(*names: str) -> Rows:
    """Dimensions in another order."""
    return [
        row
        for name in names
        for row in view(
            name, handler=native, keeps=permuted(getattr(Tensor, name, None) or getattr(torch, name)),
            difference=Difference.MOVES, ids=Ids.MOVES,
        )
    ]  # fmt: skip


def _drops(*names: str, deterministic: bool) -> Rows:
    """What drops entries at random: a draw is no view of an exponential."""
    return rows(
        *names, kind=Kind.VIEW, handler=native, keeps=of(by_entry(averaged_terms), _first),
        difference=Difference.AS_RULES, excitation=Excitation.AS_RULES, rectifies=None, ids=Ids.MOVES, entering=(0,),
        image=Image.NOTHING, holds=Holds.CHANCE, updates=None, composite=False, deterministic=deterministic,
    )  # fmt: skip


def resized(here: Here, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Means of neighbours by their distance; bicubic weights have both signs, so that these are no mean."""
    mode = kwargs.get("mode", args[2] if len(args) > 2 else None)
    if mode == "bicubic":
        return native(here, input, *args, **kwargs)
    return total(here, input, *args, **kwargs)


def _resized(*names: str, keeps: Keeps, difference: Difference, excitation: Excitation) -> Rows:
    """Means of neighbours, or repeated entries."""
    return affine(
        *names, handler=resized, keeps=keeps, difference=difference, excitation=excitation, image=Image.NOTHING
    )


def _property(name: str, keeps: Keeps) -> tuple[Function, Operation]:
    """Return the row of a property of tensors."""
    return getattr(Tensor, name).__get__, Operation(
        name, Kind.VIEW, native, keeps, Difference.MOVES, Excitation.AS_RULES, None, Ids.MOVES, (0,), Image.MOVES,
        Holds.NOTHING, None, Writes.NOTHING, None, Truth.NOTHING, composite=False, deterministic=True,
    )  # fmt: skip


def _own(
    function: Function, *, keeps: Keeps, difference: Difference, rectifies: Rectifies | None, entering: tuple[int, ...]
) -> tuple[Function, Operation]:
    """Return the row of what a write computes; see :mod:`relprop.propagation.run.in_place`."""
    return function, Operation(
        function.__name__, Kind.AFFINE, native, keeps, difference, Excitation.AS_RULES, rectifies, Ids.MOVES, entering,
        Image.JOINS, Holds.NOTHING, None, Writes.NOTHING, None, Truth.NOTHING, composite=False, deterministic=True,
    )  # fmt: skip


def _writes(name: str, pure: Function) -> Rows:
    """Return the row of what writes, and has another function that computes what."""
    return without_rule(
        name, kind=Kind.UNKNOWN, difference=Difference.UNCOVERED, ids=Ids.NONE, truth=Truth.NOTHING,
        writes=Writes.VALUES, pure=pure,
    )  # fmt: skip


_joined = of_all(moved, indices=False)

ROWS: Rows = [
    *_copies("to", "type", "type_as", "float", "double", "half", "bfloat16", "cpu", "cuda", "clone", "contiguous"),
    *declared(
        "detach", kind=Kind.VIEW, handler=native, keeps=copied, difference=Difference.MOVES,
        excitation=Excitation.AS_RULES, rectifies=None, ids=Ids.COPIES, entering=(0,), image=Image.NOTHING,
        holds=Holds.NOTHING, updates=None, writes=Writes.NOTHING, pure=None, truth=Truth.KEEPS, composite=False,
        deterministic=True,
    ),
    *_reshapes(
        "as_tensor", "asarray", "view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "ravel", "squeeze",
        "unsqueeze", "xpu", "ipu", "mtia", "positive", "requires_grad_", "share_memory_", "alias_copy", "view_copy",
        "pin_memory", "real", "conj", "resolve_conj", "resolve_neg", "expand", "expand_as", "broadcast_to",
        "expand_copy", "squeeze_copy", "unsqueeze_copy", "to_dense", "conj_physical", "atleast_1d", "atleast_2d",
        "atleast_3d",
    ),
    *_moves(
        "imag", "cfloat", "cdouble", "chalf", "repeat", "tile", "repeat_interleave", "roll", "flip", "fliplr", "flipud",
        "rot90", "narrow", "select", "index_select", "gather", "take", "take_along_dim", "masked_select", "diagonal",
        "diag", "diagflat", "diag_embed", "tril", "triu", "__getitem__", "__reversed__", "pixel_shuffle",
        "pixel_unshuffle", "channel_shuffle", "fftshift", "ifftshift", "view_as_real", "view_as_complex",
        "unsafe_chunk", "unsafe_split", "unsafe_split_with_sizes", "split_with_sizes", "diagonal_copy", "narrow_copy",
        "select_copy", "slice_copy", "split_copy", "split_with_sizes_copy", "unbind_copy", "unfold_copy",
        "view_as_real_copy", "slice_inverse", "sparse_coo_tensor", "coalesce", "to_sparse", "to_sparse_coo",
        "to_sparse_csr", "_pack_padded_sequence",
    ),
    *view("unfold", spaces=(Tensor, torch._C._VariableFunctions), handler=native, keeps=of_all(moved),
          difference=Difference.MOVES, ids=Ids.MOVES),
    *view("unfold", "im2col", spaces=(F, torch._C._nn), handler=native, keeps=unfolded, difference=Difference.MOVES,
          ids=Ids.MOVES),
    *_permutes("transpose", "swapaxes", "swapdims", "permute", "movedim", "moveaxis", "t", "adjoint", "permute_copy",
               "t_copy", "transpose_copy"),
    *_reshapes_in_place(
        "unsqueeze_", "squeeze_", "transpose_", "t_", "swapaxes_", "swapdims_", "resize_", "resize_as_", ids=Ids.MOVES
    ),
    *_reshapes_in_place("as_strided_", ids=Ids.LOSES),
    *view("unbind", "chunk", "split", "tensor_split", "hsplit", "vsplit", "dsplit", "__iter__", handler=parts,
          keeps=of_all(moved), difference=Difference.MOVES, ids=Ids.MOVES),
    *view("as_strided", "as_strided_copy", handler=native, keeps=of_all(moved), difference=Difference.MOVES,
          ids=Ids.LOSES),
    *view("topk", "sort", "msort", handler=native, keeps=of_all(moved), difference=Difference.UNCOVERED,
          ids=Ids.LOSES),
    *(_property(name, permuted(getattr(Tensor, name).__get__)) for name in ("T", "mT", "H", "mH")),
    _property("imag", of_all(moved)),
    _property("real", copied),
    *_drops("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", deterministic=True),
    *_drops("native_dropout", deterministic=False),
    # Joined, filled, written.
    *joins("cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "row_stack", "column_stack",
           keeps=_joined, difference=Difference.MOVES, rectifies=None, ids=Ids.MOVES, entering=(0,),
           image=Image.JOINS),
    *joins("broadcast_tensors", keeps=_joined, difference=Difference.MOVES, rectifies=None, ids=Ids.MOVES,
           entering=(0, 1, 2, 3), image=Image.NOTHING),
    *joins("block_diag", keeps=_joined, difference=Difference.LINEAR, rectifies=None, ids=Ids.MOVES,
           entering=(0, 1, 2, 3), image=Image.NOTHING),
    *joins("meshgrid", "cartesian_prod", "combinations", keeps=_joined, difference=Difference.LINEAR, rectifies=None,
           ids=Ids.COMPUTES, entering=(), image=Image.NOTHING),
    *joins("where", keeps=of(by_entry(moved), _chosen), difference=Difference.STEERED, rectifies=relus.of_where,
           ids=Ids.MOVES, entering=(0, 1, 2), image=Image.KEEPS),
    *joins("masked_fill", keeps=of(by_entry(moved), _filled), difference=Difference.STEERED,
           rectifies=relus.of_filled, ids=Ids.MOVES, entering=(0, 2), image=Image.KEEPS),
    *joins("pad", keeps=of(moved, _padded), difference=Difference.MOVES, rectifies=None, ids=Ids.MOVES,
           entering=(0, 3), image=Image.KEEPS),
    *joins("constant_pad_nd", keeps=of(moved, _constant_padded), difference=Difference.MOVES, rectifies=None,
           ids=Ids.MOVES, entering=(0, 2), image=Image.KEEPS),
    *joins("index_fill", keeps=of(moved, _filled_at), difference=Difference.LINEAR, rectifies=None, ids=Ids.MOVES,
           entering=(0, 3), image=Image.KEEPS),
    *joins("index_copy", keeps=_joined, difference=Difference.LINEAR, rectifies=None, ids=Ids.MOVES, entering=(0, 3),
           image=Image.JOINS),
    *joins("masked_scatter", keeps=_joined, difference=Difference.LINEAR, rectifies=None, ids=Ids.MOVES,
           entering=(0, 2), image=Image.NOTHING),
    *joins("select_scatter", "slice_scatter", keeps=_joined, difference=Difference.LINEAR, rectifies=None,
           ids=Ids.MOVES, entering=(0, 1), image=Image.NOTHING),
    *joins("diagonal_scatter", keeps=_joined, difference=Difference.LINEAR, rectifies=None, ids=Ids.COMPUTES,
           entering=(), image=Image.NOTHING),
    *joins("fill", keeps=of(moved, _second), difference=Difference.LINEAR, rectifies=None, ids=Ids.COMPUTES,
           entering=(), image=Image.NOTHING),
    *joins("_pad_packed_sequence", keeps=of(moved, _unpacked), difference=Difference.LINEAR, rectifies=None,
           ids=Ids.COMPUTES, entering=(), image=Image.NOTHING),
    *_writes("__setitem__", set_item),
    *_writes("copy_", written),
    *_writes("fill_diagonal_", filled_diagonal),
    _own(set_item, keeps=of(moved, _set), difference=Difference.STEERED, rectifies=relus.of_filled,
         entering=(0, 2)),
    _own(written, keeps=of(moved, _second), difference=Difference.REPLACES, rectifies=None, entering=(1,)),
    _own(filled_diagonal, keeps=of(moved, _filled_along), difference=Difference.UNCOVERED, rectifies=None,
         entering=(0, 1)),
    # Resized.
    *_resized("interpolate", keeps=of(averaged_terms, _interpolated), difference=Difference.LINEAR,
              excitation=Excitation.INTERPOLATES),
    *_resized("upsample", keeps=of(averaged_terms, _interpolated), difference=Difference.LINEAR,
              excitation=Excitation.AS_RULES),
    *_resized("upsample_nearest", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
              keeps=of_all(averaged_terms), difference=Difference.AVERAGES, excitation=Excitation.AVERAGES),
    *_resized("upsample_bilinear2d", keeps=of_all(averaged_terms), difference=Difference.LINEAR,
              excitation=Excitation.AVERAGES),
    *_resized("upsample_bilinear", keeps=of_all(averaged_terms), difference=Difference.UNCOVERED,
              excitation=Excitation.AVERAGES),
]  # fmt: skip
