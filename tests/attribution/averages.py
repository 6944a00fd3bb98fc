"""What the tests of averages and perturbations share: one network spelt twice, and a call of every method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import (
    LRP,
    Combined,
    FeatureAblation,
    Gradient,
    GradientShap,
    GradientXInput,
    GuidedGradCam,
    IntegratedGradients,
    KernelShap,
    LayerGradCam,
    Occlusion,
    ShapleyValueSampling,
    SmoothGrad,
    SmoothGradSquared,
    Translated,
    VarGrad,
)
from tests.models import images, settle

Call: TypeAlias = Callable[..., Any]


class Modules(nn.Module):
    """[N, 2, 6, 6] to [N, 3], every nonlinearity a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 5, 3)
        self.hidden, self.head = nn.Linear(20, 7), nn.Linear(7, 3)
        self.one, self.two, self.three, self.pool = nn.ReLU(), nn.ReLU(), nn.ReLU(), nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.pool(self.two(self.second(self.one(self.first(x)))))
        out: Tensor = self.head(self.three(self.hidden(h.flatten(1))))
        return out


class Functions(Modules):
    """The same, with functions, in place and not."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu_(self.second(F.relu(self.first(x), inplace=True)))
        h = F.max_pool2d(h, 2).reshape(len(h), -1)
        return F.linear(self.hidden(h).clamp(min=0), self.head.weight, self.head.bias)


def spelt() -> tuple[Modules, Functions]:
    return settle(Modules()), settle(Functions())


def pictures(n: int = 2) -> Tensor:
    return images(n, channels=2)


QUADRANTS = torch.arange(6).div(3, rounding_mode="floor")
QUADRANTS = (2 * QUADRANTS[:, None] + QUADRANTS).expand(1, 2, 6, 6)
BACKGROUND = images(4, channels=2, seed=7)

CASES: dict[str, Call] = {
    "integrated gradients": lambda m, x, t, **o: IntegratedGradients(m).attribute(x, 0.1, t, n_steps=7, **o),
    "gradient shap": lambda m, x, t, **o: GradientShap(m).attribute(x, BACKGROUND, 6, 0.1, t, seed=1, **o),
    "smoothgrad": lambda m, x, t, **o: SmoothGrad(Gradient(m)).attribute(x, t, nt_samples=5, **o),
    "smoothgrad of lrp": lambda m, x, t, **o: SmoothGrad(LRP(m, "epsilon_plus")).attribute(x, t, nt_samples=5, **o),
    "squares": lambda m, x, t, **o: SmoothGradSquared(GradientXInput(m)).attribute(x, t, nt_samples=5, **o),
    "vargrad": lambda m, x, t, **o: VarGrad(Gradient(m)).attribute(x, t, nt_samples=5, stdevs=0.3, **o),
    "translated": lambda m, x, t, **o: Translated(LRP(m), 1, "reflect").attribute(x, t, **o),
    "combined": lambda m, x, t, **o: Combined([LRP(m, "epsilon"), GradientXInput(m)]).attribute(x, t, **o),
    "occlusion": lambda m, x, t, **o: Occlusion(m).attribute(x, (2, 3, 2), (1, 2, 2), target=t, **o),
    "ablation": lambda m, x, t, **o: FeatureAblation(m).attribute(x, 0.2, t, feature_mask=QUADRANTS, **o),
    "grad-cam": lambda m, x, t, **o: LayerGradCam(m, "second").attribute(x, t, **o),
    "guided grad-cam": lambda m, x, t, **o: GuidedGradCam(m, "second").attribute(x, t, **o),
    "shapley": lambda m, x, t, **o: ShapleyValueSampling(m).attribute(x, None, t, None, QUADRANTS, 4, **o),
    "kernel shap": lambda m, x, t, **o: KernelShap(m).attribute(x, None, t, None, QUADRANTS, 12, **o),
}
ONE_PASS = {"combined", "grad-cam", "guided grad-cam"}
"""What runs every method once, so that there is nothing to divide."""
