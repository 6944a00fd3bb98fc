"""Rules for softmax and attention: what the probabilities, and the factors around them, receive."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from relprop.propagation.call.flow import Flow
from relprop.rules.rule import SoftmaxRule


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
