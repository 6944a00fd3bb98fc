"""Filters act on every operation, covered or not, however it is called: nothing passes a Block, whatever runs there."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, ModelError, Rules, UncoveredOperationWarning
from relprop.rules import Block, Detach, Mask
from relprop.trees import map_tensors, tensors_in
from tests.models import close
from tests.operations.function_calls import Sample
from tests.operations.test_every_function import (
    BY_PARTS,
    CONSTANT,
    COVERED,
    DEVICES,
    EVERY,
    RANDOM,
    pure,
    sample,
    short,
    takes_out,
    unknown,
    weigh,
    writes,
)
from tests.unrolled import assert_close

UNKNOWN = [name for name in EVERY if unknown(name) is not None]
ALL = [name for name in (*COVERED, *UNKNOWN) if short(name) not in DEVICES]
ONCE = list({(pure(name), writes(EVERY[name])): name for name in ALL}.values())
"""One spelling of each, in place and not: every spelling meets a Block."""
SOME = ONCE[::3]
"""A third of these, of every kind, for the filters that need more runs of a function."""


def call_of(name: str) -> Sample:
    found = sample(name) if name in COVERED else unknown(name)
    assert found is not None
    return found


class Runs(nn.Module):
    """The module at which a filter is set: it runs one function, and nothing else."""

    def __init__(self, name: str, out: bool = False) -> None:
        super().__init__()
        self.function, self.out = EVERY[name], out

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        made = self.function(*args, **kwargs)
        if self.out:
            return kwargs["out"]
        return args[0] if made is None else made


class Same(nn.Module):
    """The identity, of all tensors."""

    def forward(self, made: Any) -> Any:
        return map_tensors(lambda x: x.clone() if x.is_floating_point() or x.is_complex() else x, made)


class Around(nn.Module):
    """Makes the arguments of a function, runs it in a module of its own, and weighs what it returned.

    With ``beside``, the input itself has an influence too, so that there is something to explain whatever it returned.
    """

    def __init__(self, name: str, out: bool = False, beside: bool = True) -> None:
        super().__init__()
        self.beside = beside
        self.name, self.out, self.runs, self.same = name, out, Runs(name, out), Same()
        self.writes = writes(EVERY[name])

    def forward(self, batch: Tensor) -> Tensor:
        x = batch[0]
        args, kwargs = call_of(self.name).given(x)
        if self.writes:
            args = (args[0] * 1, *args[1:])
        if self.out:
            kwargs = {**kwargs, "out": torch.empty(0, dtype=x.dtype)}
        made = self.runs(*args, **kwargs)
        made = list(made) if not isinstance(made, (Tensor, tuple, list)) else made
        tensors = tensors_in(self.same(made))
        parts = [torch.view_as_real(part.resolve_conj()) if part.is_complex() else part for part in tensors]
        rows = [part.double().flatten() for part in parts if part.is_floating_point()]
        return torch.cat([*rows, torch.zeros(1, dtype=torch.float64)]).unsqueeze(0) + (
            0 * batch.sum() if self.beside else 0
        )


def quietly(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.default_generator.manual_seed(0)
        return function(*args, **kwargs)


def has_derivative(name: str) -> bool:
    """Whether PyTorch can go back through a function at all; where it cannot, it says so, filter or not."""
    leaf = call_of(name).input().requires_grad_()
    try:
        quietly(lambda: torch.autograd.grad(weigh(Around(name)(leaf)).sum(), leaf))
    except RuntimeError:
        return False
    return True


def made_by(name: str) -> list[Tensor]:
    """What a function returns, as tensors of numbers that can change gradually."""
    args, kwargs = call_of(name).given(call_of(name).input()[0])
    args = (args[0].clone(), *args[1:]) if writes(EVERY[name]) else args
    made = quietly(EVERY[name], *args, **kwargs)
    made = args[0] if made is None else made
    found = tensors_in(made if isinstance(made, (Tensor, tuple, list)) else list(made))
    return [x for x in found if x.is_floating_point() or x.is_complex()]


@pytest.mark.parametrize("name", ALL)
def test_nothing_passes_a_block_at_the_module_that_runs_a_function(name: str) -> None:
    model, x = Around(name), call_of(name).input()
    rules = Rules().set(Runs, Block())
    if not has_derivative(name):
        with contextlib.suppress(RuntimeError, ModelError):
            assert float(quietly(LRP(model, rules).attribute, x, weigh).abs().max()) == 0.0
        return
    assert float(quietly(LRP(model, rules).attribute, x, weigh).abs().max()) == 0.0
    assert float(quietly(LRP(model, Rules().set("runs", Block())).attribute, x, weigh).abs().max()) == 0.0
    report = quietly(LRP(model, rules).report, x, weigh)
    assert report.relevance == 0.0


@pytest.mark.parametrize("name", ONCE)
def test_a_block_needs_no_rule(name: str) -> None:
    """What no rule covers is not named where no relevance passes it."""
    if short(name) in BY_PARTS:
        return
    model, x = Around(name), call_of(name).input()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.default_generator.manual_seed(0)
        rows = Rules().set(Runs, Block()).plan(model, x, weigh).rows
    assert not [warning for warning in seen if warning.category is UncoveredOperationWarning]
    assert all(row.covered for row in rows if row.name == "runs")
    assert any("Block()" in row.rule for row in rows if row.name == "runs")


@pytest.mark.parametrize("name", SOME)
def test_a_mask_is_that_on_an_identity_behind_the_module(name: str) -> None:
    tensors = made_by(name)
    if (
        short(name) in RANDOM
        or not tensors
        or not has_derivative(name)
        or min((x.dim() for x in tensors), default=0) < 2
    ):
        return
    units = min(x.shape[1] for x in tensors)
    mask = Mask(tuple(range(1, units)) or (0,))
    model, x = Around(name), call_of(name).input()
    behind = quietly(LRP(model, Rules().set("same", mask, optional=True)).attribute, x, weigh)
    found = quietly(LRP(model, Rules().set("runs", mask)).attribute, x, weigh)
    if behind.any():
        assert_close(found, behind, name)
    else:  # no relevance passes the function
        assert not found.any()


class Times(nn.Module):
    """What a function gives, weighed, times the sum of the input."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.around = Around(name, beside=False)

    def forward(self, batch: Tensor) -> Tensor:
        return weigh(self.around(batch)) * batch.flatten(1).sum(1)


@pytest.mark.parametrize("name", SOME)
def test_what_is_detached_is_a_constant(name: str) -> None:
    if short(name) in RANDOM | {"bernoulli", "poisson", "bernoulli_"} or not has_derivative(name):
        return
    model, x = Times(name), call_of(name).input()
    with torch.no_grad():
        factor = quietly(lambda: weigh(model.around(x)))
    found = quietly(LRP(model, Rules().set(Runs, Detach())).attribute, x)
    close(found, factor.double() * x, 1e-8 if short(name).startswith(("fake", "svd_low", "pca_low")) else 1e-10)


@pytest.mark.parametrize("name", [name for name in ALL if name.split(".")[1] not in ("Tensor", "nn", "functional")])
def test_a_block_where_the_result_is_written(name: str) -> None:
    if name not in COVERED or short(name) in CONSTANT | RANDOM or not takes_out(name):
        return
    model, x = Around(name, out=True), call_of(name).input()
    assert float(quietly(LRP(model, Rules().set(Runs, Block())).attribute, x, weigh).abs().max()) == 0.0
