"""Each preset's content, written out by hand from the papers, and where installed against Zennit's composites."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import LRP, Rules
from relprop.rules import (
    CPLRP,
    AbsoluteValue,
    AlphaBeta,
    Detach,
    Epsilon,
    Flat,
    Gamma,
    GroupRule,
    Rule,
    WSquare,
    ZBox,
    Zero,
    ZPlus,
)
from relprop.rules.presets import PRESETS
from tests import reference_steps
from tests.models import close, settle
from tests.networks import zoo

LAYERS = [
    nn.Conv2d(3, 4, 3, padding=1),
    nn.ReLU(),
    nn.Conv2d(4, 5, 3, padding=1),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(45, 7),
    nn.ReLU(),
    nn.Linear(7, 3),
]
BOX: dict[str, Any] = {"low": -3.0, "high": 3.0}

Named = tuple[str, dict[str, Any]]
EPSILON: Named = ("epsilon", {"epsilon": 1e-6, "relative": True})
PLUS: Named = ("zplus", {})
GAMMA: Named = ("gamma", {"gamma": 0.25})
ALPHA2: Named = ("alpha_beta", {"alpha": 2.0, "beta": 1.0})
ALPHA1: Named = ("alpha_beta", {"alpha": 1.0, "beta": 0.0})
TAYLOR: Named = ("zplus", {"bias": "ignore"})
FLAT: Named = ("flat", {})
DENSE: Named = ("epsilon", {"epsilon": 0.1})  # that of iNNvestigate's presets
IGNORE = {"bias": "ignore"}

# For every preset: options, and the rules of the first convolution, the second, and the two dense layers.
CONTENT: dict[str, tuple[dict[str, Any], list[Named]]] = {
    "lrp0": ({}, [("lrp0", {})] * 4),
    "epsilon": ({}, [EPSILON] * 4),
    "epsilon_plus": ({}, [PLUS, PLUS, EPSILON, EPSILON]),
    "epsilon_plus_flat": ({}, [FLAT, PLUS, EPSILON, EPSILON]),
    "epsilon_gamma": ({}, [GAMMA, GAMMA, EPSILON, EPSILON]),
    "epsilon_gamma_box": (BOX, [("zbox", BOX), GAMMA, EPSILON, EPSILON]),
    "epsilon_alpha2_beta1": ({}, [ALPHA2, ALPHA2, EPSILON, EPSILON]),
    "epsilon_alpha2_beta1_flat": ({}, [FLAT, ALPHA2, EPSILON, EPSILON]),
    "alpha1_beta0": ({}, [ALPHA1] * 4),
    "alpha2_beta1": ({}, [ALPHA2] * 4),
    "zplus": ({}, [PLUS] * 4),
    "wsquare": ({}, [("wsquare", {})] * 4),
    "flat": ({}, [FLAT] * 4),
    "lrp0_ignore_bias": ({}, [("epsilon", {"epsilon": 0.0, **IGNORE})] * 4),
    "epsilon_ignore_bias": ({}, [("epsilon", {"epsilon": 0.25, "relative": True, **IGNORE})] * 4),
    "alpha1_beta0_ignore_bias": ({}, [(ALPHA1[0], {**ALPHA1[1], **IGNORE})] * 4),
    "alpha2_beta1_ignore_bias": ({}, [(ALPHA2[0], {**ALPHA2[1], **IGNORE})] * 4),
    "preset_a": ({}, [ALPHA1, ALPHA1, DENSE, DENSE]),
    "preset_b": ({}, [ALPHA2, ALPHA2, DENSE, DENSE]),
    "preset_a_flat": ({}, [FLAT, ALPHA1, DENSE, DENSE]),
    "preset_b_flat": ({}, [FLAT, ALPHA2, DENSE, DENSE]),
    "preset_a_flat_until_idx": ({"until": 1}, [FLAT, FLAT, DENSE, DENSE]),
    "preset_b_flat_until_idx": ({"until": "6"}, [FLAT, FLAT, FLAT, DENSE]),
    "deep_taylor": ({}, [("wsquare", {}), TAYLOR, TAYLOR, TAYLOR]),
    "deep_taylor_bounded": (BOX, [("zbox", BOX), TAYLOR, TAYLOR, TAYLOR]),
    "attnlrp": ({}, [EPSILON] * 4),
    "cp_lrp": ({}, [EPSILON] * 4),
}


def model_and_input() -> tuple[nn.Sequential, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 6, 6, generator=generator, dtype=torch.float64).clamp(-3, 3)
    return settle(nn.Sequential(*LAYERS)), x


def test_every_preset_is_tested() -> None:
    assert set(CONTENT) == set(PRESETS)


@pytest.mark.parametrize("name", list(CONTENT))
def test_content(name: str) -> None:
    options, rules = CONTENT[name]
    model, x = model_and_input()
    seed = torch.tensor([0.0, 0.0, 1.0], dtype=x.dtype)
    expected = reference_steps.explain(LAYERS, x, seed, rules)[0]
    close(LRP(model, Rules.preset(name, **options)).attribute(x, 2), expected)
    if not options:
        assert torch.equal(LRP(model, name).attribute(x, 2), LRP(model, Rules.preset(name)).attribute(x, 2))


def test_the_default_is_epsilon_gamma() -> None:
    model, x = model_and_input()
    assert torch.equal(LRP(model).attribute(x, 1), LRP(model, "epsilon_gamma").attribute(x, 1))


@pytest.mark.parametrize(
    ("name", "options", "convolution", "dense"),
    [
        ("epsilon", {"epsilon": 0.5}, Epsilon(0.5, relative=True), Epsilon(0.5, relative=True)),
        ("epsilon_gamma", {"epsilon": 0.5, "gamma": 0.1}, Gamma(0.1), Epsilon(0.5, relative=True)),
        ("epsilon_plus", {"epsilon": 0.5}, ZPlus(), Epsilon(0.5, relative=True)),
        ("epsilon_alpha2_beta1", {"epsilon": 0.5}, AlphaBeta(2, 1), Epsilon(0.5, relative=True)),
        ("epsilon_gamma_box", {**BOX, "gamma": 0.1, "epsilon": 0.5}, Gamma(0.1), Epsilon(0.5, relative=True)),
        ("cp_lrp", {"epsilon": 0.5}, Epsilon(0.5, relative=True), Epsilon(0.5, relative=True)),
        ("attnlrp", {"epsilon": 0.5}, Epsilon(0.5, relative=True), Epsilon(0.5, relative=True)),
        ("preset_a", {"epsilon": 0.5}, AlphaBeta(1, 0), Epsilon(0.5)),
        ("preset_b", {}, AlphaBeta(2, 1), Epsilon(0.1)),
        (
            "epsilon_ignore_bias",
            {"epsilon": 0.5},
            Epsilon(0.5, relative=True, bias="ignore"),
            Epsilon(0.5, relative=True, bias="ignore"),
        ),
    ],
)
def test_options(name: str, options: dict[str, Any], convolution: Rule, dense: Rule) -> None:
    model, x = model_and_input()
    rows = Rules.preset(name, **options).plan(model, x).rows
    linear = [row.rule for row in rows if row.kind == "linear"]
    assert linear[1:] == [repr(convolution), repr(dense), repr(dense)]
    assert linear[0] == (repr(ZBox(**BOX)) if "low" in options else repr(convolution))


@pytest.mark.parametrize(
    "kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]
)
def test_every_convolution_counts_as_one(kind: Any) -> None:
    dimensions = int(kind.__name__[-2])
    model = settle(kind(2, 3, 2))
    (row,) = Rules.preset("epsilon_gamma").plan(model, torch.randn(2, 2, *[4] * dimensions, dtype=torch.float64)).rows
    assert row.rule == repr(Gamma(0.25))
    assert not row.default


def test_a_matrix_product_counts_as_dense() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    (row,) = Rules.preset("epsilon_gamma").plan(settle(Product()), torch.randn(2, 4, dtype=torch.float64)).rows
    assert row.rule == repr(Epsilon(1e-6, relative=True))


def test_presets_print() -> None:
    assert str(Rules.preset("deep_taylor")).splitlines() == [
        "every linear layer => ZPlus(bias='ignore', stabilizer=1e-06)",
        "first              => WSquare(stabilizer=0.0)",
    ]
    (dense, convolutions) = str(Rules.preset("epsilon_plus")).splitlines()
    assert dense.startswith("Linear ") and dense.endswith(repr(Epsilon(1e-6, relative=True)))
    assert convolutions.startswith("Conv1d | Conv2d | Conv3d | ConvTranspose1d") and convolutions.endswith(
        repr(ZPlus())
    )
    assert [entry.rule for entry in Rules.preset("cp_lrp")] == [Epsilon(1e-6, relative=True), Detach(), CPLRP()]


# -------------------------------------------------------------------------------------------- attention


class Attention(nn.Module):
    """One head, eagerly or by the fused function."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)
        self.fused = fused

    def probabilities(self, x: Tensor) -> Tensor:
        return torch.softmax(self.query(x) @ self.key(x).mT / 2.0, -1)

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            h = F.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x))
        else:
            h = self.probabilities(x) @ self.value(x)
        out: Tensor = self.head(h.mean(1))
        return out


@pytest.mark.parametrize("fused", [False, True], ids=["eager", "fused"])
def test_cp_lrp_holds_the_probabilities_constant(fused: bool) -> None:
    model, x = settle(Attention(fused)), torch.randn(2, 3, 4, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    p = model.probabilities(leaf).detach()
    (gradient,) = torch.autograd.grad(model.head((p @ model.value(leaf)).mean(1))[:, 1].sum(), leaf)
    close(LRP(model, Rules.preset("cp_lrp", epsilon=0.0)).attribute(x, 1), x * gradient)


@pytest.mark.parametrize("fused", [False, True], ids=["eager", "fused"])
def test_attnlrp_shares_queries_keys_and_values(fused: bool) -> None:
    model, x = settle(Attention(fused)), torch.randn(2, 3, 4, dtype=torch.float64)
    leaf = x.clone().requires_grad_()

    def share(t: Tensor, part: float) -> Tensor:
        return t.detach() * (1 - part) + t * part

    q, k, v = share(model.query(leaf), 0.25), share(model.key(leaf), 0.25), share(model.value(leaf), 0.5)
    # A softmax passes its plain derivative; q, k receive half of a half and v a half.
    out = model.head((torch.softmax(q @ k.mT / 2.0, -1) @ v).mean(1))
    (gradient,) = torch.autograd.grad(out[:, 1].sum(), leaf)
    close(LRP(model, Rules.preset("attnlrp", epsilon=0.0)).attribute(x, 1), x * gradient)
    close(LRP(model, Rules.preset("epsilon_gamma", epsilon=0.0)).attribute(x, 1), x * gradient)


# ----------------------------------------------------------------------------------------------- Zennit

COMPOSITES = {
    "epsilon_plus": ("EpsilonPlus", {}),
    "epsilon_plus_flat": ("EpsilonPlusFlat", {}),
    "epsilon_alpha2_beta1": ("EpsilonAlpha2Beta1", {}),
    "epsilon_alpha2_beta1_flat": ("EpsilonAlpha2Beta1Flat", {}),
    "epsilon_gamma_box": ("EpsilonGammaBox", BOX),
}


def absolute(rule: Rule) -> Rule:
    """The rule with its stabilizer in the unit of the sums."""
    if isinstance(rule, Epsilon):
        return replace(rule, relative=False)
    assert isinstance(rule, GroupRule)
    kind = type(f"Absolute{type(rule).__name__}", (type(rule),), {"stabilize": lambda self, layer, z: self.stabilizer})
    return kind(**{field.name: getattr(rule, field.name) for field in fields(rule)})  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", list(COMPOSITES))
def test_against_zennit(name: str) -> None:
    """An oracle of another hand; Zennit is no dependency, and the test is skipped where it is not installed."""
    zoo.library("torchvision")  # which Zennit imports, and which needs some help in some builds
    composites = pytest.importorskip(
        "zennit.composites", reason="zennit is not installed: pip install 'relprop[bench]'"
    )
    composite, options = COMPOSITES[name]
    model, x = model_and_input()
    with getattr(composites, composite)(**options).context(model) as modified:
        leaf = x.clone().requires_grad_()
        output = modified(leaf)
        seed = torch.zeros_like(output)
        seed[:, 2] = output.detach()[:, 2]
        (expected,) = torch.autograd.grad(output, leaf, seed)
    # Its stabilizers are 1e-6 in the unit of the sums.
    rules = Rules(tuple(replace(entry, rule=absolute(entry.rule)) for entry in Rules.preset(name, **options)))
    close(LRP(model, rules).attribute(x, 2), expected, 1e-6)  # and differ in where they act


def test_zero_is_its_name() -> None:
    assert Rules.preset("lrp0") == Rules.preset("lrp0")
    assert [entry.rule for entry in Rules.preset("wsquare")] == [WSquare()]
    assert [entry.rule for entry in Rules.preset("flat")] == [Flat()]
    assert [entry.rule for entry in Rules.preset("lrp0")] == [Zero()]


@pytest.mark.parametrize("preset", sorted(Rules.presets))
def test_sums_of_branches(preset: str) -> None:
    """Those of alpha 2 and beta 1 share them by size, the others by LRP-0; what is added to one branch is no join."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = (nn.Linear(4, 4).double() for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.one(x)) - 0.25
            return self.head(h - self.two(x))  # type: ignore[no-any-return]

    options: dict[str, Any] = (
        {"low": -9.0, "high": 9.0} if preset in ("epsilon_gamma_box", "deep_taylor_bounded") else {}
    )
    options = {"until": 1} if preset.endswith("idx") else options
    rows = Rules.preset(preset, **options).plan(Branches(), torch.randn(2, 4, dtype=torch.float64)).rows  # type: ignore[arg-type]
    by_size = "alpha2_beta1" in preset or preset.startswith("preset_b")
    assert [row.rule for row in rows if row.operation == "sub"] == ["", repr(AbsoluteValue()) if by_size else ""]


@pytest.mark.parametrize("preset", ["alpha2_beta1", "epsilon_alpha2_beta1", "preset_b"])
def test_what_centres_joins_no_branches(preset: str) -> None:
    """A layer norm that is written by hand is the layer norm it is, in a map and in a report."""

    class Norm(nn.Module):
        def __init__(self, by_hand: bool) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.first, self.norm, self.head = nn.Linear(4, 6), nn.LayerNorm(6, bias=False), nn.Linear(6, 3)
            self.by_hand = by_hand

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            if not self.by_hand:
                return self.head(self.norm(h))  # type: ignore[no-any-return]
            h = h - h.mean(-1, keepdim=True)
            return self.head(h * torch.rsqrt(h.square().mean(-1, keepdim=True) + self.norm.eps) * self.norm.weight)  # type: ignore[no-any-return]

    x = torch.randn(3, 4, dtype=torch.float64)
    by_hand, given = (LRP(Norm(way).double(), preset) for way in (True, False))
    close(by_hand.attribute(x, 1), given.attribute(x, 1))
    assert by_hand.report(x, 1).relevance == pytest.approx(float(given.attribute(x, 1).sum()), rel=1e-9)


def test_sums_by_value_all_the_same() -> None:
    torch.manual_seed(0)
    first, second = (nn.Linear(4, 3).double() for _ in range(2))

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = first, second

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x) + self.second(x)  # type: ignore[no-any-return]

    x = torch.randn(3, 4, dtype=torch.float64)
    by_value = LRP(Branches(), Rules.preset("alpha2_beta1").set(torch.add, Zero())).attribute(x, 1)
    close(by_value, LRP(Branches(), AlphaBeta(2, 1)).attribute(x, 1))
