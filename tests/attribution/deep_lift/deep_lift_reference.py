"""DeepLIFT written from the paper, for chains of layers: every linear layer a matrix, every sum over terms explicit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]
Pair = tuple[Tensor, Tensor]
"""The multipliers of the positive and of the negative part of a difference."""


@dataclass(frozen=True)
class Linear:
    """``z = W x + b`` of vectors."""

    weight: Tensor
    bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return self.weight @ x + self.bias

    def back(self, x: Tensor, x0: Tensor, m: Pair) -> Pair:
        """The linear rule: a term goes with the part whose sign it has, one of zero half with each."""
        up, down = (part[:, None] for part in m)
        term = self.weight * (x - x0)
        chosen = torch.where(term > 0, up, torch.where(term < 0, down, (up + down) / 2))
        total = (self.weight * chosen).sum(0)
        return total, total


@dataclass(frozen=True)
class Activation:
    """An elementwise function behind a linear layer, or behind anything (`parts` None)."""

    function: Function
    derivative: Function
    before: Linear | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def back(self, x: Tensor, x0: Tensor, m: Pair) -> Pair:
        """Rescale."""
        factor = _ratio(self.function(x) - self.function(x0), x - x0, self.derivative(x))
        return m[0] * factor, m[1] * factor

    def reveal(self, x: Tensor, x0: Tensor, given: Tensor, given0: Tensor, m: Pair) -> Pair:
        """RevealCancel; what comes from above has one multiplier for both parts."""
        assert self.before is not None
        f, term = self.function, self.before.weight * (given - given0)
        up, down = term.clamp(min=0).sum(1), term.clamp(max=0).sum(1)
        rise = ((f(x0 + up) - f(x0)) + (f(x0 + down + up) - f(x0 + down))) / 2
        fall = ((f(x0 + down) - f(x0)) + (f(x0 + up + down) - f(x0 + up))) / 2
        slope = self.derivative(x0)
        return m[0] * _ratio(rise, up, slope), m[1] * _ratio(fall, down, slope)


@dataclass(frozen=True)
class MaxPool:
    """The maxima of windows, each a list of positions."""

    windows: list[list[int]]

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[window].max() for window in self.windows])

    def back(self, x: Tensor, x0: Tensor, m: Pair) -> Pair:
        total = torch.zeros_like(x)
        for k, window in enumerate(self.windows):
            now, before = x[window], x0[window]
            change = now.max() - before.max()
            # Extreme in the pass that has the larger maximum, then nearest to it in the other, then all alike.
            first, second = (now, before) if change >= 0 else (before, now)
            best = max((float(u), float(v)) for u, v in zip(first, second, strict=True))
            which = [i for i, u, v in zip(window, first, second, strict=True) if (float(u), float(v)) == best]
            for i in which:
                share = change / (x[i] - x0[i]) if x[i] != x0[i] else 1.0
                total[i] += m[0][k] * share / len(which)
        return total, total


@dataclass(frozen=True)
class Softmax:
    """An exponential of the input less ``L``, the logarithm of a sum of exponentials: a secant, and with ``sum p = 1``
    ``sum_i w_i (dx_i - dL) = 0``."""

    def forward(self, x: Tensor) -> Tensor:
        return x.exp() / x.exp().sum()

    def back(self, x: Tensor, x0: Tensor, m: Pair) -> Pair:
        p, p0 = self.forward(x), self.forward(x0)
        w = _ratio(p - p0, p.log() - p0.log(), p)
        total = m[0] * w - w / w.sum() * (m[0] * w).sum()
        return total, total


Step = Linear | Activation | MaxPool | Softmax


def _ratio(change: Tensor, by: Tensor, limit: Tensor) -> Tensor:
    return torch.where(by == 0, limit, change / torch.where(by == 0, 1.0, by))


def multipliers(steps: list[Step], x: Tensor, x0: Tensor, seed: Tensor, *, reveal: bool) -> Tensor:
    """The multipliers of one sample's input, for a combination `seed` of the outputs."""
    values, values0 = [x], [x0]
    for step in steps:
        values.append(step.forward(values[-1]))
        values0.append(step.forward(values0[-1]))
    m: Pair = (seed, seed)
    for k in range(len(steps) - 1, -1, -1):
        step = steps[k]
        if reveal and isinstance(step, Activation) and step.before is not None:
            m = step.reveal(values[k], values0[k], values[k - 1], values0[k - 1], m)
        else:
            m = step.back(values[k], values0[k], m)
    return m[0]


def relevance(steps: list[Step], x: Tensor, x0: Tensor, target: int, *, reveal: bool = False) -> Tensor:
    """The map of a batch ``[N, ...]``."""
    maps = []
    for one, base in zip(x.flatten(1), x0.flatten(1), strict=True):
        outputs = one
        for step in steps:
            outputs = step.forward(outputs)
        seed = torch.zeros_like(outputs)
        seed[target] = 1
        maps.append((one - base) * multipliers(steps, one, base, seed, reveal=reveal))
    return torch.stack(maps).reshape(x.shape)


def unrolled(function: Function, shape: tuple[int, ...]) -> Linear:
    """A linear or convolutional layer as a matrix, by its Jacobian."""
    zero = torch.zeros(1, *shape, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: function(x).flatten(), zero)
    bias = function(zero).flatten().detach()
    return Linear(jacobian.reshape(len(bias), -1), bias)  # type: ignore[no-untyped-call]


def windows(shape: tuple[int, int, int], size: int) -> list[list[int]]:
    """The windows of max pooling without overlap over ``[C, H, W]``."""
    channels, height, width = shape
    at = torch.arange(channels * height * width).reshape(shape)
    return [
        at[c, i : i + size, j : j + size].flatten().tolist()
        for c in range(channels)
        for i in range(0, height - size + 1, size)
        for j in range(0, width - size + 1, size)
    ]
