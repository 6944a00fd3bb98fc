"""What is rarely meant, and is said: probabilities explained by rules, methods without effect, stabilizers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import relprop
from relprop import (
    LRP,
    ContrastiveExcitationBackprop,
    Deconvolution,
    DeepLift,
    DeepTaylor,
    ExcitationBackprop,
    GradientXInput,
    GuidedBackprop,
    NoEffectWarning,
    ProbabilityWarning,
    RelpropWarning,
    StabilizerWarning,
    Unit,
)
from relprop.rules import Epsilon, Zero
from tests.models import Wrapped, close, mlp, settle, vectors


def said(call: Callable[[], Any]) -> list[type[RelpropWarning]]:
    """What a call warns of, each as often as it does."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", relprop.DeepTaylorWarning)
        call()
    return [warning.category for warning in seen if issubclass(warning.category, RelpropWarning)]


def by_hand(z: Tensor) -> Tensor:
    e = torch.exp(z - z.amax(1, keepdim=True))
    return e / e.sum(1, keepdim=True)


PROBABILITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda z: z.softmax(1),
    "softmax of a temperature": lambda z: torch.softmax(z / 2.0, -1),
    "softmax by hand": by_hand,
    "exp of log_softmax": lambda z: z.log_softmax(1).exp(),
    "sigmoid": torch.sigmoid,
    "expit": torch.special.expit,
    "in place": lambda z: z.clone().sigmoid_(),
    "hardsigmoid": nn.functional.hardsigmoid,
    "squeezed": lambda z: z[:, None].sigmoid().squeeze(1),
    "moved": lambda z: z.T.softmax(0).T.contiguous(),
    "cast": lambda z: z.float().softmax(1).double(),
}
OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "scores": lambda z: z,
    "log_softmax": lambda z: z.log_softmax(1),  # its relevance is that of the scores
    "a gate": lambda z: z * z.sigmoid(),
    "a layer behind it": lambda z: z.softmax(1) @ torch.eye(3, dtype=z.dtype),
}


@pytest.mark.parametrize("method", [LRP, DeepTaylor, ExcitationBackprop], ids=lambda method: method.__name__)
@pytest.mark.parametrize("name", PROBABILITIES)
def test_a_probability_that_rules_explain(name: str, method: Any) -> None:
    """Once, whatever the form of the target, in a report too; not for methods that absorb nothing of it."""
    model, x = Wrapped(mlp(), PROBABILITIES[name]), vectors()
    for target in (1, [0, 1], (1,), lambda out: out[:, 2], lambda out: out.select(1, 0)):
        assert said(lambda t=target: method(model).attribute(x, t)) == [ProbabilityWarning]  # type: ignore[misc]
    assert said(lambda: LRP(model, Zero()).report(x, 1)) == [ProbabilityWarning]
    assert said(lambda: GradientXInput(model).attribute(x, 1)) == []
    assert said(lambda: DeepLift(model).attribute(x, target=1)) == []


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_probability(name: str) -> None:
    assert said(lambda: LRP(Wrapped(mlp(), OTHERS[name])).attribute(vectors(), 1)) == []


def test_a_softmax_without_layers_has_no_scores_to_explain() -> None:
    assert said(lambda: LRP(nn.Softmax(1)).attribute(vectors(), 1)) == []


def test_the_message_names_the_layer_that_makes_the_scores() -> None:
    """What it says to write explains the scores, without a warning."""
    model, x = nn.Sequential(*mlp(), nn.Softmax(1)), vectors()
    layer = str(len(model) - 2)
    with pytest.warns(ProbabilityWarning, match=rf"softmax .*'{len(model) - 1}'.*Unit\('{layer}', index\)"):
        LRP(model).attribute(x, 1)
    close(LRP(model).attribute(x, Unit(layer, 1)), LRP(model[:-1]).attribute(x, 1))


@pytest.mark.parametrize("method", [GuidedBackprop, Deconvolution], ids=lambda method: method.__name__)
def test_no_relu_on_the_way(method: Any) -> None:
    x, smooth = vectors(), settle(nn.Sequential(nn.Linear(4, 5), nn.SiLU(), nn.Linear(5, 3)))
    assert said(lambda: method(smooth).attribute(x, 1)) == [NoEffectWarning]
    assert said(lambda: method(mlp()).attribute(x, Unit("0", 1))) == [NoEffectWarning]
    assert said(lambda: method(mlp()).attribute(x, 1)) == []
    assert said(lambda: method(Wrapped(smooth, lambda z: z.clamp(min=0))).attribute(x, 1)) == []
    assert said(lambda: method(Wrapped(nn.Identity(), lambda z: z * (z > 0))).attribute(x, 1)) == []
    assert (
        said(
            lambda: method(nn.RNN(4, 3, nonlinearity="relu")).attribute(
                x.float()[None], target=lambda out: out[0][:, 0, 0]
            )
        )
        == []
    )


@pytest.mark.parametrize(
    "method", [ExcitationBackprop, ContrastiveExcitationBackprop], ids=lambda method: method.__name__
)
def test_nothing_that_excitation_is_shared_at(method: Any) -> None:
    x = vectors().abs()
    assert said(lambda: method(nn.ReLU()).attribute(x, 1)) == [NoEffectWarning]
    assert said(lambda: method(nn.Sequential(nn.ReLU(), nn.Tanh())).attribute(x, 1)) == [NoEffectWarning]
    assert said(lambda: method(mlp()).attribute(x, 1)) == []
    assert said(lambda: method(Wrapped(nn.Identity(), lambda z: z + z.flip(1))).attribute(x, 1)) == []


def test_stabilizers_that_take_more_than_a_hundredth() -> None:
    """Of the explained outputs; at the layer that takes most."""
    layer = nn.Linear(2, 1, bias=False).double()
    layer.weight.data = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    x = torch.tensor([[0.5, 0.5], [0.2, 0.8]], dtype=torch.float64)
    for epsilon, expected in ((0.0099, []), (0.0103, [StabilizerWarning])):
        assert said(lambda e=epsilon: LRP(layer, Epsilon(e)).report(x)) == expected  # type: ignore[misc]
    with pytest.warns(StabilizerWarning, match=r"took 50.0% of .* 50.0% at linear in module '' by Epsilon\(epsilon=1"):
        LRP(layer, Epsilon(1.0)).report(x[:1])
