"""Every function of torch that can be overridden has a handler, is named as uncovered, or is exempt for a reason."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.overrides
from torch import Tensor, nn

from relprop import LRP, GradientXInput, InputError, UncoveredOperationError, UncoveredOperationWarning
from relprop.propagation.operations import Operation, operation_of
from relprop.propagation.storage import tensors_in
from relprop.propagation.writes import twin_of, written_by
from tests.propagation.function_calls import SAMPLES, Sample
from tests.propagation.function_lists import EXEMPT, RECURRENT, UNCOVERED
from tests.propagation.unrolled import assert_close, random

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


def operation(name: str) -> Operation | None:
    """What the table knows a function as, in place or not."""
    found = operation_of(EVERY[name])
    if found is None and pure(name) != short(name):
        x = torch.zeros(2, 2)
        twin = twin_of(EVERY[name], (x, x), {}) if written_by(EVERY[name], (x,), {}) else None
        found = None if twin is None else operation_of(twin.func)
    return found


def sample(name: str) -> Sample | None:
    """The call that stands for a function."""
    found = operation(name)
    calls, labels = (UNCOVERED, []) if found is None else (SAMPLES, [found.name])
    return next((calls[key] for key in (name, short(name), pure(name), *labels) if key in calls), None)


# Recurrent layers and sparse matrices have tests of their own; a move to another device needs the device.
ELSEWHERE = RECURRENT | {"coalesce", "to_sparse", "cuda", "ipu", "xpu", "mtia", "pin_memory"}
COVERED = [name for name in EVERY if operation(name) is not None and short(name) not in ELSEWHERE]
# Of these alone nothing is explained: what divides is a constant to the rules, as what is detached.
CONSTANT = {"detach", "detach_copy", "reciprocal", "reciprocal_", "rsqrt", "rsqrt_"}
# A constant that wins, or that stands in for the input, absorbs: affine only between the kinks.
KINKED = {"maximum", "minimum", "fmax", "fmin", "threshold", "threshold_", "frexp"}
COARSE = {"float", "cfloat", "half", "chalf", "bfloat16"}
EXPANDED = {"logsumexp", "logcumsumexp"}
RANDOM = {"gumbel_softmax", "alpha_dropout", "feature_alpha_dropout"} | {
    f"fractional_max_pool{d}d{more}" for d in (2, 3) for more in ("", "_with_indices")
}


@pytest.mark.parametrize("name", EVERY)
def test_it_is_listed_once(name: str) -> None:
    lists = {
        "the table of operations": operation(name) is not None,
        "uncovered": any(form in UNCOVERED for form in (name, short(name), pure(name))),
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

    def __init__(self, name: str, out: bool = False) -> None:
        super().__init__()
        self.function, self.sample, self.out = EVERY[name], sample(name), out
        self.writes = pure(name) != short(name) and not name.endswith("requires_grad_")

    def forward(self, batch: Tensor) -> Tensor:
        assert self.sample is not None
        args, kwargs = self.sample.given(batch[0])
        if self.writes:
            args = (args[0] * 1, *args[1:])
        if self.out:
            kwargs = {**kwargs, "out": torch.empty(0, dtype=batch.dtype)}
        made = self.function(*args, **kwargs)
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
        torch.manual_seed(0)
        return function(*args, **kwargs)


def gradient_x_input(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The explained output, and Gradient x Input of it by plain autograd, None where PyTorch has no derivative."""
    leaf = x.clone().requires_grad_()
    with torch.no_grad():
        value = quietly(lambda: weigh(model(x.clone())))
    try:
        (found,) = torch.autograd.grad(quietly(lambda: weigh(model(leaf))).sum(), leaf)
    except RuntimeError as error:
        if _NO_DERIVATIVE.search(str(error)) is None:
            raise
        return value, None
    return value, x * found


_NO_DERIVATIVE = re.compile("derivative for .* is not implemented|does not support automatic differentiation")


@pytest.mark.parametrize("name", COVERED)
def test_a_covered_function(name: str) -> None:
    """The forward is untouched, both phases explain alike, the report is complete; where autograd is right, by it."""
    found = operation(name)
    assert found is not None
    assert sample(name) is not None, f"{name} has no sample in function_calls.py"
    if short(name) in CONSTANT:
        return
    model, x = Calls(name), sample(name).input()  # type: ignore[union-attr]
    out, expected = gradient_x_input(model, x)
    lrp = LRP(model, "lrp0")
    if short(name) == "__rfloordiv__":  # an active divisor is a constant, and rounding drops the rest
        return
    try:
        relevance = quietly(lrp.attribute, x, weigh)
        report = quietly(lrp.report, x, weigh)
        again = quietly(lrp.attribute, x, weigh, create_graph=True).detach()
    except RuntimeError as error:
        if expected is not None or _NO_DERIVATIVE.search(str(error)) is None:
            raise
        return  # PyTorch has no derivative, and names it
    assert abs(report.output - float(out)) <= 1e-12 * (1 + abs(report.output)), "the forward changed"
    size = float(relevance.abs().max()) + abs(report.output)
    tolerance = 1e-2 if short(name) in COARSE else 1e-5 if "quantize" in name else 1e-10
    assert float((again - relevance).abs().max()) <= tolerance * size, "the phases differ"
    assert abs(report.relevance - float(relevance.sum())) <= tolerance * size
    assert abs(report.unexplained) <= tolerance * size, str(report)
    if found.kind in ("affine", "view") and expected is not None:
        assert_close(relevance, expected, name)
        plain = quietly(GradientXInput(model).attribute, x, weigh)
        assert_close(plain, expected, name)


@pytest.mark.parametrize("name", [name for name in COVERED if operation(name).kind in ("affine", "view")])
def test_autograd_is_right(name: str) -> None:
    """Linear or homogeneous: f(t x) - f(0) = t (f(x) - f(0)) about the x of the sample; the sum conserves."""
    model, x = Calls(name), sample(name).input()  # type: ignore[union-attr]
    if short(name) in CONSTANT | EXPANDED | KINKED:
        return
    tolerance = 1e-2 if short(name) in COARSE else 1e-10
    with torch.no_grad():
        values = [quietly(model, t * x) for t in (0.5, 1.0, 2.0)]
    slopes = [values[1] - values[0], (values[2] - values[1]) / 2]
    assert_close(slopes[1], slopes[0], name, tolerance)
    out, relevance = gradient_x_input(model, x)
    if relevance is not None:
        lost = float(weigh(2 * slopes[0]) - relevance.sum())
        assert abs(lost) <= tolerance * (1 + float(out.abs())), "it is not conserved"


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
    if short(name) in CONSTANT | RANDOM or not takes_out(name):
        return
    x = sample(name).input()  # type: ignore[union-attr]
    if gradient_x_input(Calls(name), x)[1] is None:
        return
    expected = quietly(LRP(Calls(name), "lrp0").attribute, x, weigh)
    assert_close(quietly(LRP(Calls(name, out=True), "lrp0").attribute, x, weigh), expected, name)


# What is not ---------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # some are deprecated, and say so
@pytest.mark.parametrize("name", [name for name in EVERY if operation(name) is None and sample(name) is not None])
def test_an_uncovered_function_is_named(name: str) -> None:
    """With the place where it ran: in a warning, or in an error where nothing uncovered shall pass."""
    model, x = Calls(name), sample(name).input()  # type: ignore[union-attr]
    heard: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with contextlib.suppress(RuntimeError, InputError):  # what PyTorch cannot differentiate, or writes by integers
            LRP(model, "lrp0").attribute(x, weigh)
        heard = [str(one.message) for one in caught if isinstance(one.message, UncoveredOperationWarning)]
    carries = any(part.requires_grad for part in tensors_in(differentiable(model, x)))
    assert bool(heard) == carries, heard
    if carries:
        assert all("in Calls " in message for message in heard)
        with pytest.raises(UncoveredOperationError, match="in Calls "):
            LRP(model, "lrp0", strict=True).attribute(x, weigh)


def differentiable(model: nn.Module, x: Tensor) -> Tensor:
    """The row of the model, connected to its input if the function is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model(x.clone().requires_grad_())  # type: ignore[no-any-return]
