"""Rules for linear maps that share out positive and negative contributions apart.

The notation is that of :mod:`relprop.rules.linear`: ``P_k`` and ``N_k`` are the sums of the positive and of the
negative contributions ``a_j w_jk`` to output ``k``, for inputs of any sign.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from relprop.errors import RuleError
from relprop.propagation.layer import LinearMap
from relprop.propagation.numerics import TAU, quotient
from relprop.rules.linear import bias_part, check_bias, check_nonnegative, negative, positive
from relprop.rules.rule import Bias, LinearRule

Part = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class AlphaBeta(LinearRule):
    """LRP-alpha-beta: positive and negative contributions are shared out apart.

    Definition: ``R_j = sum_k (alpha (a_j w_jk)+ / stab(P_k) - beta (a_j w_jk)- / stab(N_k)) R_k`` with
    ``P_k = sum_j (a_j w_jk)+ + (b_k)+`` and ``N_k = sum_j (a_j w_jk)- + (b_k)-``.
    Bias: ``(b)+`` with the positive part, ``(b)-`` with the negative; out of both with ``bias="ignore"``.
    Conserves: up to biases, and only where contributions of both signs occur.

    Args:
        alpha, beta: without unit, both >= 0, ``alpha - beta = 1``; 2 and 1 by default.
        bias: ``"absorb"`` or ``"ignore"``.
        stabilizer: in units of ``z``; 1e-6 by default.

    Raises:
        RuleError: where ``alpha - beta`` is not 1 or one of them is negative.
    Source: Bach et al. 2015, eq. 60.

    >>> import torch; from relprop import LRP
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    >>> LRP(layer, AlphaBeta(2, 1, stabilizer=0)).attribute(torch.tensor([[1.0, 2.0]]))
    tensor([[ 2., -1.]])
    """

    alpha: float = 2.0
    beta: float = 1.0
    bias: Bias = "absorb"
    stabilizer: float = 1e-6

    def __post_init__(self) -> None:
        check_nonnegative(self, alpha=self.alpha, beta=self.beta, stabilizer=self.stabilizer)
        check_bias(self, self.bias)
        if abs(self.alpha - self.beta - 1.0) > 1e-6:
            raise RuleError(
                f"AlphaBeta: alpha - beta must be 1 for relevance to be conserved, "
                f"got alpha={self.alpha!r}, beta={self.beta!r}."
            )

    def coefficient(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> Tensor:
        return _signed_coefficient(layer, a, *self._quotients(layer, a, z, c))

    def absorbed(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> dict[str, Tensor]:
        above, below = self._quotients(layer, a, z, c)
        upper, lower = _signed_sums(layer, a, self.bias, below is not None)
        bias = above * layer_part(layer, z, positive)
        stabilizer = self.alpha * _lost(z * c, upper, above / self.alpha)
        if below is not None:
            bias = bias + below * layer_part(layer, z, negative)
            stabilizer = stabilizer - self.beta * _lost(z * c, lower, -below / self.beta)
        shares = {"stabilizer": stabilizer}
        shares["rule"] = self.alpha * _dropped(z * c, upper)
        if below is not None:
            shares["rule"] = shares["rule"] - self.beta * _dropped(z * c, lower)
        return shares if self.bias == "ignore" else {"bias": bias, **shares}

    def _quotients(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return what multiplies the positive and the negative contributions."""
        upper, lower = _signed_sums(layer, a, self.bias, self.beta != 0)
        relevance = z * c
        above = self.alpha * quotient(relevance, upper, self.stabilizer)
        return above, None if self.beta == 0 else -self.beta * quotient(relevance, lower, self.stabilizer)


@dataclass(frozen=True)
class ZPlus(LinearRule):
    """The z+ rule: positive contributions alone.

    Definition: ``R_j = sum_k (a_j w_jk)+ / stab(P_k) R_k`` with ``P_k = sum_j (a_j w_jk)+ + (b_k)+``; alpha-beta with
    ``alpha = 1, beta = 0``.
    Bias: ``(b)+`` in ``P``; out of it with ``bias="ignore"``.
    Conserves: without biases, where positive contributions exist.

    Args:
        bias: ``"absorb"`` or ``"ignore"``.
        stabilizer: in units of ``z``; 1e-6 by default.
    Source: Montavon et al. 2017, eq. 15 (doi:10.1016/j.patcog.2016.11.008); its root point is the rescaled excitation.

    >>> import torch; from relprop import LRP
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    >>> LRP(layer, ZPlus(stabilizer=0)).attribute(torch.tensor([[1.0, 2.0]]))
    tensor([[1., 0.]])
    """

    bias: Bias = "absorb"
    stabilizer: float = 1e-6

    def __post_init__(self) -> None:
        check_nonnegative(self, stabilizer=self.stabilizer)
        check_bias(self, self.bias)

    def coefficient(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> Tensor:
        upper, _ = _signed_sums(layer, a, self.bias, False)
        return _signed_coefficient(layer, a, quotient(z * c, upper, self.stabilizer), None)

    def absorbed(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> dict[str, Tensor]:
        return AlphaBeta(1.0, 0.0, self.bias, self.stabilizer).absorbed(layer, a, z, c)


@dataclass(frozen=True)
class RescaledExcitation(LinearRule):
    """The deep Taylor rule of a root where excitation is scaled down, and inhibition with it by a share gamma.

    Definition: ``R_j = sum_k ((a_j w_jk)+ + gamma (a_j w_jk)-) / stab(P_k + gamma N_k) R_k`` with the sums ``P_k`` of
    the positive and ``N_k`` of the negative contributions; for ``a >= 0`` proportional to ``a_j (w+ + gamma w-)``. The
    root of output k is ``a_j (1 - t (1 if w_jk > 0 else gamma))`` with ``t = z_k / (P_k + gamma N_k)``. ``gamma = 0``
    is z+, ``gamma = 1`` LRP-0, both with the bias ignored, and ``gamma = 1 / (1 + g)`` is LRP-gamma with the
    parameter ``g`` and the bias ignored, where ``z - b > 0``.
    Bias: ignored.
    Conserves: where ``P_k + gamma N_k`` is not zero, but for the stabilizer. With ``b <= 0`` it is positive for every
    output above zero, and the root lies in ``a >= 0``.

    Args:
        gamma: without unit, from 0 to 1; 0 by default.
        stabilizer: in units of ``z``; 1e-6 by default.

    Raises:
        RuleError: where ``gamma`` is not between 0 and 1, or ``stabilizer`` is negative.
    Source: Montavon et al. 2017 (doi:10.1016/j.patcog.2016.11.008), for gamma = 0; Montavon et al. 2018
        (doi:10.1016/j.dsp.2017.10.011); Montavon et al. 2019.

    >>> import torch; from relprop import LRP
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    >>> LRP(layer, RescaledExcitation(0.5, stabilizer=0)).attribute(torch.tensor([[1.0, 2.0]]))
    tensor([[ 1.5000, -0.5000]])
    """

    gamma: float = 0.0
    stabilizer: float = 1e-6

    def __post_init__(self) -> None:
        check_nonnegative(self, gamma=self.gamma, stabilizer=self.stabilizer)
        if self.gamma > 1.0:
            raise RuleError(f"RescaledExcitation: gamma must be between 0 and 1, got {self.gamma!r}.")

    def coefficient(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> Tensor:
        share = quotient(z * c, self._total(layer, a), self.stabilizer)
        return _signed_coefficient(layer, a, share, self.gamma * share if self.gamma else None)

    def absorbed(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> dict[str, Tensor]:
        total = self._total(layer, a)
        share = quotient(z * c, total, self.stabilizer)
        return {"stabilizer": _lost(z * c, total, share), "rule": _dropped(z * c, total)}

    def _total(self, layer: LinearMap, a: Tensor) -> Tensor:
        upper, lower = _signed_sums(layer, a, "ignore", self.gamma != 0)
        return torch.add(upper, lower, alpha=self.gamma) if self.gamma else upper


@dataclass(frozen=True)
class Contrast(LinearRule):
    """The excitation of an output less that of its dual, whose weights are the negative ones.

    Definition: ``R_j = sum_k ((a_j w_jk)+ / stab(P_k) - (a_j w_jk)- / stab(N_k)) R_k`` with the sums ``P_k`` of the
    positive and ``N_k`` of the negative contributions: alpha-beta with ``alpha = beta = 1``.
    Bias: ignored.
    Conserves: nothing; what the unit gives, the dual takes, and the report counts it as taken by the rule.

    Args:
        stabilizer: in units of ``z``; 1e-6 by default.
    Source: Zhang et al. 2016 (arXiv:1608.00507), section 3.3.

    >>> import torch; from relprop import LRP
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    >>> LRP(layer, Contrast(stabilizer=0)).attribute(torch.tensor([[1.0, 2.0]]))
    tensor([[ 1., -1.]])
    """

    stabilizer: float = 1e-6

    def __post_init__(self) -> None:
        check_nonnegative(self, stabilizer=self.stabilizer)

    def coefficient(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> Tensor:
        both, unit = (rule.coefficient(layer, a, z, c) for rule in self._pair())
        return both - unit  # (2, 1) - (1, 0) = (1, 1)

    def absorbed(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> dict[str, Tensor]:
        both, unit = (rule.absorbed(layer, a, z, c) for rule in self._pair())
        shares = {name: both[name] - unit[name] for name in both}
        return {**shares, "rule": shares["rule"] + z * c}

    def _pair(self) -> tuple[AlphaBeta, AlphaBeta]:
        return (
            AlphaBeta(2.0, 1.0, bias="ignore", stabilizer=self.stabilizer),
            AlphaBeta(1.0, 0.0, bias="ignore", stabilizer=self.stabilizer),
        )


def layer_part(layer: LinearMap, z: Tensor, part: Callable[[Tensor], Tensor]) -> Tensor | float:
    """Return a part of the bias as it broadcasts to the output, or 0."""
    return 0.0 if layer.bias is None else layer.geometry.shift(part(layer.bias), z)


def _signed_sums(layer: LinearMap, a: Tensor, how: Bias, both: bool) -> tuple[Tensor, Tensor]:
    """Return the sums of the positive and, where asked for, of the negative contributions."""
    upper = _same_sign_sum(layer, a, positive, negative, how)
    return upper, _same_sign_sum(layer, a, negative, positive, how) if both else upper


def _same_sign_sum(layer: LinearMap, a: Tensor, part: Part, other: Part, how: Bias) -> Tensor:
    """Return the sum of the contributions that ``part`` of the weight makes to inputs above zero, ``other`` below."""
    bias = bias_part(part, layer.bias, how)
    if layer.nonnegative_input:
        return layer.forward(a, layer.modified(part), bias)
    above = layer.forward(positive(a), layer.modified(part), bias)
    return above + layer.forward(negative(a), layer.modified(other))


def _signed_coefficient(layer: LinearMap, a: Tensor, above: Tensor, below: Tensor | None) -> Tensor:
    """Return the coefficient that shares ``above`` among positive and ``below`` among negative contributions."""
    c = layer.transpose(above, layer.modified(positive))
    if below is not None:
        c = c + layer.transpose(below, layer.modified(negative))
    if layer.nonnegative_input:
        return c
    mirrored = layer.transpose(above, layer.modified(negative))
    if below is not None:
        mirrored = mirrored + layer.transpose(below, layer.modified(positive))
    return torch.where(a < 0, mirrored, c)


def _lost(relevance: Tensor, total: Tensor, c: Tensor) -> Tensor:
    """Return what the stabilizer took, where there was something to share."""
    return torch.where(total.abs() <= TAU, 0.0, relevance - c * total)


def _dropped(relevance: Tensor, total: Tensor) -> Tensor:
    """Return the relevance of outputs that no contribution of that sign reached."""
    return torch.where(total.abs() <= TAU, relevance, 0.0)
