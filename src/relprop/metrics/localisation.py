"""Localisation: does relevance lie where a mask says the object is?

All take relevance and a mask, and sum relevance over channels first, so that a place has one number. What is a place
depends on the number of dimensions of the relevance, never on their sizes:

- ``[N, D]``: each entry.
- ``[N, T, D]``: a token; the sum is over its D entries.
- ``[N, C, H, W]`` and ``[N, C, D, H, W]``: a pixel or a voxel; the sum is over C. Signals ``[N, C, L]`` must be given
  as ``[N, C, 1, L]``, since their shape is that of tokens.

Masks are bool, or 0 and 1, one entry for each place: ``[N, D]``, ``[N, T]``, ``[N, H, W]`` or ``[N, D, H, W]``; or
without N, for all samples. A 1 in the place of the channels is accepted, and so is the whole shape of the relevance,
where all channels of a place agree. A mask says where the object is, not what the model uses: it may be right to look
elsewhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from relprop.arguments import whole_number
from relprop.errors import InputError, InputTypeError
from relprop.metrics._correlation import ranks
from relprop.metrics._explain import checked_input, checked_relevance
from relprop.metrics._features import on_places, place_mask


def pointing_game(relevance: Tensor, mask: Tensor, *, radius: int = 0) -> Tensor:
    """Ask whether the largest relevance lies in the mask.

    Definition: 1 if ``argmax R`` is in the mask, else 0; where several places share the maximum, the share of them that
    is.
    Range: [0, 1]; higher is better; chance is the mask's share of the image.
    Source: Zhang et al. 2018 (arXiv:1608.00507), who count a hit within 15 pixels of the mask.

    Args:
        relevance: as said in :mod:`relprop.metrics.localisation`.
        mask: as said there.
        radius: a hit is up to so many pixels from the mask (a Euclidean distance); images only.

    Shapes: ``-> [N]``, float64.

    Raises:
        InputError: relevance with NaN or infinity; a mask of another shape, or without or with nothing but positive
            entries; a radius without images.
        InputTypeError: no tensors, or a mask with entries that are neither 0 nor 1.

    >>> R = torch.tensor([[[[0.0, 3.0], [1.0, 2.0]]]])
    >>> pointing_game(R, torch.tensor([[[0, 1], [0, 0]]])), pointing_game(R, torch.tensor([[[1, 0], [0, 0]]]))
    (tensor([1.], dtype=torch.float64), tensor([0.], dtype=torch.float64))
    """
    checked_input(relevance, "relevance")
    if whole_number("radius", radius, least=0) and relevance.dim() != 4:
        raise InputError(
            f"a radius is in pixels of images [N, C, H, W], got relevance of shape {tuple(relevance.shape)}"
        )
    values, inside = _flat(relevance, mask)
    if radius:
        inside = _widened(inside.view(len(inside), *relevance.shape[2:]), radius).flatten(1)
    largest = values == values.amax(dim=1, keepdim=True)
    return (largest & inside).sum(dim=1).double() / largest.sum(dim=1)


def relevance_mass_accuracy(relevance: Tensor, mask: Tensor) -> Tensor:
    """Measure which share of the positive relevance lies in the mask.

    Definition: ``sum_{p in mask} max(R_p, 0) / sum_p max(R_p, 0)``; 0 where no relevance is positive.
    Range: [0, 1]; higher is better; uniform relevance has the mask's share of the image.
    Source: Arras et al. 2022 (CLEVR-XAI, arXiv:2003.07258), for relevance made positive: here its positive
    part, after the sum over channels.

    Args:
        relevance, mask: as in ``pointing_game``.

    Shapes: ``-> [N]``, float64.

    Raises:
        InputError, InputTypeError: as ``pointing_game``.

    >>> R = torch.tensor([[[[0.0, 3.0], [1.0, -2.0]]]])
    >>> relevance_mass_accuracy(R, torch.tensor([[[0, 1], [0, 1]]]))
    tensor([0.7500], dtype=torch.float64)
    """
    return inside_total_ratio(relevance, mask)


def relevance_rank_accuracy(relevance: Tensor, mask: Tensor) -> Tensor:
    """Measure which share of the K most relevant places lies in a mask of K places.

    Definition: ``|top K of R and mask| / K`` with ``K = |mask|``. Where places share the K-th relevance, they count by
    the share of them that fits in, which is the mean over all ways to break the tie.
    Range: [0, 1]; higher is better; uniform relevance has the mask's share of the image.
    Source: Arras et al. 2022 (CLEVR-XAI, arXiv:2003.07258).

    Args:
        relevance, mask: as in ``pointing_game``.

    Shapes: ``-> [N]``, float64.

    Raises:
        InputError, InputTypeError: as ``pointing_game``.

    >>> R = torch.tensor([[[[0.0, 3.0], [1.0, -2.0]]]])
    >>> relevance_rank_accuracy(R, torch.tensor([[[0, 1], [0, 1]]]))
    tensor([0.5000], dtype=torch.float64)
    """
    values, inside = _flat(relevance, mask)
    size = inside.sum(dim=1)
    return _top(values, inside, size) / size


def inside_total_ratio(relevance: Tensor, mask: Tensor, *, weighted: bool = False) -> Tensor:
    """Measure which share of the positive relevance lies in the mask, weighted by the mask's size if asked.

    Definition: ``mu = sum_{p in mask} max(R_p, 0) / sum_p max(R_p, 0)``; ``weighted``: ``mu * S / |mask|`` with S
    places in the image. 0 where no relevance is positive.
    Range: [0, 1], weighted ``[0, S / |mask|]``; higher is better; uniform relevance has ``|mask| / S``, weighted 1.
    Source: Kohlbrenner et al. 2020 (arXiv:1910.09840). Unweighted it is the relevance mass accuracy.

    Args:
        relevance, mask: as in ``pointing_game``.
        weighted: as above, so that small objects count as much as large ones.

    Shapes: ``-> [N]``, float64.

    Raises:
        InputError, InputTypeError: as ``pointing_game``.

    >>> R = torch.tensor([[[[0.0, 3.0], [1.0, -2.0]]]])
    >>> inside_total_ratio(R, torch.tensor([[[0, 1], [0, 1]]]), weighted=True)
    tensor([1.5000], dtype=torch.float64)
    """
    values, inside = _flat(relevance, mask)
    positive = values.clamp(min=0)
    total = positive.sum(dim=1)
    ratio = torch.where(total == 0, 0.0, (positive * inside).sum(dim=1) / total)
    return ratio * inside.shape[1] / inside.sum(dim=1) if weighted else ratio


def top_k_intersection(relevance: Tensor, mask: Tensor, k: int) -> Tensor:
    """Measure which share of the k most relevant places lies in the mask.

    Definition: ``|top k of R and mask| / k``; ties as in ``relevance_rank_accuracy``.
    Range: [0, 1], at most ``|mask| / k``; higher is better; uniform relevance has the mask's share of the image.
    Source: Theiner et al. 2022 (arXiv:2104.14995).

    Args:
        relevance, mask: as in ``pointing_game``.
        k: from 1 to the number of places.

    Shapes: ``-> [N]``, float64.

    Raises:
        InputError, InputTypeError: as ``pointing_game``, and for another ``k``.

    >>> R = torch.tensor([[[[0.0, 3.0], [1.0, -2.0]]]])
    >>> top_k_intersection(R, torch.tensor([[[0, 1], [0, 1]]]), k=1)
    tensor([1.], dtype=torch.float64)
    """
    values, inside = _flat(relevance, mask)
    if whole_number("k", k) > values.shape[1]:
        raise InputError(f"k is {k}, but there are only {values.shape[1]} places; expected at most as many")
    return _top(values, inside, torch.full((len(values),), k, device=values.device)) / k


def localisation_auc(relevance: Tensor, mask: Tensor) -> Tensor:
    """Measure how well relevance tells the places of the mask from the others.

    Definition: the area under the ROC curve, which is the probability that a place of the mask has more relevance than
    another: ``P(R_in > R_out) + P(R_in = R_out) / 2``. Signed: no part is cut off, and scale does not count.
    Range: [0, 1]; higher is better; uniform and random relevance have 1/2.
    Source: Fawcett 2006 (doi:10.1016/j.patrec.2005.10.010), for the curve.

    Args:
        relevance, mask: as in ``pointing_game``.

    Shapes: ``-> [N]``, float64.

    Raises:
        InputError, InputTypeError: as ``pointing_game``.

    >>> R = torch.tensor([[[[0.0, 3.0], [1.0, -2.0]]]])
    >>> localisation_auc(R, torch.tensor([[[0, 1], [0, 1]]]))  # 3 beats both others, -2 none
    tensor([0.5000], dtype=torch.float64)
    """
    values, inside = _flat(relevance, mask)
    size = inside.sum(dim=1).double()
    rank_sum = (ranks(values) * inside).sum(dim=1)
    return (rank_sum - size * (size + 1) / 2) / (size * (inside.shape[1] - size))


def _top(values: Tensor, inside: Tensor, k: Tensor) -> Tensor:
    """Return how many of the k largest values ``[N, D]`` are inside, ``[N]``; of ties for the last, a share."""
    last = values.sort(dim=1, descending=True).values.gather(1, k[:, None] - 1)
    above, ties = values > last, values == last
    left = (k - above.sum(dim=1)).double()
    return (above & inside).sum(dim=1) + left * (ties & inside).sum(dim=1) / ties.sum(dim=1)


def _flat(relevance: Any, mask: Any) -> tuple[Tensor, Tensor]:
    """Return relevance and mask of each place, ``[N, D]``; float64 and bool."""
    if not isinstance(relevance, Tensor) or not isinstance(mask, Tensor):
        kinds = f"{type(relevance).__name__} and {type(mask).__name__}"
        raise InputTypeError(f"relevance and mask are {kinds}; expected tensors")
    checked_input(relevance, "relevance")
    values = on_places(checked_relevance(relevance, relevance).double())
    if mask.dtype != torch.bool and bool(((mask != 0) & (mask != 1)).any()):
        raise InputTypeError("the mask has entries that are neither 0 nor 1; expected a bool mask, such as mask > 0")
    inside = place_mask(mask.bool(), relevance)
    counts = inside.sum(dim=1)
    for wrong, what in (
        (counts == 0, "no positive entry"),
        (counts == inside.shape[1], "nothing but positive entries"),
    ):
        if bool(wrong.any()):
            n = int(wrong.nonzero()[0])
            raise InputError(f"the mask of sample {n} has {what}; expected an object that is a part of the image")
    return values, inside


def _widened(inside: Tensor, radius: int) -> Tensor:
    """Return masks ``[N, H, W]`` with all that is within a distance of them."""
    steps = torch.arange(-radius, radius + 1, device=inside.device)
    disk = (steps[:, None] ** 2 + steps**2 <= radius**2).to(torch.float32)[None, None]
    return torch.nn.functional.conv2d(inside[:, None].to(torch.float32), disk, padding=radius)[:, 0] > 0.5
