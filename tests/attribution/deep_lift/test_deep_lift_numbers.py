"""DeepLIFT of quotients, softmax, smooth functions and masks, where a difference of outputs is hard to compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import DeepLift, NumericalError
from tests.models import close, settle, vectors


class Of(nn.Module):
    """A function as a model."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("shift", [0.0, 200.0, 800.0])
@pytest.mark.parametrize("steep", [1.0, 10.0, 20.0])
def test_softmax_of_scores_far_apart(steep: float, shift: float) -> None:
    """Against zero scores: by the formula of the logarithmic means, each a number between 0 and 1."""
    x = steep * torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64) + shift
    found, delta = DeepLift(Of(lambda z: z.softmax(-1))).attribute(x, target=2, return_convergence_delta=True)
    z = x[0] - shift
    p, third = z.softmax(0), torch.tensor(1 / 3, dtype=torch.float64)
    w = (p - third) / (p.log() - third.log())
    expected = w[2] * (torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64) - w / w.sum()) * x[0]
    close(found[0], expected, 1e-9)
    assert float(delta.abs()) < 1e-10


@pytest.mark.parametrize("function", ["softmax", "log_softmax", "logsumexp"])
def test_a_common_offset_of_scores_in_float32(function: str) -> None:
    """Multipliers know no offset: those of float64 without it, to the rounding of the scores with it."""
    x, base = (torch.randn(5, 7, generator=torch.Generator().manual_seed(seed)).double() for seed in (0, 1))
    target = None if function == "logsumexp" else 2
    method = DeepLift(Of(lambda z: getattr(z, function)(1)))
    expected = method.attribute(x, base, target) / (x - base)
    for offset in (1e2, 1e3, 1e4):
        here, there = (x + offset).float(), (base - offset).float()
        found = method.attribute(here, there, target) / (here - there)
        close(found, expected.float(), 64 * torch.finfo(torch.float32).eps * offset)
        if target is not None:
            assert float((found.sum(1) / found.abs().sum(1)).abs().max()) < 1e-6
        else:
            close(found.sum(1), torch.ones(5), 1e-6)


@pytest.mark.parametrize("name", ["normalize", "cosine", "layer_norm", "by hand"])
def test_quotients_against_zero_stay_in_proportion(name: str) -> None:
    """``dy = (da - (y + y')/2 db) / ((b + b')/2)``, whatever the divisor of the baseline."""
    x, other = torch.tensor([[3.0, 4.0]], dtype=torch.float64), torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    functions: dict[str, Any] = {
        "normalize": lambda z: F.normalize(z, dim=1),
        "cosine": lambda z: F.cosine_similarity(z, other)[:, None],
        "layer_norm": lambda z: F.layer_norm(z, (2,)),
        "by hand": lambda z: z / (z.square().sum(1, keepdim=True) + 1e-24).sqrt(),
    }
    found, delta = DeepLift(Of(functions[name])).attribute(x, target=0, return_convergence_delta=True)
    assert float(delta.abs()) < 1e-12
    assert float(found.abs().sum()) < 10
    if name in ("normalize", "by hand"):  # a = (3, 4), b = 5: y = 0.6, and b receives (9, 16) / 5
        close(found, torch.tensor([[3 / 2.5 - 0.3 / 2.5 * 9 / 5, -0.3 / 2.5 * 16 / 5]], dtype=torch.float64), 1e-9)


@pytest.mark.parametrize(("name", "x", "other"), [("cos", 1000.0, 1003.0), ("exp", 20.1, 20.0), ("sin", 100.45, 100.0)])
def test_smooth_functions_far_from_zero(name: str, x: float, other: float) -> None:
    function = getattr(torch, name)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-10)):
        here, there = torch.tensor([[x]], dtype=dtype), torch.tensor([[other]], dtype=dtype)
        exact = function(here.double()) - function(there.double())
        found = DeepLift(Of(function)).attribute(here, there, 0)
        assert float((found - exact).abs()) <= tolerance * float(exact.abs())


@pytest.mark.parametrize("rule", ["rescale", "reveal_cancel"])
def test_masks_of_bools_and_inference_mode(rule: Any) -> None:
    layer = settle(nn.Linear(4, 3))
    x = vectors()
    hidden, plain = Of(lambda z: (lambda h: h * (h > 0))(layer(z))), Of(lambda z: layer(z).relu())
    expected = DeepLift(plain, rule).attribute(x, 0.3, 1)
    if rule == "rescale":
        close(DeepLift(hidden, rule).attribute(x, 0.3, 1), expected, 1e-10)
    else:
        _, delta = DeepLift(hidden, rule).attribute(x, 0.3, 1, return_convergence_delta=True)
        assert float(delta.abs().max()) < 1e-12
    with torch.inference_mode():
        inside = torch.full_like(x, 0.3)
        for baselines in (0.3, inside, inside[:1]):
            assert torch.equal(DeepLift(plain, rule).attribute(x, baselines, 1), expected)
    assert torch.equal(DeepLift(plain, rule).attribute(x, inside, 1), expected)


def test_a_baseline_that_divides_by_zero_is_refused() -> None:
    with pytest.raises(NumericalError, match="Choose other baselines"):
        DeepLift(Of(lambda z: z / z.square().sum(1, keepdim=True))).attribute(vectors(), target=1)
