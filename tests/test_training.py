"""Models in training mode: one warning for an attribution, and the same draws for passes that are compared."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import relprop
from relprop import (
    LRP,
    Combined,
    DeepLift,
    DeepLiftShap,
    FeatureAblation,
    Gradient,
    GradientShap,
    IntegratedGradients,
    KernelShap,
    LayerGradCam,
    Occlusion,
    ShapleyValueSampling,
    SmoothGrad,
    TrainingModeWarning,
    Translated,
)
from tests.models import close, settle, vectors

Run = Callable[[nn.Module, Tensor], Any]

RUNS: dict[str, Run] = {
    "lrp": lambda m, x: LRP(m).attribute(x, 1),
    "targets": lambda m, x: LRP(m).attribute_targets(x, [0, 1]),
    "deep lift": lambda m, x: DeepLift(m).attribute(x, 0.0, 1),
    "deep lift shap": lambda m, x: DeepLiftShap(m).attribute(x, torch.cat([x, -x]), 1),
    "integrated gradients": lambda m, x: IntegratedGradients(m).attribute(
        x, target=1, n_steps=5, return_convergence_delta=True
    ),
    "gradient shap": lambda m, x: GradientShap(m).attribute(x, -x, 4, target=1, return_convergence_delta=True),
    "noise": lambda m, x: SmoothGrad(IntegratedGradients(m)).attribute(x, 1, nt_samples=3, n_steps=2),
    "shifts": lambda m, x: Translated(LRP(m), [-1, 0, 1]).attribute(x, 1),
    "combined": lambda m, x: Combined([LRP(m), IntegratedGradients(m)]).attribute(x, 1),
    "ablation": lambda m, x: FeatureAblation(m).attribute(x, target=1),
    "occlusion": lambda m, x: Occlusion(m).attribute(x, (2,), target=1),
    "shapley": lambda m, x: ShapleyValueSampling(m).attribute(x, target=1, n_samples=2),
    "kernel": lambda m, x: KernelShap(m).attribute(x, target=1, n_samples=6),
    "explained": lambda m, x: LRP(m).explained(x, 1),
    "by name": lambda m, x: relprop.explain(m, x, 1, "vargrad", over="gradient", nt_samples=3),
}


def dropping() -> nn.Sequential:
    model = settle(nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Dropout(0.5), nn.Linear(12, 3)))
    return model.train()


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_one_warning(run: Run) -> None:
    model, x = dropping(), vectors()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        run(model, x)
        run(model, x)
    said = [warning for warning in seen if warning.category is TrainingModeWarning]
    assert len(said) == 2, "one for each of two attributions"
    assert all("'2' (Dropout)" in str(warning.message) and warning.filename == __file__ for warning in said)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(model.eval(), x)


def test_one_warning_after_an_error() -> None:
    model, x = dropping(), vectors()
    for _ in range(2):
        with pytest.warns(TrainingModeWarning), pytest.raises(relprop.TargetIndexError):
            IntegratedGradients(model).attribute(x, target=7)


def test_one_warning_of_each_model() -> None:
    """A method whose model runs while another's is explained speaks for itself."""
    first, second, x = dropping(), dropping(), vectors()

    class Both(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            Gradient(second).attribute(x.detach(), 1)
            out: Tensor = first(x)
            return out

    model = Both()
    model.first = first
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        Gradient(model).attribute(x, 1)
    assert [str(warning.message).split(" ")[1] for warning in seen] == ["'first.2'", "'2'"]


# ------------------------------------------------------------------------------------------------- same draws


def thinned(model: nn.Sequential, mask: Tensor) -> nn.Sequential:
    """The network that one draw of dropout makes, for one sample."""
    one = nn.Sequential(model[0], model[1], nn.Linear(12, 3).double())
    one[2].weight.data, one[2].bias.data = model[3].weight.data * mask, model[3].bias.data
    return one.eval()


def kept(model: nn.Sequential, x: Tensor) -> Tensor:
    """What dropout multiplies by in the next pass, ``[N, 12]``."""
    with torch.random.fork_rng([]):
        return model[2](torch.ones(len(x), 12, dtype=x.dtype))


COMPARED: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "ablation": lambda m, x: FeatureAblation(m).attribute(x, target=1),
    "occlusion": lambda m, x: Occlusion(m).attribute(x, (2,), target=1),
    "integrated gradients": lambda m, x: IntegratedGradients(m).attribute(x, target=1, n_steps=6),
    "gradient shap": lambda m, x: GradientShap(m).attribute(x, torch.zeros_like(x[:1]), 4, target=1),
}


@pytest.mark.filterwarnings("ignore::relprop.TrainingModeWarning")
@pytest.mark.parametrize("run", COMPARED.values(), ids=COMPARED)
def test_passes_that_are_compared_are_of_one_network(run: Callable[[nn.Module, Tensor], Tensor]) -> None:
    """The map is that of the network that one draw makes; the next attribution draws another."""
    model, x = dropping(), vectors(1)
    torch.manual_seed(3)
    masks = [kept(model, x)]
    found = [run(model, x)]
    masks.append(kept(model, x))
    found.append(run(model, x))
    assert not torch.equal(*masks)
    for mask, relevance in zip(masks, found, strict=True):
        close(relevance, run(thinned(model, mask[0]), x))


@pytest.mark.filterwarnings("ignore::relprop.TrainingModeWarning")
def test_deltas_are_of_one_network() -> None:
    model, x = dropping(), vectors()
    _, delta = IntegratedGradients(model).attribute(x, target=1, n_steps=30, return_convergence_delta=True)
    assert float(delta.abs().max()) < 1e-9
    _, delta = ShapleyValueSampling(model).attribute(x, target=1, n_samples=2, return_convergence_delta=True)
    assert float(delta.abs().max()) < 1e-5  # Captum adds up in single precision


@pytest.mark.filterwarnings("ignore::relprop.TrainingModeWarning")
def test_kernel_shap_is_of_one_network() -> None:
    model, x = dropping(), vectors(1)
    found = KernelShap(model).attribute(x, target=1, n_samples=40, seed=2)
    with torch.random.fork_rng([]):
        torch.manual_seed(2)
        mask = kept(model, x)[0]
    close(found, KernelShap(thinned(model, mask)).attribute(x, target=1, n_samples=40, seed=2), 1e-5)


def test_layers_of_a_network_in_training_mode() -> None:
    model = settle(nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(48, 2)))
    with pytest.warns(TrainingModeWarning) as seen:
        LayerGradCam(model.train(), "0").attribute(torch.rand(2, 1, 6, 6).double(), 1)
    assert len(seen) == 1
