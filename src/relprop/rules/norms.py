"""The rule for what divides: the standard deviation of a normalisation, any denominator."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from relprop.propagation.call.flow import Flow
from relprop.rules.rule import NormRule


@dataclass(frozen=True)
class Norm(NormRule):
    """What divides is a constant: the standard deviation of a normalisation, any denominator.

    Definition: in ``a / b`` the relevance of the quotient goes to ``a``.
    Conserves: always (subtracting the mean is linear).
    Source: Ali et al. 2022, section 3.2 (arXiv:2202.07304).

    >>> import torch; from relprop import LRP, Rules
    >>> norm = torch.nn.LayerNorm(2, eps=0.0, elementwise_affine=False)
    >>> LRP(norm, Rules().set(torch.nn.LayerNorm, Norm())).attribute(torch.tensor([[3.0, 1.0]]), target=0)
    tensor([[ 1.5000, -0.5000]])
    """

    def denominator(self, flow: Flow, x: Tensor) -> Tensor:
        return flow.constant(x)
