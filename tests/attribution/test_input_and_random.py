"""What explanations are compared with: the input, noise, sensitivity; and the value that is explained."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, Gradient, Input, InputError, Random, Sensitivity, TargetError, TrainingModeWarning, Unit
from tests.checks import refuses
from tests.models import Wrapped, close, gradient, images, mlp, residual, settle, vectors
from tests.networks import zoo


def test_the_input() -> None:
    model, x = residual(), images()
    assert torch.equal(Input(model).attribute(x, 1), x)
    h = model.stem(x).detach()
    close(Input(model).attribute_layers(x, ["stem", "mean"], Unit("head", 2))["stem"], h)
    rows = Input(model).attribute_targets(x, [0, 1])
    assert torch.equal(rows, torch.stack([x, x]))


def test_the_input_of_token_ids_is_their_embedding() -> None:
    class Sentence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.out = nn.Embedding(7, 4), nn.Linear(4, 2)

        def forward(self, ids: Tensor) -> Tensor:
            out: Tensor = self.out(self.embedding(ids).mean(1))
            return out

    model, ids = settle(Sentence()), torch.tensor([[1, 2, 3], [4, 5, 6]])
    close(Input(model).attribute(ids, 1), model.embedding(ids).sum(-1).detach())
    noise = Random(model, seed=0).attribute(ids, 1)
    assert noise.shape == (2, 3) and noise.is_floating_point()


def test_noise() -> None:
    model, x = residual(), images()
    first = Random(model, seed=3)
    maps = torch.stack([first.attribute(x, 1), first.attribute(x, 1)])
    second = Random(model, seed=3)
    assert torch.equal(maps, torch.stack([second.attribute(x, 0), second.attribute(x, 2)]))
    assert not torch.equal(maps[0], maps[1])
    assert not torch.equal(maps[0], Random(model, seed=4).attribute(x, 1))
    assert torch.equal(Random(model).attribute(x, 1), Random(model, seed=0).attribute(x, 1))
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(maps[0], Random(model, generator=generator).attribute(x, 1))
    expected = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float32)
    close(maps[0], expected.to(x.dtype))
    state = torch.get_rng_state()
    Random(model).attribute(x, 1)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is the user's"


def test_noise_takes_one_source() -> None:
    model = mlp()
    with refuses(model, InputError, ValueError, "not both"):
        Random(model, 1, generator=torch.Generator())


@pytest.mark.parametrize("method", [Input, Random, Sensitivity])
def test_they_claim_nothing_and_check_all(method: type[Input]) -> None:
    model, x = mlp(), vectors()
    assert not method.contract.complete
    with refuses(model, InputError, ValueError, method.__name__, "no convergence delta"):
        method(model).attribute(x, 1, return_convergence_delta=True)
    with refuses(model, InputError, ValueError, method.__name__, "no report"):
        method(model).report(x, 1)
    with refuses(model, TargetError, ValueError, "must say which"):
        method(model).attribute(x)


def test_sensitivity() -> None:
    model, x = residual(), images()
    expected = gradient(lambda leaf: model(leaf)[:, 2], x).square()
    close(Sensitivity(model).attribute(x, 2), expected)
    assert torch.equal(Sensitivity(model).attribute(x, 2), Gradient(model, "squared").attribute(x, 2))
    assert Sensitivity.contract.output == "coefficient"


# ----------------------------------------------------------------------------------- the value that is explained


def test_the_value_that_is_explained() -> None:
    model, x = residual(), images()
    before = zoo.fingerprint(model)
    for method in (LRP(model), Gradient(model), Random(model)):
        assert torch.equal(method.explained(x, 1), model(x)[:, 1].detach())
        assert torch.equal(method.explained(x, [3, 0]), model(x)[[0, 1], [3, 0]].detach())
    unit = Unit("branch.0", (1, 2, 3))
    found, delta = LRP(model).attribute(x, unit, return_convergence_delta=True)
    value = LRP(model).explained(x, unit)
    close(found.flatten(1).sum(1) + delta, value)
    assert not value.requires_grad and not value.is_inference()
    assert zoo.fingerprint(model) == before


def test_the_value_of_models_that_write() -> None:
    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.out = nn.BatchNorm1d(4), nn.Linear(4, 3)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            x += 1
            out: Tensor = self.out(self.norm(x))
            return out

    model, x = settle(Writing()).train(), vectors()
    before, given = zoo.fingerprint(model), x.clone()
    with pytest.warns(TrainingModeWarning, match="'norm'"):
        value = LRP(model).explained(x, 1)
    assert zoo.fingerprint(model) == before and torch.equal(x, given)
    assert torch.allclose(value, model(x.clone())[:, 1].detach())


def test_the_value_with_further_arguments_and_token_ids() -> None:
    model, x = Wrapped(mlp(), lambda out: {"logits": out}), vectors()
    assert torch.equal(LRP(model).explained((x,), 2), model(x)["logits"][:, 2].detach())
    embedding = settle(nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 2)))
    ids = torch.tensor([[0, 1, 2], [2, 3, 4]])
    assert torch.equal(LRP(embedding).explained(ids, 1), embedding(ids)[:, 1].detach())

    class Scaled(nn.Module):
        def forward(self, x: Tensor, scale: float, *, shift: float) -> Tensor:
            return x * scale + shift

    close(LRP(Scaled()).explained(x, 1, 3.0, forward_kwargs={"shift": 1.0}), x[:, 1] * 3.0 + 1.0)
    with pytest.raises(TargetError, match="must say which"):
        LRP(embedding).explained(ids)
