"""Below w^2, flat and zB no sum divides: maps have one sign and conserve, whatever stands between the layers."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, RuleError, Rules
from relprop.rules import Flat, Pass, Relative, Rule, WSquare, ZBox
from tests.models import settle
from tests.networks import zoo

RULES: dict[str, Rule] = {"wsquare": WSquare(), "flat": Flat(), "zbox": ZBox(-1e3, 1e3)}


def conv(channels: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, padding=1)


class Residual(nn.Module):
    """Sums of branches, batch norm folded and by itself before a ReLU, a mean over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(2, 4), nn.Linear(4, 3)
        self.first, self.second = nn.ModuleList(conv(4, 4) for _ in range(3)), nn.ModuleList(conv(4, 4) for _ in "abc")
        self.before, self.after = (nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for first, second, before, after in zip(self.first, self.second, self.before, self.after, strict=True):
            h = h + after(second(torch.relu(first(torch.relu(before(h))))))
        return self.head(torch.relu(h).mean((2, 3)))  # type: ignore[no-any-return]


class Dense(nn.Module):
    """What was computed so far goes into every layer, joined."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(conv(2 + 3 * n, 3) for n in range(3))
        self.norm, self.head = nn.BatchNorm2d(11), nn.Linear(11 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, torch.relu(layer(x))], 1)
        pooled = nn.functional.avg_pool2d(torch.relu(self.norm(x)), 3)
        return self.head(pooled.flatten(1))  # type: ignore[no-any-return]


class Normalised(nn.Module):
    """Layer norm, group norm and RMS norm between layers; sigmoids and softplus with a value at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.head = conv(2, 4), conv(4, 4), nn.Linear(36, 8), nn.Linear(8, 3)
        self.group, self.layer, self.root = nn.GroupNorm(2, 4), nn.LayerNorm(8), nn.RMSNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.sigmoid(self.group(self.first((x - 0.4) / 0.25)))
        h = nn.functional.softplus(self.second(h)).flatten(1)
        h = self.layer(self.third(h[:, ::4]))
        return self.head(self.root(h + 0.5 * h.flip(1)))  # type: ignore[no-any-return]


NETWORKS: dict[str, Callable[[], nn.Module]] = {"residual": Residual, "dense": Dense, "normalised": Normalised}


def given() -> Tensor:
    x = torch.rand(2, 2, 6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x[:, :, ::2] = 0.4 + 1e-9 * x[:, :, ::2]  # where a model that normalises inside sees almost nothing
    return x


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("network", NETWORKS)
def test_maps_have_one_sign_and_conserve(network: str, rule: str, dtype: torch.dtype) -> None:
    model, x = settle(NETWORKS[network]()).to(dtype), given().to(dtype)
    relevance = LRP(model, RULES[rule]).attribute(x, 1).double()
    output = model(x)[:, 1].detach().double()
    within = {torch.float64: 1e-5, torch.float32: 1e-4, torch.bfloat16: 0.2}[dtype]  # zB has a stabilizer of 1e-6
    assert bool((relevance.flatten(1) * output.sign()[:, None] >= -1e-12).all())
    torch.testing.assert_close(relevance.flatten(1).sum(1), output, rtol=within, atol=0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("network", NETWORKS)
def test_reports_say_so(network: str, rule: str) -> None:
    report = LRP(settle(NETWORKS[network]()), RULES[rule]).report(given(), 1)
    report.check(1e-8)
    assert abs(report.absorbed.get("bias", 0.0)) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision/resnet18"])
@pytest.mark.parametrize("preset", ["wsquare", "flat"])
def test_a_resnet(name: str, preset: str) -> None:
    model, x = zoo.build(name), zoo.images(name)
    share = LRP(model, preset).attribute(x, 1).abs().flatten(1).sum(1) / model(x)[:, 1].detach().abs()
    torch.testing.assert_close(share, torch.ones_like(share), rtol=1e-4, atol=0)


def test_what_stands_above_the_layer_shares_by_its_values() -> None:
    """A sum of two branches, of which only what comes before has such a rule."""
    torch.manual_seed(0)
    first, left, right = (nn.Linear(4, 4, bias=False).double() for _ in range(3))

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.left, self.right = first, left, right

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.first(x))
            return self.left(h) + self.right(h)  # type: ignore[no-any-return]

    x = torch.rand(2, 4, dtype=torch.float64)
    by_value = LRP(Branches(), Rules().set("first", Flat())).attribute_layers(x, ["left", "right"], 1)
    h = torch.relu(first(x)).detach()
    torch.testing.assert_close(by_value["left"][:, 1], left(h)[:, 1].detach())
    torch.testing.assert_close(by_value["right"][:, 1], right(h)[:, 1].detach())


class Resizing(nn.Module):
    """Resizes what it is given, in the middle of the network."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.first, self.second, self.head, self.mode = conv(2, 4), conv(4, 4), nn.Linear(4, 3), mode

    def forward(self, x: Tensor) -> Tensor:
        corners = {} if self.mode.startswith("nearest") else {"align_corners": False}
        h = nn.functional.interpolate(self.first(x), (9, 11), mode=self.mode, **corners)
        return self.head(torch.relu(self.second(h)).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "nearest-exact"])
@pytest.mark.parametrize("rule", ["wsquare", "flat"])
def test_what_is_resized_shares_by_distance(mode: str, rule: str) -> None:
    model, x = settle(Resizing(mode)), given() - 0.5
    share = LRP(model, RULES[rule]).attribute(x, 1).abs().flatten(1).sum(1) / model(x)[:, 1].detach().abs()
    torch.testing.assert_close(share, torch.ones_like(share), rtol=1e-5, atol=0)


def test_a_rule_for_other_operations_that_reaches_zeros_is_heeded() -> None:
    """Pass behind a layer norm hands relevance to units of zero, which a sum below it shares equally."""
    norm = nn.LayerNorm(3, dtype=torch.float64)
    norm.bias.data.fill_(1.0)

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.norm(x + y).sum(1)  # type: ignore[no-any-return]

    x = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    y = torch.tensor([[3.0, -2.0, 1.0]], dtype=torch.float64)
    rules = Rules().set(nn.LayerNorm, Pass())
    found = LRP(Sum(), rules).attribute((x, y))
    assert all(float(part.abs().max()) < 10 for part in found)
    LRP(Sum(), rules).report((x, y)).check(1e-6)


def test_a_report_of_a_centring_above_the_rule_adds_up() -> None:
    first, second = (nn.Linear(4, 4).double() for _ in range(2))

    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = first, second

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return self.second(h - h.mean(1, keepdim=True))  # type: ignore[no-any-return]

    LRP(Centred(), Rules().set("first", Flat())).report(torch.rand(3, 4, dtype=torch.float64), 1).check(1e-9)


def test_a_subtracted_branch_is_no_centring() -> None:
    class Less(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2, bias=False).double()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.head(x - y).sum(1)  # type: ignore[no-any-return]

    model, (x, y) = Less(), (torch.rand(1, 2, 3, dtype=torch.float64) for _ in range(2))
    first, second = LRP(model, Flat()).attribute((x, y[:, :1]), 1)
    torch.testing.assert_close(first.sum(), second.sum())


@pytest.mark.parametrize("preset", ["epsilon", "zplus", "epsilon_gamma"])
def test_sums_whose_squares_overflow_conserve(preset: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 2, bias=False))
    for parameter in model.parameters():
        parameter.data.abs_()  # z+ has something to share at every output
    x = torch.rand(3, 4) * 1e20
    share = LRP(model, preset).attribute(x, 1).sum(1) / model(x)[:, 1].detach()
    torch.testing.assert_close(share, torch.ones_like(share), rtol=1e-3, atol=0)


@pytest.mark.parametrize("number", [-1.0, float("nan"), float("inf"), "a", True])
def test_a_share_that_can_be_none(number: Any) -> None:
    with pytest.raises(RuleError, match="Relative: number must be a finite number >= 0"):
        Relative(number)


def test_a_norm_below_flat_dies_with_its_call() -> None:
    model = nn.Sequential(nn.RMSNorm(8), nn.Linear(8, 2)).double()
    x = torch.rand(2, 8, dtype=torch.float64)
    gc.collect()
    gc.disable()
    try:
        before = sum(isinstance(item, Tensor) for item in gc.get_objects())
        for _ in range(5):
            LRP(model, Flat()).attribute(x, 1)
        after = sum(isinstance(item, Tensor) for item in gc.get_objects())
    finally:
        gc.enable()
    assert after <= before + 1
