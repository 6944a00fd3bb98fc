"""Rules for max pooling: which inputs of a window receive what its maximum gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from relprop.errors import RuleError
from relprop.propagation.call.flow import Flow
from relprop.propagation.math.numerics import quotient
from relprop.rules.rule import PoolingRule, check_nonnegative


@dataclass(frozen=True)
class WinnerTakesAll(PoolingRule):
    """Max pooling: the largest input receives everything; plain autograd.

    Definition: ``R_j = R_k`` where ``a_j`` is the maximum of window ``k``, 0 elsewhere.
    Conserves: always.
    Source: Montavon et al. 2019, section 10.3.2 (doi:10.1007/978-3-030-28954-6_10).

    >>> import torch; from relprop import LRP, Rules
    >>> pooling, x = torch.nn.MaxPool1d(2), torch.tensor([[[1.0, 3.0]]])
    >>> LRP(pooling, Rules().set(torch.nn.MaxPool1d, WinnerTakesAll())).attribute(x)
    tensor([[[0., 3.]]])
    """

    def pooled(self, flow: Flow, a: Tensor, out: Tensor, average: Callable[[Tensor], Tensor] | None) -> Tensor:
        return out


@dataclass(frozen=True)
class AveragePool(PoolingRule):
    """Max pooling explained as average pooling of the same windows.

    Definition: ``R_j = sum_k (a_j / n) / stab(m_k) R_k`` with the mean ``m_k`` of the window.
    Conserves: up to the stabilizer.

    Args:
        stabilizer: without unit, in shares of the maximum: ``stab(m) = m + e sign(m) |max|``; 1e-6 by default.

    Raises:
        RuleError: where ``stabilizer`` is no number >= 0; while explaining, on dilated pooling, whose windows no
            average pooling has.
    Source: Montavon et al. 2019, section 10.3.2 (doi:10.1007/978-3-030-28954-6_10).

    >>> import torch; from relprop import LRP, Rules
    >>> pooling, x = torch.nn.MaxPool1d(2), torch.tensor([[[1.0, 3.0]]])
    >>> LRP(pooling, Rules().set(torch.nn.MaxPool1d, AveragePool(stabilizer=0))).attribute(x)
    tensor([[[0.7500, 2.2500]]])
    """

    stabilizer: float = 1e-6

    def __post_init__(self) -> None:
        check_nonnegative(self, stabilizer=self.stabilizer)

    def pooled(self, flow: Flow, a: Tensor, out: Tensor, average: Callable[[Tensor], Tensor] | None) -> Tensor:
        if average is None:
            raise RuleError("AveragePool: dilated max pooling has no average pooling of the same windows.")
        mean = average(a)
        return mean * flow.constant(quotient(flow.safe(out), mean, self.stabilizer * out.abs()))
