"""Rules for what is not a linear map with parameters: activations, pooling, products, norms, softmax.

Each writes the operation as it is to be explained, with parts of it held constant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from relprop.errors import RuleError
from relprop.propagation.call.flow import Flow
from relprop.propagation.math.numerics import quotient
from relprop.rules.rule import NormRule, PoolingRule, ProductRule, SoftmaxRule, check_nonnegative


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


@dataclass(frozen=True)
class TaylorSoftmax(SoftmaxRule):
    """Softmax by its first-order Taylor expansion, which is autograd's own backward.

    Definition: ``R_i = x_i (Q_i - p_i sum_j Q_j)``, where ``Q_j`` is the relevance of the probability ``p_j``.
    Conserves: no; the offset of the expansion absorbs, and the report says how much.
    Source: Achtibat et al. 2024, proposition 3.1 (arXiv:2402.05602).

    >>> import torch; from relprop import LRP, Rules
    >>> softmax = torch.nn.Softmax(dim=1)
    >>> rules = Rules().set(torch.nn.Softmax, TaylorSoftmax())
    >>> LRP(softmax, rules).attribute(torch.tensor([[1.0, 0.0]]), target=0)  # p_0 - p_0^2
    tensor([[0.1966, 0.0000]])
    """

    def probabilities(self, flow: Flow, p: Tensor) -> Tensor:
        return p


@dataclass(frozen=True)
class AttnLRP(SoftmaxRule):
    """Attention: a Taylor softmax between two products, each of which gives its active factors equal parts.

    Definition: in ``softmax(q k^T) v`` the values receive 1/2, and queries and keys 1/4 each of what the softmax
    passes on. Where one of them is a constant, the other factor of its product receives that part too.
    Conserves: but for the softmax.
    Source: Achtibat et al. 2024, propositions 3.1 to 3.3 (arXiv:2402.05602).

    >>> import torch; from relprop import LRP, Rules; from torch.nn.functional import scaled_dot_product_attention
    >>> class Attention(torch.nn.Module):
    ...     def forward(self, q, k, v):
    ...         return scaled_dot_product_attention(q, k, v).sum((1, 2))
    >>> q, k, v = torch.ones(1, 1, 1), torch.tensor([[[1.0], [0.0]]]), torch.tensor([[[1.0], [3.0]]])
    >>> rules = Rules().set(scaled_dot_product_attention, AttnLRP())
    >>> [round(float(part.sum()), 4) for part in LRP(Attention(), rules).attribute((q, k, v))]
    [-0.0983, -0.0983, 0.7689]
    """

    serves = frozenset({"attention"})
    exact_by_autograd = True

    def probabilities(self, flow: Flow, p: Tensor) -> Tensor:
        return p

    def shares(self, queries: bool, keys: bool, values: bool, mask: bool) -> tuple[float, float, float, float]:
        scores = queries or keys or mask
        half = 1 / 2 if scores and values else 1.0
        return half / 2 if keys else half, half / 2 if queries else half, half, half


@dataclass(frozen=True)
class CPLRP(SoftmaxRule):
    """Attention probabilities are constants: all relevance goes through the values.

    Definition: ``R_v = p v c``; nothing for queries and keys.
    Conserves: always.
    Source: Ali et al. 2022, section 3.1 (arXiv:2202.07304).

    >>> import torch; from relprop import LRP, Rules; from torch.nn.functional import scaled_dot_product_attention
    >>> class Attention(torch.nn.Module):
    ...     def forward(self, q, k, v):
    ...         return scaled_dot_product_attention(q, k, v).sum((1, 2))
    >>> q, k, v = torch.ones(1, 1, 1), torch.tensor([[[1.0], [0.0]]]), torch.tensor([[[1.0], [3.0]]])
    >>> rules = Rules().set(scaled_dot_product_attention, CPLRP())
    >>> [round(float(part.sum()), 4) for part in LRP(Attention(), rules).attribute((q, k, v))]
    [0.0, 0.0, 1.5379]
    """

    exact_by_autograd = True  # its shares leave nothing to the scores

    def probabilities(self, flow: Flow, p: Tensor) -> Tensor:
        return flow.constant(p)

    def shares(self, queries: bool, keys: bool, values: bool, mask: bool) -> tuple[float, float, float, float]:
        return 0.0, 0.0, 1.0, 0.0
