"""`check` names the layer at fault: operations that are deliberately mis-scaled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, ConservationError, Rules
from relprop.propagation.math.linear_map import LinearMap
from relprop.rules import ActivationRule, Epsilon, Flat, Gamma, LinearRule, Zero, ZPlus
from tests.models import images, mlp, residual, settle, vectors
from tests.shares import adds_up


@dataclass(frozen=True)
class Misscaled(LinearRule):
    """Epsilon's coefficient times a factor, with epsilon's account of itself."""

    factor: float = 1.1

    def coefficient(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> Tensor:
        return Epsilon().coefficient(layer, a, z, c) * self.factor

    def absorbed(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> dict[str, Tensor]:
        return Epsilon().absorbed(layer, a, z, c)


@dataclass(frozen=True)
class MisscaledPass(ActivationRule):
    def surrogate(self, flow: Any, z: Tensor, out: Tensor, quotient: Tensor) -> Tensor:
        return flow.switch(out, z * flow.constant(quotient * 1.1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("place", ["stem", "branch.0", "head"])
@pytest.mark.parametrize("rule", [Misscaled(), Misscaled(0.9), Misscaled(1.0001)], ids=repr)
def test_check_names_the_layer_at_fault(place: str, rule: Misscaled) -> None:
    model, x = residual(), images()
    report = LRP(model, Rules.preset("epsilon").set(place, rule)).report(x, 1)
    with pytest.raises(ConservationError, match=rf"conv2d|linear in module '{place}'") as caught:
        report.check(1e-6)
    assert f"in module '{place}'" in str(caught.value)
    assert "arrived" in str(caught.value) and "is not (tolerance 1e-06" in str(caught.value)
    assert isinstance(caught.value, ArithmeticError)
    LRP(model, Rules.preset("epsilon")).report(x, 1).check(1e-6)
    adds_up(report)  # the account is right, whatever the rule: the fault is unexplained, where it is
    (entry,) = [entry for entry in report.entries if entry.name == place]
    assert entry.unexplained == pytest.approx(entry.relevance_in * (1 / rule.factor - 1), rel=1e-9)


def test_check_names_the_first_of_several() -> None:
    rules = Rules.preset("epsilon").set("head", Misscaled()).set("branch.0", Misscaled())
    report = LRP(residual(), rules).report(images(), 1)
    with pytest.raises(ConservationError, match=r"conv2d in module 'branch\.0'"):
        report.check(1e-6)
    report.check(1.0)  # a tolerance that nothing exceeds


def test_check_names_an_activation_at_fault() -> None:
    model, x = settle(nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3))), vectors()
    report = LRP(model, Rules().set(nn.GELU, MisscaledPass())).report(x, 1)
    with pytest.raises(ConservationError, match=r"gelu in module '1'"):
        report.check(1e-6)
    adds_up(report)


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *c: Tensor) -> Tensor:
        return c[0] * 1.1


def test_check_finds_a_function_nobody_saw() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 5)
            self.head = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(WrongBackward.apply(torch.relu(self.first(x))))
            return out

    with pytest.warns(UserWarning, match="WrongBackwardBackward"):
        report = LRP(settle(Hidden())).report(vectors(), 1)
    with pytest.raises(ConservationError, match=r"WrongBackward|outside every call"):
        report.check(1e-6)
    assert any(line.startswith(("(unseen)", "(model)")) and "0." in line for line in str(report).splitlines()[2:-1])
    delta = float(report.delta.sum())
    assert sum(report.absorbed.values()) + report.unexplained == pytest.approx(delta)
    assert any(entry.operation == "WrongBackwardBackward" for entry in report.entries)  # it shows, by name


def test_check_scales_with_the_network() -> None:
    model, x = residual(), images()
    with torch.no_grad():
        model.head.weight.mul_(1e8)
        model.head.bias.mul_(1e8)
    LRP(model).report(x, 1).check(1e-9)
    with pytest.raises(ConservationError):
        LRP(model, Rules.preset("epsilon").set("stem", Misscaled())).report(x, 1).check(1e-6)


def test_check_fails_on_nan() -> None:
    @dataclass(frozen=True)
    class Bad(LinearRule):
        def coefficient(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> Tensor:
            return layer.transpose(c)

        def absorbed(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> dict[str, Tensor]:
            return {"rule": c / 0}

    report = LRP(mlp(), Rules().set("2", Bad())).report(vectors(), 1)
    with pytest.raises(ConservationError):
        report.check(1e-6)


def test_rules_of_every_kind_in_one_network() -> None:
    rules = Rules().set(nn.Conv2d, Gamma()).set("head", ZPlus()).set("branch.0", Zero()).first(Flat())
    adds_up(LRP(residual(), rules).report(images(), 1))
