"""From tensors to the plain arrays that a figure shows; NumPy only, no drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from relprop.errors import InputError, InputTypeError

Values: TypeAlias = Tensor | NDArray[np.generic]
Array: TypeAlias = NDArray[np.float64]


def to_array(values: Values, name: str) -> Array:
    """Copy a tensor or array of any real dtype and device into a finite float64 array.

    Args:
        values: what the caller passed.
        name: how error messages call it.

    Raises:
        InputTypeError: it is neither a tensor nor an array, or its dtype is not real.
        InputError: it is empty or holds NaN or infinity.
    """
    if isinstance(values, Tensor):
        if values.is_complex():
            raise InputTypeError(f"{name} has dtype {values.dtype}; expected a real dtype")
        array = values.detach().to("cpu", torch.float64).numpy()
    elif isinstance(values, np.ndarray):
        if values.dtype.kind not in "fiub":
            raise InputTypeError(f"{name} has dtype {values.dtype}; expected a real dtype")
        array = values.astype(np.float64)
    else:
        raise InputTypeError(f"{name} is a {type(values).__name__}; expected a torch.Tensor or numpy.ndarray")
    if array.size == 0:
        raise InputError(f"{name} has shape {array.shape}, so it is empty; there is nothing to draw")
    broken = int(np.count_nonzero(~np.isfinite(array)))
    if broken:
        raise InputError(f"{name} holds NaN or infinity in {broken} of {array.size} entries; nothing was drawn")
    return array


def channel_sum(relevance: Values) -> Array:
    """Sum one sample's relevance over its channels.

    Definition: ``M[y, x] = sum_c R[c, y, x]``, so that the map has the same total as the relevance.

    Args:
        relevance: one sample, ``[C, H, W]``, ``[1, C, H, W]``, or ``[H, W]``, which is already a map.

    Shapes: ``[C, H, W] -> [H, W]``, float64.

    Raises:
        InputTypeError: not a tensor or array of a real dtype.
        InputError: another shape, empty, or not finite.

    >>> channel_sum(torch.tensor([[[1.0, 2.0]], [[-3.0, 4.0]]]))
    array([[-2.,  6.]])
    """
    array = to_array(relevance, "relevance")
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 3:
        summed: Array = array.sum(axis=0)
        return summed
    if array.ndim == 2:
        return array
    hints = {1: "; reshape it to the picture's height and width", 4: "; pass one sample, as relevance[0]"}
    raise InputError(
        f"relevance has shape {array.shape}; expected one sample, [C, H, W] or [H, W]" + hints.get(array.ndim, "")
    )


def symmetric_scale(*maps: Values, quantile: float = 1.0) -> float:
    """The value at which the colours end, the same on both sides of zero.

    Definition: the ``quantile`` of ``|M|`` over all entries of all maps; where that is zero, the largest ``|M|``; and 1
    for maps of zeros, which are drawn in the colour of zero.

    Args:
        maps: arrays of any shape.
        quantile: in (0, 1]; below 1, a few extreme entries saturate instead of paling all others.

    Returns: the scale, above 0, in units of the maps.

    Raises:
        InputError: no map, one that is empty or not finite, or ``quantile`` outside (0, 1].
        InputTypeError: not tensors or arrays of a real dtype.

    >>> symmetric_scale(torch.tensor([-3.0, 1.0]), torch.tensor([2.0]))
    3.0
    >>> symmetric_scale(torch.zeros(4))
    1.0
    """
    if not maps:
        raise InputError("symmetric_scale needs at least one map")
    check_quantile(quantile)
    size = np.concatenate([np.abs(to_array(each, "map")).ravel() for each in maps])
    # With most entries at zero the quantile may be zero although the map is not empty.
    return float(np.quantile(size, quantile)) or float(size.max()) or 1.0


def check_quantile(quantile: float) -> None:
    """Raise InputError unless ``0 < quantile <= 1``."""
    if not 0 < quantile <= 1:
        raise InputError(f"quantile is {quantile}; expected 0 < quantile <= 1")


def picture(image: Array) -> Array:
    """Stretch one input to [0, 1] for display.

    Definition: ``(a - min a) / (max a - min a)`` over the whole sample, so that normalised inputs need no
    undoing; an input already in [0, 1] is left as it is.

    Shapes: ``[3, H, W] -> [H, W, 3]``; other ``[C, H, W] -> [H, W]``, the channels' mean; ``[H, W]`` stays.
    """
    if image.ndim == 3:
        image = np.moveaxis(image, 0, -1) if image.shape[0] == 3 else image.mean(axis=0)
    low, high = float(image.min()), float(image.max())
    if low >= 0 and high <= 1:
        return image
    return (image - low) / ((high - low) or 1.0)


def unit_map(sample: Array) -> Array:
    """One sample of one layer as a two-dimensional map.

    Shapes: ``[F]`` units are folded, row by row, into the most square rectangle whose rows are full (a prime
    number of them is one row); ``[T, F]`` stays; ``[..., H, W]`` is summed over all but the last two.

    >>> unit_map(np.arange(6.0)).shape, unit_map(np.ones((4, 3, 2))).shape
    ((2, 3), (3, 2))
    """
    if sample.ndim >= 2:
        return sample.reshape(-1, *sample.shape[-2:]).sum(axis=0) if sample.ndim > 2 else sample
    rows = max(d for d in range(1, int(max(sample.size, 1) ** 0.5) + 1) if sample.size % d == 0)
    return sample.reshape(rows, -1)


def batch(values: Values, name: str, samples: int | None = None, dims: Sequence[int] = ()) -> Array:
    """Check a batch: its number of samples if ``samples``, its number of dimensions if ``dims`` is given."""
    array = to_array(values, name)
    if array.ndim == 0 or (dims and array.ndim not in dims):
        raise InputError(f"{name} has shape {array.shape}; expected a batch, [N, C, H, W] or [N, H, W]")
    if samples is not None and array.shape[0] != samples:
        raise InputError(f"{name} has {array.shape[0]} samples; expected {samples}, as the others have")
    return array


def named(values: Mapping[str, Values | Sequence[Values]], name: str) -> dict[str, Values]:
    """Flatten a mapping whose values may be sequences (a module used twice) into one entry a tensor."""
    if not isinstance(values, Mapping):
        raise InputTypeError(f"{name} is a {type(values).__name__}; expected a mapping from names to tensors")
    flat: dict[str, Values] = {}
    for key, value in values.items():
        if isinstance(value, (tuple, list)):
            flat.update({f"{key} (call {n})": each for n, each in enumerate(value, start=1)})
        else:
            flat[str(key)] = value  # type: ignore[assignment]  # to_array checks the type and says so
    if not flat:
        raise InputError(f"{name} is empty; there is nothing to draw")
    return flat
