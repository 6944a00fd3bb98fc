"""Excitation backprop: against its probabilities multiplied out, LRP, Zennit; the contrastive variant."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, ContrastiveExcitationBackprop, ExcitationBackprop, InputError, NumericalError, Rules, Unit
from relprop.rules import Contrast
from tests.checks import refuses
from tests.models import close, images, residual, settle, vectors
from tests.networks import zoo


def mlp() -> nn.Sequential:
    """[N, 4] to [N, 3]; several units win at every layer."""
    return settle(nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3)))


def winning(weight: Tensor, a: Tensor) -> Tensor:
    """P(a_j | a_k), ``[N, K, J]``: of what excites k, the share of j; nothing of what nothing excites."""
    excites = (a[:, None, :] * weight[None]).clamp(min=0)
    total = excites.sum(2, keepdim=True)
    return excites / torch.where(total == 0, 1.0, total)


def probabilities(model: nn.Sequential, x: Tensor, target: int) -> Tensor:
    """The marginal winning probabilities of an MLP, multiplied out; biases take no part."""
    p, a, steps = torch.zeros(len(x), 3, dtype=x.dtype), x, []
    p[:, target] = 1.0
    for module in model:
        if isinstance(module, nn.Linear):
            steps.append(winning(module.weight, a))
        a = module(a)
    for step in reversed(steps):
        p = torch.einsum("nk,nkj->nj", p, step)
    return p.detach()


def test_probabilities() -> None:
    model, x = mlp(), vectors().abs()
    found, delta = ExcitationBackprop(model, stabilizer=0).attribute(x, 1, return_convergence_delta=True)
    close(found, probabilities(model, x, 1))
    assert bool((found >= 0).all())
    assert torch.allclose(delta, torch.zeros_like(delta), atol=1e-12)
    assert ExcitationBackprop.contract.sums_to == "1" and ExcitationBackprop.contract.seed == "1"


def test_times_the_output_it_is_alpha1_beta0_without_biases() -> None:
    model, x = residual(), images()
    rules = Rules.preset("alpha1_beta0_ignore_bias")
    signs = set()
    for target in (0, 2, Unit("branch.0", (1, 2, 3))):
        relevance, delta = LRP(model, rules).attribute(x, target, return_convergence_delta=True)
        f = relevance.flatten(1).sum(1) + delta
        signs |= set(f.sign().tolist())
        found = ExcitationBackprop(model).attribute(x, target)
        # The stabilizer is in units of z on both sides, and relevance is linear in what comes from above.
        close(found * f.reshape(-1, 1, 1, 1), relevance)
    assert signs == {-1.0, 1.0}


def test_layers_targets_and_report() -> None:
    model, x = mlp(), vectors().abs()
    explainer = ExcitationBackprop(model)
    layers = explainer.attribute_layers(x, ["0", "2", "4"], 1)
    for name in ("0", "2"):
        assert torch.allclose(layers[name].sum(1), torch.ones(2, dtype=x.dtype), atol=1e-4)
    assert torch.allclose(layers["4"], torch.eye(3, dtype=x.dtype)[1].expand(2, -1))
    assert torch.equal(explainer.attribute_targets(x, [1, 2])[0], explainer.attribute(x, 1))
    report = explainer.report(x, 1)
    report.check(1e-9)
    assert report.output == pytest.approx(2.0)  # a probability of 1 for each of two samples


@pytest.mark.slow
def test_against_zennit() -> None:
    zoo.library("torchvision")  # which Zennit imports, and which needs some help in some builds
    composites = pytest.importorskip(
        "zennit.composites", reason="zennit is not installed: pip install 'relprop[bench]'"
    )
    model = settle(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3, padding=1), nn.ReLU(),
            nn.AvgPool2d(3), nn.Flatten(), nn.Linear(5, 3),
        )
    )  # fmt: skip
    x = images().abs()
    with composites.ExcitationBackprop(zero_params=["bias"]).context(model) as modified:
        leaf = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(modified(leaf)[:, 2].sum(), leaf)
    close(ExcitationBackprop(model).attribute(x, 2), expected, 1e-5)  # its stabilizers differ in where they act


def test_the_contrast_subtracts_a_dual_network() -> None:
    model, x = mlp(), vectors().abs()
    dual = mlp()
    dual[4].weight.data.neg_()
    found = ContrastiveExcitationBackprop(model, stabilizer=0).attribute(x, 1)
    close(found, probabilities(model, x, 1) - probabilities(dual, x, 1))
    assert torch.allclose(found.sum(1), torch.zeros(2, dtype=x.dtype), atol=1e-12)


def test_the_contrast_is_at_the_last_layer_below_a_unit() -> None:
    model, x = mlp(), vectors().abs()
    weight = model[2].weight
    first = winning(model[0].weight, x)
    h = model[:2](x)
    p = winning(weight, h)[:, 3] - winning(-weight, h)[:, 3]
    found = ContrastiveExcitationBackprop(model, stabilizer=0).attribute(x, Unit("2", 3))
    close(found, torch.einsum("nk,nkj->nj", p, first).detach())


def test_the_contrast_claims_no_sum() -> None:
    model = mlp()
    with refuses(model, InputError, ValueError, "ContrastiveExcitationBackprop", "no convergence delta"):
        ContrastiveExcitationBackprop(model).attribute(vectors(), 1, return_convergence_delta=True)
    report = LRP(model, Rules.preset("alpha1_beta0").last(Contrast())).report(vectors(), 1)
    report.check(1e-9)
    assert report.absorbed["rule"] == pytest.approx(report.output, rel=1e-6)


def test_a_loss_on_probabilities() -> None:
    model, x = mlp(), vectors().abs()
    found = ExcitationBackprop(model, stabilizer=0).attribute(x, 1, create_graph=True)
    weights = [model[index].weight for index in (0, 2, 4)]

    def multiplied_out() -> Tensor:
        first, second = model[0](x).relu(), model[2](model[0](x).relu()).relu()
        p = winning(weights[2], second)[:, 1]
        p = torch.einsum("nk,nkj->nj", p, winning(weights[1], first))
        return torch.einsum("nk,nkj->nj", p, winning(weights[0], x))

    expected = multiplied_out()
    close(found, expected)
    mine = torch.autograd.grad(found.square().sum(), weights)
    theirs = torch.autograd.grad(expected.square().sum(), weights)
    for one, other in zip(mine, theirs, strict=True):
        assert float(other.abs().max()) > 1e-3
        close(one, other)


def test_an_output_of_zero_has_no_share() -> None:
    model = mlp()
    with refuses(model, NumericalError, ValueError, "exactly 0", "another output"):
        ExcitationBackprop(model).attribute(vectors(), lambda out: out[:, 0] * 0.0)


class Block(nn.Module):
    """Residual: what is added, subtracted and averaged has both signs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        h = h + self.b(h.relu())
        h = 1.5 - torch.sub(h, self.b(-h), alpha=0.5)
        h += 0.3
        out: Tensor = self.out(nn.functional.avg_pool1d(h[:, None], 2)[:, 0])
        return out


def sharing(p: Tensor, *terms: Tensor) -> list[Tensor]:
    """Return what each of the terms of a sum receives: its positive part of theirs; constants take none."""
    plus = [term.clamp(min=0) for term in terms]
    total = torch.stack(plus).sum(0)
    return [p * part / torch.where(total == 0, 1.0, total) for part in plus]


def descended(model: Block, x: Tensor, target: int) -> Tensor:
    """The probabilities of a block, step by step from the top."""

    def through(layer: nn.Linear, a: Tensor, p: Tensor) -> Tensor:
        return torch.einsum("nk,nkj->nj", p, winning(layer.weight, a))

    h = model.a(x)
    branch = model.b(h.relu())
    added = h + branch
    other = model.b(-added)
    less = added - 0.5 * other
    turned = 1.5 - less
    last = turned + 0.3
    left, right = last.reshape(-1, 3, 2).unbind(2)
    p = winning(model.out.weight, (left + right) / 2)[:, target]
    p = torch.stack(sharing(p, left, right), 2).flatten(1)
    (p,) = sharing(p, turned)
    (p,) = sharing(p, -less)
    p, p_other = sharing(p, added, -0.5 * other)
    p = p + through(model.b, -added, p_other)
    p, p_branch = sharing(p, h, branch)
    return through(model.a, x, p + through(model.b, h.relu(), p_branch))


def test_the_positive_terms_of_sums_share() -> None:
    model, x = settle(Block()), vectors(6)
    found, delta = ExcitationBackprop(model, stabilizer=0).attribute(x, 1, return_convergence_delta=True)
    expected = descended(model, x, 1)
    assert bool((expected > 0.05).any())
    close(found, expected)
    assert bool((found >= 0).all()) and bool((found.sum(1) <= 1 + 1e-9).all())
    close(delta, 1 - expected.sum(1))
    ExcitationBackprop(model).report(x, 1).check(1e-9)
    by_rule = LRP(model, "alpha1_beta0_ignore_bias").attribute(x, 1)  # where sums are shared by a / (a + b)
    assert float((by_rule / (by_rule.sum(1) + delta)[:, None]).min()) < -0.01
    weights = [model.a.weight, model.b.weight, model.out.weight]
    found = ExcitationBackprop(model, stabilizer=0).attribute(x, 1, create_graph=True)
    mine = torch.autograd.grad(found.square().sum(), weights)
    theirs = torch.autograd.grad(descended(model, x, 1).square().sum(), weights)
    for one, other in zip(mine, theirs, strict=True):
        assert float(other.abs().max()) > 1e-3
        close(one, other)


def test_probabilities_of_deep_residual_networks() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.out = nn.ModuleList(nn.Linear(8, 8) for _ in range(10)), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = x + layer(x.relu())
            out: Tensor = self.out(x.relu())
            return out

    torch.manual_seed(0)
    model, x = Deep().double(), vectors(8, 8).abs()
    found = ExcitationBackprop(model, stabilizer=0).attribute(x, 1)
    assert bool((found >= 0).all()) and float(found.sum(1).max()) <= 1 + 1e-9


PLACES = torch.tensor([0, 1, 1, 0, 1, 1])


def nothing(x: Tensor) -> Tensor:
    return torch.zeros(len(x), 2, dtype=x.dtype)


def places(x: Tensor) -> Tensor:
    return PLACES.expand(len(x), -1)


SUMS: dict[str, Callable[[Tensor], Tensor]] = {
    "index_add": lambda x: nothing(x).index_add(1, PLACES, x),
    "index_add, subtracted": lambda x: nothing(x).index_add(1, PLACES, x, alpha=-2),
    "scatter_add": lambda x: nothing(x).scatter_add(1, places(x), x),
    "scatter_reduce": lambda x: nothing(x).scatter_reduce(1, places(x), x, "mean", include_self=False),
    "index_reduce": lambda x: nothing(x).index_reduce(1, PLACES, x, "mean"),
    "index_put": lambda x: nothing(x).T.index_put((PLACES,), x.T, accumulate=True).T,
    "mean": lambda x: x.reshape(-1, 3, 2).mean(1),
    "sum": lambda x: torch.stack([x[:, :2].sum(1), x[:, 2:].sum(1)], 1),
    "cumsum": lambda x: x.cumsum(1)[:, 2::3],
    "avg_pool": lambda x: nn.functional.avg_pool1d(x[:, None], 3)[:, 0],
    "adaptive_avg_pool": lambda x: nn.functional.adaptive_avg_pool1d(x[:, None], 2)[:, 0],
    "interpolate": lambda x: nn.functional.interpolate(x[:, None], 2, mode="linear", antialias=False)[:, 0],
    "fold": lambda x: nn.functional.fold(x.reshape(-1, 2, 3), (1, 4), (1, 2))[:, 0, 0, 1:3],
}


@pytest.mark.filterwarnings("ignore:index_reduce:UserWarning")
@pytest.mark.parametrize("name", SUMS)
def test_every_sum_is_a_layer_of_positive_weight(name: str) -> None:
    class Summing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.out(SUMS[name](x))
            return out

    model, x = settle(Summing()), vectors(5, 6)
    matrix = SUMS[name](torch.eye(6, dtype=x.dtype)).T  # [2, 6]
    p = winning(model.out.weight, SUMS[name](x))[:, 1]
    found = ExcitationBackprop(model, stabilizer=0).attribute(x, 1)
    close(found, torch.einsum("nk,nkj->nj", p, winning(matrix, x)).detach())
    assert bool((found > 0).any())
    ExcitationBackprop(model).report(x, 1).check(1e-9)


@pytest.mark.parametrize(("dtype", "small"), [(torch.float16, 1e-4), (torch.bfloat16, 1e-37), (torch.float32, 1e-37)])
def test_a_small_term_beside_a_large_one(dtype: torch.dtype, small: float) -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :1] + x[:, 1:]

    x = torch.tensor([[small, -8.0], [0.0, -8.0]], dtype=dtype)
    found = ExcitationBackprop(Sum()).attribute(x)
    assert torch.allclose(found, torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=dtype), atol=1e-2)
