"""What is wrong is said: shapes, NaN, regions, masks, targets, loaders, missing packages."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relprop import InputError
from relprop.errors import (
    InputTypeError,
    MissingExtraError,
    ModelError,
    NumericalError,
    TargetError,
    TargetIndexError,
    TargetTypeError,
)
from relprop.metrics import (
    baseline_of,
    blurred,
    efficient_randomisation,
    entropy_complexity,
    evaluate,
    faithfulness_correlation,
    faithfulness_estimate,
    hog_similarity,
    infidelity,
    input_invariance,
    insertion,
    irof,
    localisation_auc,
    monotonicity_arya,
    monotonicity_nguyen,
    neighbours_mean,
    noisy_linear_imputation,
    parameter_randomisation,
    perturbation_curve,
    pointing_game,
    random_logit,
    region_perturbation,
    relevance_mass_accuracy,
    road,
    selectivity,
    sensitivity_n,
    smoothed,
    structural_similarity,
    top_k_intersection,
)
from tests.metrics.small import TARGET, gradient_x_input, images, network

METRICS = {
    "perturbation_curve": perturbation_curve,
    "selectivity": selectivity,
    "recomputed": lambda *args: perturbation_curve(*args, recompute=True),
    "insertion": insertion,
    "faithfulness_correlation": faithfulness_correlation,
    "faithfulness_estimate": faithfulness_estimate,
    "infidelity": infidelity,
    "road": road,
    "irof": lambda *args: irof(*args, 2),
    "randomisation": parameter_randomisation,
}


@pytest.mark.parametrize("name", METRICS)
def test_what_an_explainer_returns(name: str) -> None:
    metric, model, x = METRICS[name], network(), images()
    with pytest.raises(InputError, match=r"\(3, 1, 4, 6\).*expected \(3, 2, 4, 6\)"):
        metric(lambda model, x, target: x[:, :1], model, x, TARGET)

    def broken(model: nn.Module, x: Tensor, target: Any) -> Tensor:
        found = x.clone()
        found[1, 0, 0, 0] = math.nan
        return found

    with pytest.raises(InputError, match=r"explainer broken.*NaN or infinity in 1 of 3 samples.*sample 1"):
        metric(broken, model, x, TARGET)
    with pytest.raises(InputTypeError, match="tuple"):
        metric(lambda model, x, target: (x,), model, x, TARGET)
    with pytest.raises(InputError, match="at least one sample"):
        metric(gradient_x_input, model, x[:0], [])
    with pytest.raises(TargetError, match=r"shape \(2,\).*3 samples"):
        metric(gradient_x_input, model, x, [0, 1])


def curve(**options: Any) -> Callable[[], Any]:
    return lambda: perturbation_curve(gradient_x_input, network(), images(), TARGET, **options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (curve(features=5), InputError, "region of 5 x 5 is larger than the input, 4 x 6"),
        (curve(features=(2, 7)), InputError, "larger than the input"),
        (curve(features=(2, 2, 2)), InputError, "side or by"),
        (curve(features=0), InputError, "at least 1"),
        (curve(features="squares"), InputError, "'squares'"),
        (curve(features=torch.zeros(3, 5, dtype=torch.long)), InputError, r"segments have shape \(3, 5\)"),
        (curve(features=torch.rand(3, 4, 6)), InputTypeError, "expected integers"),
        (curve(order="first"), InputError, "'first'"),
        (curve(steps=25), InputError, "only 24 units"),
        (curve(steps=0), InputError, "at least 1"),
        (curve(fraction=0.0), InputError, "fraction"),
        (curve(baseline="black"), InputError, "'black'"),
        (curve(baseline=torch.zeros(5)), InputError, r"shape \(5,\)"),
        (curve(baseline=lambda x: x * math.inf), InputError, "NaN or infinity"),
        (curve(baseline=lambda x: 0), InputTypeError, "int"),
        (curve(output="score"), InputError, "'score'"),
        (curve(output=lambda outputs, target: outputs), InputError, "one number for each sample"),
        (curve(output=lambda outputs, target: outputs[:1, 0]), InputError, "scores for"),
        (curve(internal_batch_size=0), InputError, "internal_batch_size"),
        (curve(seed=0.5), InputTypeError, "seed"),
        (
            lambda: perturbation_curve(images(), network(), images(), TARGET, recompute=True),
            InputError,
            "expected an explainer",
        ),
        (lambda: region_perturbation(images(), network(), images(), TARGET), InputError, "9 x 9"),
        (lambda: perturbation_curve(images(), network(), images()), TargetError, "expected a target"),
        (lambda: perturbation_curve(images(), network(), images(), 3), TargetIndexError, "3 is out of range"),
        (lambda: perturbation_curve(images(), network(), images(), 0.5), TargetTypeError, "float"),
        (lambda: perturbation_curve(images(), network(), images(), torch.rand(3)), TargetTypeError, "integers"),
        (lambda: perturbation_curve(images(), nn.Conv2d(2, 2, 1).double(), images(), 0), ModelError, "output="),
        (
            lambda: perturbation_curve(images(), network(), images(), TARGET, baseline=1e200 * 1e150),
            InputError,
            "NaN or infinity",
        ),
        (
            lambda: perturbation_curve(
                torch.ones(2, 3), nn.Linear(3, 1), torch.ones(2, 3), baseline=1e38, output=lambda o, t: o[:, 0] * 1e10
            ),
            NumericalError,
            "perturbed",
        ),
        (
            lambda: perturbation_curve(torch.ones(2, 3), nn.Linear(3, 1), torch.ones(2, 3), features="pixels"),
            InputError,
            "pixels need",
        ),
        (
            lambda: perturbation_curve(torch.ones(2, 3), nn.Linear(3, 1), torch.ones(2, 3), features=2),
            InputError,
            "images",
        ),
        (lambda: perturbation_curve([1], nn.Linear(3, 1), [1.0]), InputTypeError, "list"),
        (lambda: insertion(torch.ones(2, 3), nn.Linear(3, 1), torch.ones(2, 3), 0), InputError, "blur needs images"),
        (lambda: baseline_of(torch.ones(2, 3, dtype=torch.long), "mean"), InputTypeError, "not defined for"),
        (lambda: baseline_of(torch.ones(2, 3, dtype=torch.long), torch.rand(3)), InputTypeError, "expected integers"),
        (lambda: blurred(images(), 0.0), InputError, "sigma"),
        (lambda: neighbours_mean(images(), (4, 6)), InputError, "no neighbours"),
        (lambda: neighbours_mean(torch.ones(2, 3)), InputError, "need images"),
        (
            lambda: faithfulness_correlation(images(), network(), images(), TARGET, subset_size=25),
            InputError,
            "only 24",
        ),
        (lambda: faithfulness_correlation(images(), network(), images(), TARGET, samples=1), InputError, "at least 2"),
        (lambda: sensitivity_n(images(), network(), images(), TARGET, sizes=(0,)), InputError, "at least 1"),
        (
            lambda: faithfulness_estimate(
                torch.ones(2, 3), nn.Linear(3, 1), torch.ones(2, 3), 0, features=torch.tensor([[0, 1, 2], [0, 0, 0]])
            ),
            InputError,
            "from 1 to 3 segments",
        ),
        (lambda: infidelity(images(), network(), images(), TARGET, kind="map"), InputError, "'map'"),
        (lambda: infidelity(images(), network(), images(), TARGET, perturbation="drop"), InputError, "'drop'"),
        (
            lambda: infidelity(images(), network(), images(), TARGET, perturbation="square", square=5),
            InputError,
            "larger",
        ),
        (
            lambda: infidelity(images(), network(), images(), TARGET, perturbation=lambda x, source: x[:1]),
            InputError,
            "the perturbation is of shape",
        ),
        (lambda: road(images(), network(), images(), TARGET, fractions=(0.5, 1.0)), InputError, "leave a pixel"),
        (lambda: road(images(), network(), images(), None), InputError, "expected a target"),
        (lambda: road(torch.ones(2, 3), nn.Linear(3, 1), torch.ones(2, 3), 0), InputError, "ROAD imputes"),
        (lambda: noisy_linear_imputation(images(), torch.ones(3, 4, 6) > 0), InputError, "image 0"),
        (lambda: noisy_linear_imputation(images(), torch.ones(3, 4, 5) > 0), InputError, "gone is"),
        (lambda: noisy_linear_imputation(torch.ones(2, 3), torch.ones(2, 3) > 0), InputError, "needs images"),
        (
            lambda: parameter_randomisation(gradient_x_input, network(), images(), TARGET, order="up"),
            InputError,
            "'up'",
        ),
        (
            lambda: parameter_randomisation(gradient_x_input, network(), images(), TARGET, layers=["4"]),
            ModelError,
            "'4'",
        ),
        (
            lambda: parameter_randomisation(gradient_x_input, nn.Flatten(), images(), 0),
            ModelError,
            "nothing to randomise",
        ),
        (
            lambda: parameter_randomisation(gradient_x_input, network(), images(), TARGET, similarity="rmse"),
            InputError,
            "'rmse'",
        ),
        (
            lambda: parameter_randomisation(gradient_x_input, network(), images(), TARGET, similarity=lambda a, b: a),
            InputError,
            "one number for each map",
        ),
        (lambda: smoothed(gradient_x_input, sigma=-1), InputError, "sigma"),
        (lambda: random_logit(gradient_x_input, network(), images(), TARGET, 2), TargetError, "0 to 1"),
        (lambda: random_logit(gradient_x_input, network(), images(), None, 3), TargetError, "expected a target"),
        (lambda: structural_similarity(images(), images()[:1]), InputError, "two of one shape"),
        (lambda: structural_similarity(images(), images(), window=4), InputError, "odd"),
        (lambda: structural_similarity(torch.ones(2, 9), torch.ones(2, 9)), InputError, "images"),
        (lambda: hog_similarity(images(), images()), InputError, "16 x 16"),
        (lambda: hog_similarity(torch.rand(1, 1, 16, 16), torch.rand(1, 1, 16, 16), cell=20), InputError, "larger"),
        (lambda: entropy_complexity(torch.tensor([[math.nan]])), InputError, "NaN"),
        (lambda: entropy_complexity(torch.ones(0, 3)), InputError, "at least one sample"),
    ],
)
def test_bad_arguments(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_masks() -> None:
    relevance, mask = torch.rand(2, 1, 4, 4), torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0, 0] = True
    with pytest.raises(InputError, match="mask of sample 1 has no positive entry"):
        relevance_mass_accuracy(relevance, mask)
    with pytest.raises(InputError, match="sample 0 has nothing but positive"):
        localisation_auc(relevance, ~torch.zeros_like(mask))
    with pytest.raises(InputError, match=r"shape \(2, 3, 3\)"):
        pointing_game(relevance, mask[:, :3, :3])
    with pytest.raises(InputTypeError, match="neither 0 nor 1"):
        pointing_game(relevance, 2 * mask.int())
    with pytest.raises(InputError, match="differs between channels"):
        pointing_game(torch.rand(1, 2, 4, 4), torch.rand(1, 2, 4, 4) > 0.5)
    with pytest.raises(InputError, match="NaN"):
        pointing_game(relevance * math.nan, mask)
    with pytest.raises(InputTypeError, match="list"):
        pointing_game([1], mask)
    with pytest.raises(InputError, match="at least one sample"):
        pointing_game(torch.zeros(0, 4), mask)
    with pytest.raises(InputError, match="only 16 places"):
        top_k_intersection(relevance, mask[0], 17)
    with pytest.raises(InputError, match="radius"):
        pointing_game(torch.rand(1, 4), torch.tensor([1, 0, 0, 0]), radius=1)


def test_loaders() -> None:
    model, x = network(), images()
    explainers, metrics = {"GxI": gradient_x_input}, {"selectivity": selectivity}
    target = torch.tensor(TARGET)
    with pytest.raises(InputError, match="loader is empty"):
        evaluate(explainers, metrics, model, [])
    with pytest.raises(InputError, match="pair"):
        evaluate(explainers, metrics, model, [x])
    with pytest.raises(InputError, match="0 explainers"):
        evaluate({}, metrics, model, [(x, target)])
    with pytest.raises(InputError, match="'mean' returned"):
        evaluate(explainers, {"mean": lambda *args: 1.0}, model, [(x, target)])


def test_an_evaluation_is_the_metrics_of_all_batches() -> None:
    model, x, target = network(), images(5), torch.tensor([0, 1, 2, 0, 1])
    data = torch.utils.data.TensorDataset(x, target)
    loader = torch.utils.data.DataLoader(data, batch_size=2)
    explainers = {"GxI": gradient_x_input, "input": lambda model, x, target: x}
    metrics = {"estimate": faithfulness_estimate, "selectivity": selectivity}
    found = evaluate(explainers, metrics, model, loader)
    for name, explain in explainers.items():
        torch.testing.assert_close(found.values[name]["estimate"], faithfulness_estimate(explain, model, x, target))
        torch.testing.assert_close(found.values[name]["selectivity"], selectivity(explain, model, x, target).values)
    assert [line.split()[0] for line in str(found).splitlines()] == ["method", "------", "GxI", "input"]
    assert "<td>GxI</td>" in found._repr_html_()
    assert found.to_dict()["input"]["estimate"] == found.values["input"]["estimate"].tolist()


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    with pytest.raises(MissingExtraError, match=r"relprop\[progress\]"):
        perturbation_curve(gradient_x_input, network(), images(), TARGET, progress=True)
    with pytest.raises(MissingExtraError, match=r"relprop\[metrics\]"):
        structural_similarity(images(), images())


def test_progress_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    whole = perturbation_curve(gradient_x_input, network(), images(), TARGET, progress=True, internal_batch_size=9)
    assert "perturb" in capsys.readouterr().err
    quiet = perturbation_curve(gradient_x_input, network(), images(), TARGET, internal_batch_size=9)
    torch.testing.assert_close(whole.scores, quiet.scores)
    assert not capsys.readouterr().err


class Largest(nn.Module):
    """A model that remembers the largest batch it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.largest = network(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.largest = max(self.largest, len(x))
        return self.model(x)


BOUNDED: dict[str, Any] = {
    "selectivity": selectivity,
    "recomputed": lambda *args, **options: perturbation_curve(*args, recompute=True, steps=3, **options),
    "insertion": insertion,
    "irof": lambda *args, **options: irof(*args, 2, **options),
    "road": road,
    "sensitivity_n": sensitivity_n,
    "faithfulness_estimate": faithfulness_estimate,
    "monotonicity_arya": monotonicity_arya,
    "monotonicity_nguyen": monotonicity_nguyen,
    "infidelity": infidelity,
    "randomisation": parameter_randomisation,
    "efficient": efficient_randomisation,
    "random_logit": lambda *args, **options: random_logit(*args, 3, **options),
    "input_invariance": input_invariance,
}


@pytest.mark.parametrize("name", BOUNDED)
def test_no_batch_is_larger_than_asked(name: str) -> None:
    seen = []

    def explain(model: nn.Module, x: Tensor, target: Any) -> Tensor:
        seen.append(len(x))
        return gradient_x_input(model, x, target)

    model = Largest()
    BOUNDED[name](explain, model, images(9), [0, 1, 2] * 3, internal_batch_size=4)
    assert model.largest <= 4 and max(seen) == 4
