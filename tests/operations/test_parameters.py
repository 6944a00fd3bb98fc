"""Layers by whatever name, weights from wherever, and weights that change between calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from relprop import LRP, Rules
from relprop.rules import Epsilon, Flat, Gamma, WSquare, ZBox
from tests.models import settle
from tests.unrolled import RULES, Share, assert_close, check, conv, dense, each_rule, explain, random, weigh

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")


# A linear layer by any name --------------------------------------------------------------------------


class Spelled(nn.Module):
    """[N, 4] to [N, 3]: a linear map, spelled in some way, and a linear layer."""

    def __init__(self, spelling: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(5, 4)), nn.Parameter(torch.empty(5))
        self.spelling, self.head = spelling, nn.Linear(5, 3)
        settle(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.spelling(x, self.weight, self.bias).relu())  # type: ignore[no-any-return]


def _subclassed(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    class Scaled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input)

    layer = Scaled(4, 5)
    layer.weight, layer.bias = w, b  # type: ignore[assignment]
    return layer(x)  # type: ignore[no-any-return]


# In those of the second group the bias is a sum of its own, and so absorbs by LRP-0, not by the layer's rule.
SPELLINGS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "linear": F.linear,
    "torch._C._nn.linear": torch._C._nn.linear,
    "addmm": lambda x, w, b: torch.addmm(b, x, w.t()),
    "addmm of the bias": lambda x, w, b: b.addmm(x, w.T),
    "addmm by keyword": lambda x, w, b: torch.addmm(input=b, mat1=x, mat2=w.mT),
    "a 1 x 1 convolution": lambda x, w, b: F.conv1d(x[:, :, None], w[:, :, None], b)[:, :, 0],
    "a subclass of Linear": _subclassed,
    "over positions": lambda x, w, b: F.linear(x[:, None].expand(-1, 2, -1), w, b)[:, 1],
}
WITHOUT_BIAS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "@": lambda x, w, b: x @ w.t(),
    "@, written out": lambda x, w, b: x.__matmul__(w.transpose(0, 1)),
    "matmul": lambda x, w, b: torch.matmul(x, w.permute(1, 0)),
    "mm": lambda x, w, b: x.mm(w.T),
    "mm, the other way round": lambda x, w, b: torch.mm(w, x.t()).t(),
    "matmul, by rows": lambda x, w, b: torch.stack([torch.mv(w, row) for row in x]),
    "bmm": lambda x, w, b: torch.bmm(x[None], w.t()[None])[0],
    "bmm of an expanded weight": lambda x, w, b: torch.bmm(x[:, None], w.t().expand(3, 4, 5))[:, 0],
    "einsum": lambda x, w, b: torch.einsum("nj,kj->nk", x, w),
    "einsum, the other way round": lambda x, w, b: torch.einsum("kj,nj->nk", [w, x]),
    "a weight made on the way": lambda x, w, b: F.linear(x, (2 * w) / 2),
    "a contiguous copy": lambda x, w, b: x @ w.t().contiguous(),
    "a detached weight": lambda x, w, b: x @ w.detach().t(),
    "a slice of a larger weight": lambda x, w, b: x @ torch.cat([w, w]).t()[:, :5],
}


@each_rule
@pytest.mark.parametrize("name", SPELLINGS)
def test_a_linear_layer_by_any_name(name: str, rule: str) -> None:
    model = Spelled(SPELLINGS[name])
    check(
        model,
        lambda share, x: dense(share, model.head, share(F.linear, x, model.weight, model.bias).relu()),
        random(3, 4),
        rule=rule,
    )


@each_rule
@pytest.mark.parametrize("name", WITHOUT_BIAS)
def test_a_linear_layer_without_bias_by_any_name(name: str, rule: str) -> None:
    model = Spelled(WITHOUT_BIAS[name])
    check(
        model,
        lambda share, x: dense(share, model.head, share(F.linear, x, model.weight).relu()),
        random(3, 4),
        rule=rule,
    )


@pytest.mark.parametrize("rule", [Flat(), WSquare(), ZBox(-4.0, 4.0)], ids=lambda rule: type(rule).__name__)
def test_rules_for_the_input_by_any_name(rule: Any) -> None:
    rules, x = Rules.preset("epsilon_gamma").first(rule), random(3, 4)
    for group in (SPELLINGS, WITHOUT_BIAS):
        found = [LRP(Spelled(spelling), rules).attribute(x, weigh) for spelling in group.values()]
        for name, relevance in zip(group, found, strict=True):
            if name != "over positions":  # of which one is not looked at, but flat relevance is the same
                assert_close(relevance, found[0], name)


# Weights from elsewhere ------------------------------------------------------------------------------


class Standardised(nn.Conv2d):
    """A convolution that standardises its weight in every forward pass."""

    def standard(self) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
        return (self.weight - mean) / torch.sqrt(variance + 1e-5)

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.standard(), self.bias, self.stride, self.padding)


class Symmetric(nn.Module):
    """A parametrisation of one's own."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight + weight.flip(-1)


def _parametrised(layer: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


SOURCES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight norm": parametrizations.weight_norm,
    "weight norm, old": nn.utils.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "spectral norm, old": nn.utils.spectral_norm,
    "an own parametrisation": _parametrised,
}


@each_rule
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("name", SOURCES)
def test_a_weight_that_is_computed(name: str, frozen: bool, rule: str) -> None:
    """Of whatever a weight is made: the rule sees the weight that was passed."""
    wrap = SOURCES[name]
    model = nn.Sequential(wrap(nn.Conv2d(2, 3, 3)), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), wrap(nn.Linear(12, 4)))
    settle(model)
    model.requires_grad_(not frozen)
    x = random(2, 2, 4, 4)
    with torch.no_grad():
        model(x)

    def reference(share: Share, a: Tensor) -> Tensor:
        norm: Any = model[1]
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        weight = model[0].weight * scale[:, None, None, None]
        bias = (model[0].bias - norm.running_mean) * scale + norm.bias
        return dense(share, model[4], share(F.conv2d, a, weight, bias).relu().flatten(1))

    check(model, reference, x, rule=rule)


@each_rule
def test_a_standardised_convolution(rule: str) -> None:
    model = settle(nn.Sequential(Standardised(2, 3, 3, padding=1), nn.ReLU(), Standardised(3, 2, 2), nn.Flatten()))
    first, second = model[0], model[2]  # type: ignore[index]

    def reference(share: Share, x: Tensor) -> Tensor:
        h = conv(share, first, x, first.standard()).relu()
        return conv(share, second, h, second.standard()).flatten(1)

    check(model, reference, random(2, 2, 4, 4), rule=rule)


@each_rule
def test_functional_calls_with_somebody_elses_parameters(rule: str) -> None:
    bank = nn.ParameterDict({"stem": torch.empty(3, 2, 3, 3), "bias": torch.empty(3), "head": torch.empty(4, 3, 2, 2)})

    class Borrows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bank = bank
            self.register_buffer("fixed", random(4, 4, seed=8))
            self.fixed: Tensor

        def forward(self, x: Tensor) -> Tensor:
            h = F.conv2d(x, self.bank["stem"], self.bank["bias"], stride=2).relu()
            h = F.conv_transpose2d(h, self.bank["head"].transpose(0, 1), padding=1).flatten(2).sum(2)
            return F.linear(h, self.fixed)

    model = settle(Borrows())
    head = bank["head"].detach().transpose(0, 1)

    def reference(share: Share, x: Tensor) -> Tensor:
        h = share(lambda a, w, b: F.conv2d(a, w, b, stride=2), x, bank["stem"], bank["bias"]).relu()
        h = share(lambda a, w, b: F.conv_transpose2d(a, w, b, padding=1), h, head).flatten(2).sum(2)
        return share(F.linear, h, model.fixed)

    check(model, reference, random(2, 2, 5, 5), rule=rule)


def test_a_weight_that_depends_on_the_input_is_a_product() -> None:
    """Half of the relevance goes to either factor, by LRP-0."""

    class Dynamic(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return F.linear(x, y)

    x, y = random(3, 4), random(5, 4, seed=1)[:3]
    to_x, to_y = LRP(Dynamic(), Gamma()).attribute((x, y), weigh)
    parts = x[:, None] * y[None] * torch.autograd.functional.jacobian(lambda z: weigh(z).sum(), x @ y.t())[:, :, None]
    assert_close(to_x, parts.sum(1) / 2)
    assert_close(to_y, parts.sum(0) / 2)


# Weights that change between two calls -----------------------------------------------------------------


def network() -> nn.Sequential:
    model = nn.Sequential(
        nn.utils.weight_norm(nn.Conv2d(2, 3, 3)),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Conv2d(3, 3, 2),
        nn.ReLU(),
        nn.Flatten(),
        parametrizations.weight_norm(nn.Linear(12, 4)),
    )
    return settle(model)  # type: ignore[return-value]


def _data(model: Any) -> None:
    model[3].weight.data.mul_(torch.tensor([1.0, -2.0]).reshape(2, 1))
    model[3].weight.data[0] = 0.25


def _no_grad(model: Any) -> None:
    with torch.no_grad():
        model[3].weight.neg_()
        model[3].bias.add_(1)


def _optimiser(model: Any, **options: Any) -> None:
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5, **options)
    model(random(2, 2, 5, 5, seed=3)).square().sum().backward()
    optimiser.step()


def _magnitude(model: Any) -> None:
    model[0].weight_g.data.mul_(3)
    model[6].parametrizations.weight.original0.data.mul_(-2)


def _loaded(model: Any) -> None:
    other = settle(network(), seed=11)
    model.load_state_dict(other.state_dict())


def _replaced(model: Any) -> None:
    model[3].weight = nn.Parameter(model[3].weight.detach().flip(0))


def _statistics(model: Any) -> None:
    model[1].running_var.mul_(4)
    model[1].running_mean.add_(0.5)
    model[1].weight.data.neg_()


def _swapped(model: Any) -> None:
    model[3].weight.data = model[3].weight.data.roll(1, 0)


CHANGES: dict[str, Callable[[Any], None]] = {
    "a write through data": _data,
    "another storage through data": _swapped,
    "a write without gradients": _no_grad,
    "an optimiser": _optimiser,
    "a fused optimiser": lambda model: _optimiser(model, fused=True),
    "an optimiser over lists": lambda model: _optimiser(model, foreach=True, momentum=0.9),
    "the magnitude of a weight norm": _magnitude,
    "load_state_dict": _loaded,
    "another parameter": _replaced,
    "the statistics of a batch norm": _statistics,
    "float32": lambda model: model.float(),
    "bfloat16 and back": lambda model: model.bfloat16().double(),
    "another layer": lambda model: model.__setitem__(3, settle(nn.Conv2d(3, 3, 2), 17)),
}

EXPLAINERS: dict[str, Any] = {name: rule for name, (rule, _) in RULES.items()} | {
    "epsilon_gamma": "epsilon_gamma",
    "flat below": Rules.preset("epsilon_plus_flat"),
    "w^2": WSquare(),
    "epsilon that ignores the bias": Epsilon(0.1, bias="ignore"),
}


@pytest.mark.parametrize("cached", [False, True], ids=["fresh", "cached"])
@pytest.mark.parametrize("explainer", EXPLAINERS)
@pytest.mark.parametrize("name", CHANGES)
def test_the_second_call_sees_changed_weights(name: str, explainer: str, cached: bool) -> None:
    model, x, rules = network(), random(2, 2, 5, 5), EXPLAINERS[explainer]
    lrp = LRP(model, rules, cache_weights=cached)
    before = lrp.attribute(x, weigh)
    assert torch.equal(lrp.attribute(x, weigh), before)
    CHANGES[name](model)
    x = x.to(model[3].weight.dtype)  # type: ignore[arg-type]
    target = (lambda out: out[:, 2]) if x.dtype == torch.float32 else weigh
    after = lrp.attribute(x, target)
    assert torch.equal(after, LRP(copy_of(model), rules).attribute(x, target))
    assert after.dtype == x.dtype
    assert not torch.allclose(after.double(), before, rtol=1e-4), "the change changes nothing"
    assert torch.equal(lrp.attribute(x, target), after)


def copy_of(model: nn.Module) -> nn.Module:
    """The same network anew, with the weights that are in the model now."""
    fresh = network().to(next(model.parameters()).dtype)
    fresh.load_state_dict(model.state_dict())
    return fresh


def used_twice() -> Any:
    """Two layers of one shape, of which one is used twice."""
    model: Any = settle(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)))
    model[4] = model[0]
    return model


def test_two_rules_do_not_meet_in_the_cache() -> None:
    model = used_twice()
    rules = Rules().set("0", Gamma(0.5)).set("2", Gamma(2.0))
    cached, fresh, x = LRP(model, rules, cache_weights=True), LRP(model, rules), random(3, 4)
    for _ in range(3):
        assert torch.equal(cached.attribute(x, weigh), fresh.attribute(x, weigh))


@each_rule
def test_a_kept_weight_is_of_its_layer(rule: str) -> None:
    model, x = used_twice(), random(3, 4)
    kept = LRP(model, RULES[rule][0], cache_weights=True)
    kept.attribute(random(2, 4, seed=5), weigh)

    def reference(share: Share, a: Tensor) -> Tensor:
        h = dense(share, model[2], dense(share, model[0], a).relu()).relu()
        return dense(share, model[0], h)

    assert_close(kept.attribute(x, weigh), explain(reference, rule, x)[0])
