"""What is compared for every program, and how a program that fails is made small."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from relprop import LRP, StabilizerWarning
from tests.fuzz.programs import RULES, Program
from tests.unrolled import snapshot

DOUBLE = 1e-9  # of the largest relevance; quotients of the surrogate cancel near zero
REPORT = 1e-9
SINGLE = 2e-4, 30.0  # of the largest relevance; times the surrogate's own error in float32
LOSS = 1e-4


class Target:
    """The outputs under weights of both signs; keeps what the model returned."""

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights
        self.seen: list[Tensor] = []

    def __call__(self, output: Tensor) -> Tensor:
        self.seen.append(output.detach().clone())
        return (output * self.weights.to(output.dtype)).flatten(1).sum(1)


class Disagreement(AssertionError):
    """What was compared, and how far it differs."""


def expect(holds: bool, what: str) -> None:
    if not holds:
        raise Disagreement(what)


def check(program: Program) -> None:
    """Raise where relprop and the surrogate differ, or where explaining leaves a trace."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", StabilizerWarning)  # an epsilon of 0.1 is meant
        _check(program)


def _check(program: Program) -> None:
    model, x = program.model(), program.numbers("input", *program.shape)
    target = Target(program.numbers("target", *program.shape[1:]))
    with torch.no_grad():
        plain = model(x.clone())
    reference = Reference(program, model, target)
    expected, columns, f = reference(x)
    scale = float(expected.abs().max()) + float(f.abs().max()) + max(map(abs, columns.values()), default=0.0) + 1e-6
    close(reference.output, plain, 1e-9 * float(plain.abs().max()), "the surrogate computes another value")
    lrp = LRP(model, RULES[program.rule])
    hooked: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: hooked.append(name))
    with torch.no_grad():
        model(x.clone())
    once, given = hooked.copy(), x.clone()
    hooked.clear()
    with snapshot(model):
        before = torch.get_rng_state()
        found = lrp.attribute(given, target)
        expect(torch.equal(before, torch.get_rng_state()), "random numbers were drawn")
        expect(hooked == once, f"hooks of the model ran otherwise: {hooked}")
        close(found, expected, DOUBLE * scale, "the map")
        singles = torch.cat([lrp.attribute(given[i : i + 1], target) for i in range(len(x))])
        close(singles, found, DOUBLE * scale, "the map of a sample alone")
        report = lrp.report(given, target)
        close(report.delta, f - expected.flatten(1).sum(1), REPORT * scale, "delta of the report")
        check_columns(report, columns, scale)
        leaf = given.clone().requires_grad_()
        learned = lrp.attribute(leaf, target, create_graph=True)
        close(learned.detach(), expected, DOUBLE * scale, "the map with create_graph")
        weights = program.numbers("loss", *program.shape)
        if learned.requires_grad and ".detach()" not in program.source:  # where autograd sees another function
            check_loss(learned, leaf, weights, reference, scale)
    expect(torch.equal(given, x), "the input was written to")
    expect(all(same(output, program, model, x) for output in target.seen if len(output) == len(plain)), "the forward")
    check_single(program, model.float(), x, target, expected, scale)


class Reference:
    """The surrogate of a model: maps, columns and outputs of inputs."""

    def __init__(self, program: Program, model: nn.Module, target: Target) -> None:
        self.program, self.model, self.weights = program, model, target.weights

    def __call__(self, x: Tensor) -> tuple[Tensor, dict[str, float], Tensor]:
        leaf = x.detach().clone().requires_grad_()
        surrogate, self.output = self.program.surrogate(self.model, leaf)
        f = (self.output * self.weights.to(x.dtype)).flatten(1).sum(1)
        relevance, columns = surrogate.explain(f.sum(), leaf)
        self.output = self.output.detach()
        return relevance, columns, f.detach()


def check_columns(report: Any, columns: dict[str, float], scale: float) -> None:
    """The report says what constants absorb, each under its name."""
    for entry in report.entries:
        expect(abs(entry.unexplained) <= REPORT * scale, f"unexplained at {entry.operation}: {entry.unexplained:.3g}")
    for name in {*columns, *report.absorbed}:
        found, expected = report.absorbed.get(name, 0.0), columns.get(name, 0.0)
        expect(abs(found - expected) <= REPORT * scale * 10, f"the column {name}: {found:.6g}, expected {expected:.6g}")


def check_loss(learned: Tensor, leaf: Tensor, weights: Tensor, reference: Reference, scale: float) -> None:
    """The derivative of a loss on the map is that of the map as a function of the input."""
    (slope,) = torch.autograd.grad((learned * weights).sum(), leaf)
    direction = weights.flip(0)
    found = float((slope * direction).sum())
    x = leaf.detach()
    tried = []
    for step in (1e-5, 1e-6, 1e-7):  # a kink within one step is no fault
        ends = [float((reference(x + sign * step * direction)[0] * weights).sum()) for sign in (1, -1)]
        tried.append((ends[0] - ends[1]) / (2 * step))
        size = abs(tried[-1]) + scale
        if abs(found - tried[-1]) <= LOSS * size + 1e-9:
            return
    raise Disagreement(f"the derivative of a loss: {found:.6g}, by differences {tried}")


def check_single(program: Program, model: nn.Module, x: Tensor, target: Target, expected: Tensor, scale: float) -> None:
    """In float32 the forward is bitwise the same, and the map as near as float32 is."""
    x, target = x.float(), Target(target.weights)
    found = LRP(model, RULES[program.rule]).attribute(x, target)
    expect(found.dtype == torch.float32 and same(target.seen[0], program, model, x), "the forward in float32")
    own = float((Reference(program, model, target)(x)[0] - expected).abs().max())
    close(found.double(), expected, SINGLE[0] * scale + SINGLE[1] * own, "the map in float32")


def same(output: Tensor, program: Program, model: nn.Module, x: Tensor) -> bool:
    """Bitwise; recurrent layers run as their steps, which PyTorch's kernels round otherwise."""
    with torch.no_grad():
        plain = model(x.clone())
    if "lstm" in program.source or "gru" in program.source:
        return bool(((output - plain).abs() <= 1e4 * torch.finfo(plain.dtype).eps * plain.abs().max()).all())
    return torch.equal(output, plain) or torch.equal(output, model(x.clone()))  # kernels differ with gradients


def close(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    expect(found.shape == expected.shape, f"{what}: shape {tuple(found.shape)}")
    error = float((found - expected).abs().max())
    expect(error <= tolerance, f"{what}: differs by {error:.3g}, of which {tolerance:.3g} are allowed")


def failure(program: Program) -> str | None:
    """What is wrong with a program, in a line; None if nothing is."""
    try:
        check(program)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is a finding
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def shrunk(program: Program, fails: Callable[[Program], bool]) -> Program:
    """The smallest program found that fails still: changes are made one by one, as long as one helps."""
    for smaller in program.smaller():
        if smaller.steps and fails(smaller):
            return shrunk(smaller, fails)
    return program
