"""Models in float32, float16 and bfloat16 are the same function as their rewrites, as far as these dtypes can say."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relprop import InputError
from relprop.metrics import implementation_invariance, rewrites

LOW = [torch.bfloat16, torch.float16, torch.float32]


def explain(model: nn.Module, x: Tensor, target: Any) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(model(x)[:, target].sum(), x)[0] * x.detach()


def network(dtype: torch.dtype, depth: int = 2) -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    hidden = [each for _ in range(depth) for each in (nn.Linear(32, 32), nn.ReLU())]
    model = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), *hidden, nn.Linear(32, 3))
    return model.to(dtype).eval(), torch.rand(8, 16).to(dtype)


@pytest.mark.parametrize("dtype", LOW)
def test_rewrites_and_their_distance(dtype: torch.dtype) -> None:
    model, x = network(dtype)
    made = rewrites(model, x)
    assert list(made) == ["split", "permuted", "scaled", "fused", "identity"]
    exact = copy.deepcopy(model).double()(x.double())
    for each in made.values():
        assert next(each.parameters()).dtype == dtype
        # What a copy computes is the model's function but for its rounded weights.
        found = copy.deepcopy(each).double()(x.double())
        assert float(((found - exact).abs().max() / exact.abs().max()).detach()) < 4 * torch.finfo(dtype).eps
        result = implementation_invariance(explain, model, each, x, 1)
        assert result.mean < 16 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", LOW)
def test_what_is_another_function_is_refused_still(dtype: torch.dtype) -> None:
    model, x = network(dtype)
    other = copy.deepcopy(model)
    other[-1].weight.data[1] *= 1.5
    with pytest.raises(InputError, match="do not compute the same function"):
        implementation_invariance(explain, model, other, x, 1)
    bent = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 3)).to(dtype)
    bent[0].weight.data *= 20
    with pytest.raises(InputError, match="the copy 'split' differs"):
        rewrites(bent, x, [("0", "2")])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_named_as_a_reason(dtype: torch.dtype) -> None:
    model, x = network(dtype)
    scaled = rewrites(model, x)["scaled"]
    with pytest.raises(InputError, match=rf"in {dtype} that may be rounding.*model.double\(\)"):
        implementation_invariance(explain, model, scaled, x, 1, tolerance=1e-7)
    with pytest.raises(InputError, match=rf"in {dtype} that may be rounding.*model.double\(\)"):
        rewrites(model, x, tolerance=1e-7)


def test_rewrites_take_no_global_random_numbers() -> None:
    model, x = network(torch.float64)
    state = torch.get_rng_state()
    first = rewrites(model, x)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(3)
    again = rewrites(model, x)
    for name, each in first.items():
        torch.testing.assert_close(each.state_dict(), again[name].state_dict(), rtol=0, atol=0)
    dropout = nn.Sequential(nn.Linear(16, 8), nn.Dropout(0.0), nn.ReLU(), nn.Linear(8, 3)).double()
    state = torch.get_rng_state()
    rewrites(dropout, x)  # in training mode
    assert torch.equal(state, torch.get_rng_state())
