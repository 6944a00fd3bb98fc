"""Rules for linear maps: how the relevance of ``z_k = sum_j a_j w_jk + b_k`` is shared among the inputs ``a_j``.

In the notation of Bach et al. 2015 (doi:10.1371/journal.pone.0130140) and of Montavon et al. 2019
(doi:10.1007/978-3-030-28954-6_10): ``R_k = z_k c_k`` arrives, ``R_j = a_j c_j`` leaves, and a rule is the map from
the coefficients ``c_k`` to ``c_j``. Every rule works on every linear layer type, since it only uses the map and
its transpose. ``(x)+ = max(0, x)``, ``(x)- = min(0, x)``; ``stab(z, e) = z + e sign(z)`` with ``sign(0) = +1``.

With ``bias="absorb"`` the bias takes part in the denominator and keeps its share of the relevance; with
``bias="ignore"`` the denominator leaves it out and all relevance flows on. What bias and stabilizer absorb computes
:func:`relprop.rules.relevance.absorbed`. A ``stabilizer`` of 0 takes the exact
quotient, with ``0 / 0 = 0``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from relprop.errors import RuleError
from relprop.propagation.math.linear_map import LinearMap
from relprop.propagation.math.numerics import quotient, rms
from relprop.rules.relevance import LRP_0, Group, Relative
from relprop.rules.rule import Bias, GroupRule, LinearRule, check_nonnegative


@dataclass(frozen=True)
class Zero(GroupRule):
    """LRP-0: each input receives the share of its contribution.

    Definition: ``R_j = sum_k a_j w_jk / z_k R_k``; the coefficient is the gradient itself. Where a rule above gave
    relevance to an output of exactly zero, nothing can be shared, and ``0 / 0 = 0``.
    Bias: in ``z``; keeps its share.
    Conserves: without biases.
    Source: Bach et al. 2015, eq. 56 (doi:10.1371/journal.pone.0130140).

    >>> import torch; from relprop import LRP
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    >>> LRP(layer, Zero()).attribute(torch.tensor([[1.0, 2.0]]))
    tensor([[ 3., -2.]])
    """

    groups = (LRP_0,)
    stabilizer = None
    exact_by_autograd = True


@dataclass(frozen=True)
class Epsilon(GroupRule):
    """LRP-epsilon: weak and contradictory contributions are absorbed.

    Definition: ``R_j = sum_k a_j w_jk / stab(z_k, epsilon) R_k``.
    Bias: in ``z``; keeps its share unless ``bias="ignore"``.
    Conserves: up to biases and ``epsilon``.

    Args:
        epsilon: in units of ``z``; 1e-6 by default.
        relative: multiply ``epsilon`` by the root mean square of the sums over the output channels at each position
            (:class:`Relative`): ``epsilon`` has no unit then, and relevance scales with the activations. With
            ``"layer"`` by that of ``z`` over all of a sample, the ``0.1 std`` of the tutorial, where dimension 0 holds
            samples; padding, or what follows a position, then changes the map.
        bias: ``"absorb"`` or ``"ignore"``.

    Raises:
        RuleError: where ``epsilon`` is no number >= 0, or ``relative`` or ``bias`` is another.
    Source: Bach et al. 2015, eq. 58 (doi:10.1371/journal.pone.0130140); Montavon et al. 2019, section 10.2.1
        (doi:10.1007/978-3-030-28954-6_10).

    >>> import torch; from relprop import LRP
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    >>> LRP(layer, Epsilon(1.0)).attribute(torch.tensor([[1.0, 2.0]]))
    tensor([[ 1.5000, -1.0000]])
    """

    epsilon: float = 1e-6
    relative: bool | Literal["layer"] = False
    bias: Bias = "absorb"

    def __post_init__(self) -> None:
        check_nonnegative(self, epsilon=self.epsilon)
        if self.relative not in (False, True, "layer"):
            raise RuleError(f'Epsilon: relative is True, False or "layer", got {self.relative!r}.')
        super().__post_init__()

    groups = (LRP_0,)

    @property
    def stabilizer(self) -> float:  # type: ignore[override]  # no rule is written to
        return self.epsilon

    def stabilize(self, layer: LinearMap, z: Tensor) -> float | Tensor | Relative:
        if not self.relative:
            return self.epsilon
        return self.epsilon * rms(z, layer.sample_dims(z)) if self.relative == "layer" else Relative(self.epsilon)


@dataclass(frozen=True)
class Gamma(GroupRule):
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
        stabilizer: without unit, see :class:`Relative`; 1e-6 by default.

    Raises:
        RuleError: where ``gamma`` or ``stabilizer`` is no number >= 0, or ``bias`` is another.
    Source: Montavon et al. 2019, section 10.2.1 (doi:10.1007/978-3-030-28954-6_10); for signed inputs Andéol et al.
        2021, appendix (arXiv:2106.04923).

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
        super().__post_init__()
        check_nonnegative(self, gamma=self.gamma)

    @property
    def groups(self) -> tuple[Group, ...]:
        return Group(1 + self.gamma, 1, sign=1), Group(1, 1 + self.gamma, sign=-1)


@dataclass(frozen=True)
class Rho(LinearRule):
    """The tutorial's general rule: any change of the weights, any change of the sums.

    Definition: ``R_j = sum_k a_j rho(w_jk) / incr(sum_j a_j rho(w_jk) + rho(b_k)) R_k``.
    Bias: goes through ``rho`` as the weights do.
    Conserves: up to ``rho(b)`` and what ``incr`` adds.

    Args:
        rho: from a weight (or a bias) to a tensor of the same shape.
        incr: from the sums to the denominators; the identity by default. ``x / 0 = 0``.

    Raises:
        RuleError: where one of them cannot be called.
    Source: Montavon et al. 2019, eq. 10.3, the generic rule (doi:10.1007/978-3-030-28954-6_10).

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
