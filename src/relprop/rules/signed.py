"""Rules for linear maps that share out positive and negative contributions apart.

The notation is that of :mod:`relprop.rules.linear`: ``P_k`` and ``N_k`` are the sums of the positive and of the
negative contributions ``a_j w_jk`` to output ``k``, for inputs of any sign.
"""

from __future__ import annotations

from dataclasses import dataclass

from relprop.errors import RuleError
from relprop.rules.relevance import Group
from relprop.rules.rule import Bias, GroupRule, check_nonnegative


@dataclass(frozen=True)
class AlphaBeta(GroupRule):
    """LRP-alpha-beta: positive and negative contributions are shared out apart.

    Definition: ``R_j = sum_k (alpha (a_j w_jk)+ / stab(P_k) - beta (a_j w_jk)- / stab(N_k)) R_k`` with
    ``P_k = sum_j (a_j w_jk)+ + (b_k)+`` and ``N_k = sum_j (a_j w_jk)- + (b_k)-``.
    Bias: ``(b)+`` with the positive part, ``(b)-`` with the negative; out of both with ``bias="ignore"``.
    Conserves: up to biases, and only where contributions of both signs occur.

    Args:
        alpha, beta: without unit, both >= 0, ``alpha - beta = 1``; 2 and 1 by default.
        bias: ``"absorb"`` or ``"ignore"``.
        stabilizer: without unit, see :class:`Relative`; 1e-6 by default.

    Raises:
        RuleError: where ``alpha - beta`` is not 1, one of them or ``stabilizer`` is no number >= 0, or ``bias`` is
            another.
    Source: Bach et al. 2015, eq. 60 (doi:10.1371/journal.pone.0130140).

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
    by_sign = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_nonnegative(self, alpha=self.alpha, beta=self.beta)
        if abs(self.alpha - self.beta - 1.0) > 1e-6:
            raise RuleError(
                f"AlphaBeta: alpha - beta must be 1 for relevance to be conserved, "
                f"got alpha={self.alpha!r}, beta={self.beta!r}."
            )

    @property
    def groups(self) -> tuple[Group, ...]:
        return Group(1, 0, self.alpha), Group(0, 1, -self.beta)


@dataclass(frozen=True)
class ZPlus(GroupRule):
    """The z+ rule: positive contributions alone.

    Definition: ``R_j = sum_k (a_j w_jk)+ / stab(P_k) R_k`` with ``P_k = sum_j (a_j w_jk)+ + (b_k)+``; alpha-beta with
    ``alpha = 1, beta = 0``.
    Bias: ``(b)+`` in ``P``; out of it with ``bias="ignore"``.
    Conserves: without biases, where positive contributions exist.

    Args:
        bias: ``"absorb"`` or ``"ignore"``.
        stabilizer: without unit, see :class:`Relative`; 1e-6 by default.

    Raises:
        RuleError: where ``stabilizer`` is no number >= 0, or ``bias`` is another.
    Source: Montavon et al. 2017, eq. 15 (doi:10.1016/j.patcog.2016.11.008); its root point is the rescaled excitation.

    >>> import torch; from relprop import LRP
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    >>> LRP(layer, ZPlus(stabilizer=0)).attribute(torch.tensor([[1.0, 2.0]]))
    tensor([[1., 0.]])
    """

    bias: Bias = "absorb"
    stabilizer: float = 1e-6
    groups = (Group(1, 0),)
    by_sign = True


@dataclass(frozen=True)
class AbsoluteValue(GroupRule):
    """Contributions share by their size, whatever their sign: nothing cancels, and no share is larger than the whole.

    Definition: ``R_j = sum_k |a_j w_jk| / stab(sum_j |a_j w_jk| + |b_k|) R_k``. At a sum of two branches, set as
    ``Rules().set(torch.add, AbsoluteValue())``, these receive ``|x| / (|x| + |y|) R`` and ``|y| / (|x| + |y|) R``.
    Bias: ``|b|`` is one of the contributions; out of them with ``bias="ignore"``.
    Conserves: without biases.

    Args:
        bias: ``"absorb"`` or ``"ignore"``.
        stabilizer: without unit, see :class:`Relative`; 1e-6 by default.

    Raises:
        RuleError: where ``stabilizer`` is no number >= 0, or ``bias`` is another.
    Source: Otsuki et al. 2024 (arXiv:2407.09115), the ratio-based splitting of relevance where a skip connection joins
        its residual block; their symmetric splitting is :class:`Flat` there. Both at linear layers: relprop's own.

    >>> import torch; from relprop import LRP
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    >>> LRP(layer, AbsoluteValue(stabilizer=0)).attribute(torch.tensor([[1.0, 2.0]]))
    tensor([[0.6000, 0.4000]])
    """

    bias: Bias = "absorb"
    stabilizer: float = 1e-6
    groups = (Group(1, -1),)


@dataclass(frozen=True)
class RescaledExcitation(GroupRule):
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
        stabilizer: without unit, see :class:`Relative`; 1e-6 by default.

    Raises:
        RuleError: where ``gamma`` is not between 0 and 1, or ``stabilizer`` is no number >= 0.
    Source: Montavon et al. 2017 (doi:10.1016/j.patcog.2016.11.008), for gamma = 0; Montavon et al. 2018
        (doi:10.1016/j.dsp.2017.10.011); Montavon et al. 2019 (doi:10.1007/978-3-030-28954-6_10).

    >>> import torch; from relprop import LRP
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    >>> LRP(layer, RescaledExcitation(0.5, stabilizer=0)).attribute(torch.tensor([[1.0, 2.0]]))
    tensor([[ 1.5000, -0.5000]])
    """

    gamma: float = 0.0
    stabilizer: float = 1e-6
    bias = "ignore"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_nonnegative(self, gamma=self.gamma)
        if self.gamma > 1.0:
            raise RuleError(f"RescaledExcitation: gamma must be between 0 and 1, got {self.gamma!r}.")

    @property
    def groups(self) -> tuple[Group, ...]:
        return (Group(1, self.gamma),)

    @property
    def by_sign(self) -> bool:  # type: ignore[override]  # no rule is written to
        return self.gamma == 0


@dataclass(frozen=True)
class Contrast(GroupRule):
    """The excitation of an output less that of its dual, whose weights are the negative ones.

    Definition: ``R_j = sum_k ((a_j w_jk)+ / stab(P_k) - (a_j w_jk)- / stab(N_k)) R_k`` with the sums ``P_k`` of the
    positive and ``N_k`` of the negative contributions: alpha-beta with ``alpha = beta = 1``.
    Bias: ignored.
    Conserves: nothing; what the unit gives, the dual takes, and the report counts it as taken by the rule.

    Args:
        stabilizer: without unit, see :class:`Relative`; 1e-6 by default.

    Raises:
        RuleError: where ``stabilizer`` is no number >= 0.
    Source: Zhang et al. 2016 (arXiv:1608.00507), section 3.3.

    >>> import torch; from relprop import LRP
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    >>> LRP(layer, Contrast(stabilizer=0)).attribute(torch.tensor([[1.0, 2.0]]))
    tensor([[ 1., -1.]])
    """

    stabilizer: float = 1e-6
    bias = "ignore"
    groups = (Group(1, 0), Group(0, 1, share=-1))
