"""The same maps on CUDA as on the CPU; devices and dtypes preserved."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, DeepTaylor, DeepTaylorWarning, Gradient, GradientXInput, PatternAttribution, PatternNet, Rules
from relprop.rules import Block, Flat, Gamma, WSquare, ZBox, Zero
from tests import network_reference
from tests.attribution.averages import CASES, pictures, spelt
from tests.models import images, residual, settle, vectors, without_bias
from tests.operations.test_recurrent import Reader
from tests.unrolled import Watched, random, weigh

pytestmark = pytest.mark.cuda

DEVICE = "cuda"

PRESETS: dict[str, dict[str, Any]] = {
    "lrp0": {}, "epsilon": {}, "epsilon_plus": {}, "epsilon_plus_flat": {}, "epsilon_gamma": {},
    "epsilon_gamma_box": {"low": -4.0, "high": 4.0}, "epsilon_alpha2_beta1": {}, "alpha1_beta0": {}, "alpha2_beta1": {},
    "zplus": {}, "wsquare": {}, "flat": {}, "deep_taylor": {}, "deep_taylor_bounded": {"low": -4.0, "high": 4.0},
}  # fmt: skip


def on_device(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to(DEVICE)


def same(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    assert found.device.type == DEVICE
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    scale = float(expected.abs().max())
    assert scale > 0
    assert float((found.cpu() - expected).abs().max()) <= tolerance * scale


@pytest.mark.parametrize("preset", list(PRESETS))
def test_presets(preset: str) -> None:
    model, x = residual(), images()
    rules = Rules.preset(preset, **PRESETS[preset])
    expected, delta = LRP(model, rules).attribute(x, 1, return_convergence_delta=True)
    found, other = LRP(on_device(model), rules).attribute(x.to(DEVICE), 1, return_convergence_delta=True)
    same(found, expected)
    assert other.device.type == DEVICE
    assert float((other.cpu() - delta).abs().max()) <= 1e-9 * float(expected.abs().max())


@pytest.mark.parametrize("method", [Gradient, GradientXInput])
def test_gradients(method: Any) -> None:
    model, x = residual(), images()
    same(method(on_device(model)).attribute(x.to(DEVICE), 1), method(model).attribute(x, 1))


@pytest.mark.parametrize("case", CASES)
def test_averages_and_perturbations(case: str) -> None:
    """Numbers are drawn on the CPU, so that they are the same; Captum adds up and fits in single precision."""
    if case == "kernel shap":
        pytest.skip("Captum draws on the device")
    model, x = spelt()[1], pictures()
    found = CASES[case](on_device(model), x.to(DEVICE), [2, 0])
    same(found, CASES[case](model, x, [2, 0]), 1e-5 if case == "shapley" else 1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype) -> None:
    model, x = residual().to(dtype), images().to(dtype)
    expected = LRP(residual()).attribute(images(), 1)
    found = LRP(on_device(model)).attribute(x.to(DEVICE), 1)
    assert found.dtype == dtype
    assert found.device.type == DEVICE
    error = (found.double().cpu() - expected).norm() / expected.norm()
    # float32 convolutions may run in TF32, which keeps ten bits
    assert float(error) < (1e-2 if dtype == torch.float32 else 30 * torch.finfo(dtype).eps)


def test_a_network_of_branches() -> None:
    model, x = network_reference.build(), images(side=8)
    rules = Rules().set("*", Gamma()).set("side", "zplus").set("hidden", "epsilon").first(ZBox(-3.0, 3.0)).last(Zero())
    same(LRP(on_device(model), rules).attribute(x.to(DEVICE), 1), LRP(model, rules).attribute(x, 1))
    every = LRP(model, "flat").attribute(x, 1)
    same(LRP(on_device(model), "flat").attribute(x.to(DEVICE), 1), every)


@pytest.mark.parametrize("where", ["cpu", DEVICE])
def test_targets_on_either_device(where: str) -> None:
    model, x = residual(), images()
    method = LRP(on_device(model))
    expected = LRP(model).attribute(x, [3, 0])
    same(method.attribute(x.to(DEVICE), torch.tensor([3, 0], device=where)), expected)
    same(method.attribute(x.to(DEVICE), [3, 0]), expected)
    same(method.attribute(x.to(DEVICE), lambda out: torch.stack([out[0, 3], out[1, 0]])), expected)
    same(method.attribute_targets(x.to(DEVICE), [0, torch.tensor([3, 0], device=where)])[1], expected)


@pytest.mark.parametrize("where", ["cpu", DEVICE])
def test_bounds_on_either_device(where: str) -> None:
    model, x = residual(), images()
    low, high = torch.tensor([-4.0, -5.0, -6.0]), torch.tensor([4.0, 5.0, 6.0])
    expected = LRP(model, Rules().first(ZBox(low, high))).attribute(x, 1)
    rule = ZBox(low.to(where), high.to(where))
    same(LRP(on_device(model), Rules().first(rule)).attribute(x.to(DEVICE), 1), expected)


def test_layers_conditions_and_reports() -> None:
    model, x = residual(), images()
    there, y = on_device(model), x.to(DEVICE)
    for name, expected in LRP(model).attribute_layers(x, ["stem", "branch", "head"], 1).items():
        same(LRP(there).attribute_layers(y, name, 1)[name], expected)
    same(LRP(there).attribute(y, 1, condition={"branch": [1]}), LRP(model).attribute(x, 1, condition={"branch": [1]}))
    for rules in (Rules.preset("epsilon_gamma"), Rules().set("branch.2", Block()).first(Flat())):
        report, other = LRP(there, rules).report(y, 1), LRP(model, rules).report(x, 1)
        assert report.delta.device.type == "cpu"
        assert report.delta.tolist() == pytest.approx(other.delta.tolist(), rel=1e-8)
        assert [entry.name for entry in report.entries] == [entry.name for entry in other.entries]
        for mine, theirs in zip(report.entries, other.entries, strict=True):
            assert mine.relevance_out == pytest.approx(theirs.relevance_out, rel=1e-8, abs=1e-10)
        report.check(1e-8)
    assert Rules().plan(there, y, 1) == Rules().plan(model, x, 1)


def test_token_ids_and_arguments() -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(7, 4)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.head = nn.Linear(4, 3)

        def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
            h = self.embedding(ids) + positions
            h = h + self.attention(h, h, h, need_weights=False)[0]
            out: Tensor = self.head(nn.functional.gelu(h).mean(1))
            return out

    model, ids = settle(Text()), torch.tensor([[1, 2, 6], [0, 0, 5]])
    positions = torch.randn(3, 4, dtype=torch.float64)
    expected = LRP(model, "attnlrp").attribute(ids, 1, positions)
    same(LRP(on_device(model), "attnlrp").attribute(ids.to(DEVICE), 1, positions.to(DEVICE)), expected)


def test_create_graph() -> None:
    model, x = residual(), images()
    results = []
    for device in ("cpu", DEVICE):
        here, y = copy.deepcopy(model).to(device), x.to(device).requires_grad_()
        relevance = LRP(here, Rules.preset("epsilon_gamma").first(WSquare())).attribute(y, 1, create_graph=True)
        results.append(torch.autograd.grad(relevance.square().sum(), [y, here.stem.weight, here.head.weight]))
    for there, expected in zip(results[1], results[0], strict=True):
        same(there, expected, 1e-7)


def test_attach_and_cached_weights() -> None:
    model, x = residual(), images()
    there, expected = on_device(model), LRP(model).attribute(x, 1)
    cached = LRP(there, cache_weights=True)
    for _ in range(2):
        same(cached.attribute(x.to(DEVICE), 1), expected)
    leaf = x.to(DEVICE).requires_grad_()
    with Rules.preset("epsilon_gamma").attach(there) as attached:
        out = there(leaf)
    (c,) = torch.autograd.grad(out[:, 1].sum(), leaf)
    attached.finish()
    same((leaf * c).detach(), expected)


def test_deep_taylor() -> None:
    model, x = without_bias(settle(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))), vectors()
    for bounds in (None, (-4.0, 4.0)):
        expected = DeepTaylor(model, bounds).attribute(x, 1)
        same(DeepTaylor(on_device(model), bounds).attribute(x.to(DEVICE), 1), expected)
    with torch.no_grad():
        model[0].bias[0] = 1.0
    with pytest.warns(DeepTaylorWarning, match="'0'"):
        DeepTaylor(on_device(model)).attribute(x.to(DEVICE), 1)


def test_the_model_may_move_between_calls() -> None:
    model, x = residual(), images()
    method = LRP(model, cache_weights=True)
    expected = method.attribute(x, 1)
    model.to(DEVICE)
    same(method.attribute(x.to(DEVICE), 1), expected)
    model.to("cpu")
    assert method.attribute(x, 1).device.type == "cpu"


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("packed", ["", "unsorted"])
def test_recurrent_layers(kind: str, packed: str) -> None:
    model, x = Reader(kind, packed, num_layers=2, bidirectional=True), random(3, 5, 3)
    expected, output = LRP(model, Gamma(0.25)).attribute(x, weigh), model(x).detach()
    other, target = on_device(model), Watched()
    same(LRP(other, Gamma(0.25)).attribute(x.to(DEVICE), lambda found: target(found.cpu())), expected)
    assert float((target.outputs[0] - output).abs().max()) < 1e-12 * float(output.abs().max())


@pytest.mark.parametrize("method", [PatternNet, PatternAttribution])
def test_patterns_are_fitted_judged_and_kept_alike(method: type[PatternNet], tmp_path: Path) -> None:
    model = settle(residual())
    batches, x = [images(24), images(24) + 0.1], images(3)
    here, there = method(model).fit(batches), method(on_device(model)).fit(batches)  # batches are moved
    same(there.attribute(x.to(DEVICE), 1), here.attribute(x, 1))
    layer = next(iter(here.patterns)).removesuffix(".weight").partition(".weight")[0]
    judged = [fitted.signal_quality(batches, batches, layers=[layer], units=2) for fitted in (here, there)]
    for unit, values in judged[0].values.items():
        for estimator, rho in values.items():
            torch.testing.assert_close(judged[1].values[unit][estimator], rho, rtol=1e-6, atol=1e-8)
    there.save(tmp_path / "patterns.safetensors")
    loaded = method(model).load(tmp_path / "patterns.safetensors")
    torch.testing.assert_close(loaded.attribute(x, 1), here.attribute(x, 1), rtol=1e-9, atol=1e-12)
