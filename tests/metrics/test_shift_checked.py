"""Shifted models are checked: NaN is no agreement."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relprop import InputError
from relprop.metrics import input_invariance, shifted_model


def ones(model: nn.Module, x: Tensor, target: Any) -> Tensor:
    return torch.ones_like(x)


class Twice(nn.Module):
    """The input goes to a logarithm, too, which is NaN where the shift makes it negative."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + torch.log(x).sum(1, keepdim=True)


@pytest.mark.parametrize("shift", [math.inf, -math.inf, math.nan, torch.tensor([0.0, math.nan, 0.0, 0.0]), 1e300])
def test_a_shift_that_is_not_finite(shift: Any) -> None:
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    for call in (shifted_model, lambda model, x, m: input_invariance(ones, model, x, shift=m)):
        with pytest.raises(InputError, match=r"shift holds NaN or infinity in torch.float32; expected finite"):
            call(nn.Linear(4, 1), x, shift)


def test_outputs_that_are_nan_do_not_agree() -> None:
    torch.manual_seed(0)
    model, x = Twice(), torch.randn(8, 4).abs() + 0.1
    for call in (shifted_model, lambda model, x, m: input_invariance(ones, model, x, shift=m, internal_batch_size=3)):
        with pytest.raises(InputError, match="the shifted model is up to nan away from the model"):
            call(model, x, -10.0)
    first = torch.full((8, 4), 20.0)  # NaN in the first batch only
    first[:3] = x[:3]
    with pytest.raises(InputError, match="the shifted model is up to nan away from the model"):
        input_invariance(ones, model, first, shift=-10.0, internal_batch_size=3)
    with pytest.raises(InputError, match="x holds NaN or infinity in 1 of 8 samples"):
        shifted_model(nn.Linear(4, 1), x.clone().index_fill_(0, torch.tensor([5]), math.nan), 1.0)
