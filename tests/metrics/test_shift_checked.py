"""Shifted models are checked: NaN is no agreement, blank samples hide no order, and the model stays as it is."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relprop import InputError, ModelError
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


@pytest.fixture
def training() -> Iterator[nn.Module]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 2)).double().train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of training mode
        yield model


@pytest.mark.parametrize("metric", ["shifted_model", "input_invariance"])
def test_the_model_and_the_random_numbers_stay(training: nn.Module, metric: str) -> None:
    x = torch.randn(6, 4, dtype=torch.float64)
    before, numbers = copy.deepcopy(training.state_dict()), torch.get_rng_state()
    seen: list[nn.Module] = []

    def explain(model: nn.Module, x: Tensor, target: Any) -> Tensor:
        seen.append(model)
        return torch.ones_like(x)

    if metric == "shifted_model":
        seen = [shifted_model(training, x, 2.0)]
    else:
        input_invariance(explain, training, x, shift=2.0, internal_batch_size=3)
    assert torch.equal(torch.get_rng_state(), numbers)
    for key, value in training.state_dict().items():
        assert torch.equal(value, before[key]), key
    for model in seen:
        assert int(model[1].num_batches_tracked) == 0
        assert torch.equal(model[1].running_mean, torch.zeros(6, dtype=torch.float64))


def test_one_sample_in_training_mode(training: nn.Module) -> None:
    x = torch.randn(1, 4, dtype=torch.float64)
    for call in (shifted_model, lambda model, x, m: input_invariance(ones, model, x, shift=m)):
        with pytest.raises(InputError, match=r"does not run on \(1, 4\) .*more than 1 value per channel.*model.eval"):
            call(training, x, 1.0)


class ChannelsLast(nn.Module):
    def __init__(self, before: Any = lambda x: x) -> None:
        super().__init__()
        self.conv, self.out, self.before = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2), before

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.conv(self.before(x.permute(0, 3, 1, 2)))).mean((2, 3)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("blank", [0.0, 0.7])
def test_blank_samples_first(dtype: torch.dtype, blank: float) -> None:
    torch.manual_seed(0)
    model = ChannelsLast().double()
    x = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    x[:2] = blank
    m = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    other = shifted_model(model.to(dtype), x.to(dtype), m)
    expected = model.conv.bias.double() - torch.einsum("ochw,c->o", model.conv.weight.double(), m)
    torch.testing.assert_close(other.conv.bias, expected.to(dtype))
    if dtype == torch.float64:
        torch.testing.assert_close(other(x + m), model(x))


def test_blank_samples_hide_nothing() -> None:
    """Before the layer something stands that leaves zeros as they are."""
    x = torch.zeros(2, 3, 3, 3, dtype=torch.float64)
    for before in (torch.relu, lambda x: 2 * x):
        with pytest.raises(ModelError, match="gets other values than the input"):
            shifted_model(ChannelsLast(before).double(), x, 1.0)
