"""Rules for linear maps: how the relevance of ``z_k = sum_j a_j w_jk + b_k`` is shared among the inputs ``a_j``.

In the notation of Bach et al. 2015 (doi:10.1371/journal.pone.0130140) and of Montavon et al. 2019
(doi:10.1007/978-3-030-28954-6_10): ``R_k = z_k c_k`` arrives, ``R_j = a_j c_j`` leaves, and a rule is the map from
the coefficients ``c_k`` to ``c_j``. Every rule works on every linear layer type, since it only uses the map and
its transpose. ``(x)+ = max(0, x)``, ``(x)- = min(0, x)``; ``stab(z, e) = z + e sign(z)`` with ``sign(0) = +1``.

With ``bias="absorb"`` the bias takes part in the denominator and keeps its share of the relevance; with
``bias="ignore"`` the denominator leaves it out and all relevance flows on. A ``stabilizer`` of 0 takes the exact
quotient, with ``0 / 0 = 0``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from relprop.errors import RuleError
from relprop.propagation.layer import LinearMap
from relprop.propagation.numerics import quotient
from relprop.rules.rule import Bias, LinearRule


def positive(x: Tensor) -> Tensor:
    """Return ``(x)+``."""
    return x.clamp(min=0)


def negative(x: Tensor) -> Tensor:
    """Return ``(x)-``; at 0 the derivative is that of one side, as that of ``(x)+`` is of the other."""
    return torch.where(x < 0, x, 0.0)


def bias_part(part: Callable[[Tensor], Tensor], bias: Tensor | None, how: Bias) -> Tensor | None:
    """Return a part of the bias as it takes part in the denominator."""
    return None if bias is None or how == "ignore" else part(bias)


def check_nonnegative(rule: object, **numbers: Any) -> None:
    """Raise where a parameter of a rule is negative or NaN."""
    for name, number in numbers.items():
        if not isinstance(number, (int, float)) or isinstance(number, bool) or not number >= 0:
            raise RuleError(f"{type(rule).__name__}: {name} must be a number >= 0, got {number!r}.")


def check_bias(rule: object, bias: str) -> None:
    """Raise where ``bias`` is neither of the two."""
    if bias not in ("absorb", "ignore"):
        raise RuleError(f"{type(rule).__name__}: bias must be 'absorb' or 'ignore', got {bias!r}.")


@dataclass(frozen=True)
class Zero(LinearRule):
    """LRP-0: each input receives the share of its contribution.

    Definition: ``R_j = sum_k a_j w_jk / z_k R_k``; the coefficient is the gradient itself. Where a rule above gave
    relevance to an output of exactly zero, nothing can be shared, and ``0 / 0 = 0``.
    Bias: in ``z``; keeps its share.
    Conserves: without biases.
    Source: Bach et al. 2015, eq. 56.

    >>> import torch; from relprop import LRP
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    >>> LRP(layer, Zero()).attribute(torch.tensor([[1.0, 2.0]]))
    tensor([[ 3., -2.]])
    """

    exact_by_autograd = True

    def coefficient(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> Tensor:
        return layer.transpose(self._shared(layer, z, c))

    def absorbed(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> dict[str, Tensor]:
        shared = self._shared(layer, z, c)
        shares = {"bias": shared * layer.shift(z)}
        return {**shares, "rule": z * (c - shared)} if layer.zeros_receive else shares

    def _shared(self, layer: LinearMap, z: Tensor, c: Tensor) -> Tensor:
        return quotient(z * c, z) if layer.zeros_receive else c


@dataclass(frozen=True)
class Epsilon(LinearRule):
    """LRP-epsilon: weak and contradictory contributions are absorbed.

    Definition: ``R_j = sum_k a_j w_jk / stab(z_k, epsilon) R_k``.
    Bias: in ``z``; keeps its share unless ``bias="ignore"``.
    Conserves: up to biases and ``epsilon``.

    Args:
        epsilon: in units of ``z``; 1e-6 by default.
        relative: multiply ``epsilon`` by the root mean square of ``z``, sample by sample (the ``0.1 std`` of the
            tutorial); ``epsilon`` has no unit then.
        bias: ``"absorb"`` or ``"ignore"``.

    Raises:
        RuleError: where ``epsilon`` is negative.
    Source: Bach et al. 2015, eq. 58; Montavon et al. 2019, section 10.2.1.

    >>> import torch; from relprop import LRP
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    >>> LRP(layer, Epsilon(1.0)).attribute(torch.tensor([[1.0, 2.0]]))
    tensor([[ 1.5000, -1.0000]])
    """

    epsilon: float = 1e-6
    relative: bool = False
    bias: Bias = "absorb"

    def __post_init__(self) -> None:
        check_nonnegative(self, epsilon=self.epsilon)
        check_bias(self, self.bias)

    def coefficient(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> Tensor:
        return layer.transpose(quotient(z * c, self._sum(layer, z), self._stabilizer(layer, z)))

    def absorbed(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> dict[str, Tensor]:
        total, epsilon = self._sum(layer, z), self._stabilizer(layer, z)
        c_in = quotient(z * c, total, epsilon)
        if self.bias == "ignore":
            return {"stabilizer": z * c - c_in * total}
        return {"bias": c_in * layer.shift(z), "stabilizer": z * c - c_in * z}

    def _sum(self, layer: LinearMap, z: Tensor) -> Tensor:
        return z if self.bias == "absorb" or layer.bias is None else z - layer.shift(z)

    def _stabilizer(self, layer: LinearMap, z: Tensor) -> float | Tensor:
        if not self.relative:
            return self.epsilon
        wide = z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
        square = wide.square().mean(dim=layer.sample_dims(z), keepdim=True)
        zero = square == 0  # where the root has no derivative
        return self.epsilon * torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())


@dataclass(frozen=True)
class Gamma(LinearRule):
    """LRP-gamma: contributions of the output's own sign are favoured, for inputs of any sign.

    Definition: where ``z_k >= 0``, with the part ``P_k = sum_j (a_j w_jk)+ + (b_k)+``,
    ``R_j = sum_k (a_j w_jk + gamma (a_j w_jk)+) / stab(z_k + gamma P_k) R_k``; where ``z_k < 0`` the mirror image, with
    ``(.)-`` in the place of ``(.)+``. For ``a >= 0`` and ``z >= 0`` that is the rule of the tutorial, with weights
    ``w + gamma (w)+``. ``gamma = 0`` is LRP-0, ``gamma -> inf`` is alpha1-beta0 where ``z > 0``.
    Bias: as an input of 1; keeps its share unless ``bias="ignore"``, which also takes the sign from ``z - b``.
    Conserves: up to biases and the stabilizer.

    Args:
        gamma: without unit; 0.25 by default.
        bias: ``"absorb"`` or ``"ignore"``.
        stabilizer: in units of ``z``; 1e-6 by default.

    Raises:
        RuleError: where ``gamma`` or ``stabilizer`` is negative.
    Source: Montavon et al. 2019, section 10.2.1; for signed inputs Andéol et al. 2021, appendix.

    >>> import torch; from relprop import LRP
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    >>> LRP(layer, Gamma(1.0, stabilizer=0)).attribute(torch.tensor([[1.0, 2.0]]))
    tensor([[ 1.5000, -0.5000]])
    """

    gamma: float = 0.25
    bias: Bias = "absorb"
    stabilizer: float = 1e-6

    def __post_init__(self) -> None:
        check_nonnegative(self, gamma=self.gamma, stabilizer=self.stabilizer)
        check_bias(self, self.bias)

    def favour_positive(self, w: Tensor) -> Tensor:
        """Return ``w + gamma (w)+``."""
        return torch.add(w, positive(w), alpha=self.gamma)

    def favour_negative(self, w: Tensor) -> Tensor:
        """Return ``w + gamma (w)-``."""
        return torch.add(w, negative(w), alpha=self.gamma)

    def coefficient(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> Tensor:
        up = layer.modified(self.favour_positive)
        if layer.nonnegative_input and layer.positive_output_only and self.bias == "absorb":
            total = layer.forward(a, up, bias_part(self.favour_positive, layer.bias, self.bias))
            return layer.transpose(torch.where(z > 0, quotient(z * c, total, self.stabilizer), 0.0), up)
        above, below = self._quotients(layer, a, z, c)
        down = layer.modified(self.favour_negative)
        if layer.nonnegative_input:
            return layer.transpose(above, up) + layer.transpose(below, down)
        return torch.where(
            a < 0,
            layer.transpose(above, down) + layer.transpose(below, up),
            layer.transpose(above, up) + layer.transpose(below, down),
        )

    def absorbed(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> dict[str, Tensor]:
        above, below = self._quotients(layer, a, z, c)
        total, favoured = self._sums(layer, a, z)
        lower = (1 + self.gamma) * total - self.gamma * favoured
        upper = total + self.gamma * favoured
        shares = {"stabilizer": z * c - above * upper - below * lower}
        if self.bias == "absorb" and layer.bias is not None:
            b = layer.geometry.shift(layer.bias, z)
            shares["bias"] = above * self.favour_positive(b) + below * self.favour_negative(b)
        return shares

    def _sums(self, layer: LinearMap, a: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of all contributions and that of the positive ones, with the bias as it takes part."""
        bias = bias_part(positive, layer.bias, self.bias)
        favoured = layer.forward(positive(a), layer.modified(positive), bias)
        if not layer.nonnegative_input:
            favoured = favoured + layer.forward(negative(a), layer.modified(negative))
        return (z - layer.shift(z) if self.bias == "ignore" else z), favoured

    def _quotients(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``R / denominator`` where ``z >= 0`` and where ``z < 0``, and 0 elsewhere."""
        total, favoured = self._sums(layer, a, z)
        # Of all contributions the negative ones are the total less the positive: no third sum is needed.
        shared = torch.where(total < 0, (1 + self.gamma) * total - self.gamma * favoured, total + self.gamma * favoured)
        every = quotient(z * c, shared, self.stabilizer)
        return torch.where(total < 0, 0.0, every), torch.where(total < 0, every, 0.0)


@dataclass(frozen=True)
class Rho(LinearRule):
    """The tutorial's general rule: any change of the weights, any change of the sums.

    Definition: ``R_j = sum_k a_j rho(w_jk) / incr(sum_j a_j rho(w_jk) + rho(b_k)) R_k``.
    Bias: goes through ``rho`` as the weights do.
    Conserves: up to ``rho(b)`` and what ``incr`` adds.

    Args:
        rho: from a weight (or a bias) to a tensor of the same shape.
        incr: from the sums to the denominators; the identity by default. ``x / 0 = 0``.
    Source: Montavon et al. 2019, eq. 10.3 (the generic rule).

    >>> import torch; from relprop import LRP
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    >>> LRP(layer, Rho(lambda w: w.clamp(min=0))).attribute(torch.tensor([[1.0, 2.0]]))
    tensor([[1., 0.]])
    """

    rho: Callable[[Tensor], Tensor]
    incr: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        for name, function in (("rho", self.rho), ("incr", self.incr)):
            if function is not None and not callable(function):
                raise RuleError(f"Rho: {name} must be a function of a tensor, got {function!r}.")

    def coefficient(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> Tensor:
        return layer.transpose(self._quotient(layer, a, z, c)[0], layer.modified(self.rho))

    def absorbed(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> dict[str, Tensor]:
        c_in, total = self._quotient(layer, a, z, c)
        shares = {"stabilizer": z * c - c_in * total}
        if layer.bias is not None:
            shares["bias"] = c_in * layer.geometry.shift(self.rho(layer.bias), z)
        return shares

    def _quotient(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        bias = None if layer.bias is None else self.rho(layer.bias)
        total = layer.forward(a, layer.modified(self.rho), bias)
        return quotient(z * c, total if self.incr is None else self.incr(total)), total
