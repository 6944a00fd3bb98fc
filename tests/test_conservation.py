"""The report: every share of every layer against matrices, the sum of all against the delta, and what `check` names."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, ConservationError, ConservationReport, DeepTaylor, GradientXInput, Rules
from relprop.conservation import Account
from relprop.propagation.math.linear_map import LinearMap
from relprop.rules import ActivationRule, Block, Epsilon, Flat, Gamma, LinearRule, Rho, Zero, ZPlus
from tests import network_reference
from tests.cases import RULES, RuleCase
from tests.compare import package_rule
from tests.models import images, mlp, residual, settle, vectors
from tests.shares import adds_up, rows

# The shares ------------------------------------------------------------------------------------------


SEED = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)


def weighted(out: Tensor) -> Tensor:
    return (out * SEED).sum(1)


# ------------------------------------------------------------------------------------- against matrices


def convolutional() -> list[nn.Module]:
    layers: list[nn.Module] = [
        nn.BatchNorm2d(2),  # follows no layer: a diagonal map with a bias
        nn.Conv2d(2, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 2, bias=False),
        nn.Softplus(),  # f(0) = log 2
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4, 5),
        nn.SiLU(),
        nn.Linear(5, 3),
    ]
    settle(nn.Sequential(*layers))
    return layers


@pytest.mark.parametrize("case", RULES, ids=lambda case: case.name)
def test_each_share_of_each_layer(case: RuleCase) -> None:
    layers, x = convolutional(), images(channels=2)
    expected = rows(layers, x, SEED, (case.rule, case.options))
    report = LRP(nn.Sequential(*layers), package_rule(case)).report(x, weighted)
    # Not what the target computes, and not the batch norm whose layer speaks for it.
    found = {entry.name: entry for entry in report.entries if entry.name not in ("", "2")}
    assert set(found) | {"8"} == set(expected) | {"8"}  # flatten only moves values
    for name, entry in found.items():
        row = expected[name]
        scale = abs(row.out) + abs(row.into) + abs(row.bias) + 1e-3
        assert entry.relevance_out == pytest.approx(row.out, abs=1e-9 * scale), name
        assert entry.relevance_in == pytest.approx(row.into, abs=1e-9 * scale), name
        for share in ("bias", "stabilizer", "rule"):
            value = getattr(row, share)
            assert entry.absorbed.get(share, 0.0) == pytest.approx(value, rel=1e-5, abs=1e-10 * scale), (name, share)
        assert entry.unexplained == pytest.approx(0.0, abs=1e-9 * scale), name
    adds_up(report)
    report.check(1e-8)


@pytest.mark.parametrize("case", RULES, ids=lambda case: case.name)
def test_dense_layers_with_zeros(case: RuleCase) -> None:
    """Dead units, inputs of zero, and outputs that only one sign reaches."""
    layers: list[nn.Module] = [nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3)]
    settle(nn.Sequential(*layers))
    with torch.no_grad():
        layers[2].weight[1].abs_()  # type: ignore[index]
        layers[4].bias[0] = 0.0  # type: ignore[operator]
    x = vectors(5)
    x[:, 2] = 0.0
    x[3] = x[3].abs()
    expected = rows(layers, x, SEED, (case.rule, case.options))
    report = LRP(nn.Sequential(*layers), package_rule(case)).report(x, weighted)
    for entry in report.entries:
        if not entry.name:  # what the target computes
            continue
        row = expected[entry.name]
        scale = abs(row.out) + abs(row.into) + abs(row.bias) + 1e-3
        assert entry.relevance_out == pytest.approx(row.out, abs=1e-9 * scale), entry.name
        assert entry.relevance_in == pytest.approx(row.into, abs=1e-9 * scale), entry.name
        for share in ("bias", "stabilizer", "rule"):
            value = getattr(row, share)
            found = entry.absorbed.get(share, 0.0)
            assert found == pytest.approx(value, rel=1e-5, abs=1e-10 * scale), (entry.name, share)
    adds_up(report)
    report.check(1e-8)


@pytest.mark.parametrize("rules", [network_reference.MIXED, network_reference.THROUGH_ZEROS], ids=["mixed", "zeros"])
def test_a_network_of_branches(rules: network_reference.Assignment) -> None:
    """Relevance at every module of the hand-written network; and the sums."""
    model, x = network_reference.build(), images(side=8)
    with torch.no_grad():
        expected = network_reference.explain(model, x, SEED, rules)
    registry = Rules()
    for name, (rule, options) in rules.items():
        registry = registry.set(name, package_rule(RuleCase(rule, options)))
    report = LRP(model, registry).report(x, weighted)
    entries = {entry.name: entry for entry in report.entries}
    scale = max(float(value.abs().sum()) for value in expected.values())
    for name in expected:
        if name not in ("input", "stem_norm", "right_norm"):
            assert entries[name].relevance_out == pytest.approx(float(expected[name].sum()), abs=1e-9 * scale), name
    assert report.relevance == pytest.approx(float(expected["input"].sum()), abs=1e-9 * scale)
    adds_up(report)
    report.check(1e-8)


# ----------------------------------------------------------------------------------------- the whole report

PRESETS: dict[str, Any] = {
    "lrp0": {}, "epsilon": {}, "epsilon_gamma": {}, "zplus": {}, "alpha2_beta1": {}, "wsquare": {}, "flat": {},
    "epsilon_plus_flat": {}, "epsilon_gamma_box": {"low": -4.0, "high": 4.0}, "deep_taylor": {},
}  # fmt: skip


@pytest.mark.parametrize("preset", list(PRESETS))
def test_residual_networks(preset: str) -> None:
    model, x = residual(), images(3)
    method = LRP(model, Rules.preset(preset, **PRESETS[preset]))
    report = method.report(x, [0, 2, 3])
    found, delta = method.attribute(x, [0, 2, 3], return_convergence_delta=True)
    # Rounding alone, where a rule conserves: zero on one machine and not on another.
    assert report.delta.tolist() == pytest.approx(delta.detach().tolist(), abs=1e-10 * abs(report.output))
    assert report.relevance == pytest.approx(float(found.sum()), rel=1e-12)
    assert report.output == pytest.approx(float(model(x)[range(3), [0, 2, 3]].sum().detach()), rel=1e-12)
    adds_up(report)
    report.check(1e-9)


class Everything(nn.Module):
    """Writes in place, normalises, gates and attends."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm1d(4)
        self.group = nn.GroupNorm(2, 4)
        self.layer = nn.LayerNorm(6)
        self.gate = nn.Linear(6, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(torch.relu_(self.stem(x)))  # not folded: the ReLU stands between
        h += x[:, :1]
        h[:, 0] = 0.5
        h = self.layer(self.group(h).clamp_(min=-1.0))
        h = torch.sigmoid(self.gate(h)) * nn.functional.gelu(h)
        h = h + self.attention(h, h, h, need_weights=False)[0]
        h.mul_(0.5).sub_(0.1)
        out: Tensor = self.head(torch.cos(h).flatten(1))
        return out


@pytest.mark.parametrize("preset", ["lrp0", "epsilon_gamma", "zplus", "flat", "attnlrp", "cp_lrp"])
def test_everything_at_once(preset: str) -> None:
    model = settle(Everything())
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    report = LRP(model, preset).report(x, 1)
    adds_up(report)
    report.check(1e-8)
    absorbed = {entry.operation: entry.absorbed for entry in report.entries}
    if preset == "flat":  # below which a constant receives nothing
        assert not absorbed["cos"]
    else:
        assert abs(absorbed["cos"]["bias"]) > 1e-6  # cos(0) = 1


class Several(nn.Module):
    """Calls with several outputs, and a convolution that more than its batch norm reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 3)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x)
        left, right = (torch.relu(self.norm(z)) + torch.tanh(z)).chunk(2, 1)
        values, _ = torch.max_pool1d_with_indices(left, 2)
        parts = [*torch.split(right, [2, 2], 2), values]
        out: Tensor = self.head(torch.cat([parts[0], parts[2]], 1).flatten(1) + parts[1].flatten(1).repeat(1, 2))
        return out


@pytest.mark.parametrize("preset", ["lrp0", "epsilon_gamma", "flat"])
def test_calls_with_several_outputs(preset: str) -> None:
    model, x = settle(Several()), torch.randn(2, 3, 6, dtype=torch.float64)
    report = LRP(model, preset).report(x, 1)
    adds_up(report)
    report.check(1e-9)
    (conv,) = [entry for entry in report.entries if entry.name == "conv"]
    at_conv = LRP(model, preset).attribute_layers(x, "conv", 1)["conv"]
    assert conv.relevance_out == pytest.approx(float(at_conv.sum()))  # of the pair and of the plain consumer
    for entry in report.entries:
        if entry.operation in ("chunk", "split"):
            assert entry.relevance_in == pytest.approx(entry.relevance_out)


def test_layer_norm_absorbs_its_bias_alone() -> None:
    model = settle(nn.Sequential(nn.Linear(4, 6, bias=False), nn.LayerNorm(6), nn.Linear(6, 3, bias=False)))
    x = vectors()
    report = LRP(model, "lrp0").report(x, 1)
    with torch.no_grad():
        share = float((model[2].weight[1] * model[1].bias).sum()) * 2
    (norm,) = [entry for entry in report.entries if entry.name == "1"]
    assert norm.absorbed["bias"] == pytest.approx(share)
    assert report.absorbed == pytest.approx({"bias": share})
    adds_up(report)


def test_folded_or_not() -> None:
    folded = settle(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)))
    apart = nn.Sequential(folded[0], nn.Identity(), folded[1], folded[2], folded[3], folded[4])
    apart[1].forward = lambda x: x.flip(0).flip(0)  # of which no linear map is known
    x = images()
    for model in (folded, apart):
        report = LRP(model, "lrp0").report(x, 1)
        adds_up(report)
        report.check(1e-9)
    rows_folded = {entry.name: entry for entry in LRP(folded, "lrp0").report(x, 1).entries}
    rows_apart = {entry.name: entry for entry in LRP(apart, "lrp0").report(x, 1).entries}
    # LRP-0 is the same map either way; the one bias of the pair is the two of the parts.
    assert rows_folded["0"].absorbed["bias"] == pytest.approx(
        rows_apart["0"].absorbed["bias"] + rows_apart["2"].absorbed["bias"]
    )
    assert rows_folded["0"].relevance_out == pytest.approx(rows_apart["2"].relevance_out)


def test_the_report_of_other_methods() -> None:
    model, x = residual(), images()
    report = GradientXInput(model).report(x, 1)
    adds_up(report)
    assert {entry.rule for entry in report.entries} == {""}
    bias = LRP(model, "lrp0").report(x, 1).absorbed["bias"]
    assert report.absorbed["bias"] == pytest.approx(bias)
    with pytest.warns(UserWarning, match="positive bias"):
        adds_up(DeepTaylor(model).report(x, 1))


def test_several_inputs_arguments_and_tokens() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(9, 4)
            self.features = nn.Linear(4, 4)
            self.head = nn.Linear(4, 2)

        def forward(self, ids: Tensor, y: Tensor, scale: float) -> Tensor:
            out: Tensor = self.head(torch.relu(self.features(y) * scale + self.embedding(ids).sum(1)))
            return out

    model, ids = settle(Two()), torch.tensor([[1, 2, 8], [0, 0, 5]])
    method = LRP(model)
    report = method.report((ids, vectors()), 1, 1.5)
    tokens, features = method.attribute((ids, vectors()), 1, 1.5)
    assert report.relevance == pytest.approx(float(tokens.sum() + features.sum()))
    adds_up(report)
    report.check(1e-9)


def test_what_is_no_batch_in_between() -> None:
    class SequenceFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.layer(x.transpose(0, 1)))  # [T, N, E]
            out: Tensor = self.head(h.sum(0))
            return out

    report = LRP(settle(SequenceFirst())).report(torch.randn(2, 5, 4, dtype=torch.float64), 1)
    adds_up(report)
    report.check(1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    report = LRP(residual().to(dtype)).report(images().to(dtype), 1)
    adds_up(report, 100 * torch.finfo(dtype).eps)
    assert report.delta.dtype == torch.float64


def test_an_exact_report() -> None:
    model = nn.Sequential(nn.Linear(2, 1), nn.ReLU()).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, -1.0]]))
        model[0].bias.copy_(torch.tensor([2.0]))
    report = LRP(model, Epsilon(1.0)).report(torch.tensor([[1.0, 1.0]], dtype=torch.float64))
    (linear, relu) = report.entries
    # z = 4, and a fifth of the relevance each for 1 unit of z and the stabilizer
    assert (linear.name, linear.operation, linear.rule) == ("0", "linear", repr(Epsilon(1.0)))
    assert linear.relevance_out == pytest.approx(4.0)
    assert linear.relevance_in == pytest.approx(1.6)
    assert linear.absorbed == pytest.approx({"bias": 1.6, "stabilizer": 0.8})
    assert linear.leak == pytest.approx(2.4)
    assert (relu.relevance_out, relu.relevance_in, relu.absorbed) == (4.0, 4.0, {"bias": 0.0})
    assert report.delta.tolist() == pytest.approx([2.4])
    assert (report.output, report.relevance) == pytest.approx((4.0, 1.6))
    assert report.absorbed == pytest.approx({"bias": 1.6, "stabilizer": 0.8})


def test_a_report_is_data() -> None:
    report = LRP(residual()).report(images(), 1, condition={"branch": [1]})
    data = json.loads(json.dumps(report.to_dict()))
    assert data["output"] == report.output
    assert data["delta"] == report.delta.tolist()
    assert data["absorbed"] == report.absorbed
    assert [entry["name"] for entry in data["entries"]] == [entry.name for entry in report.entries]
    for entry, row in zip(report.entries, data["entries"], strict=True):
        assert row["absorbed"] == entry.absorbed
        assert row["relevance_out"] - row["relevance_in"] == entry.leak


def test_a_report_prints_as_a_table() -> None:
    report = LRP(residual(), Rules.preset("epsilon_gamma").set("branch.2", Block())).report(images(), 1)
    lines = str(report).splitlines()
    header = lines[0].split()
    assert header[:5] == ["module", "call", "rule", "out", "in"]
    assert sorted(header[5:-1]) == sorted(report.absorbed) and header[-1] == "unexplained"
    assert set(report.absorbed) == {"bias", "stabilizer", "rule"}
    assert set(lines[1]) == {"-", " "}
    assert len(lines) == 3 + len(report.entries)
    assert lines[-1].startswith("f - sum R")
    assert f"{report.output:.6g}" in lines[-1] and f"{report.relevance:.6g}" in lines[-1]
    assert any(line.startswith("(model)") and "add" in line for line in lines)
    assert len({len(line) for line in lines}) == 1  # numbers stand flush right


def test_html_is_escaped() -> None:
    model = mlp()
    model.add_module("<b>", nn.ReLU())
    report = LRP(model, Rho(lambda w: w.clamp(min=0), None)).report(vectors(), 1)
    page = report._repr_html_()
    assert page.startswith("<table>") and page.endswith("</table>")
    assert page.count("<tr>") == len(report.entries) + 2
    assert "&lt;b&gt;" in page and "<b>" not in page
    assert "&lt;lambda&gt;" in page.replace("&lt;locals&gt;", "") and "<lambda>" not in page


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_tolerance_follows_the_dtype(dtype: torch.dtype) -> None:
    """Under autocast too: what rounding leaks passes, and a tolerance that is too fine is told apart from a mistake."""
    model, x = mlp(), vectors()
    if dtype != torch.float64:
        model, x = model.float(), x.float()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        report = LRP(model, "epsilon").report(x, 1)
    assert {entry.precision for entry in report.entries if entry.operation == "linear"} == {torch.finfo(dtype).eps}
    report.check()
    if dtype == torch.float64:
        report.check(1e-9)
        return
    with pytest.raises(ConservationError, match="The tolerance must follow the dtype, under autocast too"):
        report.check(1e-12)


def test_a_leak_is_no_rounding_by_default() -> None:
    """One percent passes in bfloat16, and in no finer type."""
    for dtype, passes in ((torch.float64, False), (torch.float32, False), (torch.bfloat16, True)):
        entry = Account("layer", "linear", "Zero()", 1.0, 0.99, {}, 0.01, precision=torch.finfo(dtype).eps)
        report = ConservationReport((entry,), 1.0, 0.99, torch.tensor([0.01]), 0.0)
        if passes:
            report.check()
        else:
            with pytest.raises(ConservationError, match="module 'layer'") as caught:
                report.check()
            assert "dtype" not in str(caught.value)


# `check` names the layer at fault: operations that are deliberately mis-scaled -----------------------


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
