"""Shifted inputs and models: compensated right, in any order of dimensions and precision, or refused; and checked."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from relprop import InputError, InputTypeError, ModelError
from relprop.metrics import input_invariance, shifted_model

# Sequences, other orders of dimensions, low precision ------------------------------------------------


def gradient(model: nn.Module, x: Tensor, target: Any) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(model(x)[:, target].sum(), x)[0]


class Tokens(nn.Module):
    """A linear layer over the last dimension of [N, T, D], or over the one that ``order`` puts there."""

    def __init__(self, features: int, hidden: int, order: tuple[int, ...] = (0, 1, 2)) -> None:
        super().__init__()
        self.inner, self.outer, self.order = nn.Linear(features, hidden), nn.Linear(hidden, 3), order

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.inner(x.permute(self.order)))
        back = hidden.movedim(self.order.index(0), 0)
        return self.outer(back.mean(1))


@pytest.mark.parametrize("size", [(5, 5, 5), (5, 8, 5), (5, 8, 7), (5, 8, 1), (1, 3, 4)])
@pytest.mark.parametrize("shift", ["number", "features"])
def test_sequences_are_compensated(size: tuple[int, int, int], shift: str) -> None:
    torch.manual_seed(0)
    features, hidden, length = size
    model, x = Tokens(features, hidden).double(), torch.randn(3, length, features, dtype=torch.float64)
    m = torch.tensor(0.7).double() if shift == "number" else torch.randn(features, dtype=torch.float64)
    other = shifted_model(model, x, m)
    w, b = (each.detach().numpy() for each in (model.inner.weight, model.inner.bias))
    expected = b - w @ np.broadcast_to(m.numpy(), (features,))
    np.testing.assert_allclose(other.inner.bias.detach().numpy(), expected, rtol=1e-12)
    unseen = torch.randn(4, length, features, dtype=torch.float64)
    torch.testing.assert_close(other(unseen + m), model(unseen))
    assert float(input_invariance(gradient, model, x, 1, shift=m).values.max()) < 1e-10


@pytest.mark.parametrize("order", [(0, 2, 1), (1, 0, 2), (2, 0, 1)])
def test_dimensions_in_another_order(order: tuple[int, ...]) -> None:
    """Sequences first, or a layer over time: what enters is followed, also where sizes would hide it."""
    torch.manual_seed(0)
    x = torch.randn(4, 4, 4, dtype=torch.float64)
    model = Tokens(4, 6, order).double()
    if order[2] != 2:  # over time: the shift must be the same for all features, and may differ in time
        m = torch.randn(4, 1, dtype=torch.float64)
        with pytest.raises(InputError, match=r"differs .* expected one number for each of the 4 features"):
            shifted_model(model, x, m.T)
    else:
        m = torch.randn(4, dtype=torch.float64)
        with pytest.raises(InputError, match=r"differs .* expected one number for each of the 4 features"):
            shifted_model(model, x, m[:, None])
    torch.testing.assert_close(shifted_model(model, x, m)(x + m), model(x))


def test_channels_last() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.out = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.relu(self.conv(x.permute(0, 3, 1, 2))).mean((2, 3)))

    torch.manual_seed(0)
    model, x = Last().double(), torch.randn(2, 3, 3, 3, dtype=torch.float64)
    m = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(shifted_model(model, x, m)(x + m), model(x))


class Before(nn.Module):
    """Something between the input and the first layer."""

    def __init__(self, before: Any, calls: int = 1) -> None:
        super().__init__()
        self.before, self.layer, self.calls = before, nn.Linear(4, 3), calls

    def forward(self, x: Tensor) -> Tensor:
        return sum(self.layer(self.before(x, call)) for call in range(self.calls))


def test_what_is_not_the_input_is_refused() -> None:
    x = torch.rand(3, 4, dtype=torch.float64) + 0.5
    for before in (lambda x, call: x / 255, lambda x, call: x**2, lambda x, call: x.flip(1)):
        with pytest.raises(ModelError, match="gets other values than the input"):
            shifted_model(Before(before).double(), x, 1.0)
    with pytest.raises(InputError, match=r"the shifted model is up to .* away from the model"):  # called twice
        shifted_model(Before(lambda x, call: x if call == 0 else x**2, calls=2).double(), x, 1.0)
    with pytest.raises(InputTypeError, match=r"torch.int64.*expected floating"):
        shifted_model(nn.Sequential(nn.Embedding(4, 2), nn.Linear(2, 1)), torch.ones(2, 3, dtype=torch.long), 1)
    with pytest.raises(InputError, match="at least one sample"):
        shifted_model(nn.Linear(4, 3), x[:0], 1.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)]
    model, x = nn.Sequential(*layers).to(dtype), torch.rand(8, 16).to(dtype)
    # W m in float64, rounded once.
    m = torch.linspace(-3, 3, 16).to(dtype)
    weight, bias = (each.detach().double().numpy() for each in (model[0].weight, model[0].bias))
    expected = torch.from_numpy(bias - weight @ m.double().numpy()).to(dtype)
    assert torch.equal(shifted_model(model, x, m)[0].bias, expected)
    found = input_invariance(gradient, model, x, 1, shift=3.0)
    assert found.values.dtype == torch.float64 and float(found.mean) < 0.3
    with pytest.raises(InputError, match=rf"{dtype}.*model.double\(\)"):
        input_invariance(gradient, model, x, 1, shift=3.0, tolerance=1e-9)


# The check: NaN is no agreement, blank samples hide no order, and the model stays as it is -----------


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
