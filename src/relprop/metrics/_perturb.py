"""Many perturbed copies of every sample through the model, in batches of bounded size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from relprop.metrics._explain import Output, Target, bar, checked_target, chunks, scores, target_rows


@torch.no_grad()
def perturbed_scores(
    model: nn.Module,
    x: Tensor,
    target: Target,
    output: Output,
    copies: int,
    perturbed: Callable[[Tensor, Tensor], Tensor],
    *,
    internal_batch_size: int | None,
    progress: bool = False,
    what: str = "perturb",
) -> Tensor:
    """Return the scores of ``copies`` perturbed copies of every sample, ``[N, copies]``, in float64.

    Args:
        perturbed: from the rows of P pairs (sample, copy), ``[P]`` and ``[P]`` on the device of x, to inputs
            ``[P, ...]``. Pairs come in the order of samples, then of copies, ``internal_batch_size`` or less at once.
    """
    found = checked_target(target, len(x))
    parts = list(chunks(len(x) * copies, internal_batch_size))
    values = []
    for part in bar(parts, progress, what):
        pairs = torch.arange(part.start, part.stop, device=x.device)
        rows, copy = pairs // copies, pairs % copies
        targets = target_rows(found, rows.to(found.device)) if isinstance(found, Tensor) else found
        values.append(scores(model, perturbed(rows, copy), targets, output))
    return torch.cat(values).double().view(len(x), copies)


def replaced(x: Tensor, x0: Tensor, rows: Tensor, gone: Tensor) -> Tensor:
    """Return the rows of x with the entries from x0 where ``gone`` ``[P, D]`` says so."""
    return torch.where(gone.view(len(rows), *x.shape[1:]), x0[rows], x[rows])
