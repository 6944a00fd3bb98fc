"""Flat and WSquare through gates, norms, quotients and differences: what a unit of zero receives goes on, once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import LRP

Between = Callable[[Tensor], Tensor]
RULES = ("flat", "wsquare")


class Hidden(nn.Module):
    """Two linear maps with dead units between them, and something done to these."""

    def __init__(self, between: Between) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.relu, self.last = nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)
        self.between = between
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.relu(self.first(x))))  # type: ignore[no-any-return]


def given() -> Tensor:
    x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert bool((Hidden(torch.relu).first(x) <= 0).any())
    return x


def share(rule: str, layer: nn.Linear, R: Tensor) -> Tensor:
    """The rule's definition: what every output has, shared alike or by the squares of the weights."""
    weight = layer.weight.detach()
    parts = torch.ones_like(weight) if rule == "flat" else weight.square()
    return R @ (parts / parts.sum(1, keepdim=True))


def at_the_top(model: Hidden, rule: str, x: Tensor) -> Tensor:
    """The relevance that the last map gives to its inputs, of which the first output is explained."""
    top = torch.zeros(len(x), 3, dtype=x.dtype)
    top[:, 0] = model(x).detach()[:, 0]
    return share(rule, model.last, top)


ONE_TO_ONE: dict[str, Between] = {
    "plain": lambda h: h,
    "gate": lambda h: h * torch.sigmoid(h.mean(1, keepdim=True)),
    "gate first": lambda h: torch.sigmoid(h.mean(1, keepdim=True)) * h,
    "gate in place": lambda h: h.clone().mul_(torch.sigmoid(h.mean(1, keepdim=True))),
    "hard gate, shut": lambda h: h * F.hardsigmoid(h - 3),
    "gate made constant": lambda h: h * torch.sigmoid(h.mean(1, keepdim=True)).detach(),
    "glu": lambda h: F.glu(torch.cat([h, h], 1)),
    "normalize": F.normalize,
    "by the norm": lambda h: h / h.norm(dim=1, keepdim=True),
    "rms_norm": lambda h: F.rms_norm(h, (8,)),
    "rms by hand": lambda h: h * torch.rsqrt(h.pow(2).mean(1, keepdim=True) + 1e-5),
    "product with itself": lambda h: h * h,
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ONE_TO_ONE)
def test_what_multiplies_hands_all_relevance_on(name: str, rule: str) -> None:
    """Every unit, zero or not, receives what its multiple has."""
    model, x = Hidden(ONE_TO_ONE[name]), given()
    if name == "hard gate, shut":
        assert bool((model.between(model.relu(model.first(x))) == 0).any())
    hidden = at_the_top(model, rule, x)
    maps = LRP(model, rule).attribute_layers(x, ["relu"], target=0)["relu"]
    tolerance = 1e-6 * float(hidden.abs().max()) * 8  # the stabilizer of each rule
    assert torch.allclose(maps, hidden, rtol=0, atol=tolerance)
    expected = share(rule, model.first, hidden)
    assert torch.allclose(LRP(model, rule).attribute(x, target=0), expected, rtol=0, atol=tolerance)


weight = torch.linspace(-1, 2, 8, dtype=torch.float64)
bias = torch.linspace(1, -0.7, 8, dtype=torch.float64)


def centred(h: Tensor, dims: tuple[int, ...]) -> Tensor:
    h = h - h.mean(dims, keepdim=True)
    return h * torch.rsqrt(h.square().mean(dims, keepdim=True) + 1e-5)


PAIRS: dict[str, tuple[Between, Between]] = {
    "layer_norm": (lambda h: F.layer_norm(h, (8,)), lambda h: centred(h, (1,))),
    "layer_norm, affine": (
        lambda h: F.layer_norm(h, (8,), weight, bias),
        lambda h: centred(h, (1,)) * weight + bias,
    ),
    "rms_norm, weight": (
        lambda h: F.rms_norm(h, (8,), weight, 1e-5),
        lambda h: h * torch.rsqrt(h.pow(2).mean(1, keepdim=True) + 1e-5) * weight,
    ),
    "group_norm": (lambda h: F.group_norm(h, 2), lambda h: centred(h.view(-1, 2, 4), (2,)).reshape(-1, 8)),
    "instance_norm": (
        lambda h: F.instance_norm(h.view(-1, 2, 4)).reshape(-1, 8),
        lambda h: centred(h.view(-1, 2, 4), (2,)).reshape(-1, 8),
    ),
    "diff": (
        lambda h: torch.diff(h, dim=1, prepend=h[:, :1]),
        lambda h: h - torch.cat([h[:, :1], h[:, :-1]], 1),
    ),
    "index_add": (
        lambda h: h.index_add(1, torch.arange(8), h.flip(1), alpha=-1),
        lambda h: h - h.flip(1),
    ),
    "glu": (lambda h: F.glu(torch.cat([h, h.flip(1)], 1)), lambda h: h * torch.sigmoid(h.flip(1))),
    "a product of active factors": (
        lambda h: torch.einsum("bi,bj->bij", h, h.flip(1)).sum(2),
        lambda h: (h[:, :, None] * h.flip(1)[:, None, :]).sum(2),
    ),
    "attention": (
        lambda h: F.scaled_dot_product_attention(*(h.view(-1, 4, 2),) * 3).reshape(-1, 8),
        lambda h: (torch.softmax(h.view(-1, 4, 2) @ h.view(-1, 4, 2).mT / 2**0.5, -1) @ h.view(-1, 4, 2)).reshape(
            -1, 8
        ),
    ),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", PAIRS)
def test_a_function_and_what_it_computes_written_by_hand_have_one_map(name: str, rule: str) -> None:
    native, by_hand = (Hidden(between) for between in PAIRS[name])
    x = given()
    found, expected = (LRP(model, rule).attribute(x, target=0) for model in (native, by_hand))
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)
    report = LRP(native, rule).report(x, target=0)
    report.check(1e-9)
    if name not in ("layer_norm, affine", "attention"):  # whose bias, and whose softmax, absorb
        f = native(x).detach()[:, 0]
        assert torch.allclose(found.sum(1), f, rtol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_what_a_mask_stops_is_reported(rule: str) -> None:
    mask = (torch.arange(8) > 2).double()
    model, x = Hidden(lambda h: h * mask), given()
    report = LRP(model, rule).report(x, target=0)
    report.check(1e-9)
    lost = (at_the_top(model, rule, x) * (1 - mask)).sum()
    assert torch.allclose(torch.tensor(report.absorbed["mask"], dtype=x.dtype), lost, rtol=1e-5)


def test_the_loss_on_a_flat_map_sees_the_network_as_it_is() -> None:
    """Flat shares do not depend on the gate, but the output that is shared does."""
    model, x = Hidden(lambda h: h * torch.sigmoid(h.mean(1, keepdim=True))), given().requires_grad_()
    found = LRP(model, "flat").attribute(x, target=0, create_graph=True)
    weights = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    explicit = share("flat", model.first, share("flat", model.last, F.pad(model(x)[:, :1], (0, 2))))
    (expected,) = torch.autograd.grad((explicit * weights).sum(), x)
    (gradient,) = torch.autograd.grad((found * weights).sum(), x)
    assert torch.allclose(gradient, expected, rtol=1e-5, atol=1e-8)
