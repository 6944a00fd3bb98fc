"""Rules for products of tensors that depend on the input, and for gates: which share each factor has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from relprop.rules.rule import ProductRule


@dataclass(frozen=True)
class Uniform(ProductRule):
    """A product: all that is multiplied receives alike, in however many calls.

    Definition: factors that are themselves products of ``m_1, m_2, ...`` active factors receive the shares
    ``m_i / sum m`` of the relevance: 1/3 each in ``(a b) c`` and in ``a (b c)``. Gates count where they are factors.
    Conserves: always.
    Source: relprop's own. In one call of two factors it is :class:`Equal`, whose shares depend on how products are
    bracketed (You et al. 2025, arXiv:2510.18810).

    >>> import torch; from relprop import LRP, Rules
    >>> class Product(torch.nn.Module):
    ...     def forward(self, a, b):
    ...         return a * b
    >>> rules = Rules().set(torch.mul, Uniform())
    >>> LRP(Product(), rules).attribute((torch.tensor([[2.0]]), torch.tensor([[3.0]])))
    (tensor([[3.]]), tensor([[3.]]))
    """

    def shares(self, counts: Sequence[int], gates: Sequence[bool]) -> tuple[float, ...]:
        return tuple(count / sum(counts) for count in counts)


@dataclass(frozen=True)
class Equal(ProductRule):
    """A product: every factor of a call receives the same, whatever it is made of; the rule of AttnLRP.

    Definition: ``R_i = R / N`` for each of the ``N`` factors of one call that depend on the input, gates and the
    weights of a router among them. So ``(a b) c`` gives 1/4, 1/4 and 1/2, and ``a (b c)`` gives 1/2, 1/4 and 1/4;
    :class:`Uniform` gives thirds.
    Conserves: always.
    Source: Achtibat et al. 2024, propositions 3.2 and 3.3 (arXiv:2402.05602).

    >>> Equal().shares(counts=(2, 1, 0), gates=(False, True, False))
    (0.5, 0.5, 0.0)
    """

    def shares(self, counts: Sequence[int], gates: Sequence[bool]) -> tuple[float, ...]:
        factors = sum(count > 0 for count in counts)
        return tuple((count > 0) / factors for count in counts)


@dataclass(frozen=True)
class SignalTakesAll(ProductRule):
    """A gated product: the gate is a constant, the signal receives everything.

    Definition: ``R_signal = R``, ``R_gate = 0``; several signals share as in Uniform, and so do gates alone.
    Conserves: always.
    Source: Arras et al. 2017 (doi:10.18653/v1/W17-5221), and 2019 (doi:10.1007/978-3-030-28954-6_11).

    >>> import torch; from relprop import LRP, Rules
    >>> class Gated(torch.nn.Module):
    ...     def forward(self, a, b):
    ...         return a * torch.sigmoid(b)
    >>> rules = Rules().set(torch.mul, SignalTakesAll())
    >>> LRP(Gated(), rules).attribute((torch.tensor([[2.0]]), torch.tensor([[0.0]])))  # sigmoid(0) = 1/2
    (tensor([[1.]]), tensor([[0.]]))
    """

    def shares(self, counts: Sequence[int], gates: Sequence[bool]) -> tuple[float, ...]:
        signals = [0 if gate else count for count, gate in zip(counts, gates, strict=True)]
        taking = signals if any(signals) else counts
        return tuple(count / sum(taking) for count in taking)
