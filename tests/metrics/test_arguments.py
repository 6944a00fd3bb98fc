"""Arguments of a wrong type or value: each error names the argument, what it was and what was expected."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relprop.errors import InputError, InputTypeError
from relprop.metrics import evaluate, implementation_invariance, input_invariance, rewrites, road, selectivity
from tests.metrics.small import TARGET, gradient_x_input, images, network


def invariance(**options: Any) -> Any:
    return implementation_invariance(gradient_x_input, network(), network(), images(), TARGET, **options)


def shifted(**options: Any) -> Any:
    def ones(model: nn.Module, x: Tensor, target: Any) -> Tensor:
        return torch.ones_like(x)

    return input_invariance(ones, network(), images(), TARGET, **options)


def removed(fractions: Any) -> Any:
    return road(gradient_x_input, network(), images(), TARGET, fractions=fractions)


def rewritten(**options: Any) -> Any:
    return rewrites(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.rand(2, 3), **options)


def evaluated(explainers: Any, metrics: Any) -> Any:
    return evaluate(explainers, metrics, network(), [(images(), TARGET)])


NUMBER = "must be a finite number of at least 0, got"
CASES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "ties": (lambda: invariance(ties=[False] * 3), InputTypeError, r"ties is a list; expected a tensor \[3\], bool"),
    "ties of ints": (lambda: invariance(ties=torch.zeros(3)), InputError, r"dtype torch.float32; expected \[3\], bool"),
    "tolerance": (lambda: invariance(tolerance="a"), InputError, f"tolerance {NUMBER} 'a'"),
    "nan tolerance": (lambda: invariance(tolerance=math.nan), InputError, f"tolerance {NUMBER} nan"),
    "shift": (lambda: shifted(shift="a"), InputTypeError, "shift is 'a'; expected a number or a tensor"),
    "no shift": (lambda: shifted(shift=None), InputTypeError, "shift is None; expected a number or a tensor"),
    "complex": (lambda: shifted(shift=torch.tensor(1j)), InputTypeError, "shift is .*; expected a number or a tensor"),
    "shift tolerance": (lambda: shifted(tolerance="a"), InputError, f"tolerance {NUMBER} 'a'"),
    "below": (lambda: rewritten(tolerance=-1.0), InputError, f"tolerance {NUMBER} -1.0"),
    "chains": (lambda: rewritten(chains=5), InputTypeError, "chains is 5; expected a list of tuples of names"),
    "model": (lambda: selectivity(images(), 5, images(), TARGET), InputTypeError, "model is a int; expected an nn"),
    "seed": (lambda: rewritten(seed="a"), InputTypeError, "seed must be an int.*got 'a'"),
    "fractions": (lambda: removed(0.5), InputTypeError, "fractions is 0.5; expected a sequence of parts"),
    "one tensor": (lambda: removed(torch.tensor(0.5)), InputTypeError, "fractions is .*; expected a sequence of parts"),
    "nan fraction": (lambda: removed((0.1, math.nan)), InputError, f"a fraction {NUMBER} nan"),
    "words": (lambda: removed(("a",)), InputError, f"a fraction {NUMBER} 'a'"),
    "large": (lambda: removed((0.5, 1.0)), InputError, r"fractions are \(0.5, 1.0\); expected parts above 0"),
    "explainers": (
        lambda: evaluated(["a"], {"s": selectivity}),
        InputTypeError,
        "explainers is a list; expected a dict from names to callables",
    ),
    "metrics": (
        lambda: evaluated({"a": gradient_x_input}, [selectivity]),
        InputTypeError,
        "metrics is a list; expected a dict from names to callables",
    ),
    "metric": (
        lambda: evaluated({"a": gradient_x_input}, {"s": "x"}),
        InputTypeError,
        r"metric 's' is a str; expected a callable metric\(explain, model, x, target\)",
    ),
    "explainer": (
        lambda: evaluated({"a": "x"}, {"s": selectivity}),
        InputTypeError,
        r"explainer 'a' is 'x'; expected a callable explain\(model, x, target\) -> relevance, or relevance",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_arguments(case: str) -> None:
    call, error, message = CASES[case]
    with pytest.raises(error, match=message):
        call()


def test_fractions_of_a_tensor() -> None:
    found, expected = removed(torch.tensor([0.25, 0.5])), removed((0.25, 0.5))
    assert found.fractions == (0.25, 0.5)
    assert torch.equal(found.morf, expected.morf)
