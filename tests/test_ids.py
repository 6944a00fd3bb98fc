"""Ids of cases: what a value is called, and which ids stop the collection (the hooks are in `conftest.py`)."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from relprop import Rules
from relprop.rules import AlphaBeta, Epsilon, Flat, Gamma, ZBox, Zero
from tests.ids import name_of, rules_in, unnamed


class Nameless:
    pass


@pytest.mark.parametrize(
    ("value", "name"),
    [
        pytest.param(Gamma(), "Gamma()", id="Gamma"),
        pytest.param(Epsilon(0.1, relative=True), "Epsilon(epsilon=0.1, relative=True)", id="Epsilon with options"),
        pytest.param(ZBox(-1.0, torch.ones(3, 1)), "ZBox(low=-1.0, high=Tensor(3, 1))", id="ZBox that holds a tensor"),
        pytest.param(Rules().set(nn.Linear, Gamma()), "Rules(Gamma())", id="rules"),
        pytest.param(nn.Linear(2, 3), "Linear(in_features=2, out_features=3, bias=True)", id="a layer"),
        pytest.param(nn.Sequential(nn.ReLU()), "Sequential", id="a network"),
        pytest.param(torch.float16, "float16", id="a dtype"),
        pytest.param((2, 3), "(2, 3)", id="a shape"),
        pytest.param([torch.relu, True, None], "[relu, True, None]", id="a list"),
        pytest.param({"b", "a"}, "{a, b}", id="a set"),
        pytest.param({"epsilon": 0.1, "bias": "ignore"}, "epsilon=0.1, bias=ignore", id="options"),
        pytest.param(partial(torch.sum, dim=1), "sum, dim=1", id="a partial function"),
        pytest.param(lambda: torch.relu, "torch relu", id="a lambda"),
        pytest.param(True, "argument=True", id="a flag"),
        pytest.param(None, "argument=None", id="nothing"),
        pytest.param(0.5, "argument=0.5", id="a number"),
        pytest.param("gamma", None, id="a string"),
        pytest.param(Nameless(), "Nameless", id="an object"),
        pytest.param(list(range(100)), f"[{', '.join(map(str, range(100)))}"[:100] + "...", id="a long list"),
    ],
)
def test_a_value_is_called_what_it_is(value: Any, name: str | None) -> None:
    assert name_of(value, "argument") == name


def test_a_case_without_a_name_is_found() -> None:
    for case in ("rule0", "conv2d-rule1", "rule12-bias", "layer3-rule", "<lambda>", "a-<lambda>0", "X at 0x7f"):
        assert unnamed(case, {"rule": 1, "layer": 2}), case


def test_a_case_with_a_name_passes() -> None:
    for case in ("", "lrp0", "Gamma()", "conv2d-stride", "rule=0", "layer=3-rule=None", "layers0", "rule"):
        assert not unnamed(case, {"rule": 1, "layer": 2}), case


def test_a_case_that_hides_its_rule_is_found() -> None:
    for case, rule in (
        ("Gamma()-conv2d", Gamma()),
        ("gamma", Gamma()),
        ("lrp0", Zero()),
        ("alpha2_beta1", AlphaBeta(2, 1)),
    ):
        assert not unnamed(case, {"rule": rule}), case
        assert unnamed(case, {"rule": Flat()}), case


def test_the_rules_that_a_test_names_are_found() -> None:
    def inside() -> list[Any]:
        return [Gamma(each) for each in (0.1, 0.2)]

    assert rules_in(inside.__code__) == {"Gamma"}
    assert rules_in(test_a_case_without_a_name_is_found.__code__) == frozenset()
