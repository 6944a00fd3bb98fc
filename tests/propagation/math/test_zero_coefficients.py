"""The arithmetic in which nothing arrives from nothing, against sums that leave out what is multiplied by zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from relprop.propagation.math.zero_coefficients import ZeroCoefficients, usual_arithmetic

C = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, -3.0]], dtype=torch.float64)
X = torch.tensor([[math.nan, 1.5, math.inf], [-math.inf, math.nan, 2.0], [4.0, math.nan, -1.0]], dtype=torch.float64)


def times(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else a * b


def of_numbers(function: Callable[[float, float], float], a: Tensor, b: Tensor) -> Tensor:
    pairs: Iterable[tuple[float, float]] = zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)
    return torch.tensor([function(x, y) for x, y in pairs], dtype=a.dtype).reshape(a.shape)


def matrix_product(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([torch.stack([of_numbers(times, row, column).sum() for column in b.T]) for row in a])


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("swapped", [False, True], ids=["c x", "x c"])
def test_products(swapped: bool) -> None:
    """What zero multiplies is nothing, in every spelling, and what another number multiplies is what it is."""
    a, b = (X, C) if swapped else (C, X)
    entries, matrix = of_numbers(times, a, b), matrix_product(a, b)
    matrix = torch.where(matrix.isfinite(), matrix, math.nan)  # sums do not tell infinity from NaN
    start = torch.ones(3, 3, dtype=torch.float64)
    with ZeroCoefficients():
        found = {
            "mul": a * b,
            "out": torch.mul(a, b, out=torch.empty_like(a)),
            "mul_": a.clone().mul_(b),
            "addcmul": torch.addcmul(start, a, b, value=2.0),
        }
        products = {
            "mm": a @ b,
            "bmm": torch.bmm(a[None], b[None])[0],
            "addmm": torch.addmm(start, a, b, beta=0.5, alpha=2.0),
            "addmm_": start.clone().addmm_(a, b, beta=0.0),
            "baddbmm": torch.baddbmm(start[None], a[None], b[None])[0],
            "mv": torch.stack([torch.mv(a, column) for column in b.T], 1),
            "addmv": torch.stack([torch.addmv(start[0], a, column) for column in b.T], 1),
            "dot": torch.stack([torch.stack([torch.dot(row, column) for column in b.T]) for row in a]),
        }
    same(found["mul"], entries)
    same(found["out"], entries)
    same(found["mul_"], entries)
    same(found["addcmul"], 1 + 2 * entries)
    for name, (scale, shift) in {"addmm": (2.0, 0.5), "baddbmm": (1.0, 1.0), "addmv": (1.0, 1.0)}.items():
        same(products[name], scale * matrix + shift)
    for name in ("mm", "bmm", "addmm_", "mv", "dot"):
        same(products[name], matrix)
    assert matrix.isnan().any()
    assert matrix.isfinite().any()


def test_quotients() -> None:
    """Zero by anything is nothing, by zero too."""
    divisor = torch.where(X.isinf(), 0.0, X)
    with ZeroCoefficients():
        found, written = C / divisor, C.clone().div_(divisor)
        added = torch.addcdiv(torch.ones_like(C), C, divisor)
    same(found, torch.where(C == 0, 0.0, C / divisor))
    same(written, found)
    same(added, 1 + found)


def test_convolutions() -> None:
    """Where no coefficient arrives, what is NaN counts as little as any other number, forward and back."""
    c, x = torch.zeros(2, 1, 1, 6, dtype=torch.float64)
    c[..., 4], x[..., 1:], x[..., 0] = 2.0, torch.arange(1.0, 6.0, dtype=torch.float64), math.nan
    kernel, bias = torch.tensor([[[1.0, -2.0, 3.0]]]).double(), torch.ones(1).double()
    with ZeroCoefficients():
        infinite = F.conv1d(torch.where(x.isnan(), 0.0, x), kernel * math.inf, bias, padding=1)
        spread = F.conv1d(x, kernel, bias, padding=1)
    assert not infinite.isfinite().any()
    assert spread.isnan().flatten().tolist() == [True, True, False, False, False, False]
    found = []
    for number in (math.nan, 7.0):
        given = x.nan_to_num(number).requires_grad_(), kernel.clone().requires_grad_(), bias.clone().requires_grad_()
        with ZeroCoefficients():
            found.append(torch.autograd.grad(F.conv1d(given[0], given[1], given[2], padding=1), given, c))
    for mine, theirs in zip(*found, strict=True):
        same(mine, theirs)


ROWWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: torch.softmax(x, 1),
    "log_softmax": lambda x: torch.log_softmax(x, 1),
    "logsumexp": lambda x: torch.logsumexp(x, 1),
    "norm": lambda x: x.norm(dim=1),
    "std": lambda x: x.std(1),
    "prod": lambda x: x.prod(1),
    "sigmoid": lambda x: torch.sigmoid(x),
    "gelu": lambda x: F.gelu(x),
    "sqrt": lambda x: torch.sqrt(x),
    "power": lambda x: x**-1.5,
    "einsum": lambda x: torch.einsum("ij,ik->ijk", x, x).flatten(1),
}


@pytest.mark.parametrize("name", list(ROWWISE))
def test_backwards_of_rows(name: str) -> None:
    """A row where no coefficient arrives sends nothing; the others have the derivative that they have alone."""
    compute = ROWWISE[name]
    x = torch.tensor([[0.5, 1.0, 2.0], [math.nan, 1.0, -math.inf], [1.5, 0.3, 0.2]], dtype=torch.float64)
    leaf, alone = x.clone().requires_grad_(), x[::2].clone().requires_grad_()
    out, rest = compute(leaf), compute(alone)
    c = torch.linspace(1, 2, out.numel(), dtype=torch.float64).reshape(out.shape)
    c[1] = 0.0
    with ZeroCoefficients():
        (found,) = torch.autograd.grad(out, leaf, c)
    (expected,) = torch.autograd.grad(rest, alone, c[::2])
    same(found[::2], expected)
    assert (found[1] == 0).all()


def test_usual_arithmetic_inside() -> None:
    with ZeroCoefficients(), usual_arithmetic():
        product = C * X
    same(product, C * X)
    assert product.isnan().any()
