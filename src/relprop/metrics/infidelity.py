"""Infidelity: does the explanation predict what a perturbation does to the score?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from relprop.arguments import whole_number
from relprop.errors import InputError
from relprop.metrics._checked import must_be_numbers
from relprop.metrics._explain import (
    Explain,
    Output,
    Target,
    checked_input,
    checked_relevance,
    explained,
    generator,
    scores,
)
from relprop.metrics._features import region_size
from relprop.metrics._removal import copies_scores
from relprop.metrics.baselines import Baseline, baseline_of
from relprop.training import one_measurement

Perturbation: TypeAlias = Literal["subset", "noisy baseline", "square"] | Callable[[Tensor, torch.Generator], Tensor]
Kind: TypeAlias = Literal["relevance", "coefficient"]


@one_measurement
def infidelity(
    explain: Explain | Tensor,
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    kind: Kind = "relevance",
    perturbation: Perturbation = "subset",
    baseline: Baseline = "zero",
    samples: int = 50,
    sigma: float = 0.2,
    square: int = 1,
    rescale: bool = False,
    output: Output = "logit",
    seed: int = 0,
    internal_batch_size: int | None = 512,
    progress: bool = False,
) -> Tensor:
    """Compare what the explanation says of random perturbations with what they do.

    Definition: ``1/S sum_s (c_s - d_s)^2`` with ``d_s = f(x) - f(x - I_s)`` and, for a ``"coefficient"`` (a gradient),
    ``c_s = sum_i R_i I_si``; for a ``"relevance"``, which contains the distance from the baseline,
    ``c_s = sum_i R_i I_si / (x_i - x0_i)``, where entries that equal the baseline's count 0.
    Range: [0, inf), in squared units of the score; lower is better.
    Source: Yeh et al. 2019 (arXiv:1901.09392). Captum's ``infidelity`` takes the first, and the second
    with ``infidelity_perturb_func_decorator``, which counts ``R_i I_i`` where entries equal the baseline's.

    Args:
        explain, model, x, target, output, internal_batch_size, progress: as in ``perturbation_curve``.
        kind: ``"relevance"`` or ``"coefficient"``.
        perturbation: what is drawn for I. ``"subset"``: each entry goes to the baseline with probability 1/2, so that
            ``c`` is the sum of relevance over it. ``"noisy baseline"``: ``I = x - x0 - sigma e``, ``e ~ N(0, 1)``.
            ``"square"``: a random square of pixels with all channels goes to the baseline. Or a callable
            ``(x, generator) -> I`` of the shape of x, called S times with a CPU generator.
        baseline: ``x0``, what :func:`baseline_of` takes.
        samples: S.
        sigma: of the noisy baseline, in units of the input.
        square: its side, in pixels.
        rescale: multiply ``c`` by the one number that makes the result smallest, ``sum_s c d / sum_s c c``: for
            explanations that are right but for their scale (Captum's ``normalize``).
        seed: for the perturbations; drawn on the CPU, the same on every device.

    Shapes: ``-> [N]``, float64.

    Raises:
        InputError: an unknown kind or perturbation, a square that does not fit, a callable that returns another shape.
        InputTypeError: an input of integers where noise or a coefficient is asked for; they may be exchanged for the
            baseline's (``"subset"``, ``"square"``).
        RelpropError: what ``perturbation_curve`` raises.

    >>> model = nn.Linear(3, 1)
    >>> x = torch.randn(2, 3)
    >>> infidelity(lambda model, x, target: x * model.weight, model, x).round(decimals=6)
    tensor([0., 0.], dtype=torch.float64)
    >>> gradient = lambda model, x, target: model.weight.expand_as(x)
    >>> infidelity(gradient, model, x, kind="coefficient", perturbation="noisy baseline").round(decimals=6)
    tensor([0., 0.], dtype=torch.float64)
    """
    x = checked_input(x)
    whole_number("samples", samples)
    if kind not in ("relevance", "coefficient"):
        raise InputError(
            f"kind is {kind!r}; expected 'relevance' (contains x - baseline) or 'coefficient' (a gradient)"
        )
    if kind == "coefficient":
        must_be_numbers(x, "a coefficient is multiplied by its change")
    elif perturbation == "noisy baseline":
        must_be_numbers(x, "a noisy baseline adds noise to it")
    x0 = baseline_of(x, baseline, seed=seed).detach()
    draw = _perturbation(perturbation, x0, sigma, square)
    relevance = explained(explain, model, x, target, internal_batch_size=internal_batch_size, progress=progress)
    slope = relevance.double().flatten(1)
    if kind == "relevance":
        away = (x - x0).double().flatten(1)
        slope = torch.where(away == 0, 0.0, slope / away)
    whole = scores(model, x, target, output, internal_batch_size=internal_batch_size).double()
    source, says, does = generator(seed), [], []
    step = samples if internal_batch_size is None else max(1, internal_batch_size // len(x))
    for start in range(0, samples, step):
        drawn = torch.stack([draw(x, source) for _ in range(start, min(start + step, samples))])

        def perturbed(rows: Tensor, copy: Tensor, drawn: Tensor = drawn) -> Tensor:
            return x[rows] - drawn[copy, rows]

        found = copies_scores(
            model, x, target, output, len(drawn), perturbed, internal_batch_size=internal_batch_size, progress=progress
        )
        does.append(whole[:, None] - found)
        says.append(torch.einsum("snd,nd->ns", drawn.double().flatten(2), slope))
    c, d = torch.cat(says, dim=1), torch.cat(does, dim=1)
    if rescale:
        size = c.square().sum(dim=1, keepdim=True)
        c = c * torch.where(size == 0, 1.0, (c * d).sum(dim=1, keepdim=True) / size)
    return (c - d).square().mean(dim=1)


def _change(change: Any, x: Tensor) -> Tensor:
    """Return a perturbation that the user drew."""
    found = checked_relevance(change, x, "the perturbation is")
    if found.is_floating_point():
        must_be_numbers(x, f"the perturbation is of {found.dtype}")
    return found


def _perturbation(
    perturbation: Perturbation, x0: Tensor, sigma: float, square: int
) -> Callable[[Tensor, torch.Generator], Tensor]:
    """Return what draws I."""

    def subset(x: Tensor, source: torch.Generator) -> Tensor:
        gone = torch.rand(x.shape, generator=source, dtype=torch.float64) < 0.5
        return torch.where(gone.to(x.device), x - x0, torch.zeros_like(x))

    def noisy(x: Tensor, source: torch.Generator) -> Tensor:
        noise = torch.randn(x.shape, generator=source, dtype=torch.float64)
        return x - x0 - sigma * noise.to(x.device, x.dtype)

    def squares(x: Tensor, source: torch.Generator) -> Tensor:
        sides = region_size(x, square)
        top, left = (
            torch.randint(size - side + 1, (len(x), 1), generator=source)
            for size, side in zip(x.shape[2:], sides, strict=True)
        )
        rows, columns = torch.arange(x.shape[2]), torch.arange(x.shape[3])
        inside = ((rows >= top) & (rows < top + sides[0]))[:, None, :, None]
        inside = inside & ((columns >= left) & (columns < left + sides[1]))[:, None, None, :]
        return torch.where(inside.to(x.device), x - x0, torch.zeros_like(x))

    if callable(perturbation):
        given = perturbation
        return lambda x, source: _change(given(x, source), x)
    named = {"subset": subset, "noisy baseline": noisy, "square": squares}
    if perturbation not in named:
        raise InputError(
            f"perturbation is {perturbation!r}; expected one of {tuple(named)} or a callable (x, generator)"
        )
    return named[perturbation]
