"""Shapley values by sampling: against all orders of the features, and against Captum called directly."""

from __future__ import annotations

import sys
from itertools import permutations
from typing import Any

import captum.attr
import pytest
import torch
from torch import Tensor, nn

from relprop import InputError, InputTypeError, KernelShap, MissingExtraError, ShapleyValueSampling, methods
from tests.attribution.averages import BACKGROUND, QUADRANTS, pictures, spelt
from tests.checks import refuses
from tests.models import close, mlp, settle, vectors

both = pytest.mark.parametrize("method", [ShapleyValueSampling, KernelShap])


def all_orders(score: Any, x: Tensor, end: Tensor, labels: Tensor) -> Tensor:
    """The mean gain of every feature over all orders in which they join."""
    features = labels.unique().tolist()
    total, orders = torch.zeros_like(x), list(permutations(features))
    for order in orders:
        here, value = end.clone(), score(end)
        for feature in order:
            here = torch.where(labels == feature, x, here)
            gain, value = score(here) - value, score(here)
            total += (labels == feature) * gain.reshape(-1, *(1,) * (x.dim() - 1)).detach()
    return total / len(orders)


@pytest.mark.slow
def test_shapley_values_in_the_mean() -> None:
    model, x, end = spelt()[0], pictures(), BACKGROUND[:2]
    expected = all_orders(lambda leaf: model(leaf)[:, 1], x, end, QUADRANTS)
    found, delta = ShapleyValueSampling(model).attribute(
        x, end, 1, None, QUADRANTS, 600, return_convergence_delta=True, internal_batch_size=8
    )
    close(found, expected, 0.1)
    shares = found[:, 0, ::3, ::3].flatten(1).sum(1)  # one entry of every quadrant
    close(shares, (model(x) - model(end))[:, 1].detach(), 1e-5)  # Captum adds up in single precision
    close(delta, (model(x) - model(end))[:, 1].detach() - found.flatten(1).sum(1))


@pytest.mark.slow
def test_the_fit_of_all_sets() -> None:
    """With all sets of four features among the samples, and again, the fit is the Shapley values."""
    model, x, end = spelt()[0], pictures(), BACKGROUND[:2]
    expected = all_orders(lambda leaf: model(leaf)[:, 1], x, end, QUADRANTS)
    found = KernelShap(model).attribute(x, end, 1, None, QUADRANTS, 2000, internal_batch_size=400)
    close(found, expected, 0.1)


@pytest.mark.slow
@both
def test_every_entry_a_feature(method: Any) -> None:
    model, x = settle(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))), vectors(3)
    expected = all_orders(lambda leaf: model(leaf)[:, 2], x, torch.zeros_like(x), torch.arange(4)[None])
    found, delta = method(model).attribute(
        x, target=2, n_samples=1500, return_convergence_delta=True, internal_batch_size=400
    )
    close(found, expected, 0.05)
    assert float(delta.abs().max()) < (1e-5 if method is ShapleyValueSampling else 1e-3)
    linear = settle(nn.Linear(4, 3))
    close(method(linear).attribute(x, 1.0, 2, n_samples=30), (x - 1) * linear.weight[2].detach(), 1e-4)


@both
@pytest.mark.parametrize("seed", [0, 3])
def test_it_is_captum_and_leaves_the_global_numbers_alone(method: Any, seed: int) -> None:
    model, x = spelt()[0], pictures(1)
    torch.manual_seed(seed)
    explainer = getattr(captum.attr, method.__name__)(model)
    theirs = explainer.attribute(x, 0.3, 1, feature_mask=QUADRANTS.contiguous(), n_samples=9)
    torch.manual_seed(seed + 7)
    state = torch.get_rng_state()
    found = method(model).attribute(x, 0.3, 1, feature_mask=5 * QUADRANTS - 2, n_samples=9, seed=seed)
    assert torch.equal(torch.get_rng_state(), state)
    close(found, theirs.to(x.dtype), 1e-5)
    assert not torch.equal(found, method(model).attribute(x, 0.3, 1, None, QUADRANTS, 9, seed=seed + 1))


@both
def test_token_ids(method: Any) -> None:
    model = settle(nn.Sequential(nn.Embedding(6, 4), nn.Flatten(), nn.Linear(12, 2)))
    ids = torch.tensor([[1, 2, 3], [3, 4, 5]])
    found = method(model).attribute(ids, 0, 1, n_samples=40)
    zero = torch.zeros_like(ids)
    for position in range(3):
        there = ids.clone()
        there[:, position] = 0
        close(found[:, position].double(), (model(ids) - model(there))[:, 1].detach(), 1e-4)
    close(found.sum(1).double(), (model(ids) - model(zero))[:, 1].detach(), 1e-4)


@both
def test_bad_input(method: Any) -> None:
    model, x = mlp(), vectors(3)
    for options, error, words in (
        ({"n_samples": 0}, InputError, ("n_samples", "at least 1")),
        ({"baselines": torch.zeros(3, 5)}, InputError, ("The baseline has shape (3, 5)",)),
        ({"feature_mask": torch.zeros(1, 3).long()}, InputError, ("feature_mask has shape (1, 3)",)),
        ({"feature_mask": torch.zeros(1, 4)}, InputTypeError, ("tensor of integers",)),
        ({"seed": 1.5}, InputTypeError, ("seed must be an int",)),
    ):
        with refuses(model, error, ValueError if error is InputError else TypeError, *words):
            method(model).attribute(x, target=1, **options)
    if method is KernelShap:
        with refuses(model, InputError, ValueError, "two features at least"):
            method(model).attribute(x, target=1, feature_mask=torch.zeros(1, 4).long())


@both
def test_without_the_packages(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = mlp(), vectors()
    for missing in method.needs:
        with monkeypatch.context() as without:
            without.setitem(sys.modules, missing, None)
            with refuses(model, MissingExtraError, ImportError, method.__name__, missing, "relprop[captum]"):
                method(model).attribute(x, target=1)
    entry = methods()[method.__name__]
    assert entry.method is method and entry.contract is not None and entry.contract.sums_to == "f - f'"
