"""Errors that say what was wrong, whichever method it was given to."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from relprop import (
    LRP,
    Combined,
    DeepLift,
    DeepLiftShap,
    FeatureAblation,
    Gradient,
    GradientXInput,
    InputError,
    IntegratedGradients,
    MissingExtraError,
    SimpleTaylor,
    TrainingModeWarning,
)
from tests.checks import refuses
from tests.models import close, mlp, settle, vectors


@pytest.mark.parametrize("value", ["a", 0, -1.0, float("nan"), float("inf"), True, [1.0], torch.tensor(1.0)])
def test_numbers_above_zero(value: Any) -> None:
    model, x = mlp(), vectors()
    with refuses(model, InputError, ValueError, "tolerance must be", repr(value)):
        IntegratedGradients(model).attribute(x, target=1, tolerance=value)
    with refuses(model, InputError, ValueError, "reach must be", repr(value)):
        SimpleTaylor(model, reach=value)


def test_numbers_of_numpy() -> None:
    model, x = mlp(), vectors()
    found = IntegratedGradients(model).attribute(x, target=1, tolerance=np.float32(0.5))
    close(found, IntegratedGradients(model).attribute(x, target=1, tolerance=0.5))


# ---------------------------------------------------------------------------------------- ids out of range


class Sentence(nn.Module):
    """Token ids to two numbers, by an embedding of 20 rows."""

    def __init__(self, functional: bool = False) -> None:
        super().__init__()
        self.words, self.out, self.functional = nn.Embedding(20, 4), nn.Linear(4, 2), functional

    def forward(self, ids: Tensor) -> Tensor:
        rows = nn.functional.embedding(ids, self.words.weight) if self.functional else self.words(ids)
        out: Tensor = self.out(torch.tanh(rows).mean(1))
        return out


def test_ids_that_an_embedding_has_no_row_for() -> None:
    model, ids = settle(Sentence()), torch.tensor([[1, 2, 3], [4, 5, 7]])
    wrong = ("Module 'words' (Embedding) has 20 rows", "ids must lie between 0 and 19")
    with refuses(model, InputError, ValueError, *wrong, "from 50 to 50"):
        DeepLift(model).attribute(ids, 50, 1)
    for method in (Gradient(model), LRP(model)):
        with refuses(model, InputError, ValueError, *wrong, "from 51 to 57"):
            method.attribute(ids + 50, 1)
    with refuses(model, InputError, ValueError, *wrong, "from -1 to 5"):
        Gradient(model).attribute(ids - 2, 1)
    with refuses(model, InputError, ValueError, *wrong):
        FeatureAblation(model).attribute(ids, 50, 1)
    with refuses(model, InputError, ValueError, *wrong):
        FeatureAblation(model).attribute(ids + 50, target=1)
    plain = settle(Sentence(functional=True))
    with refuses(plain, InputError, ValueError, "embedding has 20 rows"):
        Gradient(plain).attribute(ids + 50, 1)


def test_ids_that_nothing_consumes() -> None:
    class Cast(nn.Module):
        def forward(self, ids: Tensor) -> Tensor:
            return ids.double().sum(1)

    with refuses(model := Cast(), InputError, ValueError, "no embedding of the model consumed them"):
        Gradient(model).attribute(torch.tensor([[1, 2]]))


# --------------------------------------------------------------------------------------- baselines in structures


class Two(nn.Module):
    def forward(self, data: dict[str, Any]) -> Tensor:
        return (data["x"] * data["y"]).sum(1)


def test_what_a_structure_of_baselines_lacks() -> None:
    model, x, y = Two(), vectors(), vectors(seed=1)
    given = {"x": x, "y": y, "name": "z"}
    with refuses(model, InputError, ValueError, "baselines must have the structure of the inputs: 'y' is missing."):
        IntegratedGradients(model).attribute(given, {"x": x})
    with refuses(model, InputError, ValueError, "'y' is missing, and the inputs have no 'Y'"):
        DeepLift(model).attribute(given, {"x": x, "Y": y})
    with refuses(model, InputError, ValueError, "the inputs have no 'z'"):
        DeepLift(model).attribute(given, {"x": x, "y": y, "z": y})
    with refuses(model, InputError, ValueError, "dict, got [1]"):
        DeepLift(model).attribute(given, [1])
    with refuses(model, InputError, ValueError, "1 is missing"):
        DeepLift(model).attribute({"x": [x, y], "y": y}, {"x": [x], "y": y})


def test_the_order_of_keys_does_not_matter() -> None:
    model, x, y = Two(), vectors(), vectors(seed=1)
    found = IntegratedGradients(model).attribute({"x": x, "y": y}, {"y": 3 * y, "x": 2 * x}, n_steps=2)
    close(found["x"], -x * 2 * y)
    close(found["y"], -2 * y * 1.5 * x)


# -------------------------------------------------------------------------------------------- sums not claimed


def test_why_a_combination_claims_no_sum() -> None:
    model, x = mlp(), vectors()
    with refuses(model, InputError, ValueError, "Combined", "weights sum to 2, not to 1", "no convergence delta"):
        Combined([(LRP(model), 1.0), (LRP(model), 1.0)]).attribute(x, 1, return_convergence_delta=True)
    several = Combined([GradientXInput(model), DeepLift(model)])
    with refuses(model, InputError, ValueError, "GradientXInput to f, DeepLift to f - f'"):
        several.attribute(x, 1, return_convergence_delta=True)


def test_dropout_inside_attention_warns() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.attention(x, x, x)[0].sum(1)
            return out

    model, x = Attending().double().train(), torch.randn(2, 3, 4, dtype=torch.float64)
    with pytest.warns(TrainingModeWarning, match=r"'attention' \(MultiheadAttention\)"):
        Gradient(model).attribute(x, 1)
    model.attention.dropout = 0.0
    Gradient(model).attribute(x, 1)


@pytest.mark.slow
def test_long_work_shows_how_far_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = mlp(), vectors()
    shap, taylor = DeepLiftShap(model), SimpleTaylor(nn.Linear(4, 3).double(), starts=3)
    close(shap.attribute(x, x + 1, 1, progress=True), shap.attribute(x, x + 1, 1))
    assert "0/2" in capsys.readouterr().err
    close(taylor.attribute(x, 1, progress=True), taylor.attribute(x, 1))
    assert "0/3" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with refuses(model, MissingExtraError, ImportError, "relprop[progress]"):
        shap.attribute(x, x + 1, 1, progress=True)
