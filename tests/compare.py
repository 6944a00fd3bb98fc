"""What the tests of rules share: the package's rule for a case, and the distance between two maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from relprop import LRP, Rules, rules
from tests import reference_steps
from tests.cases import RuleCase

TOLERANCE = 1e-10


@dataclass(frozen=True)
class Groups(rules.GroupRule):
    """A rule of one's own that is nothing but its groups."""

    numbers: tuple[tuple[float, float, float, Any], ...]
    bias: Any = "absorb"
    stabilizer: Any = 1e-6

    @property
    def groups(self) -> tuple[rules.Group, ...]:
        return tuple(rules.Group(*each) for each in self.numbers)


PACKAGE: dict[str, Callable[..., Any]] = {
    "groups": lambda groups, **options: Groups(tuple(groups), **options),
    "lrp0": rules.Zero,
    "epsilon": rules.Epsilon,
    "gamma": rules.Gamma,
    "alpha_beta": rules.AlphaBeta,
    "absolute_value": rules.AbsoluteValue,
    "contrast": rules.Contrast,
    "rescaled_excitation": rules.RescaledExcitation,
    "zplus": rules.ZPlus,
    "zbox": rules.ZBox,
    "wsquare": rules.WSquare,
    "flat": rules.Flat,
    "rho": rules.Rho,
}


def package_rule(case: RuleCase) -> Any:
    """The package's rule for a case."""
    return PACKAGE[case.rule](**case.options)


def weighted(seed: Tensor) -> Callable[[Tensor], Tensor]:
    """A target whose derivative by the output is `seed`."""
    return lambda out: (out * seed).flatten(1).sum(1)


def distance(found: Tensor, expected: Tensor) -> float:
    """The largest difference relative to the largest entry; NaN counts as infinite."""
    assert found.shape == expected.shape
    scale = expected.detach().abs().max().item()
    worst = (found.detach().to(expected.dtype) - expected.detach()).abs().max().item()
    if worst != worst:
        return float("inf")
    return worst / scale if scale else worst


def sequence_distance(modules: Sequence[nn.Module], x: Tensor, seed: Tensor, cases: Sequence[RuleCase]) -> float:
    """Between package and reference on a sequence, with one rule for each of its linear layers in order."""
    model = nn.Sequential(*modules) if len(modules) > 1 else modules[0]
    by_layer = [(case.rule, case.options) for case in cases]
    expected = reference_steps.explain(modules, x, seed, by_layer)[0]
    if len(modules) == 1:
        found = LRP(model, package_rule(cases[0])).attribute(x, target=weighted(seed))
    else:
        registry = Rules()
        linear = [i for i, m in enumerate(modules) if isinstance(m, reference_steps.LINEAR)]
        for i, case in zip(linear, cases, strict=True):
            registry = registry.set(str(i), package_rule(case))
        found = LRP(model, registry).attribute(x, target=weighted(seed))
    return distance(found, expected)
