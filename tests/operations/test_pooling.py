"""Pooling against the explicit reference: maximum by its winner or by its average, and average pooling."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, Rules
from relprop.errors import RuleError
from relprop.rules import AveragePool, Epsilon, Flat
from tests import reference, reference_steps
from tests.cases import DTYPE, seed_like, signed
from tests.compare import TOLERANCE, distance, weighted

MAXIMUM = [
    pytest.param(nn.MaxPool1d(3, 2), (2, 3, 9), id="1d"),
    pytest.param(nn.MaxPool1d(2, 1, dilation=3), (2, 3, 9), id="1d-dilation"),
    pytest.param(nn.MaxPool2d(2), (2, 3, 6, 6), id="2d"),
    pytest.param(nn.MaxPool2d(3, 2), (2, 3, 7, 7), id="2d-overlapping"),
    pytest.param(nn.MaxPool2d((2, 3), (1, 2)), (2, 2, 6, 7), id="2d-uneven"),
    pytest.param(nn.MaxPool2d(2, 1, dilation=(2, 1)), (2, 2, 6, 7), id="2d-dilation"),
    pytest.param(nn.MaxPool3d(2, 1), (2, 2, 4, 3, 4), id="3d"),
]
# Windows that reach over the edge hold fewer entries; the rule's average over them divides by what they hold.
CLIPPED = [
    pytest.param(nn.MaxPool1d(3, 2, padding=1), (2, 3, 8), id="1d-padding"),
    pytest.param(nn.MaxPool2d(3, 2, padding=1), (2, 3, 6, 6), id="2d-padding"),
    pytest.param(nn.MaxPool2d(3, 2, padding=1, dilation=2), (2, 3, 8, 8), id="2d-padding-dilation"),
    pytest.param(nn.MaxPool2d(3, 2, ceil_mode=True), (2, 3, 6, 6), id="2d-ceil"),
    pytest.param(nn.MaxPool3d(2, 2, padding=1), (2, 2, 4, 3, 4), id="3d-padding"),
]
AVERAGE = [
    pytest.param(nn.AvgPool1d(3, 2), (2, 3, 9), id="1d"),
    pytest.param(nn.AvgPool1d(3, 2, padding=1, count_include_pad=False), (2, 3, 9), id="1d-padding"),
    pytest.param(nn.AvgPool2d(2), (2, 3, 6, 6), id="2d"),
    pytest.param(nn.AvgPool2d(3, 2, padding=1), (2, 3, 6, 6), id="2d-padding"),
    pytest.param(nn.AvgPool2d(3, 2, ceil_mode=True), (2, 3, 6, 6), id="2d-ceil"),
    pytest.param(nn.AvgPool2d(2, divisor_override=3), (2, 3, 6, 6), id="2d-divisor"),
    pytest.param(nn.AvgPool3d(2, 1), (2, 2, 4, 3, 4), id="3d"),
    pytest.param(nn.AdaptiveAvgPool1d(4), (2, 3, 7), id="adaptive-1d"),
    pytest.param(nn.AdaptiveAvgPool2d((3, 2)), (2, 3, 7, 5), id="adaptive-2d"),
    pytest.param(nn.AdaptiveAvgPool2d(1), (2, 3, 7, 5), id="global"),
    pytest.param(nn.AdaptiveAvgPool3d(2), (2, 2, 4, 3, 4), id="adaptive-3d"),
]


def between(pool: nn.Module, x: Tensor) -> nn.Sequential:
    """The pooling between a ReLU and a dense layer."""
    torch.manual_seed(0)
    features = pool(x)[0].numel()
    return nn.Sequential(nn.ReLU(), pool, nn.Flatten(), nn.Linear(features, 3)).to(DTYPE)


@pytest.mark.parametrize(("pool", "shape"), [*MAXIMUM, *CLIPPED, *AVERAGE])
def test_alone_on_signed_input(pool: nn.Module, shape: tuple[int, ...]) -> None:
    x = signed(shape)
    out = pool(x)
    seed = seed_like(out)
    found = LRP(pool).attribute(x, target=weighted(seed))
    assert distance(found, reference_steps.pool(pool, x, out * seed)) < TOLERANCE


@pytest.mark.parametrize(("pool", "shape"), [*MAXIMUM, *CLIPPED, *AVERAGE])
@pytest.mark.parametrize("rule", ["epsilon", "flat"])
def test_in_network(pool: nn.Module, shape: tuple[int, ...], rule: str) -> None:
    # Under flat relevance arrives at windows of zeros: the first of equals wins, and averages share equally.
    x = signed(shape, seed=1)
    x[..., : shape[-1] // 2] = 0.0
    model = between(pool, x)
    seed = seed_like(model(x))
    method = LRP(model, {"epsilon": Epsilon(), "flat": Flat()}[rule])
    expected = reference_steps.explain(list(model), x, seed, (rule, {}))[0]
    assert distance(method.attribute(x, target=weighted(seed)), expected) < TOLERANCE


UNDILATED = [case for case in [*MAXIMUM, *CLIPPED] if case.values[0].dilation in (1, (1, 1), (1, 1, 1))]


def averaged(stabilizer: float | None) -> Rules:
    rule = AveragePool() if stabilizer is None else AveragePool(stabilizer=stabilizer)
    return Rules().set(nn.Linear, Epsilon()).set((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), rule)


def expected_average(model: nn.Sequential, x: Tensor, seed: Tensor, stabilizer: float | None) -> Tensor:
    relu, pool, flatten, head = model
    a = relu(x)
    pooled = pool(a)
    relevance = reference.linear(head, flatten(pooled), model(x) * seed, "epsilon").reshape(pooled.shape)
    options = {} if stabilizer is None else {"stabilizer": stabilizer}
    return reference_steps.pool(pool, a, relevance, "average", **options)


@pytest.mark.parametrize("stabilizer", [None, 0.0, 0.1])
@pytest.mark.parametrize(("pool", "shape"), UNDILATED)
def test_average_rule_for_max_pooling(pool: nn.Module, shape: tuple[int, ...], stabilizer: float | None) -> None:
    x = signed(shape, seed=2)
    model = between(pool, x)
    seed = seed_like(model(x))
    found = LRP(model, averaged(stabilizer)).attribute(x, target=weighted(seed))
    assert distance(found, expected_average(model, x, seed, stabilizer)) < TOLERANCE


@pytest.mark.parametrize(("pool", "shape"), UNDILATED)
def test_average_rule_without_stabilizer_conserves(pool: nn.Module, shape: tuple[int, ...]) -> None:
    x = signed(shape, seed=3).abs() + 0.1
    model = between(pool, x)
    with torch.no_grad():
        model[-1].bias.zero_()
    rules = Rules().set(type(pool), AveragePool(stabilizer=0.0))
    found = LRP(model, rules).attribute(x, target=1)
    torch.testing.assert_close(found.flatten(1).sum(1), model(x)[:, 1], rtol=1e-10, atol=1e-12)


def test_average_rule_does_not_serve_dilated_windows() -> None:
    pool = nn.MaxPool1d(2, dilation=2)
    with pytest.raises(RuleError, match="dilated"):
        LRP(pool, Rules().set(nn.MaxPool1d, AveragePool())).attribute(signed((2, 3, 8)), target=(0, 0))
