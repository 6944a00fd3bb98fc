"""A small network and its scores one input at a time, in plain NumPy: what the metrics are compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def network() -> nn.Sequential:
    """Two channels of 4 x 6 pixels, three outputs, in float64."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)).double().eval()


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


TARGET = [2, 0, 1]


def gradient_x_input(model: nn.Module, x: Tensor, target: Any) -> Tensor:
    x = x.clone().requires_grad_()
    with torch.enable_grad():
        outputs = model(x)
        picked = outputs.gather(1, torch.as_tensor(target, device=x.device).expand(len(x))[:, None]).sum()
    return (x * torch.autograd.grad(picked, x)[0]).detach()


def score(model: nn.Module, image: np.ndarray, target: int, probability: bool = False) -> float:
    """The output for one image."""
    with torch.no_grad():
        outputs = model(torch.from_numpy(image)[None])[0].numpy()
    if probability:
        outputs = np.exp(outputs - outputs.max())
        outputs /= outputs.sum()
    return float(outputs[target])


def additive() -> tuple[nn.Module, Any]:
    """A model that adds what each feature says, and its exact Shapley values with regard to a baseline of 1/2."""

    def parts(x: Tensor) -> Tensor:
        weights = torch.linspace(-1, 2, x[0].numel(), dtype=x.dtype).view(x.shape[1:])
        return weights * (torch.sin(3 * x) + x**2)

    class Additive(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return parts(x).flatten(1).sum(dim=1, keepdim=True)

    def shapley(model: nn.Module, x: Tensor, target: Any) -> Tensor:
        return parts(x) - parts(torch.full_like(x, 0.5))

    return Additive(), shapley
