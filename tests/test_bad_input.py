"""Bad targets and inputs: errors say what was wrong, what was expected and what to do, and leave the model alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import (
    LRP,
    DeepTaylor,
    Gradient,
    GradientXInput,
    InputError,
    InputTypeError,
    NumericalError,
    RelpropError,
    Rules,
    TargetError,
    TargetIndexError,
    TargetTypeError,
)
from tests.checks import refuses
from tests.models import Residual, Wrapped, images, mlp, residual, settle, vectors

# ------------------------------------------------------------------------------------------------ targets

TARGETS: dict[str, tuple[Any, type[RelpropError], type[Exception], tuple[str, ...]]] = {
    "none": (None, TargetError, ValueError, ("(2, 3)", "must say which", "an int", "a callable")),
    "too large": (3, TargetIndexError, IndexError, ("Target 3", "out of range", "(2, 3)")),
    "too small": (-4, TargetIndexError, IndexError, ("Target -4", "out of range", "(2, 3)")),
    "numpy too large": (np.int64(3), TargetIndexError, IndexError, ("3", "out of range", "(2, 3)")),
    "one of a list": ([0, 5], TargetIndexError, IndexError, ("Target 5", "out of range", "(2, 3)")),
    "one of a tensor": (torch.tensor([0, 5]), TargetIndexError, IndexError, ("Target 5", "out of range")),
    "long list": ([0, 1, 2], TargetError, ValueError, ("3 entries", "2 samples")),
    "short list": ([0], TargetError, ValueError, ("1 entries", "2 samples")),
    "long tensor": (torch.tensor([0, 1, 2]), TargetError, ValueError, ("one entry or one per sample", "(3,)")),
    "tensor of two dimensions": (torch.tensor([[0], [1]]), TargetError, ValueError, ("one per sample", "(2, 1)")),
    "tuple for one dimension": ((1, 2), TargetError, ValueError, ("(1, 2)", "2 indices", "(2, 3)", "needs 1")),
    "tuples of two lengths": ([(1,), (2, 0)], TargetError, ValueError, ("(2, 0)", "2 indices", "needs 1")),
    "string": ("cat", TargetTypeError, TypeError, ("must be an int", "'cat'", "str")),
    "float": (1.0, TargetTypeError, TypeError, ("must be an int", "1.0", "float")),
    "numpy float": (np.float64(1), TargetTypeError, TypeError, ("must be an int", "float64")),
    "dict": ({1: 2}, TargetTypeError, TypeError, ("must be an int", "dict")),
    "list of strings": (["a", "b"], TargetTypeError, TypeError, ("must be an int", "'a'", "str")),
    "float tensor": (torch.tensor([0.0, 1.0]), TargetTypeError, TypeError, ("integers", "float32")),
    "bool": (True, TargetTypeError, TypeError, ("must be an int", "True", "bool")),
    "numpy bool": (np.bool_(True), TargetTypeError, TypeError, ("must be an int", "bool")),
    "bool tensor": (torch.tensor([True, False]), TargetTypeError, TypeError, ("integers", "torch.bool")),
    "list of bools": ([True, False], TargetTypeError, TypeError, ("must be an int", "True", "bool")),
    "callable of no tensor": (lambda out: 3.0, TargetTypeError, TypeError, ("callable", "tensor [N]", "float")),
    "callable of all": (lambda out: out, TargetError, ValueError, ("one number per sample", "[2]", "(2, 3)")),
    "callable of a sum": (lambda out: out.sum(), TargetError, ValueError, ("one number per sample", "[2]", "()")),
    "callable of an index": (lambda out: out.argmax(1), InputError, ValueError, ("does not depend on the input",)),
    "callable of a constant": (lambda out: out[:, 0].detach(), InputError, ValueError, ("does not depend",)),
}


@pytest.mark.parametrize("case", list(TARGETS))
def test_target(case: str) -> None:
    target, error, built_in, words = TARGETS[case]
    model = mlp()
    with refuses(model, error, built_in, *words):
        LRP(model).attribute(vectors(), target)


def test_target_for_every_way_to_ask() -> None:
    model, x = mlp(), vectors()
    asks: list[Callable[[], Any]] = [
        lambda: Gradient(model).attribute(x, 7),
        lambda: GradientXInput(model).attribute(x, 7),
        lambda: LRP(model).attribute_layers(x, "0", 7),
        lambda: LRP(model).attribute_targets(x, [0, 7]),
        lambda: LRP(model).report(x, 7),
        lambda: Rules().plan(model, x, 7),
    ]
    for ask in asks:
        with refuses(model, TargetIndexError, IndexError, "Target 7", "out of range"):
            ask()


def test_no_targets() -> None:
    model = mlp()
    with refuses(model, TargetError, ValueError, "No target"):
        LRP(model).attribute_targets(vectors(), [])


def test_one_target_where_a_list_is_wanted() -> None:
    model = mlp()
    with refuses(model, TargetTypeError, TypeError, "list of targets", "int"):
        LRP(model).attribute_targets(vectors(), 0)  # type: ignore[arg-type]


def test_an_index_into_too_few_dimensions_of_a_map() -> None:
    model = settle(nn.Conv2d(3, 4, 3))
    with refuses(model, TargetError, ValueError, "(2, 4, 4, 4)", "needs 3", "tuple"):
        LRP(model).attribute(images(), 1)


# ------------------------------------------------------------------------------------------------- inputs


def test_no_batch_dimension_for_a_convolution() -> None:
    model = settle(Residual())
    with refuses(model, InputError, ValueError, "(3, 6, 6)", "batch"):
        LRP(model).attribute(images()[0], 0)


def test_no_batch_dimension_for_a_dense_layer() -> None:
    model = mlp()
    with refuses(model, RelpropError, ValueError, "batch"):
        LRP(model).attribute(vectors()[0], 0)


def test_no_batch_dimension_is_not_taken_for_a_batch() -> None:
    # Four features to four outputs: without a target this would pass for four samples with one output each.
    model = settle(nn.Linear(4, 4))
    with refuses(model, RelpropError, ValueError, "batch"):
        LRP(model).attribute(vectors()[0])


def test_integers_without_an_embedding() -> None:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(x.to(self.layer.weight.dtype))
            return out

    model, ids = settle(Cast()), torch.arange(8).reshape(2, 4)
    with refuses(model, InputError, ValueError, "integers", "embedding", "floating point"):
        LRP(model).attribute(ids, 0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_integers_where_the_model_itself_refuses_them(dtype: torch.dtype) -> None:
    model, ids = residual(), torch.ones(2, 3, 6, 6, dtype=dtype)
    expected = ("integers", "F.embedding") if dtype == torch.int64 else ("torch.uint8", "pixels", "x.float()")
    with refuses(model, InputError, ValueError, *expected, "embedding", "floating point"):
        LRP(model).attribute(ids, 0)


def given_table() -> Tensor:
    """A table that is nobody's weight."""
    return torch.arange(20.0, dtype=torch.float64).reshape(5, 4)


LOOK_UPS: dict[str, Callable[[nn.Embedding, Tensor], Tensor]] = {
    "indexing": lambda words, ids: given_table()[ids],
    "as numbers": lambda words, ids: ids.to(words.weight)[..., None] * words.weight[0],
    "one-hot": lambda words, ids: F.one_hot(ids, 5).to(words.weight) @ given_table(),
}


@pytest.mark.parametrize("name", LOOK_UPS)
def test_token_ids_that_are_looked_up_otherwise(name: str) -> None:
    """The message says what to call where no weight is looked up in, and that is explained."""

    class Reader(nn.Module):
        def __init__(self, look_up: Callable[[nn.Embedding, Tensor], Tensor]) -> None:
            super().__init__()
            self.words, self.out, self.look_up = nn.Embedding(5, 4), nn.Linear(4, 3), look_up

        def forward(self, ids: Tensor) -> Tensor:
            return self.out(self.look_up(self.words, ids).mean(1))  # type: ignore[no-any-return]

    model, ids = settle(Reader(LOOK_UPS[name])), torch.tensor([[0, 1, 2], [3, 4, 1]])
    with refuses(model, InputError, ValueError, "nn.Embedding", "F.embedding(ids, weight)"):
        LRP(model).attribute(ids, 0)
    model = settle(Reader(lambda words, ids: F.embedding(ids, words.weight)))
    assert LRP(model).attribute(ids, 0).shape == ids.shape


def test_token_ids_that_are_embedded_without_gradients() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.out = nn.Embedding(5, 4), nn.Linear(4, 3)

        def forward(self, ids: Tensor) -> Tensor:
            with torch.no_grad():
                embedded = self.words(ids)
            return self.out(embedded.mean(1))  # type: ignore[no-any-return]

    model = settle(Reader())
    with refuses(model, InputError, ValueError, "A part of the model runs under torch.no_grad"):
        LRP(model).attribute(torch.tensor([[0, 1, 2]]), 0)


class Partly(nn.Module):
    """Uses its first input only, or (with `use=False`) none."""

    def __init__(self, use: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.use = use
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        out: Tensor = self.layer(self.use(x))
        return out


@pytest.mark.parametrize("use", [torch.ones_like, torch.Tensor.detach], ids=["replaced", "detached"])
@pytest.mark.parametrize("method", [LRP, Gradient, GradientXInput, DeepTaylor])
def test_an_output_that_does_not_depend_on_the_input(method: Any, use: Callable[[Tensor], Tensor]) -> None:
    model = settle(Partly(use))
    with refuses(model, InputError, ValueError, "does not depend on the input"):
        method(model).attribute(vectors(), 0)


def test_an_output_that_does_not_depend_on_one_of_two_inputs() -> None:
    model = settle(Partly(lambda x: x))
    with refuses(model, InputError, ValueError, "does not depend on input 1"):
        LRP(model).attribute((vectors(), vectors(seed=1)), 0)


class Gated(nn.Module):
    """The second input opens and shuts what the first gives."""

    def __init__(self) -> None:
        super().__init__()
        self.signal, self.gate, self.out = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        out: Tensor = self.out(self.signal(x).relu() * self.gate(y).sigmoid())
        return out


@pytest.mark.filterwarnings("ignore::relprop.DeepTaylorWarning")
@pytest.mark.parametrize("method", [LRP, DeepTaylor])
def test_an_input_that_only_the_rules_hold_constant_receives_zero(method: Any) -> None:
    model, x, y = settle(Gated()), vectors(), vectors(seed=1)
    found = method(model).attribute((x, y), 1)
    alone = method(model).attribute(x, 1, y)
    assert torch.equal(found[0], alone) and torch.equal(found[1], torch.zeros_like(y))
    delta = method(model).attribute((x, y), 1, return_convergence_delta=True)[1]
    assert torch.equal(delta, method(model).attribute(x, 1, y, return_convergence_delta=True)[1])
    method(model).report((x, y), 1).check(1e-9)
    found = LRP(model, "lrp0").attribute((x, y), 1, create_graph=True)
    assert torch.equal(found[1], torch.zeros_like(y))


def test_queries_receive_zero_where_probabilities_are_constant() -> None:
    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, q: Tensor, kv: Tensor) -> Tensor:
            out: Tensor = self.attention(q, kv, kv)[0].mean(1)
            return out

    torch.manual_seed(0)
    model = Cross().double()
    q, kv = torch.randn(2, 3, 4).double(), torch.randn(2, 5, 4).double()
    found = LRP(model, "cp_lrp").attribute((q, kv), 1)
    assert torch.equal(found[0], torch.zeros_like(q))
    assert float(found[1].abs().max()) > 1e-4
    p = LRP(model, "attnlrp").attribute((q, kv), 1)
    assert float(p[0].abs().max()) > 1e-4


def test_an_input_that_divides_receives_zero() -> None:
    class Quotient(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a / (1 + b.abs())

    a, b = vectors(), vectors(seed=1)
    found = LRP(Quotient()).attribute((a, b), 1)
    expected = torch.zeros_like(a)
    expected[:, 1] = (a / (1 + b.abs()))[:, 1]
    assert torch.allclose(found[0], expected) and torch.equal(found[1], torch.zeros_like(b))

    class Inverse(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 1 / (1 + x.abs())

    with pytest.raises(InputError, match="does not depend on the input, or only through what the rules hold constant"):
        LRP(Inverse()).attribute(b, 1)


INPUTS: dict[str, tuple[Any, type[RelpropError], type[Exception], tuple[str, ...]]] = {
    "empty batch": (torch.empty(0, 4), InputError, ValueError, ("(0, 4)", "empty batch")),
    "no features": (torch.empty(2, 0), InputError, ValueError, ("(2, 0)", "nothing to explain")),
    "a number": (torch.tensor(1.0), InputError, ValueError, ("shape ()",)),
    "nothing": ((), InputError, ValueError, ("No input", "[N, ...]")),
    "none": (None, InputTypeError, TypeError, ("must be a tensor", "NoneType")),
    "an array": (np.ones((2, 4)), InputTypeError, TypeError, ("must be a tensor", "ndarray")),
    "a list of numbers": ([1.0, 2.0], InputTypeError, TypeError, ("Input 0", "must be a tensor", "float")),
    "an empty dict": ({}, InputTypeError, TypeError, ("must be a tensor", "dict")),
    "a dict of masks": ({"x": vectors() > 0}, InputError, ValueError, ("dict", "no tensor that can be explained")),
    "sparse": (vectors().to_sparse(), InputTypeError, TypeError, ("sparse_coo", "dense")),
    "meta": (vectors().to("meta"), InputTypeError, TypeError, ("meta device",)),
    "a dict of an empty batch": ({"x": vectors()[:0]}, InputError, ValueError, ("empty batch",)),
    "bools": (vectors() > 0, InputTypeError, TypeError, ("torch.bool", "floating point")),
    "complex": (vectors() + 0j, InputTypeError, TypeError, ("complex128", "floating point")),
    "two batch sizes": ((vectors(2), vectors(3)), InputError, ValueError, ("Input 1", "batch of 3", "2")),
    "nan": (torch.full((2, 4), float("nan")), NumericalError, ValueError, ("input", "NaN")),
    "infinity": (torch.full((2, 4), float("inf")), NumericalError, ValueError, ("input", "infinity")),
    "nan in the second": ((vectors(), vectors() / 0 * 0), NumericalError, ValueError, ("Input 1", "NaN")),
}


@pytest.mark.parametrize("case", list(INPUTS))
def test_input(case: str) -> None:
    inputs, error, built_in, words = INPUTS[case]
    model = mlp()
    asks: list[Callable[[], Any]] = [
        lambda: LRP(model).attribute(inputs, 0),
        lambda: LRP(model).report(inputs, 0),
        lambda: Rules().plan(model, inputs),
    ]
    for ask in asks:
        with refuses(model, error, built_in, *words):
            ask()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_output_that_is_not_finite(bad: float) -> None:
    model = Wrapped(mlp(), lambda out: out * bad)
    with refuses(model, NumericalError, ValueError, "output", "NaN or infinite"):
        LRP(model).attribute(vectors(), 0)


def test_a_finite_entry_beside_one_that_is_not() -> None:
    def wrap(out: Tensor) -> Tensor:
        return torch.cat([out[:, :2], out[:, 2:] + float("inf")], 1)

    model = Wrapped(mlp(), wrap)
    assert torch.isfinite(LRP(model).attribute(vectors(), 0)).all()
    with refuses(model, NumericalError, ValueError, "output"):
        LRP(model).attribute(vectors(), 2)
