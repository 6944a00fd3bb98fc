"""DeepLIFT: against the paper's formulas, Captum where it is right, and the identities that tie it to others."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import DeepLift, DeepLiftShap, GradientXInput
from relprop.attribution.paths import IntegratedGradients
from tests.attribution.deep_lift.deep_lift_reference import (
    Activation,
    Linear,
    MaxPool,
    Softmax,
    Step,
    relevance,
    unrolled,
    windows,
)
from tests.models import DTYPE, close, images, mlp, residual, settle, vectors, without_bias

RULES = ["rescale", "reveal_cancel"]


class Functional(nn.Module):
    """[N, 3, 6, 6] to [N, 4]: Conv-ReLU-MaxPool-Conv-act-Linear, by functions, or by modules."""

    def __init__(self, form: str = "functional", act: Any = F.relu, softmax: bool = False) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 2)
        self.head = nn.Linear(20, 4)
        self.relu, self.pool = nn.ReLU(inplace=form == "in place"), nn.MaxPool2d(2)
        self.form, self.act, self.softmax = form, act, softmax

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        if self.form == "functional":
            x = F.max_pool2d(torch.relu(x), 2)
            x = self.act(self.two(x))
        else:
            x = self.pool(self.relu(x))
            x = self.two(x)
            x = self.relu(x) if self.act is F.relu else self.act(x)
        out: Tensor = self.head(x.flatten(1))
        return torch.softmax(out, 1) if self.softmax else out

    def steps(self, derivative: Any) -> list[Step]:
        one, two = unrolled(self.one, (3, 6, 6)), unrolled(self.two, (4, 3, 3))
        found: list[Step] = [
            one,
            Activation(torch.relu, of_relu, one),
            MaxPool(windows((4, 6, 6), 2)),
            two,
            Activation(self.act, derivative, two),
            Linear(self.head.weight.detach(), self.head.bias.detach()),
        ]
        return [*found, Softmax()] if self.softmax else found


def of_relu(z: Tensor) -> Tensor:
    return (z > 0).double()


def of_tanh(z: Tensor) -> Tensor:
    return 1 - z.tanh() ** 2


# Against the paper -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize(("act", "derivative"), [(F.relu, of_relu), (torch.tanh, of_tanh)])
@pytest.mark.parametrize("form", ["functional", "modules", "in place"])
def test_whole_maps_are_the_papers(rule: Any, softmax: bool, act: Any, derivative: Any, form: str) -> None:
    model = settle(Functional(form, act, softmax))
    x, base = images(3), images(3, seed=1)
    base[0, 0] = x[0, 0]  # where nothing differs
    expected = relevance(model.steps(derivative), x, base, 2, reveal=rule == "reveal_cancel")
    found, delta = DeepLift(model, rule).attribute(x, base, 2, return_convergence_delta=True)
    close(found, expected)
    assert float(delta.abs().max()) < 1e-12


def test_the_rules_differ() -> None:
    model, x = settle(Functional()), images()
    one, two = (DeepLift(model, rule).attribute(x, images(seed=1), 0) for rule in ("rescale", "reveal_cancel"))
    assert float((one - two).abs().max()) > 0.05 * float(one.abs().max())


def test_behind_batch_norm_and_sums_the_terms_are_those_of_the_linear_maps() -> None:
    """conv-bn is one linear map, and a sum adds the terms of both branches."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.norm = nn.Linear(4, 6), nn.Linear(4, 6), nn.BatchNorm1d(6)
            self.head = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(torch.relu(self.norm(self.one(x)) - 2 * self.two(x)))
            return out

    model = settle(Two())
    norm = model.norm
    scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()  # type: ignore[operator]
    weights = torch.cat([scale[:, None] * model.one.weight.detach(), -2 * model.two.weight.detach()], 1)
    bias = scale * (model.one.bias - norm.running_mean) + norm.bias - 2 * model.two.bias  # type: ignore[operator]
    doubled = Linear(weights, bias.detach())
    steps = [
        doubled,
        Activation(torch.relu, of_relu, doubled),
        Linear(model.head.weight.detach(), model.head.bias.detach()),
    ]
    x, base = vectors(), vectors(seed=1)
    expected = relevance(steps, x.repeat(1, 2), base.repeat(1, 2), 1, reveal=True)
    close(DeepLift(model, "reveal_cancel").attribute(x, base, 1), expected[:, :4] + expected[:, 4:])


# The sum -----------------------------------------------------------------------------------------------


def conv(*layers: nn.Module) -> nn.Sequential:
    """[N, 3, 6, 6] to [N, 3]: a convolution, some layers that leave [N, 4, 2, 2], and a linear one."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), *layers, nn.Flatten(), nn.Linear(16, 3))


def adjacent() -> dict[str, nn.Module]:
    return {
        "conv relu maxpool": conv(nn.ReLU(), nn.MaxPool2d(2)),
        "conv maxpool relu": conv(nn.MaxPool2d(2), nn.ReLU()),
        "overlapping, padded pools": conv(nn.MaxPool2d(3, 1, 1), nn.MaxPool2d(2)),
        "relu relu6 sigmoid": conv(nn.ReLU(), nn.ReLU6(), nn.Sigmoid(), nn.AdaptiveMaxPool2d(2)),
        "softmax of softmax": nn.Sequential(nn.Flatten(), nn.Linear(108, 3), nn.Softmax(1), nn.Softmax(1)),
        "log softmax": nn.Sequential(nn.Flatten(), nn.Linear(108, 5), nn.GELU(), nn.Linear(5, 3), nn.LogSoftmax(1)),
        "norms": nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 3)
        ),
        "residual": residual(),
    }


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", list(adjacent()))
@pytest.mark.parametrize("baseline", [None, 0.7, "random"])
def test_the_sum_is_the_difference(rule: Any, name: str, baseline: Any) -> None:
    model, x = settle(adjacent()[name]), images(3)
    base = images(3, seed=5) if baseline == "random" else baseline
    found, delta = DeepLift(model, rule).attribute(x, base, 1, return_convergence_delta=True)
    before = base if isinstance(base, Tensor) else torch.full_like(x, base or 0.0)
    expected = (model(x) - model(before))[:, 1].detach()
    assert float((found.flatten(1).sum(1) - expected).abs().max()) < 1e-9
    assert float(delta.abs().max()) < 1e-9
    assert float(found.abs().sum()) < 1e3 * float(expected.abs().sum())


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        self.lstm, self.gru = nn.LSTM(4, 3, batch_first=True), nn.GRU(3, 3)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x + self.attend(x, x, x)[0])
        h = self.lstm(h)[0].transpose(0, 1)
        out: Tensor = self.gru(h)[0][-1]
        return out


@pytest.mark.parametrize("rule", RULES)
def test_attention_and_recurrent_layers_sum_too(rule: Any) -> None:
    """Also where the batch is not the first dimension inside."""
    model, x = settle(Attention()), torch.randn(2, 3, 4, dtype=DTYPE)
    base = torch.randn(1, 3, 4, dtype=DTYPE)
    found, delta = DeepLift(model, rule).attribute(x, base, 1, return_convergence_delta=True)
    assert found.shape == x.shape
    assert float(delta.abs().max()) < 1e-9
    single = torch.cat([DeepLift(model, rule).attribute(one[None], base, 1) for one in x])
    close(found, single)


def test_products() -> None:
    """``dx (y + y') / 2 + dy (x + x') / 2``, and a hidden ReLU by a mask."""
    x, y = vectors(), vectors(seed=1)
    x0, y0 = vectors(seed=2), vectors(seed=3)
    model = Pair(lambda a, b: (a * b).sum(1, keepdim=True))
    one, two = DeepLift(model).attribute((x, y), (x0, y0), 0)
    close(one, (x - x0) * (y + y0) / 2)
    close(two, (y - y0) * (x + x0) / 2)
    mask = Pair(lambda a, b: (a * (a > 0) + torch.where(b > 0, b, 0.0)).sum(1, keepdim=True))
    one, two = DeepLift(mask).attribute((x, y), (x0, y0), 0)
    close(one, x.relu() - x0.relu())
    close(two, y.relu() - y0.relu())


class Pair(nn.Module):
    """A model of two inputs that is a function."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def test_one_tensor_may_be_given_twice() -> None:
    x = vectors()
    model = Pair(lambda a, b: (a - 2 * b).sum(1, keepdim=True))
    one, two = DeepLift(model).attribute((x, x), (0.0, 1.0), 0)
    close(one, x)
    close(two, -2 * (x - 1))


def test_token_ids_against_those_of_a_baseline() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(7, 3), nn.Linear(3, 2)

        def forward(self, ids: Tensor) -> Tensor:
            out: Tensor = self.head(self.embed(ids)).sum(1)
            return out

    model = settle(Tokens())
    ids, base = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.zeros(1, 3, dtype=torch.int64)
    change = model.embed.weight[ids] - model.embed.weight[base]
    close(DeepLift(model).attribute(ids, base, 1), (change @ model.head.weight[1]).detach())


# Captum, where it is right ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_captum_agrees_where_no_two_nonlinear_modules_are_adjacent(kind: str) -> None:
    attr = pytest.importorskip("captum.attr")
    model = mlp() if kind == "mlp" else settle(conv(nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Tanh()))
    x, base = (vectors(), vectors(seed=1)) if kind == "mlp" else (images(), images(seed=1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = attr.DeepLift(model).attribute(x, base, 1)
        averaged = attr.DeepLiftShap(model).attribute(x, torch.cat([base, x + 1]), 1)
    close(DeepLift(model).attribute(x, base, 1), expected.detach(), 1e-5)
    close(DeepLiftShap(model).attribute(x, torch.cat([base, x + 1]), 1), averaged.detach(), 1e-5)


def test_captum_misses_the_sum_next_to_pooling() -> None:
    """Which is why it is no oracle there."""
    attr = pytest.importorskip("captum.attr")
    model = settle(adjacent()["conv relu maxpool"])
    x, base = images(), images(seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        captum = attr.DeepLift(model).attribute(x, base, 1)
    expected = (model(x) - model(base))[:, 1].detach()
    assert float((captum.detach().flatten(1).sum(1) - expected).abs().max()) > 0.01
    assert float((DeepLift(model).attribute(x, base, 1).flatten(1).sum(1) - expected).abs().max()) < 1e-9


# Identities ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_rescale_from_zero_is_gradient_times_input_without_biases(kind: str) -> None:
    model: nn.Module = mlp(bias=False) if kind == "mlp" else without_bias(settle(Functional()))
    x = vectors() if kind == "mlp" else images()
    close(DeepLift(model).attribute(x, target=2), GradientXInput(model).attribute(x, 2))


def test_reveal_cancel_gives_half_of_the_minimum_to_each() -> None:
    x = torch.tensor([[3.0, 1.0], [1.0, 3.0], [2.0, 2.0], [0.5, 4.0]], dtype=DTYPE)
    model = Pair(lambda i: i[:, :1] - torch.relu(i[:, :1] - i[:, 1:]))
    close(DeepLift(model, "reveal_cancel").attribute(x, target=0), x.amin(1, keepdim=True).expand(-1, 2) / 2)
    by_rescale = DeepLift(model).attribute(x[:2], target=0)
    close(by_rescale, torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=DTYPE))


class Layers(nn.Module):
    """``i1 - relu(i1 - i2)`` with a layer for the difference."""

    def __init__(self) -> None:
        super().__init__()
        self.difference = nn.Linear(2, 1, bias=False).double()
        with torch.no_grad():
            self.difference.weight.copy_(torch.tensor([[1.0, -1.0]]))
        self.relu = nn.ReLU()

    def forward(self, i: Tensor) -> Tensor:
        out: Tensor = i[:, :1] - self.relu(self.difference(i))
        return out


def test_reveal_cancel_of_the_minimum_by_a_layer_is_the_same() -> None:
    x = torch.tensor([[3.0, 1.0], [1.0, 3.0]], dtype=DTYPE)
    close(DeepLift(Layers(), "reveal_cancel").attribute(x, target=0), x.amin(1, keepdim=True).expand(-1, 2) / 2)


def test_networks_that_compute_the_same_get_the_same_ig_and_different_rescale() -> None:
    """The two of Sundararajan et al., figure 7, and two that compute the minimum of what is not negative."""
    f = Pair(lambda x: torch.relu(torch.relu(x[:, :1]) - 1 - torch.relu(x[:, 1:])))
    g = Pair(lambda x: torch.relu(torch.relu(torch.relu(x[:, :1]) - 1) - torch.relu(x[:, 1:])))
    x = torch.tensor([[3.0, 1.0]], dtype=DTYPE)
    for model, expected in ((f, [[1.5, -0.5]]), (g, [[2.0, -1.0]])):
        close(DeepLift(model).attribute(x, target=0), torch.tensor(expected, dtype=DTYPE))
        by_path = IntegratedGradients(model).attribute(
            x, target=0, n_steps=2000, method="riemann_middle", internal_batch_size=500
        )
        close(by_path, torch.tensor([[1.5, -0.5]], dtype=DTYPE), 1e-3)
    one = Pair(lambda i: i[:, :1] - torch.relu(i[:, :1] - i[:, 1:]))
    two = Pair(lambda i: i[:, :1] - torch.relu(torch.relu(i[:, :1] - i[:, 1:] / 2) - i[:, 1:] / 2))
    x, base = torch.tensor([[3.0, 1.0]], dtype=DTYPE), torch.tensor([[0.0, 2.0]], dtype=DTYPE)
    assert torch.equal(one(x), two(x))
    assert torch.equal(one(base), two(base))
    close(DeepLift(one).attribute(x, base, 0), torch.tensor([[1.5, -0.5]], dtype=DTYPE))
    close(DeepLift(two).attribute(x, base, 0), torch.tensor([[33 / 21, -4 / 7]], dtype=DTYPE))
    paths = [
        IntegratedGradients(model).attribute(x, base, 0, n_steps=2000, method="riemann_middle", internal_batch_size=500)
        for model in (one, two)
    ]
    close(paths[0], paths[1])


def test_several_baselines_are_averaged() -> None:
    model, x, pool = settle(Functional()), images(3), images(4, seed=7)
    found, delta = DeepLiftShap(model).attribute(x, pool, 1, return_convergence_delta=True)
    singles = [DeepLift(model).attribute(x, base[None].expand_as(x), 1) for base in pool]
    close(found, torch.stack(singles).mean(0))
    expected = (model(x)[:, 1] - model(pool)[:, 1].mean()).detach()
    assert float((found.flatten(1).sum(1) - expected).abs().max()) < 1e-9
    assert float(delta.abs().max()) < 1e-9
