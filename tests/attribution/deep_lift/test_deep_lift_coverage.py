"""DeepLIFT on every function of torch, what it names, bad input, and a loss on its relevance."""

from __future__ import annotations

import gc
import warnings
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import (
    DeepLift,
    DeepLiftShap,
    InputError,
    InputTypeError,
    Keywords,
    ModelError,
    NoiseTunnel,
    NumericalError,
    UncoveredOperationError,
    UncoveredOperationWarning,
    Unit,
)
from tests.models import DTYPE, close, images, mlp, residual, settle, vectors
from tests.operations.test_every_function import (
    DEVICES,
    EVERY,
    NARROW,
    Calls,
    operation,
    sample,
    short,
    unknown,
    weigh,
)

RULES = ["rescale", "reveal_cancel"]


# Every function ----------------------------------------------------------------------------------------


def baseline(x: Tensor, domain: str) -> Tensor:
    """Another point of the domain, in which other entries are the largest and other signs occur."""
    if domain == "signed":
        return 0.9 * x.flip(-1) + 0.1 * x
    return {"above one": 1.2 * x, "unit": 0.7 * x + 0.01}.get(domain, 0.7 * x + 0.05)


def has_sample(name: str) -> bool:
    return (operation(name) is not None and sample(name) is not None) or unknown(name) is not None


CASES = [name for name in EVERY if short(name) not in DEVICES | NARROW | {"detach"} and has_sample(name)]
REFUSED = ("not implemented", "does not depend", "eig_backward")
"""What PyTorch, or relprop, says of functions that have no derivative."""


def outcome(name: str, rule: Any) -> tuple[Tensor, float, list[str]] | None:
    """The map, delta and what was named; None where PyTorch itself has no derivative."""
    call = (sample(name) if operation(name) is not None else None) or unknown(name)
    assert call is not None
    x = call.input()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.manual_seed(0)
        try:
            found, delta = DeepLift(Calls(name, call), rule).attribute(
                x, baseline(x, call.domain), weigh, return_convergence_delta=True
            )
        except (RuntimeError, InputError, ModelError) as error:
            if any(word in str(error) for word in REFUSED):
                return None
            raise
    return found, float(delta), [str(item.message) for item in seen if item.category is UncoveredOperationWarning]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", CASES)
def test_the_sum_is_exact_or_the_function_is_named(name: str, rule: Any) -> None:
    made = outcome(name, rule)
    if made is None or made[2]:
        return
    found, delta, _ = made
    assert bool(torch.isfinite(found).all())
    assert abs(delta) <= 1e-9 * (1e-3 + float(found.abs().sum()))


EXACT = {
    "relu", "relu6", "leaky_relu", "prelu", "elu", "gelu", "silu", "mish", "sigmoid", "tanh",
    "softplus", "softmax", "log_softmax", "logsumexp", "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool2d",
    "adaptive_max_pool2d", "adaptive_avg_pool2d", "lp_pool2d", "amax", "max", "min", "maximum", "minimum", "abs",
    "clamp_min", "exp", "log", "sqrt", "rsqrt", "reciprocal", "square", "pow", "mul", "div", "matmul", "einsum", "bmm",
    "linear", "conv1d", "conv2d", "conv_transpose2d", "batch_norm", "layer_norm", "rms_norm", "group_norm", "norm",
    "normalize", "var", "std", "scaled_dot_product_attention", "multi_head_attention_forward", "glu", "cat", "sum",
    "mean", "where", "masked_fill", "dropout", "embedding", "interpolate", "sign", "floor", "__getitem__",
    "__setitem__", "add_", "mul_", "relu_", "addcmul", "cosine_similarity", "local_response_norm", "logaddexp",
    "cross_entropy",
}  # fmt: skip


def test_what_networks_are_made_of_has_a_rule() -> None:
    known = {short(name) for name in CASES}
    assert known >= EXACT, EXACT - known
    for name in CASES:
        if short(name) in EXACT:
            made = outcome(name, "rescale")
            assert made is not None and not made[2], (name, made)


# What is named ------------------------------------------------------------------------------------------


class Of(nn.Module):
    """A model that is a function of its input and of a linear layer."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(4, 4), function

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.function(self.linear(x))
        return found


NAMED: dict[str, tuple[Any, str]] = {
    "no rule": (lambda z: z.cumprod(1), r"cumprod in Of has no DeepLIFT rule"),
    "sorted": (lambda z: z.sort(1)[0], r"sort in Of has no DeepLIFT rule"),
    "no derivative": (lambda z: z + torch.special.bessel_j0(z), r"add in Of takes constants that are others"),
    "detached": (lambda z: z * 2 + z.detach(), r"add in Of takes constants that are others"),
    "data": (lambda z: z * 2 + z.data, r"add in Of takes constants that are others"),
    "a step added": (lambda z: z + (z > 0).double(), r"add in Of takes constants that are others"),
    "another's mask": (
        lambda z: torch.where(z.flip(1) > 0, z * 2, 0.0) + (z * 0 + 1) * (z > 0),
        r"mul in Of takes constants that are others",
    ),
    "a made weight": (lambda z: z @ (z > 0).double().T, r"matmul in Of takes constants that are others"),
    "chosen": (lambda z: z.gather(1, z.argsort(1)), r"gather in Of takes constants that are others"),
}


def test_constants_from_the_input_that_nothing_takes_are_not_named() -> None:
    """What is only looked at, or is the same for both."""
    model = settle(Of(lambda z: z.relu() * torch.ones_like(z) + 0 * float(z.detach().sum()) + (z.detach() > -1e9)))
    DeepLift(model, strict=True).attribute(vectors(), vectors(seed=1), 1)


@pytest.mark.parametrize("case", list(NAMED))
def test_what_has_no_rule_is_named(case: str) -> None:
    function, words = NAMED[case]
    model, x = settle(Of(function)), vectors()
    with pytest.warns(UncoveredOperationWarning, match=words) as seen:
        DeepLift(model).attribute(x, vectors(seed=1), 1)
    assert len(seen) == 1
    with pytest.raises(UncoveredOperationError, match=words):
        DeepLift(model, strict=True).attribute(x, vectors(seed=1), 1)


@torch.no_grad()
def positive(z: Tensor) -> bool:
    return bool(z.sum() > 0)


def test_a_model_that_goes_another_way_for_the_baseline() -> None:
    model, x = settle(Of(lambda z: torch.relu(z) if positive(z) else torch.tanh(z))), vectors(1)
    low, high = sorted((x, -x), key=lambda x: model.linear(x).sum().item())  # type: ignore[operator]
    with pytest.raises(ModelError, match=r"calls relu .* for the baselines tanh .* go the same way"):
        DeepLift(model).attribute(10 * high, 10 * low, 0)
    more = settle(Of(lambda z: torch.relu(z) if positive(z) else z * 2 * z))
    with pytest.raises(ModelError, match=r"goes another way"):
        DeepLift(more).attribute(10 * high, 10 * low, 0)
    DeepLift(model).attribute(10 * high, 9 * high, 0)


def test_dropout_draws_the_same_for_both() -> None:
    model = settle(nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Dropout(0.5), nn.Linear(20, 2))).train()
    with pytest.warns(UserWarning, match="training mode"):
        _, delta = DeepLift(model).attribute(vectors(), vectors(seed=1), 0, return_convergence_delta=True)
    assert float(delta.abs().max()) < 1e-9


# Bad input ----------------------------------------------------------------------------------------------

BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "shape": (torch.zeros(2, 3), InputError, r"baseline has shape \(2, 3\), the input \(2, 4\).*\(1, 4\)"),
    "samples": (torch.zeros(3, 4), InputError, r"baseline has shape \(3, 4\)"),
    "kind": ("zero", InputTypeError, "None, a number or a tensor, got str"),
    "nan": (float("nan"), NumericalError, "NaN"),
    "two": ((0.0, 0.0), InputTypeError, "tuple"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_baselines(case: str) -> None:
    baselines, error, words = BAD[case]
    with pytest.raises(error, match=words):
        DeepLift(mlp()).attribute(vectors(), baselines, 0)


def test_bad_calls() -> None:
    with pytest.raises(InputError, match=r"rule must be one of \('rescale', 'reveal_cancel'\), got 'linear'"):
        DeepLift(mlp(), "linear")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="has no module"):
        DeepLift(mlp()).attribute_layers(vectors(), "9", target=0)
    with pytest.raises(InputError, match="No baselines were given"):
        DeepLiftShap(mlp()).attribute(vectors(), None, 0)
    with pytest.raises(InputError, match=r"baselines have shape \(3, 5\)"):
        DeepLiftShap(mlp()).attribute(vectors(), torch.zeros(3, 5), 0)
    with pytest.raises(InputError, match="structure"):
        DeepLiftShap(mlp()).attribute({"x": vectors()}, 0.0, 0)


# Layers, units, a loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_every_layer_sums_to_the_difference(rule: Any) -> None:
    model, x, base = residual(), images(), images(seed=1)
    expected = (model(x) - model(base))[:, 1].detach()
    found = DeepLift(model, rule).attribute_layers(x, ["pool", "mean", "head"], base, 1)
    for part in found.values():
        assert float((part.flatten(1).sum(1) - expected).abs().max()) < 1e-9
    close(found["head"][:, 1], expected)


def test_a_hidden_unit() -> None:
    model, x, base = mlp(), vectors(), vectors(seed=1)
    _, delta = DeepLift(model).attribute(x, base, Unit("2", 3), return_convergence_delta=True)
    assert float(delta.abs().max()) < 1e-9
    part = nn.Sequential(*list(model)[:3])
    close(DeepLift(model).attribute(x, base, Unit("2", 3)), DeepLift(part).attribute(x, base, 3))


def rescaled(layers: nn.Sequential, x: Tensor, base: Tensor, target: int) -> Tensor:
    """Rescale of Linear-GELU-Linear-ReLU-Linear, as a formula that can be differentiated."""
    values = [(x, base)]
    for layer in layers:
        values.append((layer(values[-1][0]), layer(values[-1][1])))
    m = layers[4].weight[target].expand(len(x), -1)  # type: ignore[index]
    for k in (3, 2, 1, 0):
        if k in (2, 0):
            m = m @ layers[k].weight  # type: ignore[operator]
        else:
            (y, y0), (z, z0) = values[k + 1], values[k]
            m = m * (y - y0) / (z - z0)
    return m * (x - base)


def test_the_derivative_of_a_loss_sees_the_formula() -> None:
    model = settle(nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)))
    x, base = vectors().requires_grad_(), vectors(seed=1)
    weights = vectors(seed=2)
    leaves = [x, *model.parameters()]
    loss = (rescaled(model, x, base, 1) * weights).square().sum()
    expected = torch.autograd.grad(loss, leaves, allow_unused=True)
    found = (DeepLift(model).attribute(x, base, 1, create_graph=True) * weights).square().sum()
    close(found, loss)
    for one, two in zip(torch.autograd.grad(found, leaves, allow_unused=True), expected, strict=True):
        if two is not None and float(two.abs().max()) > 0:
            assert one is not None
            close(one, two)


@pytest.mark.parametrize("rule", RULES)
def test_the_phases_agree(rule: Any) -> None:
    model, x, base = residual(), images(), images(seed=1)
    plain = DeepLift(model, rule).attribute(x, base, 1)
    close(DeepLift(model, rule).attribute(x, base, 1, create_graph=True).detach(), plain, 1e-12)


def test_nothing_is_left_of_a_call() -> None:
    """Without the garbage collector."""
    seen: list[weakref.ref[Tensor]] = []

    def watched(z: Tensor) -> Tensor:
        out = F.max_pool1d(torch.relu(z)[:, None], 2)[:, 0]
        seen.append(weakref.ref(out))
        return out

    model = settle(Of(watched))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gc.disable()
    try:
        for rule in RULES:
            DeepLift(model, rule).attribute(vectors(), torch.ones(1, 4, dtype=DTYPE), 1)  # type: ignore[arg-type]
    finally:
        alive = [reference() for reference in seen if reference() is not None]
        gc.enable()
    assert len(seen) == 4 and not alive
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("rule", RULES)
def test_the_derivative_of_a_loss_against_finite_differences(rule: Any) -> None:
    model = settle(
        nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3), nn.Softmax(1))
    )
    x, base, weights = vectors(), vectors(seed=1), vectors(seed=2)

    def loss(point: Tensor, **options: Any) -> Tensor:
        total: Tensor = (DeepLift(model, rule).attribute(point, base, 1, **options) * weights).sum()
        return total

    leaf = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(leaf, create_graph=True), leaf)
    expected, step = torch.zeros_like(x), 1e-6
    for n, i in [(n, i) for n in range(2) for i in range(4)]:
        move = torch.zeros_like(x)
        move[n, i] = step
        expected[n, i] = (loss(x + move) - loss(x - move)) / (2 * step)
    close(found, expected, 1e-6)


def test_inputs_in_a_structure_and_under_a_wrapper() -> None:
    model, x, base = mlp(), vectors(), vectors(seed=1)
    expected = DeepLift(model).attribute(x, base, 1)
    named = DeepLift(model).attribute(Keywords(input=x), Keywords(input=base), 1)
    close(named["input"], expected)
    smooth = NoiseTunnel(DeepLift(model)).attribute(x, target=1, baselines=base, nt_samples=3, stdevs=0.0)
    close(smooth, expected)
