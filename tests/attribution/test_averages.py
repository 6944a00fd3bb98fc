"""What all averages and perturbations have in common: spellings, targets, batches, progress, containers, names."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import relprop
from relprop import (
    LRP,
    Gradient,
    GuidedGradCam,
    InputError,
    IntegratedGradients,
    KernelShap,
    Keywords,
    LayerGradCam,
    MethodError,
    MissingExtraError,
    Occlusion,
    ShapleyValueSampling,
    SmoothGrad,
    TargetError,
    Translated,
    Unit,
    explain,
)
from tests.attribution.averages import BACKGROUND, CASES, ONE_PASS, QUADRANTS, pictures, spelt
from tests.checks import refuses
from tests.models import close, images, mlp, settle, vectors
from tests.networks import zoo

every = pytest.mark.parametrize("case", CASES)
divided = pytest.mark.parametrize("case", [case for case in CASES if case not in ONE_PASS])


def tolerance(case: str) -> float:
    return 1e-5 if case == "kernel shap" else 1e-10  # Captum fits that in single precision


@every
@pytest.mark.parametrize("target", [1, [2, 0]], ids=["one", "each"])
def test_functions_are_explained_as_modules(case: str, target: Any) -> None:
    modules, functions = spelt()
    before = zoo.fingerprint(functions)
    close(CASES[case](functions, pictures(), target), CASES[case](modules, pictures(), target), tolerance(case))
    assert zoo.fingerprint(functions) == before


@every
def test_every_sample_is_explained_by_itself(case: str) -> None:
    """But for what is drawn for it."""
    if case in ("gradient shap", "smoothgrad", "smoothgrad of lrp", "squares", "vargrad", "kernel shap"):
        pytest.skip("random numbers are drawn for a batch")
    model, x = spelt()[0], pictures(3)
    both = CASES[case](model, x, [2, 0, 1])
    rows = [CASES[case](model, x[i : i + 1], t) for i, t in enumerate([2, 0, 1])]
    close(both, torch.cat(rows), tolerance(case))


@divided
@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 100])
def test_internal_batches_change_nothing(case: str, size: int) -> None:
    """Of three samples: parts of one and two, one whole batch, a batch and what is left over, two, all at once."""
    model, x, target = spelt()[0], pictures(3), [2, 0, 1]
    largest = 0

    def watch(module: nn.Module, args: tuple[Tensor]) -> None:
        nonlocal largest
        largest = max(largest, len(args[0]))

    plain = CASES[case](model, x, target)
    handle = model.first.register_forward_pre_hook(watch)
    found = CASES[case](model, x, target, internal_batch_size=size)
    handle.remove()
    close(found, plain, tolerance(case))
    assert largest <= size and (largest > 1 or size == 1)


@every
def test_a_hidden_unit(case: str) -> None:
    """The unit is the output of the network that ends there."""
    model, x = spelt()[0], pictures()
    unit = Unit("hidden", 2)

    class Ending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.hidden = model.first, model.second, model.hidden

        def forward(self, x: Tensor) -> Tensor:
            h = model.pool(torch.relu(self.second(torch.relu(self.first(x)))))
            out: Tensor = self.hidden(h.flatten(1))
            return out

    close(CASES[case](model, x, unit), CASES[case](Ending().eval(), x, 2), tolerance(case))
    each = Unit("hidden", [2, 4])
    options = {} if case in ONE_PASS else {"internal_batch_size": 1}
    close(CASES[case](model, x, each, **options), CASES[case](Ending().eval(), x, [2, 4]), tolerance(case))


@every
def test_dtypes_and_where_it_is_called(case: str) -> None:
    model, x = spelt()[0], pictures()
    expected = CASES[case](model, x, 1)
    with torch.inference_mode():
        assert torch.equal(CASES[case](model, x, 1), expected)
    single = CASES[case](model.float(), x.float(), 1)
    assert single.dtype == torch.float32
    close(single.double(), expected, 2e-4)


@divided
def test_a_progress_bar(case: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = spelt()[0], pictures()
    expected = CASES[case](model, x, 1)
    assert not capsys.readouterr().err
    assert torch.equal(CASES[case](model, x, 1, progress=True), expected)
    assert "%" in capsys.readouterr().err
    if case not in ("shapley", "kernel shap"):  # Captum has a bar of its own without tqdm
        monkeypatch.setitem(sys.modules, "tqdm.auto", None)
        with refuses(model, MissingExtraError, ImportError, "tqdm", "relprop[progress]"):
            CASES[case](model, x, 1, progress=True)
        assert torch.equal(CASES[case](model, x, 1), expected)


@divided
def test_no_samples_in_a_pass(case: str) -> None:
    model, x = spelt()[0], pictures()
    with refuses(model, InputError, ValueError, "internal_batch_size", "at least 1", "0"):
        CASES[case](model, x, 1, internal_batch_size=0)


@every
def test_targets_that_do_not_fit(case: str) -> None:
    model, x = spelt()[0], pictures(3)
    options: list[dict[str, Any]] = [{}] if case in ONE_PASS else [{}, {"internal_batch_size": 1}]
    for option in options:
        with refuses(model, TargetError, ValueError, "2 entries for 3 samples"):
            CASES[case](model, x, [1, 2], **option)
        with refuses(model, TargetError, ValueError, "no module 'nowhere'"):
            CASES[case](model, x, Unit("nowhere", 1), **option)


# ----------------------------------------------------------------------------------- arguments of every sample


class Two(nn.Module):
    """Two inputs; a mask and a weight for every sample, and a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.row = nn.Linear(36, 3), nn.Linear(4, 3)

    def forward(self, image: Tensor, row: Tensor, mask: Tensor, *, weight: Tensor, scale: float) -> Tensor:
        out: Tensor = torch.tanh(self.image((image * mask).flatten(1))) * self.row(row).exp() * weight[:, None] * scale
        return out


TWO = {
    "integrated gradients": lambda m, x, *a, **o: IntegratedGradients(m).attribute(x, None, *a, **o),
    "smoothgrad": lambda m, x, *a, **o: SmoothGrad(Gradient(m)).attribute(x, *a, nt_samples=6, **o),
    "gradient shap": lambda m, x, *a, **o: relprop.GradientShap(m).attribute(x, (0.5, 0.1), 6, (0.1, 0.0), *a, **o),
    "occlusion": lambda m, x, *a, **o: Occlusion(m).attribute(x, ((3, 3), (2,)), (2, 1), None, *a, **o),
    "ablation": lambda m, x, *a, **o: relprop.FeatureAblation(m).attribute(x, (0.1, None), *a, **o),
    "translated": lambda m, x, *a, **o: Translated(Gradient(m), [-1, 1], "zero").attribute(x, *a, **o),
    "shapley": lambda m, x, *a, **o: ShapleyValueSampling(m).attribute(x, None, *a, n_samples=2, **o),
    "kernel shap": lambda m, x, *a, **o: KernelShap(m).attribute(x, None, *a, n_samples=60, **o),
}


@pytest.mark.parametrize("case", TWO)
@pytest.mark.parametrize("size", [1, 2, 4, 9])
def test_several_inputs_and_arguments_of_every_sample(case: str, size: int) -> None:
    model = settle(Two())
    x = images(3, side=6)[:, 0], vectors(3)
    mask, weight = (images(3, seed=5)[:, 0] > 0).to(x[0].dtype), torch.tensor([1.0, 2.0, -1.0]).double()
    options = {"forward_kwargs": {"weight": weight, "scale": 0.5}}
    plain = TWO[case](model, x, [0, 1, 2], mask, **options)
    assert isinstance(plain, tuple) and [m.shape for m in plain] == [x[0].shape, x[1].shape]
    parted = TWO[case](model, x, torch.tensor([0, 1, 2]), mask, internal_batch_size=size, **options)
    for found, expected in zip(parted, plain, strict=True):
        close(found, expected, tolerance(case))
    if case == "integrated gradients":
        rows = [
            TWO[case](model, (x[0][i : i + 1], x[1][i : i + 1]), i, mask[i : i + 1],
                      forward_kwargs={"weight": weight[i : i + 1], "scale": 0.5})
            for i in range(3)
        ]  # fmt: skip
        for position, expected in enumerate(plain):
            close(torch.cat([row[position] for row in rows]), expected)


@pytest.mark.slow
def test_options_of_every_sample_follow_through_a_wrapper() -> None:
    """A baseline for every sample, in a method that is wrapped."""
    model, x, ends = spelt()[0], pictures(3), BACKGROUND[:3]
    method = SmoothGrad(IntegratedGradients(model))
    options: dict[str, Any] = {"nt_samples": 4, "n_steps": 5, "baselines": ends}
    plain = method.attribute(x, [0, 1, 2], **options)
    for size in (1, 2, 6):
        close(method.attribute(x, [0, 1, 2], internal_batch_size=size, **options), plain)
    nested, options = Translated(Translated(IntegratedGradients(model), [0, 1])), {"n_steps": 3, "baselines": ends}
    close(nested.attribute(x, [0, 1, 2], internal_batch_size=2, **options), nested.attribute(x, [0, 1, 2], **options))


# ---------------------------------------------------------------------------------------------------- containers


class Named(nn.Module):
    """Features of nodes and of edges, which have no batch in common, and the edges themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.node, self.edge, self.out = nn.Linear(4, 5), nn.Linear(2, 5), nn.Linear(5, 3)

    def forward(self, nodes: Tensor, edges: dict[str, Tensor]) -> Tensor:
        h = torch.tanh(self.node(nodes))
        messages = h[edges["index"][0]] * self.edge(edges["features"])
        out: Tensor = self.out(torch.relu(h.index_add(0, edges["index"][1], messages)))
        return out


def graph() -> Keywords:
    index = torch.tensor([[0, 1, 2, 2], [1, 2, 0, 3]])
    return Keywords(nodes=vectors(4), edges={"index": index, "features": vectors(4, 2, seed=3)[:4]})


@pytest.mark.slow
def test_structures() -> None:
    model, given = settle(Named()), graph()
    ends = Keywords(nodes=None, edges={"index": None, "features": 0.25})
    found, delta = IntegratedGradients(model).attribute(
        given, ends, 1, n_steps=400, method="riemann_middle", return_convergence_delta=True
    )
    assert found["edges"]["index"] is None and delta.shape == (1,)
    total = found["nodes"].sum() + found["edges"]["features"].sum()
    there = model(torch.zeros_like(given["nodes"]), {**given["edges"], "features": torch.full((4, 2), 0.25).double()})
    claimed = (model(**given) - there)[:, 1].sum().detach()
    close(total + delta[0], claimed)
    assert abs(float(delta)) < 1e-3 * float(claimed.abs())
    smooth = SmoothGrad(Gradient(model)).attribute(given, 1, nt_samples=3, stdevs=0.0)
    plain = Gradient(model).attribute(given, 1)
    close(smooth["nodes"], plain["nodes"])
    close(smooth["edges"]["features"], plain["edges"]["features"])
    both = relprop.Combined([Gradient(model), Gradient(model)]).attribute(given, 1)
    close(both["nodes"], plain["nodes"])


@pytest.mark.parametrize("method", [Occlusion, relprop.FeatureAblation, relprop.GradientShap, ShapleyValueSampling])
def test_structures_without_a_batch(method: Any) -> None:
    model = settle(Named())
    first = {Occlusion: ((1, 1),), relprop.GradientShap: (0.0,)}.get(method, ())
    with refuses(model, InputError, ValueError, method.__name__, "no inputs in a structure"):
        method(model).attribute(graph(), *first, target=1)
    with refuses(model, InputError, ValueError, "Translated", "no inputs in a structure"):
        Translated(Gradient(model)).attribute(graph(), 1)
    with refuses(model, InputError, ValueError, "internal_batch_size counts samples", "structure"):
        IntegratedGradients(model).attribute(graph(), target=1, internal_batch_size=2)


# ---------------------------------------------------------------------------------------------------------- names


@pytest.mark.slow
def test_by_name() -> None:
    model, x = spelt()[0], pictures()
    pairs = [
        (explain(model, x, 1, "integrated_gradients", baselines=0.1, n_steps=7), "integrated gradients"),
        (explain(model, x, 1, "smoothgrad", over="gradient", nt_samples=5), "smoothgrad"),
        (explain(model, x, 1, "smooth_grad", over="lrp", rules="epsilon_plus", nt_samples=5), "smoothgrad of lrp"),
        (explain(model, x, 1, "SmoothGradSquared", over="gradient_x_input", nt_samples=5), "squares"),
        (explain(model, x, 1, "vargrad", over="gradient", nt_samples=5, stdevs=0.3), "vargrad"),
        (explain(model, x, 1, "translated", over="lrp", shifts=1, border="reflect"), "translated"),
        (explain(model, x, 1, "combined", over=[LRP(model, "epsilon"), "gradient_x_input"]), "combined"),
        (explain(model, x, 1, "occlusion", sliding_window_shapes=(2, 3, 2), strides=(1, 2, 2)), "occlusion"),
        (explain(model, x, 1, "feature_ablation", baselines=0.2, feature_mask=QUADRANTS), "ablation"),
        (explain(model, x, 1, "layer_grad_cam", layer="second"), "grad-cam"),
        (explain(model, x, 1, "guided_grad_cam", layer="second"), "guided grad-cam"),
        (explain(model, x, 1, "shapley_value_sampling", feature_mask=QUADRANTS, n_samples=4), "shapley"),
        (explain(model, x, 1, "kernel_shap", feature_mask=QUADRANTS, n_samples=12), "kernel shap"),
        (explain(model, x, 1, "gradient_shap", baselines=BACKGROUND, n_samples=6, stdevs=0.1, seed=1), "gradient shap"),
    ]
    assert {case for _, case in pairs} == set(CASES)
    for found, case in pairs:
        assert torch.equal(found, CASES[case](model, x, 1)), case
    rule = explain(model, x, 1, "integrated_gradients", method_="riemann_left", n_steps=7)
    assert torch.equal(rule, IntegratedGradients(model).attribute(x, None, 1, n_steps=7, method="riemann_left"))


@pytest.mark.parametrize(
    "method", [Gradient, relprop.GuidedBackprop, relprop.Sensitivity, GuidedGradCam, LayerGradCam, relprop.VarGrad]
)
def test_a_coefficient_has_no_delta(method: Any) -> None:
    model, x = spelt()[0], pictures()
    made = method(model, "second") if method in (GuidedGradCam, LayerGradCam) else method(
        Gradient(model) if method is relprop.VarGrad else model
    )  # fmt: skip
    with refuses(model, InputError, ValueError, method.__name__, "no convergence delta"):
        made.attribute(x, 1, return_convergence_delta=True)


@pytest.mark.parametrize("wrapper", [SmoothGrad, Translated, relprop.NoiseTunnel])
def test_what_can_be_wrapped(wrapper: Any) -> None:
    model = mlp()
    for wrong in (model, Gradient, None):
        with pytest.raises(MethodError, match=f"{wrapper.__name__} wraps a method, got"):
            wrapper(wrong)
    assert wrapper(LRP(model)).contract.output == "relevance" and not wrapper(LRP(model)).contract.complete
    assert wrapper(Gradient(model)).contract.output == "coefficient"
    with refuses(model, InputError, ValueError, wrapper.__name__, "no convergence delta"):
        wrapper(LRP(model)).attribute(vectors(), 1, return_convergence_delta=True)


# ------------------------------------------------------------------------------- the derivative of a loss on a map

SMOOTH = {
    "integrated gradients": lambda m, x: IntegratedGradients(m).attribute(x, 0.1, 1, n_steps=6, create_graph=True),
    "gradient shap": lambda m, x: relprop.GradientShap(m).attribute(x, 0.1, 5, 0.1, 1, create_graph=True),
    "smoothgrad": lambda m, x: SmoothGrad(Gradient(m)).attribute(x, 1, nt_samples=3, stdevs=0.2, create_graph=True),
    "vargrad": lambda m, x: relprop.VarGrad(Gradient(m)).attribute(x, 1, nt_samples=3, stdevs=2.0, create_graph=True),
    "translated": lambda m, x: Translated(Gradient(m), [-1, 2], "reflect").attribute(x, 1, create_graph=True),
    "combined": lambda m, x: relprop.Combined([Gradient(m), Gradient(m)], [2.0, 1.0]).attribute(
        x, 1, create_graph=True
    ),
    "grad-cam": lambda m, x: LayerGradCam(m, "0").attribute(x, 1, create_graph=True),
}


@pytest.mark.parametrize("case", SMOOTH)
def test_a_loss_on_the_map_can_be_differentiated(case: str) -> None:
    """Along a random direction of weights and of inputs, against the difference quotient."""
    model = settle(
        nn.Sequential(nn.Conv1d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(9, 4), nn.Softplus(), nn.Linear(4, 2))
    )
    x = torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(1)).double()
    generator = torch.Generator().manual_seed(2)
    tensors = [x, *model.parameters()]
    ways = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in tensors]
    mix = torch.randn(SMOOTH[case](model, x).shape, generator=generator, dtype=x.dtype)

    def loss(point: Tensor) -> Tensor:
        found: Tensor = (SMOOTH[case](model, point).pow(2) * mix).sum()
        return found

    leaf = x.clone().requires_grad_()
    grads = torch.autograd.grad(loss(leaf), [leaf, *model.parameters()], allow_unused=True)
    slope = sum(float((g * w).sum()) for g, w in zip(grads, ways, strict=True) if g is not None)

    def at(step: float) -> float:
        with torch.no_grad():
            for parameter, way in zip(tensors[1:], ways[1:], strict=True):
                parameter.add_(step * way)
        value = float(loss(x + step * ways[0]).detach())
        with torch.no_grad():
            for parameter, way in zip(tensors[1:], ways[1:], strict=True):
                parameter.sub_(step * way)
        return value

    quotient = (at(1e-5) - at(-1e-5)) / 2e-5
    assert abs(slope) > 1e-4 and abs(slope - quotient) < 1e-5 * abs(slope), (slope, quotient)
