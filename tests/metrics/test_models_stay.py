"""What is given stays as it is: the copies of ``rewrites``, models that write their input, the caller's targets."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relprop.errors import InputError
from relprop.metrics import (
    implementation_invariance,
    rewrites,
)


def test_copies_of_rewrites_have_not_run() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5)).train()
    x, before, numbers = torch.randn(8, 4), copy.deepcopy(model[3].state_dict()), torch.get_rng_state()
    found = rewrites(model, x)
    assert list(found) == ["split", "permuted", "scaled", "identity"]
    for name, each in found.items():
        for key, value in each[3].state_dict().items():
            assert torch.equal(value, before[key]), (name, key)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert all(torch.equal(value, before[key]) for key, value in model[3].state_dict().items())
    with pytest.raises(InputError, match=r"does not run on \(1, 4\) .*more than 1 value per channel.*model.eval"):
        rewrites(model, x[:1])


@pytest.mark.parametrize("first", [nn.Hardtanh(-2, 2, inplace=True), nn.ReLU(inplace=True)])
def test_gradients_of_models_that_write_their_input(first: nn.Module) -> None:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    model, x = nn.Sequential(first, inner), 3 * torch.randn(8, 4, dtype=torch.float64)
    apart = nn.Sequential(copy.deepcopy(first), inner)
    apart[0].inplace = False

    def by(model: nn.Module, x: Tensor, target: Any) -> Tensor:
        return inner(x).sum() * x

    before, other = x.clone(), rewrites(inner, x)["permuted"]
    found = implementation_invariance(by, model, nn.Sequential(copy.deepcopy(first), other), x, 1)
    expected = implementation_invariance(by, apart, nn.Sequential(copy.deepcopy(apart[0]), other), x, 1)
    assert torch.equal(found.values, expected.values) and torch.equal(found.ties, expected.ties)
    assert torch.equal(x, before)
