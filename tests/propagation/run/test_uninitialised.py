"""Tensors that are made without values and filled by parts: as if they had been made of zeros."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, DeepLift, GradientXInput, UncoveredOperationError
from tests.models import Wrapped, close, vectors

MAKE: dict[str, Callable[[Tensor], Tensor]] = {
    "empty": lambda x: torch.empty(x.shape, dtype=x.dtype),
    "empty_like": torch.empty_like,
    "new_empty": lambda x: x.new_empty(*x.shape),
    "empty_strided": lambda x: torch.empty_strided(x.shape, (1, len(x)), dtype=x.dtype),
    "empty_permuted": lambda x: torch.empty_permuted(x.shape, (1, 0), dtype=x.dtype),
    "aten.empty": lambda x: torch.ops.aten.empty.memory_format(x.shape, dtype=x.dtype),
    "new": lambda x: x.new(*x.shape),
    "full of nan": lambda x: torch.full_like(x, torch.nan),
}
FIRST, LAST = torch.tensor([0, 1]), torch.tensor([2, 3])


def set_items(y: Tensor, a: Tensor, b: Tensor) -> None:
    y[:, FIRST], y[..., 2:] = a, b


def set_rows(y: Tensor, a: Tensor, b: Tensor) -> None:
    for i in range(len(y)):
        y[i, :2], y[i, 2:] = a[i], b[i]


def set_beside_constants(y: Tensor, a: Tensor, b: Tensor) -> None:
    y[:, 0], y[:, 1], y[:, 2:] = 1.0, a[:, 0], b


def copy_into_views(y: Tensor, a: Tensor, b: Tensor) -> None:
    y[:, :2].copy_(a), y.narrow(1, 2, 2).copy_(b)


def index_copy(y: Tensor, a: Tensor, b: Tensor) -> None:
    y.index_copy_(1, FIRST, a).index_copy_(1, LAST, b)


def index_put(y: Tensor, a: Tensor, b: Tensor) -> None:
    rows = torch.arange(len(y))[:, None]
    y.index_put_((rows, FIRST[None]), a).index_put_((rows, LAST[None]), b)


def scatter(y: Tensor, a: Tensor, b: Tensor) -> None:
    y.scatter_(1, FIRST.expand(len(y), 2), a).scatter_(1, LAST.expand(len(y), 2), b)


def masked_scatter(y: Tensor, a: Tensor, b: Tensor) -> None:
    mask = (torch.arange(4) < 2).expand_as(y)
    y.masked_scatter_(mask, a).masked_scatter_(~mask, b)


def out(y: Tensor, a: Tensor, b: Tensor) -> None:
    torch.cat([a, b], 1, out=y)


def add_to_zeros(y: Tensor, a: Tensor, b: Tensor) -> None:
    y.zero_()
    y[:, :2] += a
    y[:, 2:] += b


WRITE = [
    set_items, set_rows, set_beside_constants, copy_into_views, index_copy, index_put, scatter, masked_scatter, out,
    add_to_zeros,
]  # fmt: skip


@pytest.fixture(autouse=True)
def memory_of_nan() -> Iterator[None]:
    """What lies in memory is NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("make", MAKE)
@pytest.mark.parametrize("write", WRITE, ids=lambda write: write.__name__)
def test_a_tensor_without_values_is_filled(make: str, write: Callable[[Tensor, Tensor, Tensor], None]) -> None:
    """Maps, and the report, are those of what was made of zeros, without a warning."""

    def filled(made: Callable[[Tensor], Tensor]) -> nn.Module:
        def forward(x: Tensor) -> Tensor:
            y = made(x)
            write(y, x[:, 2:], x[:, :2])
            return y @ torch.arange(1.0, 5.0, dtype=y.dtype)

        return Wrapped(nn.Identity(), forward)

    model, other = filled(MAKE[make]), filled(torch.zeros_like)
    x, base = vectors(), vectors(seed=1)
    close(DeepLift(model).attribute(x, base), DeepLift(other).attribute(x, base))
    close(LRP(model).attribute(x), LRP(other).attribute(x))
    close(GradientXInput(model).attribute(x), GradientXInput(other).attribute(x))
    LRP(model).report(x).check(1e-9)


@pytest.mark.parametrize("write", [set_items, index_copy, scatter], ids=lambda write: write.__name__)
def test_a_constant_that_the_input_decides_and_that_stays_is_named(
    write: Callable[[Tensor, Tensor, Tensor], None],
) -> None:
    """Written into what is another for the baselines, where that is read afterwards."""

    def forward(x: Tensor) -> Tensor:
        y = torch.cat([x.detach(), x.detach()], 1)[:, :5]
        write(y[:, :4], x[:, 2:], x[:, :2])
        return y.sum(1)

    with pytest.raises(UncoveredOperationError, match="others for the baselines"):
        DeepLift(Wrapped(nn.Identity(), forward), strict=True).attribute(vectors(), vectors(seed=1))
