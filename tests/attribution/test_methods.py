"""The methods: what each makes of the coefficient, what it claims to sum to, and single layers as models."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, Attribution, DeepTaylor, DeepTaylorWarning, Gradient, GradientXInput, Rules
from relprop.rules import Epsilon, Gamma, Zero, ZPlus
from tests import reference_steps
from tests.models import close, gradient, images, mlp, residual, settle, vectors, without_bias
from tests.networks import zoo

# --------------------------------------------------------------------------------- gradient, gradient x input


def test_the_forms_of_the_gradient() -> None:
    model, x = residual(), images()
    expected = gradient(lambda leaf: model(leaf)[:, 2], x)
    assert bool((expected < 0).any())
    close(Gradient(model).attribute(x, 2), expected)
    close(Gradient(model, form="raw").attribute(x, 2), expected)
    close(Gradient(model, "absolute").attribute(x, 2), expected.abs())
    close(Gradient(model, form="squared").attribute(x, 2), expected.square())


def test_gradient_x_input() -> None:
    model, x = residual(), images()
    expected = x * gradient(lambda leaf: model(leaf)[:, 2], x)
    found, delta = GradientXInput(model).attribute(x, 2, return_convergence_delta=True)
    close(found, expected)
    close(delta, model(x)[:, 2].detach() - expected.flatten(1).sum(1))


def test_the_gradient_is_that_of_the_network_as_it_is() -> None:
    """No rule, no fold and no constant: functions that every relevance rule treats otherwise."""

    class Everything(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(6)
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
            self.out = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.norm(x)
            h = h + self.attention(h, h, h, need_weights=False)[0]
            h = torch.nn.functional.gelu(h) * torch.sigmoid(h) / (1 + h.square())
            out: Tensor = self.out(torch.softmax(h, -1).mean(1))
            return out

    model, x = settle(Everything()), torch.randn(2, 5, 6, dtype=torch.float64)
    expected = gradient(lambda leaf: model(leaf)[:, 1], x)
    close(Gradient(model).attribute(x, 1), expected)
    close(GradientXInput(model).attribute(x, 1), x * expected)


def test_second_derivatives_of_the_gradient() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x = vectors().requires_grad_()
    found = Gradient(model, form="squared").attribute(x, 1, create_graph=True).sum()
    leaf = x.detach().clone().requires_grad_()
    (first,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf, create_graph=True)
    expected = first.square().sum()
    variables = [*model.parameters()]
    for mine, theirs in zip(
        torch.autograd.grad(found, [x, *variables], allow_unused=True),
        torch.autograd.grad(expected, [leaf, *variables], allow_unused=True),
        strict=True,
    ):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None and bool(theirs.any()):
            close(mine, theirs)


def test_every_method_is_an_attribution_and_leaves_the_model_alone() -> None:
    model, x = residual(), images()
    before = zoo.fingerprint(model)
    methods: list[Attribution] = [Gradient(model), GradientXInput(model), LRP(model)]
    for method in methods:
        assert isinstance(method, Attribution)
        first = method.attribute(x, 1)
        assert torch.equal(first, method.attribute(x, 1))
        method.attribute_layers(x, "stem", 1)
        method.attribute_targets(x, [0, 1])
        if not isinstance(method, Gradient):
            method.report(x, 1)
    assert zoo.fingerprint(model) == before
    assert all(parameter.grad is None for parameter in model.parameters())


OVERWRITES: dict[str, Callable[[Tensor], Any]] = {
    "fill_": lambda h: h.fill_(2.0),
    "zero_": lambda h: h.zero_().add_(1.5),
    "copy_": lambda h: h.copy_(torch.full_like(h, 3.0)),
}


@pytest.mark.parametrize("how", list(OVERWRITES))
def test_what_was_overwritten_is_a_constant(how: str) -> None:
    """A factor that held something of the input once, and no longer does, takes no share of a product."""

    class Overwritten(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            h: Tensor = self.layer(x)
            factor = h.clone()
            OVERWRITES[how](factor)
            return factor * h

    model, x = settle(Overwritten()), vectors()
    expected = x * gradient(lambda leaf: model(leaf)[:, 1], x)
    close(GradientXInput(model).attribute(x, 1), expected)
    close(LRP(model, "lrp0").attribute(x, 1), expected)


# ---------------------------------------------------------------------------------------------- delta


def test_sign_and_shape_of_the_delta() -> None:
    """f - sum R, per sample: what the bias keeps is positive where the output is."""
    model = nn.Linear(2, 2, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0], [0.5, -1.0]]))
        model.bias.copy_(torch.tensor([3.0, -5.0]))
    x = torch.tensor([[1.0, 1.0], [2.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    for method in (GradientXInput(model), LRP(model, "lrp0"), LRP(model, Epsilon(0.0)), LRP(model, Gamma(0.0))):
        _, delta = method.attribute(x, 0, return_convergence_delta=True)
        assert delta.shape == (3,)
        assert delta.tolist() == pytest.approx([3.0, 3.0, 3.0], abs=1e-5)
        _, delta = method.attribute(x, [1, 0, 1], return_convergence_delta=True)
        assert delta.tolist() == pytest.approx([-5.0, 3.0, -5.0], abs=1e-5)


@pytest.mark.parametrize("rules", ["epsilon_gamma", "zplus", "alpha2_beta1", "flat", "wsquare", "deep_taylor"])
def test_the_delta_is_output_less_sum(rules: str) -> None:
    model, x = residual(), images(3)
    found, delta = LRP(model, rules).attribute(x, [0, 1, 2], return_convergence_delta=True)
    output = model(x)[range(3), [0, 1, 2]].detach()
    # Of the output, since w^2 and flat conserve but for rounding.
    assert torch.allclose(delta, output - found.flatten(1).sum(1), rtol=0, atol=1e-10 * float(output.abs().max()))


def test_the_delta_is_differentiable() -> None:
    model, x = mlp(), vectors().requires_grad_()
    relevance, delta = LRP(model, "epsilon").attribute(x, 1, return_convergence_delta=True, create_graph=True)
    output = model(x)[:, 1]
    for variable in (x, model[0].weight, model[4].bias):
        (found,) = torch.autograd.grad(delta.sum(), variable, retain_graph=True)
        (expected,) = torch.autograd.grad(output.sum() - relevance.sum(), variable, retain_graph=True)
        close(found, expected)


# ------------------------------------------------------------------------------------------ deep Taylor


def silent(model: nn.Module) -> nn.Module:
    """The model with no bias above zero (batch norm's shifts included)."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(-parameter.abs() / 20)
    return model


LAYERS = [
    nn.Conv2d(3, 4, 3, padding=1),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Conv2d(4, 6, 2),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(24, 3),
]


@pytest.mark.parametrize("bounds", [None, (-3.0, 3.5)], ids=["w^2", "zB"])
def test_deep_taylor_against_the_reference(bounds: Any) -> None:
    model = silent(settle(nn.Sequential(*LAYERS)))
    x = images().clamp(-3.0, 3.5)
    above: tuple[str, dict[str, Any]] = ("zplus", {"bias": "ignore"})
    first = ("wsquare", {}) if bounds is None else ("zbox", {"low": bounds[0], "high": bounds[1]})
    seed = torch.tensor([1.0, 0.0, 0.0], dtype=x.dtype)
    expected = reference_steps.explain(LAYERS, x, seed, [first, above, above])[0]
    close(DeepTaylor(model, bounds).attribute(x, 0), expected)  # no warning, which would be an error


def test_bounds_for_each_channel() -> None:
    model = silent(settle(nn.Sequential(*LAYERS)))
    low, high = torch.tensor([-3.0, -4.0, -5.0]).double(), torch.tensor([3.0, 4.0, 5.0]).double()
    x = images().clamp(-3, 3)
    found = DeepTaylor(model, (low, high)).attribute(x, 0)
    whole = DeepTaylor(model, (low[:, None, None].expand(3, 6, 6), high[:, None, None].expand(3, 6, 6)))
    close(found, whole.attribute(x, 0))
    with pytest.raises(AssertionError, match="differ"):
        close(found, DeepTaylor(model, (-3.0, 3.0)).attribute(x, 0))


@pytest.mark.parametrize("bounds", [None, (-3.0, 3.5)], ids=["w^2", "zB"])
def test_deep_taylor_conserves_and_is_positive(bounds: Any) -> None:
    model, x = silent(settle(nn.Sequential(*LAYERS))), images(4).clamp(-3.0, 3.5)
    with torch.no_grad():
        model[6].weight.neg_()
        # Every neuron that fires has a positive contribution then; the output is positive too.
        output, target = model(x).max(1)
        assert bool((output > 0.1).all())
    found, delta = DeepTaylor(model, bounds).attribute(x, target, return_convergence_delta=True)
    assert bool((found >= 0).all())
    assert float(delta.abs().max()) < 1e-4 * float(output.max())  # the stabilizer's share
    close(found.flatten(1).sum(1), output, 1e-4)


def test_deep_taylor_conserves_with_positive_biases_too() -> None:
    model, x = settle(nn.Sequential(*LAYERS)), images(4)
    output, target = model(x).detach().max(1)
    with pytest.warns(DeepTaylorWarning):
        found = DeepTaylor(model).attribute(x, target)
    close(found.flatten(1).sum(1), output, 1e-4)


def test_deep_taylor_is_its_preset() -> None:
    model, x = silent(settle(nn.Sequential(*LAYERS))), images()
    assert torch.equal(DeepTaylor(model).attribute(x, 0), LRP(model, "deep_taylor").attribute(x, 0))
    bounded = Rules.preset("deep_taylor_bounded", low=-4.0, high=4.0)
    assert torch.equal(DeepTaylor(model, (-4.0, 4.0)).attribute(x, 0), LRP(model, bounded).attribute(x, 0))


def test_the_warning_names_layers_with_a_positive_bias() -> None:
    model = silent(settle(nn.Sequential(*LAYERS)))
    with torch.no_grad():
        model[3].bias[2] = 0.1
    with pytest.warns(DeepTaylorWarning, match=r"1 of 3 linear layers .*\('3'\).*b <= 0") as seen:
        DeepTaylor(model).attribute(images(), 0)
    assert len(seen) == 1
    assert seen[0].filename == __file__  # it points at the user's line
    with torch.no_grad():
        for layer in (model[0], model[3], model[6]):
            layer.bias.zero_()
    DeepTaylor(model).attribute(images(), 0)
    DeepTaylor(without_bias(model)).report(images(), 0)
    DeepTaylor(nn.Sequential(nn.Linear(4, 3, bias=False).double())).attribute(vectors(), 0)


@pytest.mark.parametrize("ask", ["attribute", "attribute_layers", "attribute_targets", "report"])
def test_the_warning_points_at_the_caller(ask: str) -> None:
    model, x = settle(nn.Sequential(*LAYERS)), images()
    arguments: dict[str, Any] = {"attribute": (0,), "attribute_layers": ("3", 0), "attribute_targets": ([0],)}
    with pytest.warns(DeepTaylorWarning) as seen:
        getattr(DeepTaylor(model), ask)(x, *arguments.get(ask, (0,)))
    assert [warning.filename for warning in seen] == [__file__]


def test_the_warning_counts_the_bias_of_a_folded_batch_norm() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).double()
    model.eval()
    with torch.no_grad():
        model[4].bias.fill_(-0.1)
        model[0].bias.fill_(1.0)
        model[1].running_mean.fill_(2.0)  # takes the convolution's bias below zero
    DeepTaylor(model).attribute(images(), 0)
    with torch.no_grad():
        model[0].bias.fill_(-1.0)
        model[1].running_mean.fill_(-2.0)  # and here above
    with pytest.warns(DeepTaylorWarning, match=r"1 of 2 linear layers .*'[01]'"):
        DeepTaylor(model).attribute(images(), 0)


# --------------------------------------------------------------------------------- a single layer as a model

SINGLE: dict[str, tuple[nn.Module, tuple[int, ...], Any]] = {
    "linear": (nn.Linear(4, 3), (2, 4), 1),
    "conv": (nn.Conv2d(3, 2, 3), (2, 3, 5, 5), (1, 2, 0)),
    "transposed": (nn.ConvTranspose1d(2, 3, 2), (2, 2, 4), (1, 3)),
    "relu": (nn.ReLU(), (2, 4), 1),
    "max pooling": (nn.MaxPool2d(2), (2, 1, 4, 4), (0, 1, 0)),
    "flatten": (nn.Flatten(), (2, 2, 2), 2),
    "identity": (nn.Identity(), (2, 4), 3),
    "batch norm": (nn.BatchNorm1d(4), (2, 4), 1),
}


@pytest.mark.parametrize("name", list(SINGLE))
def test_a_single_layer(name: str) -> None:
    layer, shape, target = SINGLE[name]
    model = settle(layer)
    x = torch.randn(shape, dtype=torch.float64).abs()
    index = (slice(None), *(target if isinstance(target, tuple) else (target,)))
    expected = gradient(lambda leaf: model(leaf)[index], x)
    close(Gradient(model).attribute(x, target), expected)
    for method in (GradientXInput(model), LRP(model, "lrp0"), LRP(model, Zero()), LRP(model, Rules())):
        found, delta = method.attribute(x, target, return_convergence_delta=True)
        close(found, x * expected)
        assert delta.shape == (2,)
        close(method.attribute_layers(x, "", target)[""].flatten(1).sum(1), model(x)[index].detach())
    report = LRP(model, "lrp0").report(x, target)
    assert report.relevance == pytest.approx(float((x * expected).sum()))
    report.check(1e-9)


def test_rules_at_a_single_layer() -> None:
    model, x = settle(nn.Linear(4, 3)), vectors()
    expected = LRP(model, ZPlus()).attribute(x, 1)
    for rules in (
        Rules().set(nn.Linear, ZPlus()),
        Rules().set("", "zplus"),
        Rules().first("zplus"),
        Rules().last("zplus"),
        Rules().set(nn.functional.linear, ZPlus()),
    ):
        assert torch.equal(LRP(model, rules).attribute(x, 1), expected)


def test_deep_taylor_on_a_single_layer() -> None:
    model = settle(nn.Linear(4, 3, bias=False))
    x = vectors().abs()
    square = model.weight[1].detach().square()
    close(DeepTaylor(model).attribute(x, 1), model(x)[:, 1:2].detach() * square / square.sum(), 1e-5)


def test_nothing_but_the_warning_is_raised() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for method in (LRP(residual()), GradientXInput(residual())):
            method.attribute(images(), 1)
            method.report(images(), 1)
    assert seen == []
