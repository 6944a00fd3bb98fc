"""Every parameter a model uses is randomised, and the report says which."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from relprop import ModelError
from relprop.errors import TrainingModeWarning
from relprop.metrics import efficient_randomisation, parameter_randomisation, rewrites, shifted_model, smoothed
from relprop.metrics._randomised import layers_in_order, randomise


def gradient(model: nn.Module, x: Tensor, target: Any) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(model(x)[:, target].sum(), x)[0] * x.detach()


class Attends(nn.Module):
    """Attention, a scale of the model's own, and a layer that is only read."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.layer_scale = nn.Parameter(torch.full((8,), 1e-2))
        self.read = nn.Linear(8, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x + self.layer_scale * self.attention(x, x, x, need_weights=False)[0])
        return nn.functional.linear(x.mean(1), self.read.weight, self.read.bias)


@pytest.fixture
def model() -> Attends:
    torch.manual_seed(0)
    return Attends().double().eval()


X = torch.randn(3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("order", ["cascading", "independent"])
def test_every_parameter_is_randomised_and_named(model: Attends, order: Any) -> None:
    seen: list[dict[str, Tensor]] = []

    def explain(model: nn.Module, x: Tensor, target: Any) -> Tensor:
        seen.append({name: each.detach().clone() for name, each in model.named_parameters()})
        return gradient(model, x, target)

    found = parameter_randomisation(explain, model, X, 0, order=order)
    assert found.layers == ("read", "norm", "attention.out_proj", "attention", "")
    assert [sorted(names) for names in found.parameters] == [
        ["read.bias", "read.weight"],
        ["norm.bias", "norm.weight"],
        ["attention.out_proj.bias", "attention.out_proj.weight"],
        ["attention.in_proj_bias", "attention.in_proj_weight"],
        ["layer_scale"],
    ]
    assert found.to_dict()["parameters"] == [list(names) for names in found.parameters]
    before, *after = seen
    for step, names in enumerate(found.parameters):
        changed = {name for name in before if not torch.equal(before[name], after[step][name])}
        assert changed == {each for group in found.parameters[: step + 1] for each in group} or (
            order == "independent" and changed == set(names)
        )
    if order == "cascading":
        still = {name for name in before if torch.equal(before[name], after[-1][name])}
        assert still == {"unused.weight", "unused.bias"}
        no_more = [name for name, each in after[-1].items() if bool((each == each.flatten()[0]).all())]
        assert not no_more  # none is constant


def test_all_at_once_is_all(model: Attends) -> None:
    found = efficient_randomisation(gradient, model, X, 0)
    assert set(found.parameters) == {name for name, _ in model.named_parameters() if not name.startswith("unused")}
    assert found.to_dict()["parameters"] == list(found.parameters)


def test_an_encoder_layer_in_evaluation_mode_is_seen_in_full() -> None:
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(40, 3))
    model = model.double().eval().requires_grad_(False)  # with all frozen PyTorch may take its fused path
    found = efficient_randomisation(gradient, model, X, 0)
    assert set(found.parameters) == {name for name, _ in model.named_parameters()}


def test_what_is_drawn() -> None:
    """Against the numbers of a generator of the same seed."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.varied = nn.Parameter(torch.tensor([1.0, 1.2, 0.9, 1.1]).double())
            self.ones = nn.Parameter(torch.full((3,), -2.0).double())
            self.zeros = nn.Parameter(torch.zeros(2).double())
            self.waves = nn.Parameter(torch.tensor([1 + 2j, 3 - 1j]).to(torch.complex128))

    model = Own()
    before = {name: each.detach().numpy().copy() for name, each in model.named_parameters()}
    assert randomise(model, "", 7) == ("varied", "ones", "zeros", "waves")
    source = torch.Generator().manual_seed(7)
    one, two, three, four = (
        torch.randn(size, generator=source, dtype=torch.float64).numpy() for size in (4, 3, 2, (2, 2))
    )
    waves = before["waves"].view(np.float64)
    every = np.concatenate([before["varied"], before["ones"], before["zeros"], waves])
    expected = {
        "varied": before["varied"].mean() + before["varied"].std(ddof=1) * one,
        "ones": -2 + 2 * two,
        "zeros": np.sqrt((every**2).mean()) * three,
        "waves": (waves.mean() + waves.std(ddof=1) * four) @ [1, 1j],
    }
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(model, name).detach().numpy(), value, rtol=1e-12)
    reset = nn.Linear(4, 3).double()
    fresh = copy.deepcopy(reset)
    state = torch.get_rng_state()
    randomise(reset, "", 5)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(5)
    fresh.reset_parameters()
    torch.testing.assert_close(reset.state_dict(), fresh.state_dict())  # what it was born with
    torch.set_rng_state(state)


@pytest.mark.filterwarnings("ignore::relprop.errors.TrainingModeWarning")
def test_no_global_random_number_is_taken_on_any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2)).train()
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    state = torch.get_rng_state()
    for metric in (parameter_randomisation, efficient_randomisation):
        with pytest.warns(TrainingModeWarning):
            metric(lambda model, x, target: x, model, torch.ones(2, 4), 0)
    assert layers_in_order(model, torch.ones(2, 4)) == ["0", "2"]
    assert torch.equal(state, torch.get_rng_state())
    assert seeded == []


def test_models_that_write_their_input_leave_that_of_the_user() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

        def forward(self, x: Tensor) -> Tensor:
            x -= 0.5
            return self.body(x)

    model, x = Writes().double(), torch.rand(3, 4, dtype=torch.float64)
    before = x.clone()
    parameter_randomisation(lambda model, x, target: x.clone(), model, x, 0)
    efficient_randomisation(lambda model, x, target: x.clone(), model, x, 0)
    made = rewrites(model, x)
    assert torch.equal(x, before)
    torch.testing.assert_close(made["scaled"](x.clone()), model(x.clone()))
    with pytest.raises(ModelError, match="gets other values than the input"):
        shifted_model(model, x, 1.0)
    assert torch.equal(x, before)


def test_the_mean_over_noise_does_not_lose_digits() -> None:
    """In bfloat16, a sum of fifty fiftieths is 0.98."""
    found = smoothed(lambda model, x, target: torch.ones_like(x))(nn.Identity(), torch.rand(2, 4).bfloat16(), None)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, torch.ones(2, 4, dtype=torch.bfloat16))
