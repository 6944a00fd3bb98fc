"""Pass, Block, Mask, Detach and AveragePool, at linear and other modules, against explicit references."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import LRP, Rules
from relprop.rules import AveragePool, Block, Detach, Flat, Gamma, Mask, Pass, Rule, Zero, ZPlus
from tests import reference, reference_steps
from tests.models import close, gradient, images, residual, settle, vectors

BASE = Rules.preset("epsilon", epsilon=0.0)

# ---------------------------------------------------------------------------------------------------- Pass

SAME_SHAPE: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: nn.Conv2d(3, 3, 3, padding=1),
    "dense layer": lambda: nn.Linear(6, 6),
    "batch norm": lambda: nn.BatchNorm2d(3),
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "leaky relu": lambda: nn.LeakyReLU(0.3),
    "softmax": lambda: nn.Softmax(1),
    "layer norm": lambda: nn.LayerNorm(6),
    "group norm": lambda: nn.GroupNorm(1, 3),
    "max pooling": lambda: nn.MaxPool2d(3, 1, padding=1),
    "average pooling": lambda: nn.AvgPool2d(3, 1, padding=1),
}


def around(module: nn.Module, before: nn.Module) -> nn.Module:
    return settle(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), before, module, nn.Flatten(), nn.Linear(108, 3)))


@pytest.mark.parametrize("name", list(SAME_SHAPE))
def test_pass_hands_on_what_arrives(name: str) -> None:
    model, x = around(SAME_SHAPE[name](), nn.Tanh()), images()
    rules = BASE.set("2", Pass())
    found = LRP(model, rules).attribute_layers(x, ["1", "2"], 1)
    close(found["1"], found["2"])
    report = LRP(model, rules).report(x, 1)
    entry = next(entry for entry in report.entries if entry.name == "2")
    assert entry.relevance_in == pytest.approx(entry.relevance_out)
    assert entry.absorbed.get("bias", 0.0) == pytest.approx(0.0, abs=1e-12)
    report.check(1e-9)


@pytest.mark.parametrize("name", ["convolution", "dense layer", "batch norm", "softmax", "average pooling"])
def test_pass_hands_on_what_arrives_at_units_of_zero(name: str) -> None:
    model, x = around(SAME_SHAPE[name](), nn.ReLU()), images()
    rules = BASE.set("2", Pass())
    found = LRP(model, rules).attribute_layers(x, ["1", "2"], 1)
    with torch.no_grad():
        dead = model[:2](x) == 0  # type: ignore[index]
    assert bool((found["2"][dead] != 0).any())  # relevance does arrive where the activation is zero
    close(found["1"], found["2"])
    LRP(model, rules).report(x, 1).check(1e-9)


def test_pass_at_a_batch_norm_keeps_it_out_of_the_layer_before() -> None:
    """What arrives at the batch norm arrives at the convolution alone, which is explained without it."""
    model, x = settle(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3))), images()
    rules = Rules.preset("epsilon_gamma").set("1", Pass())
    arriving = LRP(model, rules).attribute_layers(x, "1", 1)["1"]
    close(LRP(model, rules).attribute_layers(x, "0", 1)["0"], arriving)
    close(LRP(model, rules).attribute(x, 1), reference.linear(model[0], x, arriving, "gamma"))


def test_pass_about_zero() -> None:
    """Where f(0) is not zero it is a bias, and absorbs its share."""
    model, x = around(nn.Softplus(), nn.Tanh()), images()
    for rules in (BASE, BASE.set("2", Pass()), BASE.set(F.softplus, Pass())):
        found = LRP(model, rules).attribute_layers(x, ["1", "2"], 1)
        with torch.no_grad():
            z = model[:2](x)  # type: ignore[index]
        expected = reference_steps.activation(F.softplus, z, found["2"])
        close(found["1"], expected)


# ---------------------------------------------------------------------------------------------- Block, Detach

PLACES = ["branch.0", "branch.1", "branch.2", "branch"]


@pytest.mark.parametrize("rule", [Block(), Detach()], ids=repr)
@pytest.mark.parametrize("place", ["branch.0", "branch.1", "branch.2"])
@pytest.mark.parametrize("base", ["lrp0", "epsilon_gamma", "zplus"])
def test_what_is_blocked_passes_nothing(rule: Rule, place: str, base: str) -> None:
    # The identity beside the branch is left: exactly what an empty condition lets through.
    model, x = residual(), images()
    found = LRP(model, Rules.preset(base).set(place, rule)).attribute(x, 1)
    close(found, LRP(model, base).attribute(x, 1, condition={"branch": []}))


@pytest.mark.parametrize("rule", [Block(), Detach(), Mask(())], ids=repr)
def test_what_ends_at_a_module_is_the_share_of_the_rule(rule: Rule) -> None:
    model, x = residual(), images()
    report = LRP(model, BASE.set("branch.2", rule)).report(x, 1)
    arriving = float(LRP(model, BASE).attribute_layers(x, "branch", 1)["branch"].sum())
    # A constant that is added is a bias of the sum.
    (entry,) = [e for e in report.entries if (e.operation == "add" if rule == Detach() else e.name == "branch.2")]
    assert entry.absorbed["bias" if rule == Detach() else "rule"] == pytest.approx(arriving)
    report.check(1e-9)
    assert sum(entry.leak for entry in report.entries) == pytest.approx(float(report.delta.sum()), abs=1e-9)


def test_a_blocked_type_and_a_blocked_view() -> None:
    model, x = residual(), images()
    for rules in (BASE.set(nn.ReLU, Block()), BASE.set("*", Block()), BASE.set(torch.flatten, Block())):
        assert bool((LRP(model, rules).attribute(x, 1) == 0).all())


def test_a_detached_factor_leaves_all_to_the_other() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(4, 5)
            self.signal = nn.Linear(4, 5, bias=False)
            self.head = nn.Linear(5, 2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(torch.exp(self.gate(x)) * self.signal(x))
            return out

    model, x = settle(Gated()), vectors()
    with torch.no_grad():
        gate = torch.exp(model.gate(x))
    expected = x * gradient(lambda leaf: model.head(gate * model.signal(leaf))[:, 1], x)
    for rules in (BASE.set("gate", Detach()), BASE.set(torch.exp, Detach())):
        found, delta = LRP(model, rules).attribute(x, 1, return_convergence_delta=True)
        close(found, expected)
        assert float(delta.abs().max()) < 1e-10
        report = LRP(model, rules).report(x, 1)
        report.check(1e-9)
        assert report.absorbed.get("rule", 0.0) == pytest.approx(0.0, abs=1e-12)


# ---------------------------------------------------------------------------------------------------- Mask


@pytest.mark.parametrize("place", ["stem", "norm", "act", "branch.0", "branch.2", "pool", "mean", "head"])
@pytest.mark.parametrize("base", [Zero(), Gamma(), ZPlus()], ids=repr)
def test_mask_is_a_condition_in_the_registry(place: str, base: Rule) -> None:
    model, x = residual(), images()
    rules = Rules().set(nn.Conv2d, base).set(nn.Linear, base)
    found = LRP(model, rules.set(place, Mask((1, 3)))).attribute(x, 1)
    close(found, LRP(model, rules).attribute(x, 1, condition={place: [1, 3]}))


@pytest.mark.parametrize("place", ["stem", "act", "branch.0", "head"])
def test_a_mask_of_all_units_changes_nothing(place: str) -> None:
    model, x = residual(), images()
    found = LRP(model, Rules.preset("epsilon_gamma").set(place, Mask((0, 1, 2, 3)))).attribute(x, 1)
    close(found, LRP(model, "epsilon_gamma").attribute(x, 1))


def test_a_mask_keeps_the_rule_below_it_and_yields_to_one_above() -> None:
    model, x = residual(), images()
    gamma = LRP(model, BASE.set("head", Gamma())).attribute(x, 1, condition={"head": [1]})
    close(LRP(model, BASE.set("head", Gamma()).set("head", Mask((1,)))).attribute(x, 1), gamma)
    # The last matching entry wins: a rule set after the mask replaces it.
    close(
        LRP(model, BASE.set("pool", Mask(())).set("pool", "winner_takes_all")).attribute(x, 1),
        LRP(model, BASE).attribute(x, 1),
    )


def test_masks_of_all_units_sum_to_the_whole() -> None:
    model, x = residual(), images()
    parts = [LRP(model, BASE.set("act", Mask((unit,)))).attribute(x, 1) for unit in range(4)]
    close(torch.stack(parts).sum(0), LRP(model, BASE).attribute(x, 1))


def test_a_mask_is_a_value() -> None:
    assert Mask([1, 2]) == Mask((1, 2))  # type: ignore[arg-type]
    assert hash(Mask(range(3))) == hash(Mask((0, 1, 2)))  # type: ignore[arg-type]
    assert repr(Mask((0, -1))) == "Mask(indices=(0, -1))"


def test_a_mask_in_attach() -> None:
    model, x = residual(), images()
    rules = BASE.set("pool", Mask((2,)))
    leaf = x.clone().requires_grad_()
    with rules.attach(model) as attached:
        out = model(leaf)
    (c,) = torch.autograd.grad(out[:, 1].sum(), leaf)
    attached.finish()
    close(x * c, LRP(model, rules).attribute(x, 1))


@pytest.mark.parametrize("rule", [Block(), Detach(), Mask((0, 2)), Pass()], ids=repr)
@pytest.mark.parametrize("how", ["module", "function", "in-place module", "in-place statement"])
def test_universal_rules_at_an_operation_however_it_is_called(rule: Rule, how: str) -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.relu = nn.ReLU("in-place" in how)
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.layer(x)
            if how == "in-place statement":
                h.relu_()
            elif how == "function":
                h = torch.relu(h)
            else:
                h = self.relu(h)
            out: Tensor = self.head(h + x)
            return out

    model, x = settle(Branch()), vectors(5)
    with torch.no_grad():
        on = (model.layer(x) > 0).to(x.dtype)
    kept = {"Block": 0.0, "Detach": 0.0, "Pass": 1.0}
    mask = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=x.dtype) if isinstance(rule, Mask) else kept[type(rule).__name__]
    score = lambda leaf: F.linear(model.layer(leaf) * on * mask + leaf, model.head.weight[1])  # noqa: E731
    expected = x * gradient(score, x)
    close(LRP(model, Rules().set(torch.relu, rule)).attribute(x, 1), expected)


# --------------------------------------------------------------------------------------------- AveragePool

POOLS: dict[str, tuple[nn.Module, Callable[[Tensor], Tensor]]] = {
    "module": (nn.MaxPool2d(2), lambda x: F.max_pool2d(x, 2)),
    "overlapping": (nn.MaxPool2d(3, 1), lambda x: F.max_pool2d(x, 3, 1)),
    "padded": (nn.MaxPool2d(3, 2, padding=1), lambda x: torch.max_pool2d(x, 3, 2, 1)),
}


@pytest.mark.parametrize("name", list(POOLS))
@pytest.mark.parametrize("stabilizer", [1e-6, 0.0, 0.1])
def test_average_pool(name: str, stabilizer: float) -> None:
    module, function = POOLS[name]
    conv, flat = nn.Conv2d(3, 2, 3, padding=1), nn.Flatten()
    side = module(torch.zeros(1, 1, 6, 6)).shape[-1]
    head = nn.Linear(2 * side**2, 3)
    model, x = settle(nn.Sequential(conv, nn.ReLU(), module, flat, head)), images()

    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = conv, head

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(function(torch.relu(self.conv(x))).flatten(1))
            return out

    rule = AveragePool(stabilizer)
    base = Rules.preset("epsilon_gamma")
    found = LRP(model, base.set(nn.MaxPool2d, rule)).attribute_layers(x, ["1", "2"], 1)
    with torch.no_grad():
        a = torch.relu(conv(x))
    expected = reference_steps.pool(module, a, found["2"], "average", stabilizer)
    close(found["1"], expected)
    whole = LRP(model, base.set("2", rule)).attribute(x, 1)
    close(LRP(Functional(), base.set(F.max_pool2d, rule)).attribute(x, 1), whole)
    report = LRP(model, base.set("2", rule)).report(x, 1)
    report.check(1e-9)
    (entry,) = [entry for entry in report.entries if entry.rule == repr(rule)]
    assert entry.leak == pytest.approx(float(found["2"].sum() - found["1"].sum()), abs=1e-9)


def test_a_layer_rule_reaches_a_pool_only_by_its_own_entry() -> None:
    model, x = residual(), images()
    rules = Rules.preset("epsilon_gamma").set(nn.MaxPool2d, "average_pool").first(Flat())
    rows = {row.name: row.rule for row in rules.plan(model, x).rows if row.rule}
    assert rows["pool"] == repr(AveragePool())
    assert rows["stem"] == repr(Flat())
    assert rows["branch.0"] == repr(Gamma(0.25))


def test_universal_rules_at_two_inputs_are_refused_by_name() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return x + torch.tanh(x)

    from relprop import RuleError

    model = nn.Sequential(Sum(), nn.Linear(4, 2).double())
    with pytest.raises(RuleError, match=r"Pass cannot stand at 'add': it needs one active input"):
        LRP(model, Rules().set(torch.add, Pass())).attribute(vectors(), 1)
