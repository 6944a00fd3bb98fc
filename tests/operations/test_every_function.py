"""Every function of torch that can be overridden has a handler, is named as uncovered, or is exempt for a reason."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.overrides
from torch import Tensor, nn

from relprop import LRP, GradientXInput, InputError, Rules, UncoveredOperationWarning
from relprop.operations.table import operation_of
from relprop.propagation.facts.operation import Kind, Operation
from relprop.propagation.run.in_place import twin_of, written_by
from relprop.trees import tensors_in
from tests.operations.function_calls import SAMPLES, Sample
from tests.operations.function_lists import EXEMPT, RECURRENT, UNCOVERED
from tests.unrolled import assert_close, random

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # some functions are deprecated, and say so when they are listed
    _LISTED = [function for group in torch.overrides.get_overridable_functions().values() for function in group]
    NAMES: dict[Any, str] = {function: str(torch.overrides.resolve_name(function)) for function in _LISTED}
EVERY = {name: function for function, name in NAMES.items()}


def short(name: str) -> str:
    """The last part of a name; for a property, its own."""
    parts = name.split(".")
    return parts[-2] if parts[-1] in ("__get__", "__set__", "__delete__") else parts[-1]


def pure(name: str) -> str:
    """The name of the function that computes what an in-place one writes."""
    last = short(name)
    if (
        last.startswith("__i")
        and last.endswith("__")
        and last not in ("__int__", "__index__", "__invert__", "__iter__")
    ):
        return f"__{last[3:]}"
    return last[:-1] if last.endswith("_") and not last.endswith("__") else last


def writes(function: Callable[..., Any]) -> bool:
    """Whether a function writes into its first argument."""
    return bool(written_by(operation_of(function), function, (torch.zeros(2),), {}))


def operation(name: str) -> Operation | None:
    """What the table knows a function as, in place or not."""
    function, x = EVERY[name], torch.zeros(2, 2)
    found = operation_of(function)
    if written_by(found, function, (x,), {}):
        twin = twin_of(found, function, (x, x), {})
        found = None if twin is None else operation_of(twin.func)
    return None if found is not None and found.kind in (Kind.CONSTANT, Kind.UNKNOWN) else found


def sample(name: str) -> Sample | None:
    """The call that stands for a function."""
    found = operation(name)
    labels = [] if found is None else [found.name]
    return next((SAMPLES[key] for key in (name, short(name), pure(name), *labels) if key in SAMPLES), None)


def unknown(name: str) -> Sample | None:
    """The call that stands for a function that no rule covers."""
    if operation(name) is not None or any(short(name) in names for names in EXEMPT.values()):
        return None
    return next((UNCOVERED[key] for key in (name, short(name), pure(name)) if key in UNCOVERED), None)


TESTED_APART = RECURRENT | {"coalesce", "to_sparse"}
"""Recurrent layers, and what gives a sparse matrix."""
COVERED = [name for name in EVERY if operation(name) is not None and short(name) not in TESTED_APART]
ELSEWHERE = {"copy", "sym_int", "fill_diagonal", "torch.sparse.mm", "torch.sparse.addmm"}
"""Samples of functions that are listed under other names."""
BY_PARTS = {"pca_lowrank": ["qr", "svd"], "svd_lowrank": ["qr", "svd"], "lobpcg": ["LOBPCG"]}
"""Functions that never meet the mode themselves, but by what they call."""
CONSTANT = {"detach", "rsqrt", "reciprocal", "rsqrt_", "reciprocal_", "__rfloordiv__"}
"""What no relevance passes: it takes its argument out of the graph, or is a divisor."""
DEVICES = {"cuda", "xpu", "ipu", "mtia", "pin_memory"}
"""What takes a tensor to a device that need not be here."""
NARROW = {"half", "bfloat16", "float", "cfloat", "chalf"}
"""What rounds the tensor and its coefficient."""
PIECEWISE = {"logsumexp", "logcumsumexp", "frexp", "maximum", "minimum", "fmax", "fmin", "threshold", "threshold_"}
"""What has an offset that is not its value at zero, and is declared."""
RANDOM = {"gumbel_softmax", "alpha_dropout", "feature_alpha_dropout"} | {
    f"fractional_max_pool{d}d{more}" for d in (2, 3) for more in ("", "_with_indices")
}


@pytest.mark.parametrize("name", EVERY)
def test_it_is_listed_once(name: str) -> None:
    lists = {
        "the table of operations": operation(name) is not None,
        "uncovered": unknown(name) is not None,
        "recurrent": short(name) in RECURRENT,
    }
    lists |= {reason: short(name) in names or name in names for reason, names in EXEMPT.items()}
    found = [title for title, listed in lists.items() if listed]
    if "recurrent" in found:
        return
    assert len(found) == 1, f"{name} is in {found or 'no list'}"


# What is covered ---------------------------------------------------------------------------------------------


class Calls(nn.Module):
    """A model that calls one function, and returns all that is differentiable in one row."""

    def __init__(self, name: str, call: Sample | None = None, out: bool = False) -> None:
        super().__init__()
        self.function, self.sample, self.out = EVERY[name], call or sample(name), out
        self.writes = writes(self.function)

    def forward(self, batch: Tensor) -> Tensor:
        assert self.sample is not None
        args, kwargs = self.sample.given(batch[0])
        if self.writes:
            args = (args[0] * 1, *args[1:])
        if self.out:
            kwargs = {**kwargs, "out": torch.empty(0, dtype=batch.dtype)}
        made = self.function(*args, **kwargs)
        made = args[0] if made is None else made
        tensors = tensors_in(list(made) if not isinstance(made, Tensor) else made)
        parts = [torch.view_as_real(part.resolve_conj()) if part.is_complex() else part for part in tensors]
        row = torch.cat([part.double().flatten() for part in parts if part.is_floating_point()])
        return row.unsqueeze(0)


def weigh(row: Tensor) -> Tensor:
    return (row * random(row.shape[1], seed=9)).sum(1)


def quietly(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function that may be deprecated, but must not be named as uncovered."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", UncoveredOperationWarning)
        torch.default_generator.manual_seed(0)
        return function(*args, **kwargs)


def gradient_x_input(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The explained output, and Gradient x Input of it by plain autograd."""
    leaf = x.clone().requires_grad_()
    out = quietly(lambda: weigh(model(leaf)))
    (found,) = torch.autograd.grad(out.sum(), leaf)
    return out.detach(), x * found


@pytest.mark.parametrize("name", COVERED)
@pytest.mark.traced
def test_a_covered_function(name: str) -> None:
    """The forward is untouched, both phases explain alike, the report is complete; where autograd is right, by it."""
    found = operation(name)
    assert found is not None
    assert sample(name) is not None, f"{name} has no sample in function_calls.py"
    if short(name) in DEVICES:
        return
    model, x = Calls(name), sample(name).input()  # type: ignore[union-attr]
    lrp = LRP(model, "lrp0")
    if short(name) in CONSTANT:
        with pytest.raises(InputError, match="does not depend on the input"):
            quietly(lrp.attribute, x, weigh)
        return
    with torch.no_grad():
        out = quietly(lambda: weigh(model(x)))
    relevance = quietly(lrp.attribute, x, weigh)
    report = quietly(lrp.report, x, weigh)
    assert abs(report.output - float(out)) <= 1e-12 * (1 + abs(report.output)), "the forward changed"
    size = float(relevance.abs().max()) + abs(report.output)
    tolerance = 1e-2 if short(name) in NARROW else 1e-5 if "quantize" in name else 1e-10
    again = quietly(lrp.attribute, x, weigh, create_graph=True).detach()
    assert float((again - relevance).abs().max()) <= tolerance * size, "the phases differ"
    assert abs(report.relevance - float(relevance.sum())) <= tolerance * size
    assert abs(report.unexplained) <= tolerance * size, str(report)
    if found.kind in ("affine", "view"):
        expected = gradient_x_input(model, x)[1]
        assert_close(relevance, expected, name)
        plain = quietly(GradientXInput(model).attribute, x, weigh)
        assert_close(plain, expected, name)


@pytest.mark.parametrize("name", [name for name in COVERED if operation(name).kind in ("affine", "view")])
def test_autograd_is_right(name: str) -> None:
    """Linear or homogeneous: f(t x) - f(0) = t (f(x) - f(0)) about the x of the sample; the sum conserves."""
    model, x = Calls(name), sample(name).input()  # type: ignore[union-attr]
    if short(name) in CONSTANT | PIECEWISE | DEVICES | NARROW:
        return
    with torch.no_grad():
        values = [quietly(model, t * x) for t in (0.5, 1.0, 2.0)]
    slopes = [values[1] - values[0], (values[2] - values[1]) / 2]
    assert_close(slopes[1], slopes[0], name)
    out, relevance = gradient_x_input(model, x)
    assert abs(float(weigh(2 * slopes[0]) - relevance.sum())) <= 1e-10 * (1 + float(out.abs())), "it is not conserved"


def takes_out(name: str) -> bool:
    """Whether a function takes `out=`, which only a call without derivatives tells."""
    with torch.no_grad():
        try:
            quietly(Calls(name, out=True), sample(name).input())  # type: ignore[union-attr]
        except (TypeError, RuntimeError):
            return False
    return True


@pytest.mark.parametrize("name", [name for name in COVERED if name.split(".")[1] not in ("Tensor", "nn", "functional")])
def test_the_same_with_out(name: str) -> None:
    if short(name) in CONSTANT | RANDOM | DEVICES or not takes_out(name):
        return
    x = sample(name).input()  # type: ignore[union-attr]
    expected = quietly(LRP(Calls(name), "lrp0").attribute, x, weigh)
    assert_close(quietly(LRP(Calls(name, out=True), "lrp0").attribute, x, weigh), expected, name)


# What is not ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in EVERY if unknown(name) is not None])
def test_an_uncovered_function_is_named(name: str) -> None:
    call = unknown(name)
    assert call is not None
    model = Calls(name, call)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        plan = Rules().plan(model, call.input(), weigh)
    titles = [str(warning.message) for warning in seen if warning.category is UncoveredOperationWarning]
    parts = BY_PARTS.get(short(name), [pure(name)])
    assert len(titles) == len(parts) <= len(plan.uncovered), titles
    for title, part in zip(titles, parts, strict=True):
        assert part in title
        assert re.search(r"in Calls (has no rule|has no derivative|was made by no call|\w)", title)


def test_the_lists_hold_no_name_that_never_was() -> None:
    """A misspelt name would pass for one that another version of PyTorch has."""
    if not torch.__version__.startswith("2.13"):
        return
    names = {key for name in EVERY for key in (name, short(name), pure(name))}
    present = [listed for reason, listed in EXEMPT.items() if "only older versions" not in reason]
    for listed in (UNCOVERED, RECURRENT, *present):
        assert set(listed) <= names | ELSEWHERE, set(listed) - names
