"""What is checked of one network of the zoo: that its maps are right, and that nothing is lost unexplained."""

from __future__ import annotations

import time
import warnings
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from tests import fusion
from tests.networks.zoo import difference
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks._zoo_models import Entry, Target, build, image, settle, target_of, without_biases
from benchmarks._zoo_reference import GatesConstant, gradient_times_input
from benchmarks._zoo_surrogate import EqualSurrogate, Surrogate
from relprop import LRP, Rules
from relprop.errors import UncoveredOperationWarning
from relprop.rules import Epsilon, Gamma, ZPlus

FUSED_RULES: dict[str, Any] = {"epsilon": Epsilon(), "gamma": Gamma(0.25), "zplus": ZPlus()}

GRADIENT, SURROGATE = "Gradient x Input", "surrogate"

GRADIENT_TOLERANCE = 1e-10  # LRP-0 and Gradient x Input on piecewise linear networks
TOLERANCE = 1e-9  # everything else
ROUNDED_TOLERANCE = 1e-6  # where the model itself computes in single precision here or there
LARGEST_GROWTH = 10.0  # of sum |R|, beside Gradient x Input with constant gates


@dataclass
class Result:
    """What was found for one network.

    Attributes:
        name: library and architecture.
        uncovered: the operations that relprop named, and where.
        other_warnings: what else was warned of.
        error: the text of what went wrong, and where; empty if nothing did.
        output: the explained output ``f``.
        delta: ``(f - sum R) / |f|`` for LRP-0.
        unexplained: ``sum |unexplained| / |f|`` over all calls of the report.
        unexplained_without_biases: the same where biases, means and embeddings of positions are zero.
        bias_free: setting them to zero left nothing that an input of zero could show.
        size: ``sum |R| / |f|``.
        gradient_size: the same for Gradient x Input with gates held constant.
        reference: "Gradient x Input" or "surrogate".
        difference: of the map of LRP-0 and the reference, as a share of the largest relevance.
        attnlrp_difference: the same for AttnLRP, with LRP-0 at linear layers.
        curved: the operations in it that are not piecewise linear.
        strange: the operations that the reference does not know.
        rounded: the model computes in single precision here or there.
        norms, fused: the batch norms of the network, and how many of them were fused for the copy.
        fused_differences: of the maps of the network and its fused copy, by rule.
        seconds: what all of it took.
    """

    name: str
    uncovered: list[str] = field(default_factory=list)
    other_warnings: list[str] = field(default_factory=list)
    error: str = ""
    output: float = 0.0
    delta: float = 0.0
    unexplained: float = 0.0
    unexplained_without_biases: float = 0.0
    bias_free: bool = False
    size: float = 0.0
    gradient_size: float = 0.0
    reference: str = ""
    difference: float = 0.0
    attnlrp_difference: float = 0.0
    curved: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)
    rounded: bool = False
    norms: int = 0
    fused: int = 0
    fused_differences: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def faults(self) -> list[str]:
        """Return what is wrong: nothing, if relprop is right about the network or says what it does not cover."""
        if self.error:
            return [self.error]
        if self.uncovered:
            return []
        limit = ROUNDED_TOLERANCE if self.rounded else TOLERANCE
        close = GRADIENT_TOLERANCE if self.reference == GRADIENT else limit
        found = {
            f"differs from {self.reference} by {self.difference:.1e}": self.difference <= close,
            f"differs from AttnLRP by {self.attnlrp_difference:.1e}": self.attnlrp_difference <= limit,
            f"{self.unexplained:.1e} of the output is unexplained": self.unexplained <= limit,
            f"{self.unexplained_without_biases:.1e} of the output is unexplained without biases": (
                self.unexplained_without_biases <= limit
            ),
            f"sum |R| is {self.size:.3g}, of Gradient x Input {self.gradient_size:.3g}": (
                self.size <= LARGEST_GROWTH * self.gradient_size
            ),
            f"the reference does not know {', '.join(self.strange)}": not self.strange,
            f"warned: {'; '.join(self.other_warnings)}": not self.other_warnings,
        }
        for rule, value in self.fused_differences.items():
            found[f"differs from the fused copy by {value:.1e} under {rule}"] = value <= limit
        return [text for text, right in found.items() if not right]

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings, lists and dicts."""
        return {**asdict(self), "faults": self.faults()}


def check(entry: Entry) -> Result:
    """Return what is found for a network; what goes wrong is in the result."""
    result = Result(entry.title)
    start = time.perf_counter()
    try:
        _check(entry, result)
    except Exception as error:  # noqa: BLE001  # one network must not keep the others from being looked at
        result.error = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    result.seconds = time.perf_counter() - start
    return result


def _check(entry: Entry, result: Result) -> None:
    model, x = build(entry), image(entry)
    settle(model, x)
    target, score = target_of(entry, model, x)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        relevance, delta = LRP(model, "lrp0").attribute(x, target, return_convergence_delta=True)
        result.unexplained = _unexplained(model, x, target)
    for warning in caught:
        text = str(warning.message)
        into = result.uncovered if isinstance(warning.message, UncoveredOperationWarning) else result.other_warnings
        if text not in into:
            into.append(text)

    surrogate = Surrogate()
    output, expected = gradient_times_input(model, x, score, surrogate)
    result.output = float(output)
    with torch.no_grad():
        off = abs(float(score(model(x))) / result.output - 1)
    assert off < 1e-9, f"the output of the surrogate is off by {off:.1e}"
    result.delta = float(delta) / abs(result.output)
    result.size = float(relevance.abs().sum()) / abs(result.output)
    result.curved, result.strange = sorted(surrogate.curved), sorted(surrogate.unknown)
    result.reference = SURROGATE if result.curved or result.strange else GRADIENT
    result.rounded = surrogate.rounded
    _, gradient = gradient_times_input(model, x, score, GatesConstant())
    result.gradient_size = float(gradient.abs().sum()) / abs(result.output)
    result.difference = difference(relevance, expected if surrogate.curved else gradient)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, expected = gradient_times_input(model, x, score, EqualSurrogate())
        found = LRP(model, Rules.preset("attnlrp", epsilon=0.0)).attribute(x, target)
        result.attnlrp_difference = difference(found, expected)
        _check_fused(model, x, target, result)
        without_biases(model)
        with torch.no_grad():
            result.bias_free = bool(score(model(torch.zeros_like(x))) == 0)
        result.unexplained_without_biases = _unexplained(model, x, target)


def _unexplained(model: nn.Module, x: Tensor, target: Target) -> float:
    report = LRP(model, "lrp0").report(x, target)
    lost = sum(abs(entry.unexplained) for entry in report.entries) + abs(report.unseen)
    return lost / abs(report.output)


def _check_fused(model: nn.Module, x: Tensor, target: Target, result: Result) -> None:
    result.norms = sum(isinstance(module, _BatchNorm) for module in model.modules())
    pairs = fusion.pairs(model, x)
    if not pairs:
        return
    fused = fusion.fuse(model, x, expected=len(pairs))
    result.fused = len(pairs)
    for name, rule in FUSED_RULES.items():
        ours, theirs = (LRP(each, rule).attribute(x, target) for each in (model, fused))
        result.fused_differences[name] = difference(ours, theirs)
