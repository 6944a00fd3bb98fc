"""Every activation's map against its definition: `R_in = c (f(z) - f(0))`, for every way to call it.

The expected values come from closed forms in Python's decimal arithmetic, exact to more digits than a float has.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, localcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import LRP, Rules
from tests.cases import DTYPE, seed_like
from tests.compare import weighted

LARGE = [8.0, 10.0, 20.5, 30.0, 50.0, 100.0, 700.0]
MIDDLE = [0.01, 0.3, 0.5, 0.8, 1.0, 2.5, 3.0, 5.0, 6.0]
SMALL = [1e-30, 1e-12, 1e-7, 1e-4, 9.99e-4, 1.001e-3, 0.003]
POINTS = [0.0, *(side * z for z in (*SMALL, *MIDDLE, *LARGE) for side in (1.0, -1.0))]

Exact = Callable[[Decimal], Decimal]
ONE, TWO = Decimal(1), Decimal(2)


def exp(z: Decimal) -> Decimal:
    return z.exp()


def sigmoid(z: Decimal) -> Decimal:
    return ONE / (ONE + exp(-z))


def tanh(z: Decimal) -> Decimal:
    return TWO * sigmoid(TWO * z) - ONE


def softplus(z: Decimal) -> Decimal:
    return (ONE + exp(z)).ln()


def clamp(z: Decimal, low: float, high: float) -> Decimal:
    return min(max(z, Decimal(low)), Decimal(high))


def from_float(function: Callable[[float], float]) -> Exact:
    """A function of the standard library, which is exact to the last digit or two of a float."""
    return lambda z: Decimal(function(float(z)))


def gelu_tanh(z: Decimal) -> Decimal:
    return z * sigmoid(TWO * (TWO / Decimal(math.pi)).sqrt() * (z + Decimal.from_float(0.044715) * z**3))


def torch_softplus(beta: float) -> Exact:
    """PyTorch's, which is the identity beyond its threshold."""
    scale = Decimal(beta)
    return lambda z: z if z * scale > 20 else softplus(scale * z) / scale


@dataclass(frozen=True)
class Case:
    """An activation: its exact value, its finite slopes at zero (of either side, or between), ways to call it."""

    exact: Exact
    slopes: tuple[float, ...]
    forms: dict[str, Callable[[Tensor], Tensor]]
    domain: tuple[float, float] = (-math.inf, math.inf)


def forms(
    function: Callable[..., Tensor] | None = None,
    module: Callable[..., nn.Module] | None = None,
    inplace: Callable[..., Tensor] | None = None,
    method: str | None = None,
    modules_inplace: bool = False,
    **arguments: float,
) -> dict[str, Callable[[Tensor], Tensor]]:
    """The ways to call one activation: as a function, a module, a method; each writing into its argument or not."""
    found: dict[str, Callable[[Tensor], Tensor]] = {}
    if function is not None:
        found["function"] = lambda z: function(z, **arguments)
    if module is not None:
        found["module"] = module(**arguments)
    if modules_inplace:
        assert module is not None
        found["module in place"] = module(**arguments, inplace=True)
        if function is not None:
            found["function in place"] = lambda z: function(z, **arguments, inplace=True)
    if inplace is not None:
        found["in place"] = lambda z: inplace(z, **arguments)
    if method is not None:
        found["method"] = lambda z: getattr(z, method)(**arguments)
        found["bare statement"] = lambda z: stated(z, method, arguments)
    return found


def stated(z: Tensor, method: str, arguments: dict[str, float]) -> Tensor:
    """A method in place, whose result is not used."""
    getattr(z, f"{method}_")(**arguments)
    return z


def identity_above(slope: float) -> Exact:
    return lambda z: z if z > 0 else Decimal(slope) * z


def exponential_below(alpha: float, scale: float = 1.0, width: float = 1.0) -> Exact:
    """Elu and its kin."""
    return lambda z: Decimal(scale) * (z if z > 0 else Decimal(alpha) * (exp(z / Decimal(width)) - ONE))


SELU, SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946
RRELU = (1 / 8 + 1 / 3) / 2

CASES: dict[str, Case] = {
    "relu": Case(lambda z: max(z, Decimal(0)), (0.0, 1.0), forms(F.relu, nn.ReLU, torch.relu_, "relu", True)),
    "leaky_relu": Case(
        identity_above(0.1), (0.1, 1.0), forms(F.leaky_relu, nn.LeakyReLU, None, None, True, negative_slope=0.1)
    ),
    "rrelu": Case(identity_above(RRELU), (RRELU, 1.0), forms(F.rrelu, nn.RReLU, modules_inplace=True)),
    "prelu": Case(
        identity_above(0.25),
        (0.25, 1.0),
        {"module": nn.PReLU(init=0.25), "function": lambda z: F.prelu(z, torch.full((1,), 0.25, dtype=z.dtype))},
    ),
    "relu6": Case(lambda z: clamp(z, 0, 6), (0.0, 1.0), forms(F.relu6, nn.ReLU6, modules_inplace=True)),
    "hardtanh": Case(
        lambda z: clamp(z, -1, 2),
        (1.0,),
        forms(F.hardtanh, nn.Hardtanh, F.hardtanh_, None, True, min_val=-1, max_val=2),
    ),
    "clamp": Case(
        lambda z: clamp(z, -0.5, 0.75), (1.0,), forms(torch.clamp, None, torch.clamp_, "clip", min=-0.5, max=0.75)
    ),
    "clamp above zero": Case(
        lambda z: clamp(z, 0.25, 9e9), (0.0,), forms(torch.clamp_min, None, None, "clamp_min", min=0.25)
    ),
    "clamp below zero": Case(
        lambda z: clamp(z, -9e9, -0.25), (0.0,), forms(torch.clamp_max, None, None, "clamp", max=-0.25)
    ),
    "hardswish": Case(lambda z: z * clamp(z + 3, 0, 6) / 6, (0.5,), forms(F.hardswish, nn.Hardswish, None, None, True)),
    "hardsigmoid": Case(
        lambda z: clamp(z + 3, 0, 6) / 6, (1 / 6,), forms(F.hardsigmoid, nn.Hardsigmoid, None, None, True)
    ),
    "gelu": Case(from_float(lambda z: z * math.erfc(-z / math.sqrt(2)) / 2), (0.5,), forms(F.gelu, nn.GELU)),
    "gelu tanh": Case(
        gelu_tanh,
        (0.5,),
        {
            "module": nn.GELU("tanh"),
            "function": lambda z: F.gelu(z, approximate="tanh"),
        },
    ),
    "silu": Case(lambda z: z * sigmoid(z), (0.5,), forms(F.silu, nn.SiLU, modules_inplace=True)),
    "mish": Case(lambda z: z * tanh(softplus(z)), (0.6,), forms(F.mish, nn.Mish, modules_inplace=True)),
    "tanh": Case(tanh, (1.0,), forms(torch.tanh, nn.Tanh, torch.tanh_, "tanh")),
    "sigmoid": Case(sigmoid, (0.25,), forms(torch.sigmoid, nn.Sigmoid, torch.sigmoid_, "sigmoid")),
    "expit": Case(sigmoid, (0.25,), forms(torch.special.expit)),
    "softplus": Case(torch_softplus(1.0), (0.5,), forms(F.softplus, nn.Softplus)),
    "softplus beta": Case(torch_softplus(2.5), (0.5,), forms(F.softplus, nn.Softplus, beta=2.5)),
    "logsigmoid": Case(lambda z: -softplus(-z), (0.5,), forms(F.logsigmoid, nn.LogSigmoid)),
    "elu": Case(exponential_below(0.7), (0.7, 1.0), forms(F.elu, nn.ELU, F.elu_, None, True, alpha=0.7)),
    "celu": Case(exponential_below(0.5, width=0.5), (1.0,), forms(F.celu, nn.CELU, torch.celu_, None, True, alpha=0.5)),
    "selu": Case(
        exponential_below(SELU, SCALE), (SELU * SCALE, SCALE), forms(F.selu, nn.SELU, torch.selu_, None, True)
    ),
    "softsign": Case(lambda z: z / (1 + abs(z)), (1.0,), forms(F.softsign, nn.Softsign)),
    "tanhshrink": Case(lambda z: z - tanh(z), (0.0,), forms(F.tanhshrink, nn.Tanhshrink)),
    "softshrink": Case(lambda z: z - clamp(z, -0.5, 0.5), (0.0,), forms(F.softshrink, nn.Softshrink)),
    "hardshrink": Case(lambda z: z if abs(z) > 0.5 else Decimal(0), (0.0,), forms(F.hardshrink, nn.Hardshrink)),
    "threshold": Case(
        lambda z: z if z > Decimal("0.4") else Decimal(0),
        (0.0,),
        forms(F.threshold, nn.Threshold, F.threshold_, None, True, threshold=0.4, value=0.0),
    ),
    "exp": Case(exp, (1.0,), forms(torch.exp, None, torch.exp_, "exp")),
    "expm1": Case(lambda z: exp(z) - ONE, (1.0,), forms(torch.expm1, None, torch.expm1_, "expm1")),
    "log1p": Case(lambda z: (ONE + z).ln(), (1.0,), forms(torch.log1p, None, torch.log1p_, "log1p"), (-0.9, math.inf)),
    "erf": Case(from_float(math.erf), (2 / math.sqrt(math.pi),), forms(torch.erf, None, torch.erf_, "erf")),
    "sin": Case(from_float(math.sin), (1.0,), forms(torch.sin, None, torch.sin_, "sin")),
    "cos": Case(from_float(lambda z: -2 * math.sin(z / 2) ** 2), (0.0,), forms(torch.cos, None, torch.cos_, "cos")),
    "sinh": Case(lambda z: (exp(z) - exp(-z)) / 2, (1.0,), forms(torch.sinh, None, torch.sinh_, "sinh")),
    "atan": Case(from_float(math.atan), (1.0,), forms(torch.atan, None, torch.arctan_, "arctan")),
    "abs": Case(abs, (-1.0, 0.0, 1.0), forms(torch.abs, None, torch.abs_, "absolute")),
    "square": Case(lambda z: z * z, (0.0,), forms(torch.square, None, torch.square_, "square")),
    "cube": Case(lambda z: z**3, (0.0,), {"operator": lambda z: z**3, "function": lambda z: torch.pow(z, 3.0)}),
    "power": Case(
        lambda z: z * z.sqrt(),
        (0.0,),
        {"operator": lambda z: z**1.5, "method": lambda z: z.pow(1.5)},
        (0.0, math.inf),
    ),
    "sqrt": Case(lambda z: z.sqrt(), (), forms(torch.sqrt, None, torch.sqrt_, "sqrt"), (0.0, math.inf)),
}
FORMS = [
    pytest.param(case, form, id=f"{name}-{how}") for name, case in CASES.items() for how, form in case.forms.items()
]


class Model(nn.Module):
    """One activation."""

    def __init__(self, form: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.form = form  # a part of this model where it is a module
        self.eval()

    def forward(self, z: Tensor) -> Tensor:
        return self.form(z.clone())


def points(case: Case, dtype: torch.dtype = DTYPE) -> Tensor:
    low, high = case.domain
    largest = math.log(torch.finfo(dtype).max) / 3 if dtype != DTYPE else math.inf
    return torch.tensor([[z for z in POINTS if low <= z <= high and abs(z) < largest]], dtype=dtype)


def expected(case: Case, z: Tensor) -> Tensor:
    """`f(z) - f(0)`, exact but for the last rounding."""
    with localcontext() as context:
        context.prec, context.Emax, context.Emin = 120, 10**9, -(10**9)
        origin = case.exact(Decimal(0))
        return torch.tensor([[float(case.exact(Decimal(v)) - origin) for v in z[0].tolist()]], dtype=DTYPE)


def relative(found: Tensor, exact: Tensor, floor: Tensor | float = 0.0) -> float:
    """The largest error of an entry relative to itself, or to `floor` where that is larger."""
    assert found.isfinite().all()
    scale = torch.maximum(exact.abs(), torch.as_tensor(floor, dtype=DTYPE).expand_as(exact))
    error = (found.detach().double() - exact).abs()
    return float(torch.where(scale == 0, torch.where(error == 0, 0.0, torch.inf), error / scale).max())


@pytest.mark.parametrize(("case", "form"), FORMS)
def test_the_map_is_that_of_the_definition(case: Case, form: Callable[[Tensor], Tensor]) -> None:
    z = points(case)
    seed = seed_like(z)
    found = LRP(Model(form).to(z.dtype), Rules()).attribute(z, weighted(seed))
    # Near zero f(z) is a difference of numbers of the size of z, for PyTorch's own functions too.
    exact = seed * expected(case, z)
    assert relative(found, exact, floor=1e-3 * (seed * z).abs().clamp(max=1e-3)) < 1e-12


@pytest.mark.parametrize(("case", "form"), FORMS)
def test_the_map_in_float32(case: Case, form: Callable[[Tensor], Tensor]) -> None:
    z = points(case, torch.float32)
    seed = seed_like(z)
    found = LRP(Model(form).to(z.dtype), Rules()).attribute(z, weighted(seed))
    assert found.dtype == torch.float32
    exact = seed.double() * expected(case, z)
    # A tail such as exp(-z^2) has the error of its argument.
    assert relative(found, exact, floor=(1e-2 * (seed * z).abs()).double() + 1e-37) < 1e-5


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items() if case.slopes])
def test_the_coefficient_at_zero_is_the_slope(case: Case) -> None:
    z = torch.zeros(1, 3, dtype=DTYPE, requires_grad=True)
    for form in case.forms.values():
        model = Model(form).to(z.dtype)
        with Rules().attach(model) as attached:
            out = model(z)
        (c,) = torch.autograd.grad(out.sum(), z)
        attached.finish()
        assert c[0].tolist() in [pytest.approx([slope] * 3, abs=1e-15) for slope in case.slopes]


@pytest.mark.parametrize(("case", "form"), FORMS)
def test_the_output_is_that_of_the_plain_model(case: Case, form: Callable[[Tensor], Tensor]) -> None:
    z, seen = points(case), []
    model = Model(form).to(z.dtype)
    before = z.clone()
    LRP(model, Rules()).attribute(z, lambda out: seen.append(out.detach().clone()) or out.sum(1))
    assert torch.equal(seen[0], model(z))
    assert torch.equal(z, before)


class Between(nn.Module):
    """An activation between two layers."""

    def __init__(self, form: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 2)
        self.form = form
        self.to(DTYPE).eval()
        with torch.no_grad():
            for layer in (self.first, self.last):
                layer.weight.copy_(seed_like(layer.weight, 2).abs())
                layer.bias.copy_(seed_like(layer.bias, 3).abs())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.form(self.first(x)))
        return out


@pytest.mark.parametrize(("case", "form"), FORMS)
def test_the_map_between_two_layers(case: Case, form: Callable[[Tensor], Tensor]) -> None:
    model = Between(form)
    x = seed_like(torch.zeros(3, 4, dtype=DTYPE), 4)
    if case.domain[0] > -1:
        x = x.abs()
    z = model.first(x).detach()
    passed = torch.cat([expected(case, row[None]) for row in z])
    by_hand = (x * ((passed / z * model.last.weight[1]) @ model.first.weight)).detach()
    found = LRP(model, "lrp0").attribute(x, 1)
    assert float((found - by_hand).abs().max() / by_hand.abs().max()) < 1e-12
