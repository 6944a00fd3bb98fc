"""What is given stays as it is: the copies of ``rewrites``, models that write their input, the caller's targets."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from relprop.errors import InputError
from relprop.metrics import (
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
