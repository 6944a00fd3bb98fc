"""What is perturbed together: entries, pixels with all their channels, regions, segments."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from relprop.arguments import whole_number
from relprop.errors import InputError, InputTypeError
from relprop.metrics._explain import ranking

Features: TypeAlias = Literal["pixels", "elements"] | int | tuple[int, int] | Tensor | None


@dataclass(frozen=True)
class Units:
    """A partition of the entries of every sample into units that are perturbed together.

    Attributes:
        index: the unit of each entry, ``[N, D]``, D entries of a sample in the order of ``flatten(1)``.
        counts: how many units each sample has, ``[N]``.
    """

    index: Tensor
    counts: Tensor

    @property
    def most(self) -> int:
        """K, the largest number of units of a sample."""
        return int(self.counts.max())

    @property
    def sizes(self) -> Tensor:
        """How many entries each unit has, ``[N, K]``; 0 for units that a sample does not have."""
        return self.total(torch.ones(self.index.shape, dtype=torch.float64, device=self.index.device))

    @property
    def missing(self) -> Tensor:
        """Which of the K units a sample does not have, ``[N, K]``."""
        return torch.arange(self.most, device=self.index.device) >= self.counts[:, None]

    def total(self, values: Tensor, absolute: bool = False) -> Tensor:
        """Return the sum of values ``[N, ...]``, or of their absolute values, in each unit, ``[N, K]``, in float64."""
        flat = values.flatten(1).double()
        sums = torch.zeros(len(flat), self.most, dtype=torch.float64, device=flat.device)
        return sums.scatter_add_(1, self.index, flat.abs() if absolute else flat)

    def spread(self, values: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """Return for each entry the value of its unit: ``[P, K] -> [P, D]``, where P are some rows of the samples."""
        return values.gather(1, self.index[rows])

    def ranks(self, values: Tensor, seed: int | torch.Generator, *, descending: bool = True) -> Tensor:
        """Return the place of each unit in the order of values ``[N, K]``, ``[N, K]``; those that are missing last."""
        values = values.masked_fill(self.missing, -math.inf if descending else math.inf)
        order = ranking(values, seed, descending=descending)
        places = torch.arange(self.most, device=order.device).expand_as(order)
        return torch.empty_like(order).scatter_(1, order, places)


def units(x: Tensor, features: Features) -> Units:
    """Partition x.

    Args:
        x: ``[N, ...]``.
        features: ``"elements"``, every entry for itself; ``"pixels"``, a position of ``[N, C, H, W]`` or
            ``[N, C, D, H, W]`` with all its channels; an int or a pair, regions of so many pixels on a grid that begins
            at the top left, cut off at the bottom and the right where they do not fit; integers of the shape of x or
            one that :func:`aligned` takes, segments; None, pixels for ``[N, C, H, W]`` and elements for all else.

    Raises:
        InputError: pixels or regions of an x that has none, regions larger than x, segments of another shape.
    """
    if features is None:
        features = "pixels" if x.dim() == 4 else "elements"
    if isinstance(features, str):
        return _named(x, features)
    if isinstance(features, Tensor):
        return segments(x, features)
    height, width = region_size(x, features)
    across = -(-x.shape[3] // width)
    rows = torch.arange(x.shape[2], device=x.device) // height
    columns = torch.arange(x.shape[3], device=x.device) // width
    return _uniform(x, (rows[:, None] * across + columns).expand(x.shape[1:]))


def region_size(x: Tensor, region: int | tuple[int, int]) -> tuple[int, int]:
    """Return the height and the width of regions that fit into images x."""
    if isinstance(region, tuple) and len(region) != 2:
        raise InputError(f"a region is given by its side or by (height, width), got {region!r}")
    height, width = region if isinstance(region, tuple) else (region, region)
    sides = whole_number("the height of a region", height), whole_number("the width of a region", width)
    if x.dim() != 4:
        raise InputError(f"regions of pixels need images [N, C, H, W], got x of shape {tuple(x.shape)}")
    if sides[0] > x.shape[2] or sides[1] > x.shape[3]:
        raise InputError(f"a region of {sides[0]} x {sides[1]} is larger than the input, {x.shape[2]} x {x.shape[3]}")
    return sides


def segments(x: Tensor, labels: Tensor) -> Units:
    """Partition x by integers, the same number for what belongs together; numbers need not be consecutive."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputTypeError(f"segments have dtype {labels.dtype}; expected integers, one number for each segment")
    flat = aligned(labels, x, "segments").flatten(1)
    found = [torch.unique(sample, return_inverse=True) for sample in flat]
    counts = torch.tensor([len(names) for names, _ in found], device=x.device)
    return Units(torch.stack([inverse for _, inverse in found]), counts)


def channel_dim(x: Tensor) -> int | None:
    """Return which dimension holds the channels of a place; None where each entry is a place.

    Definition: none of ``[N, D]``; the last of ``[N, T, D]``, sequences of T tokens; dimension 1 of ``[N, C, H, W]``
    and ``[N, C, D, H, W]``. It depends on the number of dimensions alone, never on their sizes; a signal ``[N, C, L]``
    is told from tokens by a height of one, ``[N, C, 1, L]``.

    Raises:
        InputError: more dimensions.
    """
    if x.dim() > 5:
        raise InputError(
            f"shape {tuple(x.shape)} has {x.dim()} dimensions, of which none is known to hold channels; expected "
            "[N, D], [N, T, D], [N, C, H, W] or [N, C, D, H, W]"
        )
    return {2: None, 3: 2}.get(x.dim(), 1)


def aligned(labels: Tensor, x: Tensor, what: str) -> Tensor:
    """Expand segments to the shape of x.

    Args:
        labels: of the shape of x, or that without channels (``channel_dim``), or with one; or any of these of one
            sample, for all samples.
        x: ``[N, ...]``.
        what: how errors call them.

    Raises:
        InputError: another shape, or one that fits in two ways which do not say the same.
    """
    shape, one = tuple(x.shape), (1, *x.shape[1:])
    places = _place_forms(x) if x.dim() <= 5 else [(shape, shape)]
    return _read(labels, x, what, [*places, (one, one), (one[1:], one)])


def place_mask(mask: Tensor, x: Tensor) -> Tensor:
    """Return a mask as one entry for each place, ``[N, places]``.

    Args:
        mask: bool, of the shape of x, or that without channels (``channel_dim``), or with one; or of one sample without
            channels, or with one, for all samples.
        x: ``[N, ...]``.

    Raises:
        InputError: another shape, or a mask that differs between the channels of a place.
    """
    whole, channel = _read(mask, x, "the mask's entries", _place_forms(x)), channel_dim(x)
    if channel is None:
        return whole
    first = whole.narrow(channel, 0, 1)
    if bool((whole != first).any()):
        raise InputError("the mask differs between channels, over which relevance is summed; expected one for all")
    return first.flatten(1)


def on_places(values: Tensor) -> Tensor:
    """Return the sum over the channels of each place (``channel_dim``), ``[N, places]``."""
    channel = channel_dim(values)
    return (values if channel is None else values.sum(dim=channel)).flatten(1)


def _place_forms(x: Tensor) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return in which shapes each place may be named, and as what each is read: a shape that expands to that of x."""
    shape, channel = tuple(x.shape), channel_dim(x)
    if channel is None:
        return [(shape, shape), (shape[1:], (1, *shape[1:]))]
    one = (*shape[:channel], 1, *shape[channel + 1 :])
    bare = (*shape[:channel], *shape[channel + 1 :])
    each = (1, *one[1:])
    return [(shape, shape), (one, one), (bare, one), (bare[1:], each), (one[1:], each)]


def _read(labels: Tensor, x: Tensor, what: str, forms: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> Tensor:
    """Expand labels to the shape of x by the one form that their shape has."""
    labels = labels.to(x.device)
    found = tuple(labels.shape)
    fitting = list(dict.fromkeys(read for given, read in forms if given == found))
    kind = "[N, T, D], T tokens, " if x.dim() == 3 else ""
    if not fitting:
        expected = ", ".join(dict.fromkeys(str(given) for given, _ in forms))
        raise InputError(f"{what} have shape {found}; expected, for {kind}{tuple(x.shape)}, one of {expected}")
    whole = [labels.view(read).expand(x.shape) for read in fitting]
    if any(not torch.equal(whole[0], other) for other in whole[1:]):
        raise InputError(
            f"{what} have shape {found}, which fits {kind}{tuple(x.shape)} in two ways, as "
            f"{' and as '.join(map(str, fitting))}; give one of these shapes, or expand them to the whole"
        )
    return whole[0]


def _named(x: Tensor, features: str) -> Units:
    if features == "elements":
        return _uniform(x, torch.arange(x[0].numel(), device=x.device).view(x.shape[1:]))
    if features == "pixels":
        if x.dim() not in (4, 5):
            raise InputError(
                "pixels need [N, C, H, W] or [N, C, D, H, W], or else segments, such as features=torch.arange(T) for "
                f"the tokens of [N, T, D]; got x of shape {tuple(x.shape)}"
            )
        return _uniform(x, torch.arange(x[0, 0].numel(), device=x.device).view(x.shape[2:]).expand(x.shape[1:]))
    raise InputError(
        f"features is {features!r}; expected 'pixels', 'elements', the size of regions, or integers that name segments"
    )


def _uniform(x: Tensor, index: Tensor) -> Units:
    """Return the same units for all samples."""
    counts = torch.full((len(x),), int(index.max()) + 1, device=x.device)
    return Units(index.reshape(1, -1).expand(len(x), -1), counts)
