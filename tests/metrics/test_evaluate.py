"""What ``evaluate`` hands on, and what it refuses: batches, metrics and explainers as a first try writes them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import relprop
from relprop.errors import InputError, InputTypeError
from relprop.metrics import evaluate, gini_sparseness, random_logit, relevance_mass_accuracy, selectivity
from tests.metrics.small import TARGET, gradient_x_input, images, network

X = images(6)
CLASSES = torch.tensor([0, 1, 2, 0, 1, 2])
MASK = torch.rand(6, *X.shape[-2:], generator=torch.Generator().manual_seed(3)) > 0.5
WEIGHT = torch.rand(6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def mass(explain: Any, model: nn.Module, x: Tensor, target: Any, mask: Tensor) -> Tensor:
    return relevance_mass_accuracy(explain(model, x, target), mask)


def share(explain: Any, model: nn.Module, x: Tensor, target: Any, mask: Tensor, weight: Tensor, *, by: float) -> Tensor:
    return by * weight * mass(explain, model, x, target, mask)


def test_what_a_batch_holds_goes_to_the_metrics_that_take_it() -> None:
    model = network()
    batches = list(zip(X.split(4), CLASSES.split(4), MASK.split(4), strict=True))
    assert [len(batch[0]) for batch in batches] == [4, 2]
    found = evaluate({"GxI": gradient_x_input}, {"mass": mass, "selectivity": selectivity}, model, batches)
    expected = relevance_mass_accuracy(gradient_x_input(model, X, CLASSES), MASK)
    assert expected.unique().numel() > 3
    torch.testing.assert_close(found.values["GxI"]["mass"], expected)
    whole = selectivity(gradient_x_input, model, X, CLASSES).values
    torch.testing.assert_close(found.values["GxI"]["selectivity"], whole)


def test_several_more_as_arrays_and_by_a_loader() -> None:
    model = network()
    data = torch.utils.data.TensorDataset(X, CLASSES, MASK, WEIGHT)
    expected = 2 * WEIGHT * relevance_mass_accuracy(gradient_x_input(model, X, CLASSES), MASK)
    for batches in (
        torch.utils.data.DataLoader(data, batch_size=4),
        [(np.asarray(X), np.asarray(CLASSES), np.asarray(MASK), np.asarray(WEIGHT))],
    ):
        found = evaluate({"GxI": gradient_x_input}, {"share": partial(share, by=2.0)}, model, batches)
        torch.testing.assert_close(found.values["GxI"]["share"], expected)


def test_every_metric_gets_its_own_copy_of_the_mask() -> None:
    def writes(explain: Any, model: nn.Module, x: Tensor, target: Any, mask: Tensor) -> Tensor:
        found = mass(explain, model, x, target, mask)
        mask.zero_()
        return found

    mask = MASK.clone()
    found = evaluate(
        {"GxI": gradient_x_input}, {"first": writes, "second": writes}, network(), [(X, CLASSES, mask)]
    ).values["GxI"]
    torch.testing.assert_close(found["first"], found["second"])
    assert torch.equal(mask, MASK)


def entropy(relevance: Tensor) -> Tensor:
    return relevance.flatten(1).mean(1)


PAIR, TRIPLE = (X, CLASSES), (X, CLASSES, MASK)
LRP_OBJECT = relprop.LRP(network())


@pytest.mark.parametrize(
    ("explainer", "metric", "batch", "error", "message"),
    [
        (gradient_x_input, selectivity, TRIPLE, InputError, r"3 entries, and no metric takes more .*, mask\)"),
        (gradient_x_input, selectivity, (X,), InputError, r"has 1 entry; expected a pair \(x, target\)"),
        (gradient_x_input, selectivity, (), InputError, "has 0 entries; expected a pair"),
        (gradient_x_input, mass, PAIR, InputTypeError, r"'m' takes \(explain, .*, mask\), and is .*argument: 'mask'"),
        (gradient_x_input, mass, (*TRIPLE, WEIGHT), InputTypeError, "too many positional arguments"),
        (gradient_x_input, share, (*TRIPLE, WEIGHT), InputTypeError, "argument: 'by'.*functools.partial"),
        (gradient_x_input, entropy, PAIR, InputTypeError, r"target: entropy\(explain\(model, x, target\)\)"),
        (gradient_x_input, gini_sparseness, PAIR, InputTypeError, r"gini_sparseness\(explain\(model, x, target\)\)"),
        (
            gradient_x_input,
            relevance_mass_accuracy,
            TRIPLE,
            InputTypeError,
            r"lambda explain, model, x, target, mask: relevance_mass_accuracy\(explain\(model, x, target\), mask\)",
        ),
        (gradient_x_input, lambda r: r, PAIR, InputTypeError, r"metric\(explain\(model, x, target\)\)"),
        (gradient_x_input, lambda *a: torch.ones(6, 1), PAIR, InputError, r"Tensor of shape \(6, 1\).*shape \(6,\)"),
        (gradient_x_input, lambda *a: None, PAIR, InputError, "returned None; expected a tensor of shape"),
        (gradient_x_input, lambda *a: {"a": 1}.values(), PAIR, InputError, "returned a dict_values"),
        ("lrp", selectivity, PAIR, InputTypeError, r"'e' is 'lrp'.*relprop.explain\(model, x, target, 'lrp'\)"),
        (LRP_OBJECT, selectivity, PAIR, InputTypeError, r"a LRP, which has a model of its own.*LRP\(model\).attribute"),
        (relprop.LRP, selectivity, PAIR, InputTypeError, r"is the class LRP; .*LRP\(model\).attribute"),
        (None, selectivity, PAIR, InputTypeError, "'e' is a NoneType; expected a callable"),
        (lambda model, x, target: x[0], entropy_of := (lambda e, m, x, t: e(m, x, t).flatten(1).mean(1)), PAIR,
         InputError, r"explainer 'e' returned relevance of shape .*the shape of the input"),
        (lambda model, x, target: x.tolist(), entropy_of, PAIR, InputTypeError, "'e' returned relevance, a list"),
    ],
    ids=[
        "a batch too long",
        "no target",
        "an empty batch",
        "no mask",
        "an argument too many",
        "an option not given",
        "a score of relevance",
        "gini_sparseness",
        "relevance_mass_accuracy",
        "a lambda",
        "a column",
        "nothing",
        "a view of a mapping",
        "a method's name",
        "a method that has a model",
        "a class",
        "no explainer",
        "one sample too few",
        "a list",
    ],
)  # fmt: skip
def test_first_mistakes(
    explainer: Any, metric: Callable[..., Any], batch: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        evaluate({"e": explainer}, {"m": metric}, network(), [batch])


@pytest.mark.parametrize("metric", [selectivity, partial(random_logit, classes=3)])
@pytest.mark.parametrize(
    ("explainer", "message"), [("lrp", "is 'lrp'"), (LRP_OBJECT, "a LRP"), (relprop.LRP, "class LRP")]
)
def test_metrics_say_what_an_explainer_is(metric: Callable[..., Any], explainer: Any, message: str) -> None:
    with pytest.raises(InputTypeError, match=f"{message}.*expected a callable.*write lambda model, x, target"):
        metric(explainer, network(), images(), torch.tensor(TARGET))


def test_relevance_that_is_there_already_is_measured() -> None:
    model = network()
    relevance = gradient_x_input(model, X, CLASSES)
    found = evaluate({"there": relevance}, {"selectivity": selectivity}, model, [PAIR])
    expected = selectivity(gradient_x_input, model, X, CLASSES).values
    torch.testing.assert_close(found.values["there"]["selectivity"], expected)
