"""Samples without some of their units: many perturbed copies through the model, in batches of bounded size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from relprop.arguments import bar
from relprop.metrics._explain import (
    Explain,
    Output,
    Target,
    checked_input,
    checked_target,
    chunks,
    explained,
    scores,
    target_rows,
)
from relprop.metrics._features import Features, Units, region_size, units
from relprop.metrics.baselines import Baseline, baseline_of


@torch.no_grad()
def copies_scores(
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


@dataclass(frozen=True)
class Removal:
    """What is scored, and what replaces the units that are taken away.

    Attributes:
        model, x, target, output: what is scored.
        x0: what replaces x.
        parts: what is replaced together.
        seed: for all that is drawn.
        size: inputs at once.
        progress: show a bar.
    """

    model: nn.Module
    x: Tensor
    x0: Tensor
    target: int | Tensor | None
    output: Output
    parts: Units
    seed: int
    size: int | None
    progress: bool

    def relevance(self, explain: Explain | Tensor) -> Tensor:
        """Return the relevance of x, of its shape."""
        return explained(
            explain, self.model, self.x, self.target, internal_batch_size=self.size, progress=self.progress
        )

    def whole(self) -> Tensor:
        """Return the scores of x, ``[N]``, in float64."""
        return scores(self.model, self.x, self.target, self.output, internal_batch_size=self.size).double()

    def without(
        self, copies: int, gone: Callable[[Tensor, Tensor], Tensor], *, insert: bool = False, what: str = "perturb"
    ) -> Tensor:
        """Return the scores of ``copies`` copies of every sample, ``[N, copies]``.

        Args:
            gone: from pairs (sample, copy), ``[P]`` and ``[P]``, to the units that are replaced, ``[P, K]``.
            insert: begin with ``x0`` and put these units of x in.
            what: written beside the progress bar.
        """

        def perturbed(rows: Tensor, copy: Tensor) -> Tensor:
            return self.replaced(rows, gone(rows, copy), insert=insert)

        return copies_scores(
            self.model,
            self.x,
            self.target,
            self.output,
            copies,
            perturbed,
            internal_batch_size=self.size,
            progress=self.progress,
            what=what,
        )

    def replaced(self, rows: Tensor, gone: Tensor, *, insert: bool = False) -> Tensor:
        """Return rows of x with the units ``gone``, ``[P, K]``, from x0; or of x0 with these from x."""
        old, new = (self.x0, self.x) if insert else (self.x, self.x0)
        mask = self.parts.spread(gone, rows).view(len(rows), *self.x.shape[1:])
        return torch.where(mask, new[rows], old[rows])


def removal(
    model: nn.Module,
    x: Tensor,
    target: Target,
    *,
    features: Features,
    baseline: Baseline,
    output: Output,
    seed: int,
    internal_batch_size: int | None,
    progress: bool,
) -> Removal:
    """Check the arguments that all metrics by removal have in common."""
    x = checked_input(x)
    region = region_size(x, features) if isinstance(features, (int, tuple)) else (1, 1)
    return Removal(
        model,
        x,
        baseline_of(x, baseline, region=region, seed=seed),
        checked_target(target, len(x)),
        output,
        units(x, features),
        seed,
        internal_batch_size,
        progress,
    )
