"""A loss on the relevance: its gradient by the input and by every parameter is that of the explicit formula."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, Rules
from relprop.rules import AveragePool
from tests import two_phase_reference as explicit
from tests.cases import DTYPE, RULES, RuleCase, seed_like, signed
from tests.reference import LINEAR
from tests.rules.compare import distance, package_rule, weighted

TOLERANCE = 1e-8
LRP0, FLAT = RuleCase("lrp0"), RuleCase("flat")
Modules = list[nn.Module]
Built = tuple[Modules, Tensor]


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


def loss(relevance: Tensor) -> Tensor:
    """Random weights, and no linear function of the relevance."""
    generator = torch.Generator().manual_seed(6)
    first, second = (torch.randn(relevance.shape, generator=generator, dtype=DTYPE) for _ in range(2))
    scaled = relevance / relevance.detach().abs().max()
    return (scaled * first + torch.sin(2 * scaled) * second).sum()


def gradients(relevance: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(loss(relevance), tensors, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, found, strict=True)]


def agree(found: Tensor, expected: Tensor, tensors: dict[str, Tensor], skip: Tensor | None = None) -> None:
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
    worse = {name: d for name, (d, scale) in differences.items() if d > TOLERANCE * scale + 1e-13 * largest}
    assert not worse, worse


def check(
    modules: Modules, x: Tensor, cases: RuleCase | Sequence[RuleCase], pooling: str = "winner", kinks: bool = False
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
    agree(found, expected, tensors, x == 0 if kinks else None)


# ------------------------------------------------------------------------------------------ linear layers

NETWORKS: dict[str, Callable[[bool], Built]] = {
    "dense": lambda b: (
        [nn.Linear(6, 8, b), nn.ReLU(), nn.Linear(8, 7, b), nn.ReLU(), nn.Linear(7, 3, b)],
        signed((3, 6)),
    ),
    "signed": lambda b: ([nn.Linear(6, 7, b), nn.GELU(), nn.Linear(7, 6, b), nn.Tanh(), nn.Linear(6, 3, b)], signed((3, 6))),
    "convolution": lambda b: (
        [nn.Conv2d(2, 4, 3, padding=1, bias=b), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 2, groups=2, bias=b)]
        + [nn.ReLU(), nn.Flatten(), nn.Linear(4, 3, b)],
        signed((2, 2, 4, 4)),
    ),
    "transposed": lambda b: (
        [nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1, groups=2, bias=b), nn.ReLU()]
        + [nn.AvgPool2d(2), nn.ConvTranspose2d(4, 2, 2, dilation=2, bias=b), nn.Flatten()],
        signed((2, 2, 3, 3)),
    ),
    "folded": lambda b: (
        [nn.Conv2d(2, 3, 3, padding=1, bias=b), nn.BatchNorm2d(3), nn.ReLU(), nn.ConvTranspose2d(3, 4, 2, bias=b)]
        + [nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(100, 3, b), nn.BatchNorm1d(3)],
        signed((2, 2, 4, 4)),
    ),
    "not folded": lambda b: (
        [nn.Linear(4, 5, b), nn.BatchNorm1d(3), nn.ReLU(), nn.BatchNorm1d(3, affine=False), nn.Flatten()]
        + [nn.Linear(15, 3, b)],
        signed((2, 3, 4)),
    ),
}
# Where an input is zero these rules treat it as positive on one side and as negative on the other.
SPLIT = {"gamma", "alpha_beta", "zplus"}


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in RULES])
@pytest.mark.parametrize("network", list(NETWORKS))
def test_every_rule(network: str, case: RuleCase, bias: bool) -> None:
    modules, x = NETWORKS[network](bias)
    settle(modules)
    assert (x == 0).any()
    if network == "dense":
        dead = modules[0].get_parameter("weight")
        with torch.no_grad():
            dead[:2] = 0.01 * dead[:2].abs()
            dead[:2] *= -x[:1].sign()  # below zero for one sample
    check(modules, x, case, kinks=case.rule in SPLIT)


MIXED = {
    "flat below": [FLAT, RuleCase("gamma"), LRP0],
    "flat above": [RuleCase("epsilon"), FLAT, LRP0],
    "flat on top": [RuleCase("rho", RULES[-2].options), RuleCase("zplus", {"bias": "ignore"}), FLAT],
    "box below": [RuleCase("zbox", {"low": -2.0, "high": 2.5}), RuleCase("alpha_beta"), RuleCase("epsilon")],
    "square between": [RuleCase("gamma"), RuleCase("wsquare"), RuleCase("zplus")],
}


@pytest.mark.parametrize("mixed", list(MIXED))
@pytest.mark.parametrize("network", ["dense", "convolution", "folded"])
def test_mixed_rules_through_dead_units(network: str, mixed: str) -> None:
    modules, x = NETWORKS[network](True)
    settle(modules)
    last = max(i for i, module in enumerate(modules[:3]) if module.parameters())
    assert last
    with torch.no_grad():
        bias = [module for module in modules if getattr(module, "bias", None) is not None][1 if network == "folded" else 0]
        bias.get_parameter("bias")[:2] = -20.0
    hidden = nn.Sequential(*modules[: modules.index(next(m for m in modules if isinstance(m, nn.ReLU))) + 1])(x)
    assert (hidden.flatten(2)[:, :2] == 0).all() if hidden.dim() > 2 else (hidden[:, :2] == 0).all()
    check(modules, x, MIXED[mixed], kinks=MIXED[mixed][0].rule in SPLIT)
