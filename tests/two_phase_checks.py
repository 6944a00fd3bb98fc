"""What the tests of two phases share: networks that matter everywhere, a loss, and the comparison of gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from relprop import LRP, Rules
from relprop.rules import AveragePool
from tests import two_phase_reference as explicit
from tests.cases import DTYPE, RuleCase, seed_like
from tests.compare import distance, package_rule, weighted
from tests.reference import LINEAR

TOLERANCE = 1e-8
Modules = list[nn.Module]


def settle(modules: Sequence[nn.Module]) -> Modules:
    """The modules in float64 and eval mode, with parameters and statistics of both signs that all matter."""
    generator = torch.Generator().manual_seed(5)
    for module in modules:
        module.to(DTYPE).eval()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.normal_(0, 0.6, generator=generator)
            for name, buffer in module.named_buffers():
                if name.endswith("running_mean"):
                    buffer.normal_(0, 0.3, generator=generator)
                elif name.endswith("running_var"):
                    buffer.uniform_(0.5, 2.0, generator=generator)
    return list(modules)


def loss(relevance: Tensor, like: Tensor | None = None) -> Tensor:
    """Random weights, and no linear function of the relevance, which is measured by the largest of `like`."""
    generator = torch.Generator().manual_seed(6)
    first, second = (torch.randn(relevance.shape, generator=generator, dtype=DTYPE) for _ in range(2))
    scaled = relevance / (relevance if like is None else like).detach().abs().max()
    return (scaled * first + torch.sin(2 * scaled) * second).sum()


def gradients(relevance: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(loss(relevance), tensors, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, found, strict=True)]


def agree(
    found: Tensor,
    expected: Tensor,
    tensors: dict[str, Tensor],
    skip: Tensor | None = None,
    tolerance: float = TOLERANCE,
) -> None:
    """The relevances agree, and so do the gradients of a loss on them by every tensor.

    `skip` marks entries of the first tensor at which the relevance has a kink, and no one derivative.
    """
    assert distance(found, expected) < 1e-10
    pairs = zip(tensors, *(gradients(r, list(tensors.values())) for r in (found, expected)), strict=True)
    largest = 0.0
    differences = {}
    for position, (name, mine, theirs) in enumerate(pairs):
        assert mine.isfinite().all(), name
        if position == 0 and skip is not None:
            mine, theirs = mine[~skip], theirs[~skip]
        largest = max(largest, float(theirs.abs().max()))
        differences[name] = (float((mine - theirs).abs().max()), float(theirs.abs().max()))
    assert largest > 0, "the loss depends on nothing"
    # Some derivatives are zero but for rounding: those are measured by the largest of all.
    worse = {name: d for name, (d, scale) in differences.items() if d > tolerance * scale + 1e-11 * largest}
    assert not worse, worse


def check(
    modules: Modules,
    x: Tensor,
    cases: RuleCase | Sequence[RuleCase],
    pooling: str = "winner",
    kinks: bool = False,
    tolerance: float = TOLERANCE,
) -> None:
    """A sequence of modules under one rule, or one for each of its linear layers in order."""
    model = nn.Sequential(*modules)
    seed, leaf = seed_like(model(x)), x.clone().requires_grad_()
    if isinstance(cases, RuleCase):
        rules = Rules().set(lambda name, module: isinstance(module, LINEAR), package_rule(cases))
    else:
        places = [str(i) for i, module in enumerate(modules) if isinstance(module, LINEAR)]
        rules = Rules()
        for place, case in zip(places, cases, strict=True):
            rules = rules.set(place, package_rule(case))
    if pooling == "average":
        rules = rules.set(nn.MaxPool2d, AveragePool())
    found = LRP(model, rules).attribute(leaf, weighted(seed), create_graph=True)
    expected = explicit.explain(modules, leaf, seed, cases, pooling)
    tensors = {"input": leaf, **dict(model.named_parameters())}
    agree(found, expected, tensors, x == 0 if kinks else None, tolerance)
