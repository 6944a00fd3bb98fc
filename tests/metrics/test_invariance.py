"""Implementation invariance against hand-derived maps, and rewritten networks against what they were made from."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, GradientXInput, InputError, ModelError, NumericalError
from relprop.metrics import implementation_invariance, rewrites
from relprop.rules import Epsilon, Gamma, LinearRule, WSquare, ZPlus


def linear(weight: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=False, dtype=torch.float64)
    layer.weight.data = torch.tensor(weight, dtype=torch.float64)
    return layer


@pytest.fixture
def maxima() -> tuple[nn.Module, nn.Module]:
    a = nn.Sequential(linear([[1, -1], [0, 1]]), nn.ReLU(), linear([[1, 1]]))
    b = nn.Sequential(linear([[1, -1], [-1, 1], [1, 1]]), nn.ReLU(), linear([[0.5, 0.5, 0.5]]))
    return a, b


def gradient_x_input(model: nn.Module, x: Tensor, target: Any = None) -> Tensor:
    return GradientXInput(model).attribute(x, target)


def by(rule: LinearRule) -> Any:
    return lambda model, x, target: LRP(model, rule).attribute(x, target)


def test_distance_of_two_maxima(maxima: tuple[nn.Module, nn.Module]) -> None:
    x = torch.tensor([[3.0, 1.0]], dtype=torch.float64)
    assert implementation_invariance(gradient_x_input, *maxima, x).values.tolist() == [0.0]
    # z+: a gives (2, 0) + (0, 1), b gives (1, 0) + (3/2, 1/2).
    zplus = implementation_invariance(by(ZPlus(stabilizer=0)), *maxima, x)
    assert zplus.values.tolist() == pytest.approx([(0.5 + 0.5) / 6])
    # gamma 1/4: a gives 2 (5/4 * 3, -1) / (11/4) + (0, 1), b gives half the first term and (3/2, 1/2).
    a = np.array([2 * 3.75, -2]) / 2.75 + [0, 1]
    b = np.array([3.75, -1]) / 2.75 + [1.5, 0.5]
    gamma = implementation_invariance(by(Gamma(0.25, stabilizer=0)), *maxima, x)
    assert gamma.values.tolist() == pytest.approx([np.abs(a - b).sum() / np.abs([a, b]).sum()])
    assert gamma.mean == gamma.max == pytest.approx(float(gamma.values))


def test_ties_are_left_out(maxima: tuple[nn.Module, nn.Module]) -> None:
    x = torch.tensor([[3.0, 1.0], [2.0, 2.0], [1.0, 4.0]], dtype=torch.float64)
    result = implementation_invariance(gradient_x_input, *maxima, x)
    assert result.ties.tolist() == [False, True, False]
    assert result.mean == 0.0
    assert math.isnan(result.values[1])
    assert result.to_dict() == {"values": [0.0, None, 0.0], "ties": 1, "outputs": 0.0}
    assert str(result).splitlines()[2].split() == ["0", "0", "3", "1", "0"]
    kept = implementation_invariance(gradient_x_input, *maxima, x, ties=torch.tensor([True, False, False]))
    assert kept.values[1] > 0.4  # at the tie the two take different sides


def test_models_that_differ_are_named(maxima: tuple[nn.Module, nn.Module]) -> None:
    a, b = maxima
    x = torch.tensor([[3.0, 1.0], [-1.0, -2.0]], dtype=torch.float64)  # b is no maximum below zero
    with pytest.raises(InputError, match=r"at sample 1 the one gives 1, the other 0.5"):
        implementation_invariance(gradient_x_input, a, b, x)
    constant = linear([[1.0, 0.0]])
    with pytest.raises(InputError, match="their gradients differ at every sample"):
        implementation_invariance(gradient_x_input, constant, linear([[0.0, 1.0]]), torch.ones(2, 2).double())
    nan = copy.deepcopy(a)
    nan[2].weight.data[:] = math.nan  # type: ignore[index,operator]
    with pytest.raises(NumericalError, match="the model's output is NaN"):
        implementation_invariance(gradient_x_input, a, nan, x)
    for bad in (lambda model, x, target: x[:, :1], lambda model, x, target: x * math.nan):
        with pytest.raises(InputError):
            implementation_invariance(bad, a, b, x[:1])
    for ties in (torch.zeros(3, dtype=torch.bool), torch.zeros(1), torch.ones(1, dtype=torch.bool)):
        with pytest.raises(InputError, match="ties has shape"):
            implementation_invariance(gradient_x_input, a, b, x[:1], ties=ties)


def network() -> nn.Sequential:
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.LeakyReLU(0.1), nn.Flatten()),
        nn.Sequential(nn.Linear(24, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 3)),
    ).double()
    for _ in range(3):
        model(torch.randn(20, 1, 8, 8, dtype=torch.float64) + 0.5)
    model[2][1].weight.data = torch.rand(10).double() + 0.5  # type: ignore[index,union-attr]
    return model.eval()


def test_rewrites_compute_the_same_function_and_leave_the_model_alone() -> None:
    model = network()
    x = torch.randn(8, 1, 8, 8, dtype=torch.float64)
    before = copy.deepcopy(model.state_dict())
    made = rewrites(model, x)
    assert list(made) == ["split", "permuted", "scaled", "fused", "identity"]
    unseen = torch.randn(20, 1, 8, 8, dtype=torch.float64)
    for copied in made.values():
        torch.testing.assert_close(copied(unseen), model(unseen), rtol=1e-10, atol=1e-10)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_rewrites_are_what_they_say() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    x = torch.rand(5, 3, dtype=torch.float64)
    made = rewrites(model, x, seed=1)
    w, b, v = (each.detach() for each in list(model.parameters())[:3])
    split, permuted, scaled, identity = made.values()
    torch.testing.assert_close(split[0].weight, torch.cat([w / 4, 3 * w / 4]))
    torch.testing.assert_close(split[0].bias, torch.cat([b / 4, 3 * b / 4]))
    torch.testing.assert_close(split[2].weight, torch.cat([torch.cat([v, v], dim=1) * q for q in (0.25, 0.75)]))
    assert (split[2].in_features, split[2].out_features) == (8, 4)
    order = [int((permuted[0].weight == row).all(dim=1).nonzero()) for row in w]
    assert sorted(order) == [0, 1, 2, 3] != order
    factor = scaled[0].weight.detach()[:, :1] / w[:, :1]
    assert 0.5 <= float(factor.min()) < float(factor.max()) <= 2
    torch.testing.assert_close(scaled[0].weight, factor * w)
    assert torch.equal(identity[2][0].weight, torch.eye(4).double()) and identity[2][0].bias is None
    assert identity[4][0].weight.shape == (2, 2)


def test_gradient_x_input_is_invariant_and_rules_are_as_far_as_theory_says() -> None:
    model = network()
    x = torch.randn(6, 1, 8, 8, dtype=torch.float64)
    apart = {
        name: {
            kind: implementation_invariance(explain, model, copied, x, 1).mean
            for kind, copied in rewrites(model, x).items()
        }
        for name, explain in {
            "gradient x input": gradient_x_input,
            "gamma": by(Gamma(0.25, stabilizer=0)),
            "z+": by(ZPlus(stabilizer=0)),
            "epsilon": by(Epsilon(0.1)),
            "w^2": by(WSquare(stabilizer=0)),
        }.items()
    }
    assert max(apart["gradient x input"].values()) < 1e-10
    assert max(apart["gamma"].values()) < 1e-10
    # z+ has nothing to share where the identity is given what LeakyReLU left negative.
    assert max(value for kind, value in apart["z+"].items() if kind != "identity") < 1e-10 < apart["z+"]["identity"]
    # A fixed epsilon weighs more on small units and acts again at each layer; w^2 compares weights without activations.
    assert min(apart["epsilon"][kind] for kind in ("split", "scaled", "identity")) > 1e-2
    assert max(apart["epsilon"][kind] for kind in ("permuted", "fused")) < 1e-10
    assert apart["w^2"]["scaled"] > 1e-2
    assert max(value for kind, value in apart["w^2"].items() if kind != "scaled") < 1e-10


class Branches(nn.Module):
    """Layers that only their author knows the order of; what `first` returns goes to `second` or to `side` as well."""

    def __init__(self, *, shared: bool) -> None:
        super().__init__()
        self.first, self.second, self.side = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4 if shared else 3, 2)
        self.norm = nn.BatchNorm1d(4)
        self.shared = shared

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.norm(self.first(x)))
        return self.second(a) + torch.tanh(self.side(a if self.shared else x))


def test_named_chains() -> None:
    model = Branches(shared=False).double().eval()
    x = torch.rand(5, 3, dtype=torch.float64)
    made = rewrites(model, x, [("first", "norm", "second")])
    assert list(made) == ["split", "permuted", "scaled", "fused", "identity"]
    for copied in made.values():
        torch.testing.assert_close(copied(-x), model(-x))
    assert isinstance(made["fused"].norm, nn.Identity)
    assert made["split"].first.out_features == made["split"].norm.num_features == 8


def test_a_copy_that_computes_something_else_is_named() -> None:
    x = torch.rand(5, 3, dtype=torch.float64)
    with pytest.raises(InputError, match=r"the copy 'split' does not run .* goes elsewhere, too; chains: first - norm"):
        rewrites(Branches(shared=True).double().eval(), x, [("first", "norm", "second")])
    bent = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    with pytest.raises(InputError, match=r"the copy 'split' differs from the model by .* not positively homogeneous"):
        rewrites(bent, x, [("0", "2")])
    with pytest.raises(InputError, match=r"no nn.Sequential of the model"):  # found by itself, it is left out
        rewrites(bent, x)


def test_chains_that_cannot_be_are_named() -> None:
    model, x = Branches(shared=False).double().eval(), torch.rand(5, 3, dtype=torch.float64)
    with pytest.raises(InputError, match=r"name them: chains=\[\('layer1', 'layer2'\)"):
        rewrites(model, x)
    with pytest.raises(InputError, match=r"no module 'frist'. Did you mean 'first'"):
        rewrites(model, x, [("frist", "second")])
    with pytest.raises(InputError, match="a chain names 1 modules"):
        rewrites(model, x, [("first",)])
    with pytest.raises(ModelError, match="module 'norm' is a BatchNorm1d; expected one of Linear"):
        rewrites(model, x, [("norm", "second")])
    with pytest.raises(ModelError, match="does not feed 'first'"):
        rewrites(model, x, [("second", "first")])
    grouped = nn.Sequential(nn.Conv1d(4, 4, 1, groups=2), nn.ReLU(), nn.Conv1d(4, 2, 1))
    with pytest.raises(ModelError, match="expected layers without groups"):
        rewrites(grouped, torch.rand(1, 4, 3), [("0", "2")])
    counted = copy.deepcopy(model.norm.state_dict())
    with pytest.raises(InputError, match="normalises by its batch"):
        rewrites(model.train(), x, [("first", "norm", "second")])
    assert all(torch.equal(value, counted[name]) for name, value in model.norm.state_dict().items())
    pair = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), Pair())
    with pytest.raises(ModelError, match="returned a tuple"):
        rewrites(pair.double(), x)


class Pair(nn.Module):
    """An output that is no tensor."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def test_batches_and_targets_make_no_difference() -> None:
    model = network()
    x = torch.randn(7, 1, 8, 8, dtype=torch.float64)
    other = rewrites(model, x)["identity"]
    target = [0, 1, 2, 0, 1, 2, 0]
    whole = implementation_invariance(by(Epsilon(0.1)), model, other, x, target)
    parts = implementation_invariance(by(Epsilon(0.1)), model, other, x, target, internal_batch_size=2)
    torch.testing.assert_close(whole.values, parts.values)
    single = implementation_invariance(by(Epsilon(0.1)), model, other, x[4:5], 1)
    torch.testing.assert_close(whole.values[4:5], single.values)


def test_tokens_have_no_gradient_and_so_no_ties() -> None:
    words = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2)).double()
    x = torch.randint(10, (5, 3))

    def explain(model: nn.Module, x: Tensor, target: Any) -> Tensor:
        return LRP(model, "lrp0").attribute(x, target)

    result = implementation_invariance(explain, words, nn.Sequential(words, nn.Identity()), x, 1)
    assert result.values.tolist() == [0.0] * 5
    assert not result.ties.any()
