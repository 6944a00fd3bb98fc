"""No sample, no tensor, no target: an error that says so, and never one of torch's."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import relprop.metrics as metrics
from relprop.errors import InputError, InputTypeError, MissingExtraError, TargetTypeError
from relprop.metrics import evaluate
from tests.metrics.small import gradient_x_input, images, network

ON_MODELS = [
    "conservation",
    "deletion",
    "faithfulness_correlation",
    "faithfulness_estimate",
    "insertion",
    "monotonicity_arya",
    "monotonicity_nguyen",
    "perturbation_curve",
    "pixel_flipping",
    "road",
    "selectivity",
    "sensitivity_n",
]
ON_TENSORS: dict[str, Callable[[Any], Any]] = {
    **{
        f"baseline {name}": lambda x, name=name: metrics.baseline_of(x, name)
        for name in ("zero", "mean", "blur", "noise", "invert", "neighbours", 0.0)
    },
    "blurred": metrics.blurred,
    "neighbours_mean": metrics.neighbours_mean,
    "imputation": lambda x: metrics.noisy_linear_imputation(x, torch.zeros(0, 4, 6, dtype=torch.bool)),
    "random_neighbours": lambda x: metrics.random_neighbours(x, 0.1),
    "translated": lambda x: metrics.translated(x, [(0, 1)]),
    "translation": lambda x: metrics.translation(x, (0, 1)),
    "interpolation": lambda x: metrics.interpolation(x, torch.zeros(2, 4, 6)),
    "gini_sparseness": metrics.gini_sparseness,
    "entropy_complexity": metrics.entropy_complexity,
    "pointing_game": lambda x: metrics.pointing_game(x, torch.zeros(0, 4, 6), radius=1),
    "irof": lambda x: metrics.irof(gradient_x_input, network(), x, [], 2),
    "region": lambda x: metrics.region_perturbation(gradient_x_input, network(), x, [], region=2),
    "path": lambda x: metrics.trajectory(gradient_x_input, network(), x if x is None else x.expand(3, 0, 2, 4, 6), []),
    **{name: lambda x, name=name: getattr(metrics, name)(gradient_x_input, network(), x, []) for name in ON_MODELS},
    **{
        name: lambda x, name=name: getattr(metrics, name)(x, torch.zeros(0, 4, 6))
        for name in ("inside_total_ratio", "localisation_auc", "relevance_mass_accuracy", "relevance_rank_accuracy")
    },
    "top_k_intersection": lambda x: metrics.top_k_intersection(x, torch.zeros(0, 4, 6), 2),
}


@pytest.mark.parametrize("name", ON_TENSORS)
def test_no_sample_and_no_tensor(name: str) -> None:
    with pytest.raises(InputError, match="at least one sample"):
        ON_TENSORS[name](images()[:0])
    with pytest.raises(InputTypeError, match=r"expected (a tensor|tensors)"):
        ON_TENSORS[name](None)


def mean_relevance(explain: Any, model: nn.Module, x: Tensor, target: Any) -> Tensor:
    return explain(model, x, target).flatten(1).mean(dim=1)


def one(model: nn.Module, x: Tensor, target: Any) -> Tensor:
    assert target is None
    return x * torch.arange(3.0)


@pytest.mark.parametrize("model", [nn.Linear(3, 1), nn.AvgPool1d(3)])
def test_evaluate_without_targets(model: nn.Module) -> None:
    x = torch.rand(5, 3)
    found = evaluate(
        {"one": one},
        {"mean": mean_relevance, "conservation": metrics.conservation},
        model,
        [(x[:2], None), (x[2:], None)],
    )
    expected = x.numpy() * [0, 1, 2]
    torch.testing.assert_close(found.values["one"]["mean"], torch.from_numpy(expected.mean(axis=1)))
    f = model(x).detach().double().numpy()[:, 0]
    delta = abs(f - expected.sum(axis=1)) / abs(f)
    torch.testing.assert_close(found.values["one"]["conservation"], torch.from_numpy(delta), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([(images()[:0], [])], InputError, "at least one sample"),
        ([(images(), "abc")], TargetTypeError, "target is a str"),
        ([("abc", None)], InputTypeError, "x is a str"),
        (None, InputTypeError, "batches is a NoneType"),
        ([images()], InputError, "a batch is a Tensor; expected a pair"),
    ],
)
def test_batches_that_are_none(batches: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        evaluate({"one": one}, {"mean": mean_relevance}, network(), batches)


def test_evaluate_shows_its_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    x = torch.rand(5, 3)
    call: Any = lambda **options: evaluate(  # noqa: E731
        {"one": one}, {"mean": mean_relevance}, nn.Linear(3, 1), iter([(x, None)] * 4), **options
    )
    quiet = call()
    assert capsys.readouterr().err == ""
    shown = call(progress=True)
    assert "evaluate" in capsys.readouterr().err
    torch.testing.assert_close(quiet.values, shown.values)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(MissingExtraError, match=r"relprop\[progress\]"):
        call(progress=True)
