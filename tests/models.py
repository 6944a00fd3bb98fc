"""Small networks that the tests of methods, registry and report share, and plain gradients to compare with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

DTYPE = torch.float64
M = TypeVar("M", bound=nn.Module)


def settle(model: M, seed: int = 4) -> M:
    """The model in float64 and eval mode, with weights, biases and statistics of both signs that all matter."""
    generator = torch.Generator().manual_seed(seed)
    model = model.to(DTYPE).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 0.5, generator=generator)
            if name.endswith("weight") and parameter.dim() == 1:
                parameter.abs_().add_(0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.3, generator=generator)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0, generator=generator)
    return model


def without_bias(model: M) -> M:
    """The same model with every bias zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    return model


def mlp(*, bias: bool = True) -> nn.Sequential:
    """[N, 4] to [N, 3], through ReLU: all its LRP-0 maps are Gradient x Input."""
    layers = nn.Sequential(
        nn.Linear(4, 6, bias=bias), nn.ReLU(), nn.Linear(6, 5, bias=bias), nn.ReLU(), nn.Linear(5, 3, bias=bias)
    )
    return settle(layers)


class Residual(nn.Module):
    """[N, 3, 6, 6] to [N, 4]: folded batch norm, a residual sum, in-place ReLU, max and average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.branch = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.mean = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.norm(self.stem(x)))
        h = self.pool(self.branch(h) + h)
        out: Tensor = self.head(self.mean(h).flatten(1))
        return out


def residual() -> Residual:
    return settle(Residual())


class Wrapped(nn.Module):
    """A model whose output is what `wrap` makes of another's."""

    def __init__(self, model: nn.Module, wrap: Callable[[Any], Any]) -> None:
        super().__init__()
        self.model = model
        self.wrap = wrap

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.wrap(self.model(*args, **kwargs))


def vectors(n: int = 2, features: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(n, features, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)


def images(n: int = 2, channels: int = 3, side: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)


def gradient(score: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The derivative of the sum of `score(x)` by `x`, by plain autograd."""
    leaf = x.detach().clone().requires_grad_()
    (found,) = torch.autograd.grad(score(leaf).sum(), leaf)
    return found


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    """Assert equality of whole tensors, relative to the largest entry."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    assert found.dtype == expected.dtype, (found.dtype, expected.dtype)
    scale = float(expected.detach().abs().max())
    assert scale > 0, "the expected map is zero: it would prove nothing"
    worst = float((found.detach() - expected.detach()).abs().max())
    assert worst <= tolerance * scale, f"differ by {worst / scale:.3g} of the largest entry"
