"""PatternNet and PatternAttribution: whole maps against the backward written out, in every kind of network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import relprop
from relprop import Gradient, PatternNet
from relprop.attribution.patterns.pattern_methods import PatternMethod
from tests.attribution.patterns.pattern_reference import ESTIMATORS, METHODS, backward_weight, data, numpy_pattern

# A network written out layer by layer -------------------------------------------------------------


class Small(nn.Module):
    """Convolution, batch norm, ReLU, pooling, a strided convolution, ReLU, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2, groups=2, padding=1, bias=False)
        self.hidden = nn.Linear(24, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.conv1(x))), 2)
        x = F.relu(self.conv2(x))
        return self.head(torch.relu(self.hidden(x.flatten(1))))


def small() -> Small:
    torch.manual_seed(5)
    model = Small().double().eval()
    with torch.no_grad():
        model.norm.running_mean.copy_(data(4) / 3)
        model.norm.running_var.copy_(data(4, seed=1).square() + 0.5)
        model.norm.weight.copy_(data(4, seed=2))
        model.norm.bias.copy_(data(4, seed=3) / 2)
        model.hidden.bias[1] = -50.0  # a unit that is never on
        model.norm.weight[2], model.norm.bias[2] = 0.2, -5.0  # and a channel
    return model


@torch.no_grad()
def explicit(
    model: Small, fitted: Tensor, x: Tensor, targets: Tensor, method: type[PatternMethod], estimator: str
) -> Tensor:
    """Fit and explain, one layer after the other, with the transposes written out."""
    scale = model.norm.weight / torch.sqrt(model.norm.running_var + model.norm.eps)
    w1 = model.conv1.weight * scale[:, None, None, None]
    b1 = (model.conv1.bias - model.norm.running_mean) * scale + model.norm.bias
    w2, b2 = model.conv2.weight, torch.zeros(6, dtype=torch.float64)
    w3, b3, w4, b4 = model.hidden.weight, model.hidden.bias, model.head.weight, model.head.bias

    def run(x: Tensor) -> tuple[Tensor, ...]:
        z1 = F.conv2d(x, w1, b1, padding=1)
        pooled, where = F.max_pool2d(z1.clamp(min=0), 2, return_indices=True)
        z2 = F.conv2d(pooled, w2, b2, stride=2, padding=1, groups=2)
        flat = z2.clamp(min=0).flatten(1)
        z3 = flat @ w3.T + b3
        return z1, where, pooled, z2, flat, z3, z3.clamp(min=0) @ w4.T + b4

    _, _, pooled, _, flat, z3, _ = run(fitted)
    before_relu = "linear" if estimator == "linear" else "relu+"
    p1 = numpy_pattern(fitted.numpy(), w1, b1, before_relu)
    p2 = numpy_pattern(pooled.numpy(), w2, b2, before_relu, stride=2, groups=2)
    p3 = numpy_pattern(flat.numpy(), w3, b3, before_relu)
    p4 = numpy_pattern(z3.clamp(min=0).numpy(), w4, b4, "linear")
    v1, v2, v3, v4 = (backward_weight(method, w, p) for w, p in ((w1, p1), (w2, p2), (w3, p3), (w4, p4)))

    z1, where, pooled, z2, _, z3, out = run(x)
    c = F.one_hot(targets, 3) * out  # the seed is f_t
    c = (c @ v4) * (z3 > 0)
    c = (c @ v3).reshape(z2.shape) * (z2 > 0)
    c = F.conv_transpose2d(c, v2, stride=2, padding=1, groups=2, output_padding=1 - pooled.shape[-1] % 2)
    c = F.max_unpool2d(c, where, 2, output_size=z1.shape[-2:]) * (z1 > 0)
    return F.conv_transpose2d(c, v1, padding=1)


@pytest.mark.filterwarnings("ignore:Units whose output never varied:relprop.PatternWarning")
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("method", METHODS)
def test_the_map_is_that_of_the_layers_written_out(method: type[PatternMethod], estimator: str) -> None:
    model, fitted, x = small(), data(60, 2, 8, 8), data(5, 2, 8, 8, seed=9)
    targets = torch.tensor([0, 1, 2, 0, 1])
    found = method(model).fit(fitted.split(13), estimator).attribute(x, targets)
    expected = explicit(model, fitted, x, targets, method, estimator)
    assert float(expected.abs().max()) > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10 * float(expected.abs().max()))


@pytest.mark.filterwarnings("ignore:Units whose output never varied:relprop.PatternWarning")
def test_several_targets_layers_and_conditions_are_those_of_the_pipeline() -> None:
    model, x = small(), data(4, 2, 8, 8, seed=9)
    method = PatternNet(model).fit([data(60, 2, 8, 8)])
    several = method.attribute_targets(x, [0, 2])
    torch.testing.assert_close(several[1], method.attribute(x, 2), rtol=1e-10, atol=1e-12)
    layers = method.attribute_layers(x, ["norm", "hidden"], 1)
    assert layers["norm"].shape == (4, 4, 8, 8) and layers["hidden"].shape == (4, 5)
    w = method.patterns["head.weight"].directions["linear"]
    with torch.no_grad():
        hidden = model.hidden(F.relu(model.conv2(F.max_pool2d(F.relu(model.norm(model.conv1(x))), 2))).flatten(1))
        expected = model(x)[:, 1:2] * w[1] * (hidden > 0)
    torch.testing.assert_close(layers["hidden"], expected, rtol=1e-10, atol=1e-12)
    with pytest.raises(relprop.InputError, match="does not claim"):
        method.attribute(x, 0, return_convergence_delta=True)


def test_with_its_weights_for_patterns_it_is_the_gradient() -> None:
    """Whatever the network, only linear calls differ from the gradient."""
    model, x = small(), data(4, 2, 8, 8, seed=9)
    fitted = PatternNet(model).fit([data(30, 2, 8, 8)], "linear").patterns
    swapped = {
        unit: relprop.Pattern(p.weight, p.bias, {"linear": p.weight}, p.missing, p.parameter, p.rectified)
        for unit, p in fitted.items()
    }
    method = PatternNet(model, relprop.Patterns("linear", swapped, fitted.samples))
    expected = Gradient(model).attribute(x, 1) * model(x)[:, 1, None, None, None].detach()
    torch.testing.assert_close(method.attribute(x, 1), expected, rtol=1e-9, atol=1e-11)
