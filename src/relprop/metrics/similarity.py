"""How alike are two maps? What the sanity checks compare with.

Each takes two maps ``[N, ...]`` of one shape and returns ``[N]``, float64. None depends on the scale of either map.
A correlation with a map that does not vary is undefined, and so is the cosine of a map of zeros: those are NaN, but 1
where the two maps are equal. (0 would be the best score of a sanity check, for a map that says nothing.) SSIM has
constants in its fractions, which define it everywhere.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from relprop.arguments import whole_number
from relprop.errors import InputError, MissingExtraError
from relprop.metrics._correlation import of_unit_size, pearson, spearman

Similarity: TypeAlias = Literal["spearman", "pearson", "cosine", "ssim", "hog"] | Callable[[Tensor, Tensor], Tensor]
NAMES = ("spearman", "pearson", "cosine", "ssim", "hog")


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Correlate the ranks of entries (Spearman); equal entries share their mean rank.

    Definition: Pearson's correlation of the ranks of all entries of each map.
    Range: [-1, 1]; 1 where both order entries alike, 0 for maps that have nothing to do with one another. NaN where one
    of them does not vary, but 1 where they are equal.
    Source: Adebayo et al. 2018 (arXiv:1810.03292), of signed and of absolute maps.

    Args:
        a, b: ``[N, ...]``, of one shape.

    Shapes: ``-> [N]``, float64.

    Raises:
        InputError: two shapes.

    >>> rank_correlation(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 10.0, 100.0]])).round(decimals=6)
    tensor([1.], dtype=torch.float64)
    """
    _same_shape(a, b)
    return _or_equal(a, b, spearman(a.flatten(1), b.flatten(1), torch.nan))


def structural_similarity(a: Tensor, b: Tensor, *, window: int | None = None) -> Tensor:
    """Compare the local structure of maps (SSIM), by scikit-image.

    Definition: each map summed over channels and divided by its largest absolute value; then
    ``skimage.metrics.structural_similarity`` with ``data_range=2``.
    Range: [-1, 1]; 1 for equal maps.
    Source: Wang et al. 2004 (doi:10.1109/TIP.2003.819861); Adebayo et al. 2018 (arXiv:1810.03292).

    Args:
        a, b: ``[N, C, H, W]``.
        window: the odd side of the local window; 7 by default, or the largest odd number that fits.

    Shapes: ``-> [N]``, float64.

    Raises:
        MissingExtraError: scikit-image is not installed (``pip install relprop[metrics]``).
        InputError: no images, two shapes, or a window that is even or does not fit.

    >>> a = torch.rand(2, 1, 9, 9)
    >>> structural_similarity(a, a)
    tensor([1., 1.], dtype=torch.float64)
    """
    metrics = _skimage("metrics")
    _images(a, b, "SSIM")
    side = min(a.shape[2:])
    window = min(7, side if side % 2 else side - 1) if window is None else whole_number("window", window, least=3)
    if window % 2 == 0 or window > side or window < 3:
        raise InputError(f"the window is {window}; expected an odd number from 3 to {side}, the shorter side")
    maps = zip(_scaled(a), _scaled(b), strict=True)
    return _column([metrics.structural_similarity(one, two, win_size=window, data_range=2.0) for one, two in maps], a)


def hog_similarity(a: Tensor, b: Tensor, *, cell: int | None = None) -> Tensor:
    """Correlate histograms of oriented gradients of maps (HOG), by scikit-image.

    Definition: each map summed over channels and divided by its largest absolute value; Pearson's correlation of their
    ``skimage.feature.hog``, of 9 orientations and blocks of 3 x 3 cells, or as many as there are.
    Range: [-1, 1]; 1 for equal maps. NaN where one of two others has no gradient.
    Source: Dalal and Triggs 2005 (doi:10.1109/CVPR.2005.177); Adebayo et al. 2018 (arXiv:1810.03292).

    Args:
        a, b: ``[N, C, H, W]``, 16 x 16 or larger.
        cell: the side of a cell in pixels; 16 by default, as there, or a quarter of the shorter side if that is less.

    Shapes: ``-> [N]``, float64.

    Raises:
        MissingExtraError: scikit-image is not installed (``pip install relprop[metrics]``).
        InputError: no images, two shapes, less than 16 x 16, or a cell larger than the image.

    >>> a = torch.rand(2, 1, 16, 16)
    >>> hog_similarity(a, a).round(decimals=6)
    tensor([1., 1.], dtype=torch.float64)
    """
    feature = _skimage("feature")
    _images(a, b, "HOG")
    side = min(a.shape[2:])
    if side < 16:
        raise InputError(f"HOG of {a.shape[2]} x {a.shape[3]} says little: expected 16 x 16 or larger")
    cell = min(16, side // 4) if cell is None else whole_number("cell", cell, least=2)
    if cell > side:
        raise InputError(f"a cell of {cell} pixels is larger than the maps, {a.shape[2]} x {a.shape[3]}")
    block = min(3, a.shape[2] // cell, a.shape[3] // cell)

    def described(maps: list[Any]) -> Tensor:
        options = {"pixels_per_cell": (cell, cell), "cells_per_block": (block, block)}
        return torch.stack([torch.from_numpy(feature.hog(each, orientations=9, **options)) for each in maps])

    return _or_equal(a, b, pearson(described(_scaled(a)), described(_scaled(b)), torch.nan).to(a.device))


def similarity_of(similarity: Similarity) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function of a name, or the callable itself.

    Raises:
        InputError: an unknown name, or, when called, a callable that does not return ``[N]``.
    """
    if callable(similarity):
        given = similarity
        return lambda a, b: _column(given(a, b), a)
    named: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "spearman": rank_correlation,
        "pearson": lambda a, b: _or_equal(a, b, pearson(a.flatten(1), b.flatten(1), torch.nan)),
        "cosine": _cosine,
        "ssim": structural_similarity,
        "hog": hog_similarity,
    }
    if similarity not in named:
        raise InputError(f"similarity is {similarity!r}; expected one of {NAMES} or a callable (a, b) -> [N]")
    return named[similarity]


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    a, b = (of_unit_size(each.double().flatten(1)) for each in (a, b))
    # Each by its own size: their product may be too small a number where neither is. 0 / 0 is NaN.
    found = (a / a.norm(dim=1, keepdim=True) * (b / b.norm(dim=1, keepdim=True))).sum(dim=1)
    return _or_equal(a, b, found.clamp(-1, 1))


def _or_equal(a: Tensor, b: Tensor, found: Tensor) -> Tensor:
    """Return what was found, but 1 where two maps are equal."""
    return torch.where((a == b).flatten(1).all(dim=1), 1.0, found)


def _column(values: Any, like: Tensor) -> Tensor:
    """Return one number for each map."""
    found = torch.as_tensor(values, dtype=torch.float64, device=like.device)
    if found.shape != (len(like),):
        raise InputError(
            f"the similarity returned {tuple(found.shape)}; expected [{len(like)}], one number for each map"
        )
    return found


def _same_shape(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape or a.dim() < 2:
        raise InputError(f"maps have shapes {tuple(a.shape)} and {tuple(b.shape)}; expected two of one shape, [N, ...]")


def _images(a: Tensor, b: Tensor, what: str) -> None:
    _same_shape(a, b)
    if a.dim() != 4:
        raise InputError(f"{what} compares images, [N, C, H, W], got maps of shape {tuple(a.shape)}")


def _scaled(maps: Tensor) -> list[Any]:
    """Return each map as an array ``[H, W]`` between -1 and 1."""
    values = of_unit_size(maps.detach().cpu().double()).sum(dim=1)  # of so large numbers the sum may be infinite
    return list(of_unit_size(values).numpy())


def _skimage(part: str) -> Any:
    try:
        return importlib.import_module(f"skimage.{part}")
    except ImportError as error:
        raise MissingExtraError(
            "SSIM and HOG are those of scikit-image, which is not installed; pip install relprop[metrics], or compare "
            "by 'spearman', 'pearson', 'cosine' or a callable"
        ) from error
