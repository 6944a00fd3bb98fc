"""Pooling, upsampling, padding, activations: each against its formula on relevances."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import LRP, Rules
from relprop.rules import AveragePool
from tests import reference_steps
from tests.models import settle
from tests.reference import quotient
from tests.unrolled import Share, assert_close, check, conv, dense, each_rule, passing, random, weigh

Function = Callable[[Tensor], Tensor]


class Applies(nn.Module):
    """A model that is one function and one module of its own."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)  # type: ignore[no-any-return]


def relevance_of(output: Tensor) -> Tensor:
    """What the target sends to the outputs: [N, ...]."""
    seed = torch.autograd.functional.jacobian(lambda out: weigh(out).sum(), output)
    return output * seed  # type: ignore[no-any-return]


def check_alone(function: Any, x: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    """The function as a model of its own, by attribute and by report."""
    model = Applies(function).eval()
    found = LRP(model, "lrp0").attribute(x, weigh)
    assert_close(found, expected, tolerance=tolerance)
    assert_close(LRP(model, "lrp0").attribute(x, weigh, create_graph=True).detach(), expected, tolerance=tolerance)
    report = LRP(model, "lrp0").report(x, weigh)
    report.check(1e-10)
    assert torch.allclose(report.delta, weigh(function(x.clone())).detach() - expected.flatten(1).sum(1), atol=1e-10)


# Linear operations: R_j = sum_k a_j m_kj / z_k R_k, m_kj by the unit vectors ------------------------

LINEAR: dict[str, tuple[Any, tuple[int, ...]]] = {
    "nearest 1d": (nn.Upsample(scale_factor=2), (2, 2, 3)),
    "nearest 2d": (lambda x: F.interpolate(x, scale_factor=2), (2, 2, 3, 3)),
    "nearest 3d": (lambda x: F.interpolate(x, size=(3, 4, 2), mode="nearest"), (2, 1, 2, 2, 2)),
    "nearest, smaller": (lambda x: F.interpolate(x, size=2), (2, 2, 5, 5)),
    "nearest-exact": (lambda x: F.interpolate(x, size=5, mode="nearest-exact"), (2, 1, 3, 3)),
    "linear": (lambda x: F.interpolate(x, size=5, mode="linear"), (2, 2, 3)),
    "bilinear": (nn.Upsample(scale_factor=2, mode="bilinear"), (2, 2, 3, 3)),
    "bilinear, corners aligned": (nn.UpsamplingBilinear2d(size=(5, 4)), (2, 1, 3, 3)),
    "bicubic": (lambda x: F.interpolate(x, scale_factor=2.0, mode="bicubic"), (2, 1, 3, 3)),
    "trilinear": (lambda x: F.interpolate(x, scale_factor=2, mode="trilinear"), (2, 1, 2, 2, 2)),
    "area": (lambda x: F.interpolate(x, size=2, mode="area"), (2, 1, 5, 5)),
    "zero padding": (nn.ZeroPad2d((1, 0, 2, 1)), (2, 2, 3, 3)),
    "negative padding": (lambda x: F.pad(x, (-1, 1, 0, -1)), (2, 2, 3, 3)),
    "reflect 1d": (nn.ReflectionPad1d(2), (2, 2, 4)),
    "reflect 2d": (lambda x: F.pad(x, (1, 2, 0, 1), mode="reflect"), (2, 2, 3, 3)),
    "replicate 2d": (nn.ReplicationPad2d(1), (2, 1, 3, 2)),
    "replicate 3d": (lambda x: F.pad(x, (1, 0, 0, 1, 1, 1), mode="replicate"), (2, 1, 2, 2, 2)),
    "circular 2d": (lambda x: F.pad(x, (1, 2, 2, 0), mode="circular"), (2, 1, 3, 3)),
    "flatten": (nn.Flatten(), (2, 2, 3, 3)),
    "flatten by position": (lambda x: torch.flatten(x, 1, 2), (2, 2, 3, 3)),
    "reshape and permute": (lambda x: x.permute(0, 2, 3, 1).reshape(2, 9, -1).transpose(1, 2), (2, 2, 3, 3)),
    "cat": (lambda x: torch.cat([x, 2 * x.flip(2), x[:, :1]], dim=1), (2, 2, 3)),
    "cat with a constant": (lambda x: torch.cat([x, torch.ones(2, 1, 3, dtype=x.dtype)], 1)[:, :2], (2, 2, 3)),
    "stack": (lambda x: torch.stack((x, -x), 2), (2, 2, 3)),
    "pixel shuffle": (nn.PixelShuffle(2), (2, 4, 2, 2)),
    "pixel unshuffle": (nn.PixelUnshuffle(2), (2, 1, 4, 4)),
    "channel shuffle": (nn.ChannelShuffle(2), (2, 4, 2, 2)),
    "unfold": (nn.Unfold(2), (2, 1, 3, 3)),
    "fold": (nn.Fold(3, 2), (2, 4, 4)),
    "sum": (lambda x: x.sum((2, 3)), (2, 3, 2, 2)),
    "mean": (lambda x: x.mean(dim=(2, 3), keepdim=True), (2, 3, 2, 2)),
    "cumsum": (lambda x: x.cumsum(1), (2, 5)),
    "roll and flip": (lambda x: x.roll(1, 1) - x.flip(1) * 2, (2, 5)),
    "subtract from a constant": (lambda x: 3 * (0.0 - x) / 2 - (-x), (2, 5)),
    "repeat and expand": (lambda x: x.repeat(1, 2) + x[:, :1].expand(2, 8), (2, 4)),
    "gather": (lambda x: x.gather(1, torch.tensor([[0, 0, 2], [3, 1, 1]])[:, [0, 1]].expand(2, 2)), (2, 4)),
    "index by a list": (lambda x: x[:, [0, 2, 2]], (2, 4)),
    "chunk, split and unbind": (
        lambda x: torch.cat([x.chunk(2, 1)[1], x.split([1, 3], 1)[1], torch.stack(x.unbind(1)[:2], 1)], 1),
        (2, 4),
    ),
    "a constant matrix": (lambda x: x @ random(4, 3, seed=3), (2, 4)),
    "a constant einsum": (lambda x: torch.einsum("nj,jk->nk", x, random(4, 3, seed=3)), (2, 4)),
    "average 1d": (nn.AvgPool1d(2), (2, 2, 5)),
    "average 2d, padded": (nn.AvgPool2d(3, 2, padding=1), (2, 2, 5, 5)),
    "average 2d, padding not counted": (nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), (2, 1, 4, 4)),
    "average 2d, own divisor": (lambda x: F.avg_pool2d(x, 2, divisor_override=3), (2, 1, 4, 4)),
    "average 3d": (nn.AvgPool3d(2, 1), (2, 1, 3, 2, 3)),
    "adaptive average 1d": (nn.AdaptiveAvgPool1d(2), (2, 2, 5)),
    "adaptive average 2d": (nn.AdaptiveAvgPool2d((3, None)), (2, 1, 5, 2)),
    "adaptive average 3d": (lambda x: F.adaptive_avg_pool3d(x, 2), (2, 1, 3, 3, 2)),
}


def matrix(function: Function, shape: torch.Size) -> Tensor:
    """A linear function as [K, J], by its values on the unit vectors (twice, as some functions want a batch of 2)."""
    units = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, 1, *shape)
    return torch.stack([function(torch.cat([unit, unit]))[0].flatten() for unit in units], 1)


@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_operation_shares_by_its_terms(name: str) -> None:
    function, shape = LINEAR[name]
    x = random(*shape)
    if "gather" in name or ("constant" in name and "cat" in name):
        expected = x * _gradient(function, x)  # they differ from sample to sample, or have a bias
    else:
        parts = x.flatten(1)[:, None] * matrix(function, x.shape[1:])[None]
        shares = quotient(parts, parts.sum(2, keepdim=True))
        expected = torch.einsum("nkj,nk->nj", shares, relevance_of(function(x)).flatten(1)).reshape(x.shape)
    check_alone(function, x, expected)


def _gradient(function: Function, x: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(lambda a: weigh(function(a)).sum(), x)  # type: ignore[no-any-return]


# Pooling -----------------------------------------------------------------------------------------

POOLS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.MaxPool1d(2), (2, 2, 5)),
    (nn.MaxPool1d(3, 1, padding=1, dilation=1), (2, 2, 5)),
    (nn.MaxPool2d(2), (2, 2, 4, 4)),
    (nn.MaxPool2d(3, 2, padding=1), (2, 2, 5, 5)),
    (nn.MaxPool2d((2, 1), (1, 2), dilation=(2, 1)), (2, 1, 5, 5)),
    (nn.MaxPool2d(2, ceil_mode=True), (2, 1, 5, 5)),
    (nn.MaxPool3d(2, 1), (2, 1, 3, 2, 3)),
    (nn.AvgPool2d(2, 1, padding=1), (2, 2, 3, 3)),
    (nn.AvgPool2d(2, 1, padding=1, count_include_pad=False), (2, 2, 3, 3)),
    (nn.AvgPool3d(2), (2, 1, 4, 2, 2)),
    (nn.AdaptiveAvgPool2d((2, 3)), (2, 2, 5, 4)),
]


@pytest.mark.parametrize("position", range(len(POOLS)))
@pytest.mark.parametrize("signed", [True, False])
def test_pooling_by_windows(position: int, signed: bool) -> None:
    pool, shape = POOLS[position]
    x = random(*shape) if signed else random(*shape).relu()  # ties at zero: the first wins
    check_alone(pool, x, reference_steps.pool(pool, x, relevance_of(pool(x))))


def test_max_pooling_by_every_name() -> None:
    x = random(2, 2, 4, 4)
    expected = reference_steps.pool(nn.MaxPool2d(2), x, relevance_of(F.max_pool2d(x, 2)))
    for function in (
        lambda a: F.max_pool2d(a, 2),
        lambda a: F.max_pool2d(input=a, kernel_size=(2, 2), stride=2),
        lambda a: F.max_pool2d(a, 2, return_indices=True)[0],
        lambda a: nn.MaxPool2d(2, return_indices=True)(a)[0],
        lambda a: torch.max_pool2d(a, 2),
        lambda a: F.adaptive_max_pool2d(a, 2),
        lambda a: nn.AdaptiveMaxPool2d((2, 2), return_indices=True)(a)[0],
        lambda a: a.reshape(2, 2, 2, 2, 2, 2).amax((3, 5)),
        lambda a: a.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4).max(4)[0],
        lambda a: F.max_pool1d(F.max_pool1d(a.flatten(0, 1), 2).transpose(1, 2), 2).transpose(1, 2).reshape(2, 2, 2, 2),
    ):
        check_alone(function, x, expected)


def test_max_pooling_and_its_inverse() -> None:
    x = random(2, 2, 4, 4)

    def there_and_back(a: Tensor) -> Tensor:
        return F.max_unpool2d(*F.max_pool2d(a, 2, return_indices=True), (2, 2))

    out = there_and_back(x)
    check_alone(there_and_back, x, torch.where(out != 0, relevance_of(out), 0.0))


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool1d(3, 2, padding=1)], ids=["2d", "1d"])
def test_max_pooling_as_an_average(pool: nn.Module) -> None:
    x = random(2, 2, 4, 4) if isinstance(pool, nn.MaxPool2d) else random(2, 2, 5)
    found = LRP(pool, Rules.preset("lrp0").set(type(pool), AveragePool())).attribute(x, weigh)
    assert_close(found, reference_steps.pool(pool, x, relevance_of(pool(x)), "average"))


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_power_average_pooling(dimensions: int, p: float) -> None:
    """R_j = sum over windows of a_j^p / sum a^p R."""
    pool = (nn.LPPool1d, nn.LPPool2d, nn.LPPool3d)[dimensions - 1](p, 2)
    x = random(2, 1, *[4] * dimensions).abs()
    plain = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[dimensions - 1]
    spread = quotient(relevance_of(pool(x)), plain(x**p, 2) * 2**dimensions)
    expected = x**p * F.interpolate(spread, scale_factor=2)
    check_alone(pool, x, expected, 1e-11)


# Activations -------------------------------------------------------------------------------------

ACTIVATIONS: dict[str, list[Any]] = {
    "relu": [nn.ReLU(), nn.ReLU(inplace=True), F.relu, torch.relu, Tensor.relu],
    "leaky relu": [nn.LeakyReLU(0.2), nn.LeakyReLU(0.2, inplace=True), lambda x: F.leaky_relu(x, 0.2)],
    "prelu": [nn.PReLU(dtype=torch.float64), lambda x: torch.prelu(x, torch.full((1,), 0.25, dtype=x.dtype))],
    "rrelu": [nn.RReLU(), nn.RReLU(inplace=True)],
    "gelu": [nn.GELU(), F.gelu],
    "gelu by tanh": [nn.GELU(approximate="tanh"), lambda x: F.gelu(x, approximate="tanh")],
    "silu": [nn.SiLU(), nn.SiLU(inplace=True), F.silu],
    "mish": [nn.Mish(), nn.Mish(inplace=True), F.mish],
    "tanh": [nn.Tanh(), torch.tanh, Tensor.tanh, F.tanh],
    "hardtanh": [nn.Hardtanh(), nn.Hardtanh(inplace=True), F.hardtanh, lambda x: x.clamp(-1, 1)],
    "relu6": [nn.ReLU6(), nn.ReLU6(inplace=True), F.relu6, lambda x: torch.clip(x, 0, 6)],
    "hardswish": [nn.Hardswish(), nn.Hardswish(inplace=True), F.hardswish],
    "elu": [nn.ELU(0.7), nn.ELU(0.7, inplace=True), lambda x: F.elu(x, 0.7)],
    "celu": [nn.CELU(0.7), nn.CELU(0.7, inplace=True), lambda x: torch.celu(x, 0.7)],
    "selu": [nn.SELU(), nn.SELU(inplace=True), torch.selu],
    "softsign": [nn.Softsign(), F.softsign],
    "tanhshrink": [nn.Tanhshrink(), F.tanhshrink],
    "softshrink": [nn.Softshrink(0.3), lambda x: F.softshrink(x, 0.3)],
    "hardshrink": [nn.Hardshrink(0.3), lambda x: F.hardshrink(x, 0.3)],
    "sin": [torch.sin],
    "atan": [torch.atan],
    "square": [torch.square, lambda x: x**2, lambda x: x.pow(2)],
    "abs": [torch.abs, abs],
    "erf": [torch.erf],
    "sigmoid": [nn.Sigmoid(), torch.sigmoid, Tensor.sigmoid, F.sigmoid, torch.special.expit],
    "hardsigmoid": [nn.Hardsigmoid(), nn.Hardsigmoid(inplace=True), F.hardsigmoid],
    "softplus": [nn.Softplus(), F.softplus],
    "softplus of its own sharpness": [nn.Softplus(3.0, 2.0), lambda x: F.softplus(x, 3.0, 2.0)],
    "logsigmoid": [nn.LogSigmoid(), F.logsigmoid],
    "exp": [torch.exp, Tensor.exp],
    "cos": [torch.cos],
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_hands_relevance_on(name: str) -> None:
    """R_in = R_out where f(0) = 0; else f(0) absorbs, and R_in = c (f(z) - f(0)) with the seed c."""
    x = 4 * random(3, 7)
    x[0, 0] = 0.0
    first = ACTIVATIONS[name][0].eval() if isinstance(ACTIVATIONS[name][0], nn.Module) else ACTIVATIONS[name][0]

    def plain(z: Tensor) -> Tensor:
        return first(z.clone()).detach()  # type: ignore[no-any-return]

    expected = relevance_of(plain(x)) - relevance_of(plain(torch.zeros_like(x)))
    for function in ACTIVATIONS[name]:
        with torch.no_grad():
            assert_close((function.eval() if isinstance(function, nn.Module) else function)(x.clone()), plain(x))
        check_alone(function, x, expected, 1e-11)


# In a network --------------------------------------------------------------------------------------

INSIDE: dict[str, tuple[Any, Function]] = {
    "max pooling": (nn.MaxPool2d(2), lambda h: F.max_pool2d(h, 2)),
    "average pooling": (nn.AvgPool2d(2), lambda h: F.avg_pool2d(h, 2)),
    "batch norm behind ReLU": (
        nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
        lambda h: F.adaptive_avg_pool2d(h.relu(), 2),
    ),
    "upsampling": (
        nn.Sequential(nn.AvgPool2d(4), nn.Upsample(scale_factor=2)),
        lambda h: F.interpolate(F.avg_pool2d(h, 4), scale_factor=2),
    ),
    "gelu, then max pooling": (
        nn.Sequential(nn.GELU(), nn.MaxPool2d(2)),
        lambda h: F.max_pool2d(passing(F.gelu, h, 0.5), 2),
    ),
    "in place, then pooling": (
        nn.Sequential(nn.Hardswish(inplace=True), nn.AdaptiveMaxPool2d(2)),
        lambda h: F.adaptive_max_pool2d(passing(F.hardswish, h, 0.5), 2),
    ),
    "padding, then pooling": (
        nn.Sequential(nn.ReflectionPad2d(2), nn.MaxPool2d(4)),
        lambda h: F.max_pool2d(F.pad(h, (2, 2, 2, 2), mode="reflect"), 4),
    ),
}


@each_rule
@pytest.mark.parametrize("name", INSIDE)
def test_an_operation_between_layers(name: str, rule: str) -> None:
    module, pure = INSIDE[name]
    model = settle(nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), module, nn.Flatten(), nn.Linear(12, 4)))

    def reference(share: Share, x: Tensor) -> Tensor:
        return dense(share, model[3], pure(conv(share, model[0], x)).flatten(1))  # type: ignore[index]

    check(model, reference, random(2, 2, 4, 4), rule=rule)
