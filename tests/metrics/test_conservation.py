"""Conservation, positivity and absorbed shares against sums written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, GradientXInput, InputError
from relprop.metrics import absorbed_shares, conservation
from relprop.rules import Epsilon, Gamma


@pytest.fixture
def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()


def test_against_numpy(model: nn.Sequential) -> None:
    x = torch.randn(7, 6, dtype=torch.float64)
    target = [0, 1, 2, 0, 1, 2, 0]
    result = conservation(
        lambda model, x, target: LRP(model, Gamma(0.5)).attribute(x, target), model, x, target, internal_batch_size=2
    )
    relevance = LRP(model, Gamma(0.5)).attribute(x, target).numpy()
    f = model(x).detach().numpy()[range(7), target]
    np.testing.assert_allclose(result.output, f)
    np.testing.assert_allclose(result.total, relevance.sum(axis=1))
    np.testing.assert_allclose(result.values, np.abs(f - relevance.sum(axis=1)) / np.abs(f))
    np.testing.assert_allclose(result.gain, np.abs(relevance).sum(axis=1) / np.abs(f))
    np.testing.assert_allclose(result.positivity, relevance.clip(0).sum(axis=1) / np.abs(relevance).sum(axis=1))
    assert result.mean == pytest.approx(float(result.values.mean()))
    assert result.to_dict()["relative_delta"] == result.values.tolist()
    assert len(str(result).splitlines()) == 9


def test_uniform_redistribution_is_conservative_and_an_empty_map_is_not(model: nn.Sequential) -> None:
    x = torch.rand(5, 6, dtype=torch.float64)

    def uniform(model: nn.Module, x: Tensor, target: int) -> Tensor:
        return (model(x)[:, target, None] / 6).detach().expand_as(x)

    result = conservation(uniform, model, x, 1)
    assert float(result.values.max()) < 1e-15
    assert set(result.positivity.tolist()) <= {0.0, 1.0}
    empty = conservation(lambda model, x, target: torch.zeros_like(x), model, x, 1)
    assert empty.values.tolist() == [1.0] * 5
    assert empty.positivity.tolist() == [1.0] * 5
    nothing = nn.Linear(6, 1, bias=False).double()
    nothing.weight.data.zero_()
    zero = conservation(lambda model, x, target: GradientXInput(model).attribute(x), nothing, x)
    assert zero.values.tolist() == [0.0] * 5


def test_shares_add_up_and_name_the_layer(model: nn.Sequential) -> None:
    x = torch.rand(1, 6, dtype=torch.float64)
    method = LRP(model, Epsilon(0.3))
    report = method.report(x, 1)
    shares = absorbed_shares(report.to_dict())
    f = float(model(x).detach()[0, 1])
    assert shares.inputs == pytest.approx(float(method.attribute(x, 1).sum()) / f)
    assert shares.total == pytest.approx(1.0, abs=1e-12)
    assert shares.unexplained == pytest.approx(0.0, abs=1e-12)
    for cause in ("bias", "stabilizer"):
        by_layer = {
            f"{each.name} linear": each.absorbed[cause] / f for each in report.entries if each.absorbed.get(cause)
        }
        assert {name: taken[cause] for name, taken in shares.modules.items()} == pytest.approx(by_layer)
        worst = max(by_layer, key=lambda name: abs(by_layer[name]))
        assert shares.largest(cause) == (worst, pytest.approx(by_layer[worst]))
    assert str(shares).splitlines()[-1].split()[0] == "all"
    assert shares.to_dict()["shares"] == shares.shares


def test_a_module_that_runs_twice_is_summed() -> None:
    layer = nn.Linear(1, 1).double()
    layer.weight.data.fill_(2.0), layer.bias.data.fill_(1.0)
    twice = nn.Sequential(layer, layer)  # 2 (2 x + 1) + 1: at x = 1, 7, of which 1 and 2 are biases
    shares = absorbed_shares(LRP(twice, "lrp0").report(torch.ones(1, 1).double()).to_dict())
    assert shares.modules["0 linear"]["bias"] == pytest.approx(3 / 7)
    assert shares.inputs == pytest.approx(4 / 7)


def test_bad_input_is_named(model: nn.Sequential) -> None:
    x = torch.rand(2, 6, dtype=torch.float64)
    for bad in (lambda model, x, target: x[:, :3], lambda model, x, target: x * math.nan):
        with pytest.raises(InputError):
            conservation(bad, model, x, 0)
    with pytest.raises(InputError, match="report lacks absorbed, entries"):
        absorbed_shares({"output": 1.0, "relevance": 1.0, "unexplained": 0.0})
    with pytest.raises(InputError, match="the output of the report is 0"):
        absorbed_shares({"output": 0.0, "relevance": 1.0, "unexplained": 0.0, "absorbed": {}, "entries": []})
    report = absorbed_shares(GradientXInput(nn.Linear(2, 1, bias=False)).report(torch.ones(1, 2)).to_dict())
    with pytest.raises(InputError, match="nothing was absorbed as 'softmax'"):
        report.largest("softmax")
