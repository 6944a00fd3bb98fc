"""Identities between rules, each under the conditions that make it true."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, GradientXInput
from relprop.rules import AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZBox, Zero, ZPlus
from tests import reference
from tests.cases import DTYPE, LAYERS, RULES, LayerCase, RuleCase, seed_like, signed
from tests.compare import TOLERANCE, distance, package_rule, weighted

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

EVERY_LAYER = [pytest.param(case, id=case.name) for case in LAYERS]
SOME_LAYERS = EVERY_LAYER[::4]
EVERY_RULE = [pytest.param(case, id=case.name) for case in RULES]


def same(first: Tensor, second: Tensor, tolerance: float = TOLERANCE) -> None:
    assert distance(first, second) < tolerance


def networks(bias: bool) -> dict[str, tuple[nn.Module, Tensor]]:
    """Networks on which every operation but the linear layers passes relevance on unchanged."""
    torch.manual_seed(0)
    dense = nn.Sequential(
        nn.Linear(9, 8, bias), nn.ReLU(), nn.Linear(8, 8, bias), nn.LeakyReLU(0.2), nn.Linear(8, 3, bias)
    )
    conv = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=bias), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 3, padding=1, padding_mode="reflect", bias=bias), nn.LeakyReLU(0.1),
        nn.MaxPool2d(2, 1), nn.ConvTranspose2d(5, 3, 2, 2, bias=bias), nn.ReLU(), nn.Flatten(),
        nn.Linear(108, 3, bias),
    )  # fmt: skip
    line = nn.Sequential(
        nn.Conv1d(2, 4, 3, padding=2, dilation=2, bias=bias), nn.ReLU(), nn.MaxPool1d(3, 2, padding=1),
        nn.Flatten(), nn.Linear(20, 3, bias),
    )  # fmt: skip
    shapes = {"dense": (4, 9), "conv": (2, 2, 8, 8), "line": (2, 2, 9)}
    models = {"dense": dense, "conv": conv, "line": line}
    return {name: (models[name].to(DTYPE), signed(shape)) for name, shape in shapes.items()}


NETWORKS, WITHOUT_BIAS = networks(bias=True), networks(bias=False)
EVERY_NETWORK = list(NETWORKS)


# --------------------------------------------------------------------------------------- between rules


@pytest.mark.parametrize("network", EVERY_NETWORK)
def test_lrp0_is_gradient_times_input(network: str) -> None:
    model, x = NETWORKS[network]
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    found = LRP(model, Zero()).attribute(x, target=1)
    same(found, gradient * x)
    same(found, GradientXInput(model).attribute(x, target=1))


@pytest.mark.parametrize("case", EVERY_LAYER)
def test_lrp0_is_gradient_times_input_on_a_layer(case: LayerCase) -> None:
    layer, x = case.build(True), signed(case.shape)
    leaf = x.clone().requires_grad_()
    target = weighted(seed_like(layer(x)))
    (gradient,) = torch.autograd.grad(target(layer(leaf)).sum(), leaf)
    same(LRP(layer, Zero()).attribute(x, target=target), gradient * x)


@pytest.mark.parametrize("network", EVERY_NETWORK)
def test_epsilon_zero_is_lrp0(network: str) -> None:
    model, x = NETWORKS[network]
    same(LRP(model, Epsilon(0.0)).attribute(x, target=0), LRP(model, Zero()).attribute(x, target=0))


@pytest.mark.parametrize("network", EVERY_NETWORK)
def test_gamma_zero_is_lrp0(network: str) -> None:
    model, x = NETWORKS[network]
    gamma = Gamma(0.0, stabilizer=0.0)
    same(LRP(model, gamma).attribute(x, target=0), LRP(model, Zero()).attribute(x, target=0))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("case", SOME_LAYERS)
def test_large_gamma_is_alpha1_beta0_where_the_output_is_positive(case: LayerCase, bias: bool) -> None:
    layer, x = case.build(bias), signed(case.shape)
    out = layer(x)
    target = weighted(seed_like(out) * (out > 0))
    gamma = LRP(layer, Gamma(1e9, stabilizer=0.0)).attribute(x, target=target)
    same(gamma, LRP(layer, AlphaBeta(1, 0, stabilizer=0.0)).attribute(x, target=target), 1e-6)


@pytest.mark.parametrize("bias", ["absorb", "ignore"])
@pytest.mark.parametrize("network", EVERY_NETWORK)
def test_alpha1_beta0_is_zplus(network: str, bias: str) -> None:
    model, x = NETWORKS[network]
    first = LRP(model, AlphaBeta(1, 0, bias=bias)).attribute(x, target=0)
    same(first, LRP(model, ZPlus(bias=bias)).attribute(x, target=0))


@pytest.mark.parametrize("case", SOME_LAYERS)
def test_zbox_of_zeros_is_lrp0_without_bias(case: LayerCase) -> None:
    layer, x = case.build(False), signed(case.shape)
    target = weighted(seed_like(layer(x)))
    box = LRP(layer, ZBox(0.0, 0.0, stabilizer=0.0)).attribute(x, target=target)
    same(box, LRP(layer, Zero()).attribute(x, target=target))


@pytest.mark.parametrize("case", SOME_LAYERS)
def test_zbox_from_zero_is_zplus_without_bias_where_nothing_is_negative(case: LayerCase) -> None:
    layer, x = case.build(False), signed(case.shape).abs()
    with torch.no_grad():
        layer.get_parameter("weight").abs_()
    target = weighted(seed_like(layer(x)))
    box = LRP(layer, ZBox(0.0, 3.0, stabilizer=0.0)).attribute(x, target=target)
    same(box, LRP(layer, ZPlus(stabilizer=0.0)).attribute(x, target=target))


@pytest.mark.parametrize("case", EVERY_LAYER)
def test_wsquare_is_flat_for_weights_of_one_size(case: LayerCase) -> None:
    layer, x = case.build(True), signed(case.shape)
    with torch.no_grad():
        weight = layer.get_parameter("weight")
        weight.copy_(weight.sign() * 0.7)
    target = weighted(seed_like(layer(x)))
    square = LRP(layer, WSquare(stabilizer=0.0)).attribute(x, target=target)
    same(square, LRP(layer, Flat(stabilizer=0.0)).attribute(x, target=target))


# ------------------------------------------------------------------------- between ways to write a model


# Flat differs: a dense layer reaches every input, a convolution those in its window. A pad that copies is a
# linear map of its own, so that such a pair is not one dense layer.
UNROLLED = [
    pytest.param(case, id=case.name)
    for case in LAYERS
    if "linear" not in case.name and case.keywords.get("padding_mode", "zeros") == "zeros"
]


@pytest.mark.parametrize("rule", [case for case in EVERY_RULE if not str(case.id).startswith("flat")])
@pytest.mark.parametrize("case", UNROLLED[::3])
def test_convolution_is_its_unrolled_dense_layer(case: LayerCase, rule: RuleCase) -> None:
    layer, x = case.build(True), signed(case.shape)
    matrix = reference.dense(layer, x.shape[1:])
    assert matrix.bias is not None
    unrolled = nn.Linear(*reversed(matrix.weight.shape)).to(DTYPE)
    with torch.no_grad():
        unrolled.weight.copy_(matrix.weight)
        unrolled.bias.copy_(matrix.bias)
    seed = seed_like(layer(x))
    # A stabilizer tells positions from channels, which a dense layer cannot; that of a whole layer is one for both.
    options = {key: 0.0 if key == "stabilizer" else value for key, value in rule.options.items()}
    options |= {"relative": "layer"} if options.get("relative") else {}
    options |= {"stabilizer": 0.0} if rule.rule not in ("lrp0", "epsilon", "rho") else {}
    exact = package_rule(RuleCase(rule.rule, options))
    first = LRP(layer, exact).attribute(x, target=weighted(seed))
    second = LRP(unrolled, exact).attribute(x.flatten(1), target=weighted(seed.flatten(1)))
    same(first.flatten(1), second)


def test_convolution_over_all_of_its_input_is_a_dense_layer_for_flat() -> None:
    torch.manual_seed(1)
    conv, x = nn.Conv2d(3, 4, (4, 5)).to(DTYPE), signed((2, 3, 4, 5))
    dense = nn.Linear(60, 4).to(DTYPE)
    with torch.no_grad():
        dense.weight.copy_(conv.weight.flatten(1))
        dense.bias.copy_(conv.bias)  # type: ignore[arg-type]
    seed = seed_like(conv(x))
    first = LRP(conv, Flat()).attribute(x, target=weighted(seed))
    same(first.flatten(1), LRP(dense, Flat()).attribute(x.flatten(1), target=weighted(seed.flatten(1))))


# --------------------------------------------------------------------------- in the seed and in the batch


@pytest.mark.parametrize("rule", EVERY_RULE)
@pytest.mark.parametrize("network", EVERY_NETWORK)
def test_relevance_is_linear_in_the_relevance_of_the_output(network: str, rule: RuleCase) -> None:
    model, x = NETWORKS[network]
    method = LRP(model, package_rule(rule))
    first, second = method.attribute(x, target=0), method.attribute(x, target=2)
    mixed = method.attribute(x, target=lambda out: 3 * out[:, 0] - 0.5 * out[:, 2])
    same(mixed, 3 * first - 0.5 * second, 1e-9)


@pytest.mark.parametrize("rule", EVERY_RULE)
@pytest.mark.parametrize("network", EVERY_NETWORK)
def test_a_batch_is_its_samples(network: str, rule: RuleCase) -> None:
    model, x = NETWORKS[network]
    method = LRP(model, package_rule(rule))
    together = method.attribute(x, target=1)
    same(together, torch.cat([method.attribute(x[i : i + 1], target=1) for i in range(len(x))]), 1e-9)


# -------------------------------------------------------------------------------- conservation and sign

BOX = ZBox(-30.0, 30.0, stabilizer=0.0)
SQUARE, EVEN, PLUS = WSquare(stabilizer=0.0), Flat(stabilizer=0.0), ZPlus(stabilizer=0.0)


@pytest.mark.parametrize("rule", [BOX, SQUARE, EVEN], ids=["zbox", "wsquare", "flat"])
@pytest.mark.parametrize("case", EVERY_LAYER)
def test_input_rules_conserve(case: LayerCase, rule: object) -> None:
    layer, x = case.build(False), signed(case.shape)
    out = layer(x)
    target = weighted(seed_like(out))
    found, delta = LRP(layer, rule).attribute(x, target=target, return_convergence_delta=True)
    torch.testing.assert_close(found.flatten(1).sum(1), target(out), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(delta, torch.zeros_like(delta), rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", EVERY_LAYER)
def test_zplus_conserves_where_something_is_positive(case: LayerCase) -> None:
    layer, x = case.build(False), signed(case.shape)
    out = layer(x)
    seed = seed_like(out)
    raised = reference.products(layer, x).clamp(min=0).sum(2).reshape(out.shape) > 0
    found = LRP(layer, PLUS).attribute(x, target=weighted(seed))
    total = (out * seed * raised).flatten(1).sum(1)
    torch.testing.assert_close(found.flatten(1).sum(1), total, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", EVERY_LAYER)
def test_alpha_beta_conserves_only_where_both_signs_occur(case: LayerCase) -> None:
    layer, x = case.build(False), signed(case.shape)
    out = layer(x)
    seed = seed_like(out)
    products = reference.products(layer, x)
    raised = (products > 0).any(2).reshape(out.shape)
    lowered = (products < 0).any(2).reshape(out.shape)
    found = LRP(layer, AlphaBeta(2, 1, stabilizer=0.0)).attribute(x, target=weighted(seed))
    relevance = out * seed
    total = (2 * relevance * raised - relevance * lowered).flatten(1).sum(1)
    torch.testing.assert_close(found.flatten(1).sum(1), total, rtol=1e-10, atol=1e-12)


def test_alpha_beta_does_not_conserve_where_one_sign_is_missing() -> None:
    layer = nn.Linear(3, 1, bias=False).to(DTYPE)
    with torch.no_grad():
        layer.weight.fill_(0.5)
    x = torch.tensor([[1.0, 2.0, 3.0]], dtype=DTYPE)
    found = LRP(layer, AlphaBeta(2, 1, stabilizer=0.0)).attribute(x)
    torch.testing.assert_close(found, x)  # twice each share, and nothing to take away
    assert found.sum().item() == pytest.approx(2 * layer(x).item())


@pytest.mark.parametrize("rule", [BOX, SQUARE, EVEN, PLUS], ids=["zbox", "wsquare", "flat", "zplus"])
@pytest.mark.parametrize("network", EVERY_NETWORK)
def test_relevance_of_a_positive_output_is_nowhere_negative(network: str, rule: object) -> None:
    model, x = NETWORKS[network]
    target = weighted((model(x) > 0).to(DTYPE))
    found = LRP(model, rule).attribute(x, target=target)
    assert found.min().item() >= -1e-12 * found.abs().max().item()
    assert found.max().item() > 0


@pytest.mark.parametrize("rule", [BOX, SQUARE, EVEN], ids=["zbox", "wsquare", "flat"])
@pytest.mark.parametrize("network", EVERY_NETWORK)
def test_input_rules_conserve_through_a_network(network: str, rule: object) -> None:
    model, x = WITHOUT_BIAS[network]
    found = LRP(model, rule).attribute(x, target=0)
    torch.testing.assert_close(found.flatten(1).sum(1), model(x)[:, 0], rtol=1e-9, atol=1e-12)
    # The sum alone proves little: nothing cancels here, so the size of the map is that of the output.
    size = found.abs().flatten(1).sum(1) / model(x)[:, 0].abs()
    assert math.isclose(size.max().item(), 1.0, rel_tol=1e-6)
