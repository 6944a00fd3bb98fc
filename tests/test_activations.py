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

from tests.cases import DTYPE

LARGE = [8.0, 10.0, 20.5, 30.0, 50.0, 100.0, 700.0]
MIDDLE = [0.01, 0.3, 0.5, 0.8, 1.0, 2.5, 3.0, 5.0, 6.0]
SMALL = [1e-300, 1e-12, 1e-7, 1e-4, 9.99e-4, 1.001e-3, 0.003]
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
    return z * sigmoid(TWO * (TWO / Decimal(math.pi)).sqrt() * (z + Decimal(0.044715) * z**3))


def torch_softplus(beta: float) -> Exact:
    """PyTorch's, which is the identity beyond its threshold."""
    scale = Decimal(beta)
    return lambda z: z if z * scale > 20 else softplus(scale * z) / scale


@dataclass(frozen=True)
class Case:
    """An activation: its exact value, its slopes at zero (of one side each, where they differ), ways to call it."""

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
        found["module"] = lambda z: module(**arguments).to(z.dtype).eval()(z)
    if modules_inplace:
        assert module is not None
        found["module in place"] = lambda z: module(**arguments, inplace=True).eval()(z.clone())
        if function is not None:
            found["function in place"] = lambda z: function(z.clone(), **arguments, inplace=True)
    if inplace is not None:
        found["in place"] = lambda z: inplace(z.clone(), **arguments)
    if method is not None:
        found["method"] = lambda z: getattr(z, method)(**arguments)
        found["bare statement"] = lambda z: _stated(z.clone(), method, arguments)
    return found


def _stated(z: Tensor, method: str, arguments: dict[str, float]) -> Tensor:
    """A method in place, whose result is not used."""
    getattr(z, f"{method}_")(**arguments)
    return z


def identity_above(slope: float) -> Exact:
    return lambda z: z if z > 0 else Decimal(slope) * z


def exponential_below(alpha: float, scale: float = 1.0, width: float = 1.0) -> Exact:
    """Elu and its kin."""
    return lambda z: Decimal(scale) * (z if z > 0 else Decimal(alpha) * (exp(z / Decimal(width)) - ONE))


def prelu(z: Tensor) -> Tensor:
    module = nn.PReLU(init=0.2).to(z.dtype)
    return module(z)  # type: ignore[no-any-return]


SELU, SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946
RRELU = (1 / 8 + 1 / 3) / 2

CASES: dict[str, Case] = {
    "relu": Case(lambda z: max(z, Decimal(0)), (0.0, 1.0), forms(F.relu, nn.ReLU, torch.relu_, "relu", True)),
    "leaky_relu": Case(
        identity_above(0.1), (0.1, 1.0), forms(F.leaky_relu, nn.LeakyReLU, None, None, True, negative_slope=0.1)
    ),
    "rrelu": Case(identity_above(RRELU), (RRELU, 1.0), forms(F.rrelu, nn.RReLU, modules_inplace=True)),
    "prelu": Case(
        identity_above(0.2),
        (0.2, 1.0),
        {"module": prelu, "function": lambda z: F.prelu(z, torch.full((1,), 0.2, dtype=z.dtype))},
    ),
    "relu6": Case(lambda z: clamp(z, 0, 6), (0.0, 1.0), forms(F.relu6, nn.ReLU6, modules_inplace=True)),
    "hardtanh": Case(
        lambda z: clamp(z, -1, 2), (1.0,), forms(F.hardtanh, nn.Hardtanh, F.hardtanh_, None, True, min_val=-1, max_val=2)
    ),
    "clamp": Case(lambda z: clamp(z, -0.5, 0.75), (1.0,), forms(torch.clamp, None, torch.clamp_, "clip", min=-0.5, max=0.75)),
    "clamp above zero": Case(lambda z: clamp(z, 0.25, 9e9), (0.0,), forms(torch.clamp_min, None, None, "clamp_min", min=0.25)),
    "clamp below zero": Case(lambda z: clamp(z, -9e9, -0.25), (0.0,), forms(torch.clamp_max, None, None, "clamp", max=-0.25)),
    "hardswish": Case(lambda z: z * clamp(z + 3, 0, 6) / 6, (0.5,), forms(F.hardswish, nn.Hardswish, None, None, True)),
    "hardsigmoid": Case(lambda z: clamp(z + 3, 0, 6) / 6, (1 / 6,), forms(F.hardsigmoid, nn.Hardsigmoid, None, None, True)),
    "gelu": Case(from_float(lambda z: z * math.erfc(-z / math.sqrt(2)) / 2), (0.5,), forms(F.gelu, nn.GELU)),
    "gelu tanh": Case(gelu_tanh, (0.5,), {
        "module": nn.GELU("tanh"),
        "function": lambda z: F.gelu(z, approximate="tanh"),
    }),
    "silu": Case(lambda z: z * sigmoid(z), (0.5,), forms(F.silu, nn.SiLU, modules_inplace=True)),
    "mish": Case(lambda z: z * tanh(softplus(z)), (0.6,), forms(F.mish, nn.Mish, modules_inplace=True)),
    "tanh": Case(tanh, (1.0,), forms(torch.tanh, nn.Tanh, torch.tanh_, "tanh")),
    "sigmoid": Case(sigmoid, (0.25,), forms(torch.sigmoid, nn.Sigmoid, torch.sigmoid_, "sigmoid")),
    "expit": Case(sigmoid, (0.25,), forms(torch.special.expit)),
    "softplus": Case(torch_softplus(1.0), (0.5,), forms(F.softplus, nn.Softplus)),
    "softplus beta": Case(torch_softplus(2.5), (0.5,), forms(F.softplus, nn.Softplus, beta=2.5)),
    "logsigmoid": Case(lambda z: -softplus(-z), (0.5,), forms(F.logsigmoid, nn.LogSigmoid)),
    "elu": Case(exponential_below(0.7), (0.7, 1.0), forms(F.elu, nn.ELU, F.elu_, None, True, alpha=0.7)),
    "celu": Case(
        exponential_below(0.5, width=0.5), (1.0,), forms(F.celu, nn.CELU, torch.celu_, None, True, alpha=0.5)
    ),
    "selu": Case(exponential_below(SELU, SCALE), (SELU * SCALE, SCALE), forms(F.selu, nn.SELU, torch.selu_, None, True)),
    "softsign": Case(lambda z: z / (1 + abs(z)), (1.0,), forms(F.softsign, nn.Softsign)),
    "tanhshrink": Case(lambda z: z - tanh(z), (0.0,), forms(F.tanhshrink, nn.Tanhshrink)),
    "softshrink": Case(
        lambda z: z - clamp(z, -0.5, 0.5), (0.0,), forms(F.softshrink, nn.Softshrink)
    ),
    "hardshrink": Case(lambda z: z if abs(z) > 0.5 else Decimal(0), (0.0,), forms(F.hardshrink, nn.Hardshrink)),
    "threshold": Case(lambda z: z if z > Decimal(0.4) else Decimal(0), (0.0,), forms(F.threshold, nn.Threshold, F.threshold_, None, True, threshold=0.4, value=0.0)),
    "exp": Case(exp, (1.0,), forms(torch.exp, None, torch.exp_, "exp")),
    "expm1": Case(lambda z: exp(z) - ONE, (1.0,), forms(torch.expm1, None, torch.expm1_, "expm1")),
    "log1p": Case(lambda z: (ONE + z).ln(), (1.0,), forms(torch.log1p, None, torch.log1p_, "log1p"), (-0.9, math.inf)),
    "erf": Case(from_float(math.erf), (2 / math.sqrt(math.pi),), forms(torch.erf, None, torch.erf_, "erf")),
    "sin": Case(from_float(math.sin), (1.0,), forms(torch.sin, None, torch.sin_, "sin")),
    "cos": Case(from_float(lambda z: 1 - 2 * math.sin(z / 2) ** 2), (0.0,), forms(torch.cos, None, torch.cos_, "cos")),
    "sinh": Case(lambda z: (exp(z) - exp(-z)) / 2, (1.0,), forms(torch.sinh, None, torch.sinh_, "sinh")),
    "atan": Case(from_float(math.atan), (1.0,), forms(torch.atan, None, torch.arctan_, "arctan")),
    "abs": Case(abs, (-1.0, 1.0), forms(torch.abs, None, torch.abs_, "absolute")),
    "square": Case(lambda z: z * z, (0.0,), forms(torch.square, None, torch.square_, "square")),
    "cube": Case(lambda z: z**3, (0.0,), {"operator": lambda z: z**3, "function": lambda z: torch.pow(z, 3.0)}),
    "power": Case(lambda z: z * z.sqrt(), (0.0,), {"operator": lambda z: z**1.5, "method": lambda z: z.pow(1.5)}, (0.0, math.inf)),
    "sqrt": Case(lambda z: z.sqrt(), (), forms(torch.sqrt, None, torch.sqrt_, "sqrt"), (0.0, math.inf)),
}  # fmt: skip
FORMS = [
    pytest.param(case, form, id=f"{name}-{how}") for name, case in CASES.items() for how, form in case.forms.items()
]
ALL = [pytest.param(case, id=name) for name, case in CASES.items()]


class Model(nn.Module):
    """One activation."""

    def __init__(self, form: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.form = form

    def forward(self, z: Tensor) -> Tensor:
        return self.form(z)


def points(case: Case, dtype: torch.dtype = DTYPE) -> Tensor:
    low, high = case.domain
    largest = math.log(torch.finfo(dtype).max) / 3 if dtype != DTYPE else math.inf
    return torch.tensor([[z for z in POINTS if low <= z <= high and abs(z) < largest]], dtype=dtype)


def expected(case: Case, z: Tensor) -> Tensor:
    """`f(z) - f(0)`, exact but for the last rounding."""
    with localcontext(prec=700):  # of 1 + 1e-300 something must be left
        origin = case.exact(Decimal(0))
        return torch.tensor([[float(case.exact(Decimal(v)) - origin) for v in z[0].tolist()]], dtype=DTYPE)
