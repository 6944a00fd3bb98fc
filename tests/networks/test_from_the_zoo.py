"""Small copies of what single networks of the zoo do, each of which went wrong once; explained by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import LRP
from tests.models import close, settle

ONE = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
TWO = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def half(x: Tensor, share: float = 0.5) -> Tensor:
    """A factor that passes a share of its relevance on."""
    return share * x + (1 - share) * x.detach()


def gradient_times_input(model: nn.Module, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf).sum(), leaf)
    return x * gradient


class Tokens(nn.Module):
    """A batch norm that follows no layer, and the tokens of its pixels, as in LeViT."""

    def __init__(self, by_hand: bool) -> None:
        super().__init__()
        self.norm, self.mix, self.by_hand = nn.BatchNorm2d(3), nn.Linear(3, 1), by_hand

    def forward(self, x: Tensor) -> Tensor:
        h = x.abs()
        if self.by_hand:
            scale = self.norm.weight * torch.rsqrt(self.norm.get_buffer("running_var") + self.norm.eps)
            shift = self.norm.bias - self.norm.get_buffer("running_mean") * scale
            h = h * scale.reshape(3, 1, 1) + shift.reshape(3, 1, 1)
        else:
            h = self.norm(h)
        out: Tensor = self.mix(h.flatten(2).transpose(1, 2)).relu().sum(1)
        return out


@pytest.mark.parametrize("x", [ONE, ONE.repeat(2, 1, 1, 1)], ids=["one", "two"])
def test_an_unfolded_batch_norm_below_a_transposed_map(x: Tensor) -> None:
    """PyTorch 2.13 returns a wrong gradient there for one image, which plain autograd would have taken."""
    model = settle(Tokens(by_hand=False))
    expected = Tokens(by_hand=True).double()
    expected.load_state_dict(model.state_dict())
    close(LRP(model, "lrp0").attribute(x, 0), gradient_times_input(expected.eval(), x))
    LRP(model, "lrp0").report(x, 0).check(1e-12)


class Written(nn.Module):
    """A linear layer whose output, a view of a matrix to PyTorch, the model writes into."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.first, self.last, self.in_place = nn.Linear(4, 3), nn.Linear(3, 1), in_place
        self.place = nn.Parameter(torch.ones(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.in_place:
            h.add_(self.place)
            h[:, 1:] *= 2
        else:
            h = h + self.place
            h = torch.cat([h[:, :1], 2 * h[:, 1:]], 1)
        out: Tensor = self.last(h.relu()).sum(1)
        return out


def test_a_linear_layer_whose_output_is_written_into() -> None:
    model = settle(Written(in_place=True))
    expected = Written(in_place=False).double()
    expected.load_state_dict(model.state_dict())
    close(LRP(model, "lrp0").attribute(TWO, 0), gradient_times_input(expected, TWO))


class Gated(nn.Module):
    """A gated signal as a factor of another product: what the gate multiplies is still one factor."""

    def __init__(self, order: str, by_hand: bool = False) -> None:
        super().__init__()
        self.signal, self.gate, self.other = (nn.Linear(4, 3) for _ in range(3))
        self.order, self.by_hand = order, by_hand

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(0, 1)
        a, g, b = self.signal(x), torch.sigmoid(self.gate(x)), self.other(x)
        if self.by_hand:
            return (half(a) * g.detach() * half(b)).sum(1)
        if self.order == "(a g) b":
            return ((a * g) * b).sum(1)
        return (a * (b * g)).sum(1) if self.order == "a (b g)" else torch.einsum("ni,ni->n", a * g, b)


@pytest.mark.parametrize("order", ["(a g) b", "a (b g)", "einsum"])
def test_a_gate_does_not_count_as_a_factor(order: str) -> None:
    model = settle(Gated(order))
    expected = Gated(order, by_hand=True).double()
    expected.load_state_dict(model.state_dict())
    x = TWO[:, :1]
    close(LRP(model, "lrp0").attribute(x), gradient_times_input(expected, x))


class Relative(nn.Module):
    """Attention with a bias that depends on the queries, as the decomposed positions of SAM."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.bias = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x)
        out = F.scaled_dot_product_attention(q, self.k(x), self.v(x), attn_mask=self.bias(q))
        return out.sum((1, 2))


def test_a_bias_of_attention_that_depends_on_the_input() -> None:
    model = settle(Relative())
    report = LRP(model, "lrp0").report(TWO)
    report.check(1e-12)
    leaf = TWO.clone().requires_grad_()
    q = model.q(leaf)
    scores = half(q) @ half(model.k(leaf)).mT / 3**0.5 + model.bias(q)
    (gradient,) = torch.autograd.grad((half(scores.softmax(-1)) @ half(model.v(leaf))).sum(), leaf)
    close(LRP(model, "lrp0").attribute(TWO), TWO * gradient)
