"""The reference against fractions derived by hand, so that the two sides of a comparison cannot err alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import reference, reference_steps
from tests.cases import RuleCase


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def layer(weight: list[list[float]], bias: list[float] | None = None) -> nn.Linear:
    made = nn.Linear(len(weight[0]), len(weight), bias=bias is not None, dtype=torch.float64)
    with torch.no_grad():
        made.weight.copy_(tensor(weight))
        if bias is not None:
            made.bias.copy_(tensor(bias))
    return made


def doubled(w: Tensor) -> Tensor:
    return 2 * w


def plus_one(z: Tensor) -> Tensor:
    return z + 1


# Two inputs a = (2, -1), two outputs with weights (1, 3) and (-2, 1), biases 1 and -1.
# Products a w: first output (2, -3), second (-4, -1); z = (0, -6).
# With bias 2 on the first output instead: z = (1, -6). Relevance of the outputs is (1, -6).
WEIGHT, BIAS = [[1.0, 3.0], [-2.0, 1.0]], [2.0, -1.0]
INPUT, RELEVANCE = [[2.0, -1.0]], [[1.0, -6.0]]

FRACTIONS: list[tuple[str, dict[str, Any], list[float]]] = [
    # 2/1 * 1 + -4/-6 * -6 = -2;  -3/1 * 1 + -1/-6 * -6 = -4
    ("lrp0", {}, [-2.0, -4.0]),
    # without biases z = (-1, -5): 2/-1 + -4/-5 * -6 = -34/5;  -3/-1 + -1/-5 * -6 = 9/5
    ("lrp0", {"bias": "ignore"}, [-34 / 5, 9 / 5]),
    # denominators 1 + 1 and -6 - 1: 2/2 + 4/7 * -6 = -17/7;  -3/2 + 1/7 * -6 = -33/14
    ("epsilon", {"epsilon": 1.0}, [-17 / 7, -33 / 14]),
    # rms of (1, -6) is sqrt(37/2); the scale is chosen so that the product is 1 again
    ("epsilon", {"epsilon": (2 / 37) ** 0.5, "relative": True}, [-17 / 7, -33 / 14]),
    # first, z = 1 > 0: raising products count twice: (4, -3), bias 4, sum 5
    # second, z = -6 < 0: lowering products count twice: (-8, -2), bias -2, sum -12
    # 4/5 + 8/12 * -6 = -16/5;  -3/5 + 2/12 * -6 = -8/5
    ("gamma", {"gamma": 1.0, "stabilizer": 0.0}, [-16 / 5, -8 / 5]),
    # without the biases the first is negative too (-1): (2, -6), sum -4; second (-8, -2), sum -10
    # -2/4 + 8/10 * -6 = -53/10;  6/4 + 2/10 * -6 = 3/10
    ("gamma", {"gamma": 1.0, "bias": "ignore", "stabilizer": 0.0}, [-53 / 10, 3 / 10]),
    # raising: first (2, 0) of 2 + 2, second none; lowering: first (0, -3) of -3, second (-4, -1) of -6
    # 2 (2/4 * 1) - (4/6 * -6) = 5;  -(1 * 1 + 1/6 * -6) = 0
    ("alpha_beta", {"alpha": 2.0, "beta": 1.0, "stabilizer": 0.0}, [5.0, 0.0]),
    # biases ignored: 2 (2/2 * 1) - (4/5 * -6) = 34/5;  -(1 * 1 + 1/5 * -6) = 1/5
    ("alpha_beta", {"alpha": 2.0, "beta": 1.0, "bias": "ignore", "stabilizer": 0.0}, [34 / 5, 1 / 5]),
    ("zplus", {"stabilizer": 0.0}, [1 / 2, 0.0]),
    # sums 2 + 2 and 0: their rms over the two channels is sqrt(8), so that the stabilizer below is 1; nothing to share
    # in the second
    ("zplus", {"stabilizer": 8**-0.5}, [2 / 5, 0.0]),
    # low -3, high 3: a w - l w+ - h w-: first (2 + 3, -3 + 9) of 11; second (-4 + 6, -1 + 3) of 4
    # 5/11 - 2/4 * 6 = -28/11;  6/11 - 2/4 * 6 = -27/11
    ("zbox", {"low": -3.0, "high": 3.0, "stabilizer": 0.0}, [-28 / 11, -27 / 11]),
    # 1/10 + 4/5 * -6 = -47/10;  9/10 + 1/5 * -6 = -3/10
    ("wsquare", {"stabilizer": 0.0}, [-47 / 10, -3 / 10]),
    ("flat", {"stabilizer": 0.0}, [-5 / 2, -5 / 2]),
    # (1 - 6) / (2 + 1)
    ("flat", {"stabilizer": 0.5}, [-5 / 3, -5 / 3]),
    # rho doubles everything, biases too; incr adds 1 to 2 and to -12: 4/3 + 8/11 * -6;  -6/3 + 2/11 * -6
    ("rho", {"rho": doubled, "incr": plus_one}, [4 / 3 - 48 / 11, -2 - 12 / 11]),
]


@pytest.mark.parametrize(
    ("rule", "options", "expected"), FRACTIONS, ids=[RuleCase(rule, options).name for rule, options, _ in FRACTIONS]
)
def test_rule_equals_fractions(rule: str, options: dict[str, Any], expected: list[float]) -> None:
    found = reference.linear(layer(WEIGHT, BIAS), tensor(INPUT), tensor(RELEVANCE), rule, **options)
    torch.testing.assert_close(found, tensor([expected]), rtol=1e-14, atol=1e-14)


def test_quotient_by_zero_is_zero_and_zero_counts_as_positive() -> None:
    a = tensor([[1.0, -1.0]])
    single = layer([[1.0, 1.0]])  # z = 0
    assert reference.linear(single, a, tensor([[5.0]]), "lrp0").tolist() == [[0.0, 0.0]]
    found = reference.linear(single, a, tensor([[5.0]]), "epsilon", epsilon=0.5)
    assert found.tolist() == [[10.0, -10.0]]
    # z = 0 takes the side of raising products: (2, -1) of 1
    found = reference.linear(single, a, tensor([[5.0]]), "gamma", gamma=1.0, stabilizer=0.0)
    assert found.tolist() == [[10.0, -5.0]]


def test_flat_counts_connections_and_not_weights_or_padding() -> None:
    conv = nn.Conv1d(1, 1, 3, padding=1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        conv.weight.copy_(tensor([[[0.0, 1.0, 5.0]]]))
    # Outputs reach inputs {0, 1}, {0, 1, 2}, {1, 2}.
    found = reference.linear(conv, torch.ones(1, 1, 3).double(), tensor([[[6.0, 6.0, 6.0]]]), "flat", stabilizer=0)
    torch.testing.assert_close(found, tensor([[[5.0, 8.0, 5.0]]]))


def test_padding_copies_return_what_they_get() -> None:
    conv = nn.Conv1d(1, 1, 1, padding=1, padding_mode="circular", bias=False, dtype=torch.float64)
    # Padded (c, a, b, c, a): relevance of the copies returns to their originals.
    a, r = tensor([[[1.0, 2.0, 3.0]]]), tensor([[[1.0, 10.0, 100.0, 1000.0, 10000.0]]])
    found = reference.linear(conv, a, r, "lrp0")
    torch.testing.assert_close(found, tensor([[[10010.0, 100.0, 1001.0]]]))


def _each(layers: list[nn.Module], shape: tuple[int, ...]) -> list[tuple[nn.Module, tuple[int, ...]]]:
    return [(each.double(), shape) for each in layers]


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        *_each([nn.Linear(4, 3), nn.Linear(4, 3, bias=False)], (2, 5, 4)),
        *_each([nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2)], (2, 4, 7)),
        *_each([nn.Conv2d(2, 3, (2, 3), padding="same", dilation=(1, 2))], (2, 2, 5, 4)),
        *_each([nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)], (2, 4, 3, 3)),
        *_each([nn.ConvTranspose3d(2, 2, 2, dilation=2)], (2, 2, 2, 3, 2)),
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_matrix_is_the_jacobian_and_reproduces_the_layer(module: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = reference.dense(module, x.shape[1:])
    jacobian = torch.func.jacrev(lambda t: module(t[None])[0])(x[0]).flatten(0, x.dim() - 2).flatten(1)
    torch.testing.assert_close(matrix.weight, jacobian, rtol=1e-12, atol=1e-14)
    out = x.flatten(1) @ matrix.weight.T + (0 if matrix.bias is None else matrix.bias)
    torch.testing.assert_close(out, module(x).flatten(1), rtol=1e-12, atol=1e-13)


def test_max_pooling_gives_to_the_first_maximum_in_scan_order() -> None:
    a = tensor([[[[3.0, 3.0], [1.0, 3.0]]]])
    assert reference_steps.pool(nn.MaxPool2d(2), a, tensor([[[[7.0]]]])).tolist() == [[[[7, 0], [0, 0]]]]
    # mean 10/4: shares 3/10, 3/10, 1/10, 3/10
    found = reference_steps.pool(nn.MaxPool2d(2), a, tensor([[[[10.0]]]]), "average", stabilizer=0.0)
    torch.testing.assert_close(found, a)
    # a stabilizer of 2.5 halves them, in shares of the maximum
    found = reference_steps.pool(nn.MaxPool2d(2), a, tensor([[[[10.0]]]]), "average", stabilizer=2.5 / 3)
    torch.testing.assert_close(found, a / 2)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.MaxPool1d(3, 2, padding=1, dilation=2), (2, 3, 9)),
        (nn.MaxPool2d((2, 3), (1, 2), padding=(1, 0)), (2, 2, 4, 6)),
        (nn.MaxPool2d(3, 2, ceil_mode=True), (2, 2, 6, 6)),
        (nn.MaxPool3d(2), (1, 2, 4, 4, 2)),
        (nn.AvgPool1d(3, 2, padding=1), (2, 3, 8)),
        (nn.AvgPool2d(3, 2, ceil_mode=True), (2, 2, 6, 6)),
        (nn.AvgPool3d(2), (1, 2, 4, 4, 2)),
        (nn.AdaptiveAvgPool1d(3), (2, 2, 7)),
        (nn.AdaptiveAvgPool2d((2, 3)), (2, 2, 5, 4)),
        (nn.AdaptiveAvgPool3d(1), (2, 2, 2, 3, 2)),
    ],
)
def test_pooling_is_gradient_times_input(module: nn.Module, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True)
    out = module(x)
    c = torch.randn(out.shape, dtype=torch.float64, generator=generator)
    (gradient,) = torch.autograd.grad((out * c).sum(), x)
    found = reference_steps.pool(module, x, out * c)
    torch.testing.assert_close(found, gradient * x, rtol=1e-10, atol=1e-12)


def test_batch_norm_shares_with_its_shift() -> None:
    norm = nn.BatchNorm1d(2, eps=0.0).double().eval()
    norm.running_mean.copy_(tensor([1.0, 0.0]))  # type: ignore[union-attr]
    norm.running_var.copy_(tensor([4.0, 1.0]))  # type: ignore[union-attr]
    with torch.no_grad():
        norm.weight.copy_(tensor([2.0, 3.0]))
        norm.bias.copy_(tensor([0.5, 0.0]))
    # scale (1, 3), shift (-1/2, 0): z = (5/2, -3), shares 3 / (5/2) and 1
    found = reference_steps.batch_norm(norm, tensor([[3.0, -1.0]]), tensor([[5.0, 4.0]]))
    torch.testing.assert_close(found, tensor([[6.0, 4.0]]))
    # behind a linear layer z' = (3, -1) with z = (x0 + x1, x1), x = (4, -1): first output (4, -1) of 5/2
    pair = reference.linear(layer([[1.0, 1.0], [0.0, 1.0]]), tensor([[4.0, -1.0]]), tensor([[5.0, 4.0]]), "lrp0", norm)
    torch.testing.assert_close(pair, tensor([[8.0, 2.0]]))


@pytest.mark.parametrize(
    ("function", "factor"),
    [(torch.tanh, 1.0), (torch.sigmoid, None), (nn.functional.silu, 1.0)],
)
def test_activation_keeps_all_but_its_value_at_zero(function: Callable[[Tensor], Tensor], factor: float | None) -> None:
    z, r = tensor([[1.5, -0.5, 0.0]]), tensor([[2.0, 3.0, 0.0]])
    expected = r * factor if factor else r * (1 - 0.5 / torch.sigmoid(z))
    torch.testing.assert_close(reference_steps.activation(function, z, r), expected)


def test_addition_shares_equally_where_it_is_zero() -> None:
    first, second = reference_steps.addition(
        [tensor([[1.0, 0.0, 1.0]]), tensor([[3.0, 0.0, -1.0]])], tensor([[4.0, 6.0, 2.0]])
    )
    assert first.tolist() == [[1, 3, 1]]
    assert second.tolist() == [[3, 3, 1]]


def test_sequence_is_gradient_times_input_for_lrp0() -> None:
    torch.manual_seed(2)
    modules = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(3),
        nn.LeakyReLU(), nn.Conv2d(3, 4, 2), nn.ReLU(), nn.AvgPool2d(2, 1), nn.Flatten(), nn.Linear(4, 3),
    ).double().eval()  # fmt: skip
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    seed = torch.randn(2, 3, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((modules(x) * seed).sum(), x)
    found = reference_steps.explain(list(modules), x, seed, ("lrp0", {}))[0]
    torch.testing.assert_close(found, gradient * x, rtol=1e-9, atol=1e-12)
