"""Explanations along a path: does the explanation jump where the input moves on?

Steps are halved: a discontinuity is what stays as large however short the step (Montavon, Samek and Mueller 2018,
arXiv:1706.07979, section 7.1, moves a digit and watches its explanation).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from relprop.errors import InputError
from relprop.metrics._checked import must_explain
from relprop.metrics._explain import Explain, Output, Target, checked_input, explained, repeated, scores
from relprop.tables import text_table
from relprop.training import one_measurement


@dataclass(frozen=True)
class Trajectory:
    """Explanations along a path, from ``trajectory``.

    Attributes:
        inputs: the path, ``[T + 1, N, ...]``.
        relevance: the relevance at each of its points, of the same shape.
        outputs: the explained output, ``[T + 1, N]``.
    """

    inputs: Tensor
    relevance: Tensor
    outputs: Tensor

    @property
    def steps(self) -> int:
        """T, the number of steps."""
        return len(self.inputs) - 1

    @property
    def jumps(self) -> Tensor:
        """``|R(x_{t+1}) - R(x_t)|_1`` at each step, ``[T, N]``, float64."""
        return self.relevance.double().diff(dim=0).flatten(2).abs().sum(dim=2)

    @property
    def lengths(self) -> Tensor:
        """``|x_{t+1} - x_t|_2`` at each step, ``[T, N]``, float64."""
        lengths: Tensor = torch.linalg.vector_norm(self.inputs.double().diff(dim=0).flatten(2), dim=2)
        return lengths

    def thinned(self, stride: int) -> Trajectory:
        """Return the same path in steps ``stride`` times as wide; ``stride`` divides the number of steps."""
        if stride < 1 or self.steps % stride:
            raise InputError(f"stride is {stride}; expected a divisor of the {self.steps} steps of the path")
        return Trajectory(self.inputs[::stride], self.relevance[::stride], self.outputs[::stride])


@one_measurement
def trajectory(
    explain: Explain,
    model: nn.Module,
    path: Tensor,
    target: Target = None,
    *,
    normalize: bool = False,
    output: Output = "logit",
    internal_batch_size: int | None = 512,
    progress: bool = False,
) -> Trajectory:
    """Explain every point of a path: what ``path_continuity`` measures and ``relprop.visual.animation`` shows.

    Args:
        explain, model, internal_batch_size, progress: as in ``continuity``.
        path: ``[T + 1, N, ...]``, from ``translation``, ``interpolation`` or anywhere.
        target: None, an int, or one for each of the N samples.
        normalize: divide each R by its own ``sum |R|`` (0 / 0 = 0).
        output: what is recorded beside the relevance: ``"logit"``, ``"probability"``, or a callable from the model's
            outputs and the target to ``[N]``.

    Raises:
        InputError: fewer than two points, or no sample; an explainer that returns another shape, or NaN.
        InputTypeError: no tensor, or relevance in the place of the explainer.
        RelpropError: what ``perturbation_curve`` raises of targets, outputs and the model.

    >>> from relprop.metrics import interpolation
    >>> path = interpolation(torch.zeros(1, 2), torch.ones(1, 2), steps=4)
    >>> made = trajectory(lambda model, x, target: x, torch.nn.Linear(2, 1), path)
    >>> made.jumps.squeeze(1)
    tensor([0.5000, 0.5000, 0.5000, 0.5000], dtype=torch.float64)
    """
    must_explain(explain, "trajectory", "every point of the path")
    checked_input(path, "path")
    if path.dim() < 3 or len(path) < 2:
        raise InputError(
            f"path has shape {tuple(path.shape)}; expected [T + 1, N, ...], at least two points of N samples"
        )
    path = path.detach()
    relevance = explained_points(explain, model, path, target, internal_batch_size, progress)
    if normalize:
        relevance = normalized(relevance.flatten(2)).view_as(relevance)
    flat = path.flatten(0, 1)
    values = scores(
        model, flat, repeated(target, len(path), path.shape[1]), output, internal_batch_size=internal_batch_size
    )
    return Trajectory(path, relevance, values.view(len(path), -1))


@dataclass(frozen=True)
class PathContinuity:
    """Whether an explanation jumps along a path, from ``path_continuity``; L widths of step, each half the last.

    Attributes:
        steps: how many steps the path was cut into, for each width.
        jumps: ``max_t |R(x_{t+1}) - R(x_t)|_1`` for each width, ``[L, N]``.
        ratios: ``max_t |R(x_{t+1}) - R(x_t)|_1 / |x_{t+1} - x_t|_2`` for each width, ``[L, N]``.
    """

    steps: tuple[int, ...]
    jumps: Tensor
    ratios: Tensor

    @property
    def values(self) -> Tensor:
        """How the ratio grew with the last halving, as a power of two, ``[N]``; lower is better.

        Definition: ``log2(ratio at the finest / ratio at half as many steps)``; 0 where both are 0, infinite where only
        the finest step sees a change. In the limit 0 for a bounded slope, 1 for a jump.
        """
        last, before = self.ratios[-1], self.ratios[-2]
        return torch.where(last == before, 0.0, (last / before).log2())

    @property
    def mean(self) -> float:
        """The mean of ``values``."""
        return float(self.values.mean())

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and lists."""
        return {
            "steps": list(self.steps),
            "jumps": self.jumps.tolist(),
            "ratios": self.ratios.tolist(),
            "growth": self.values.tolist(),
        }

    def __str__(self) -> str:
        rows = [
            [str(steps), f"{float(jump):.4g}", f"{float(ratio):.4g}"]
            for steps, jump, ratio in zip(self.steps, self.jumps.mean(dim=1), self.ratios.mean(dim=1), strict=True)
        ]
        return text_table(["steps", "largest jump", "largest ratio"], rows, right=(0, 1, 2))


def path_continuity(along: Trajectory, *, halvings: int = 4) -> PathContinuity:
    """Tell a jump of the explanation from a steep slope, by halving the step.

    Definition: for steps of each width, the largest ``|R(x_{t+1}) - R(x_t)|_1`` and its largest ratio to
    ``|x_{t+1} - x_t|_2``. Where the slope of R is bounded, the jump halves with the step and the ratio converges to the
    largest slope; where R is discontinuous, the jump stays and the ratio doubles.
    Range: jumps and ratios [0, inf). ``values``, the growth of the ratio with the last halving as a power of two, is in
    [0, inf] on a straight path in equal steps, and may be below 0 on another, whose wide steps cut corners. As the step
    shrinks it goes to 0 where the slope is bounded, to 1 at a jump, and to what is between where R is continuous and
    infinitely steep (1/2 for a square root). It is inf where only the finest step sees a change at all: use a longer
    path. Lower is better.
    Source: Montavon et al. 2018, section 7.1 (doi:10.1016/j.dsp.2017.10.011), for the ratio; the halving, which makes
    it a test, is relprop's own.

    Args:
        along: from ``trajectory``; its steps are the finest. In float32 the rounding of R, divided by short steps,
            looks like a slope: use float64 for fine paths.
        halvings: how often the step is halved, at least 1; ``2**halvings`` divides the number of steps.

    Raises:
        InputError: a number of steps that cannot be halved that often, or a path that stands still.

    >>> from relprop.metrics import interpolation
    >>> path = interpolation(torch.zeros(1, 1), torch.ones(1, 1), steps=16)
    >>> step = trajectory(lambda model, x, target: (x > 0.3).to(x), torch.nn.Linear(1, 1), path)
    >>> print(path_continuity(step, halvings=2))
    steps  largest jump  largest ratio
    -----  ------------  -------------
        4             1              4
        8             1              8
       16             1             16
    """
    if halvings < 1 or along.steps % 2**halvings:
        raise InputError(
            f"halvings is {halvings}, and the path has {along.steps} steps; expected at least 1, and a number of steps "
            f"that 2**halvings divides"
        )
    levels = [along.thinned(2**level) for level in range(halvings, -1, -1)]
    if any(bool((level.lengths == 0).any()) for level in levels):
        raise InputError("the path stands still at a step; expected neighbouring points that differ in every sample")
    return PathContinuity(
        tuple(level.steps for level in levels),
        torch.stack([level.jumps.amax(dim=0) for level in levels]),
        torch.stack([(level.jumps / level.lengths).amax(dim=0) for level in levels]),
    )


def explained_points(
    explain: Explain, model: nn.Module, points: Tensor, target: Target, size: int | None, progress: bool
) -> Tensor:
    """Explain points ``[S, N, ...]``; a sample's target holds for all its points."""
    flat = points.flatten(0, 1)
    targets = repeated(target, len(points), points.shape[1])
    return explained(explain, model, flat, targets, internal_batch_size=size, progress=progress).view_as(points)


def normalized(relevance: Tensor) -> Tensor:
    """Divide each map, ``[..., D]``, by its ``sum |R|``; an empty map stays empty."""
    total = relevance.abs().sum(dim=-1, keepdim=True)
    return torch.where(total == 0, 0.0, relevance / total)
