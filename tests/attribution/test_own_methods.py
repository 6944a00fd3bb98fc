"""Methods as a first try writes them: what is wrong is said, and what to write."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relprop import (
    LRP,
    Attribution,
    Contract,
    Gradient,
    InputError,
    Method,
    MethodError,
    RelpropError,
    explain,
    methods,
)
from tests.models import close, mlp, vectors


@pytest.fixture(autouse=True)
def own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(Method, "named", dict(Method.named))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("2", "relevance"), "seed of a Contract is one of '1', 'f_t', ''; got '2'"),
        ((1, "relevance"), "seed of a Contract is one of .*got 1"),
        ((None, "relevance"), "seed of a Contract is one of .*got None"),
        (("1", "shares"), "output of a Contract is one of 'coefficient', 'relevance'; got 'shares'"),
        (("1", "relevance", "f - f"), "sums_to of a Contract is one of '', 'f', \"f - f'\", '1'; got 'f - f'"),
        (("1", "relevance", None), "sums_to of a Contract is one of .*got None"),
        (("1", "relevance", "f", None), "conditions of a Contract are words, got None"),
    ],
)
def test_a_contract_is_one_of_few(fields: Any, message: str) -> None:
    with pytest.raises(MethodError, match=message):
        Contract(*fields)


class Product(Attribution):
    """An input times its coefficient."""

    def result(self, call: Any, x: Tensor, c: Tensor) -> Tensor:
        return x * c


class Plain(Method):
    """Half of another's map, whatever it is asked."""

    def __init__(self, method: Method) -> None:
        super().__init__(method.model)
        self.method = method

    def attribute(self, inputs: Any, target: Any = None, **options: Any) -> Any:
        return self.method.attribute(inputs, target, **options) / 2


@pytest.mark.parametrize("make", [Product, lambda model: Plain(LRP(model))])
def test_a_method_without_a_contract_says_what_to_write(make: Any) -> None:
    with pytest.raises(
        MethodError, match=r"(Product|Plain) has no contract: .* contract = Contract\(.1., .relevance.\)"
    ):
        make(mlp()).attribute(vectors(), 1, return_convergence_delta=True)


def test_other_attributes_are_missing_as_ever() -> None:
    with pytest.raises(AttributeError, match="'Gradient' object has no attribute 'modle'"):
        _ = Gradient(mlp()).modle  # type: ignore[attr-defined]


def test_a_plain_method_that_claims_no_sum_has_no_delta() -> None:
    class Half(Plain):
        """Half, by its own words."""

        contract = Contract("f_t", "relevance")

    class Delta(Plain):
        """A sum is claimed."""

        contract = Contract("f_t", "relevance", "f")

        def attribute(self, inputs: Any, target: Any = None, *, return_convergence_delta: bool = False) -> Any:
            return self.method.attribute(inputs, target, return_convergence_delta=return_convergence_delta)

    model, x = mlp(), vectors()
    with pytest.raises(InputError, match="Half does not claim to sum to the output, so it has no convergence delta"):
        Half(LRP(model)).attribute(x, 1, return_convergence_delta=True)
    close(Half(LRP(model)).attribute(x, 1, return_convergence_delta=False), LRP(model).attribute(x, 1) / 2)
    assert len(Delta(LRP(model)).attribute(x, 1, return_convergence_delta=True)) == 2


class Seeded(Product):
    contract = Contract("1", "relevance")

    def __init__(self, model: nn.Module, seed: Any) -> None:
        super().__init__(model)
        self.given = seed

    def seed(self, output: Tensor) -> Tensor:
        return self.given(output)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        (lambda output: None, "returned None"),
        (lambda output: 1.0, "returned 1.0"),
        (lambda output: output.sum(), r"returned a tensor of shape \(\)"),
        (lambda output: output[:, None], r"returned a tensor of shape \(\d, 1\)"),
        (lambda output: torch.ones(len(output), dtype=torch.long), r"returned .* torch.int64"),
    ],
    ids=["nothing", "a number", "a sum", "a dimension too many", "integers"],
)
def test_a_seed_is_like_the_output(seed: Any, message: str) -> None:
    x = vectors()
    with pytest.raises(MethodError, match=rf"Seeded.seed {message}.*shape \({len(x)},\).*torch.ones_like\(output\)"):
        Seeded(mlp(), seed).attribute(x, 1)
    found = Seeded(mlp(), lambda output: 2 * torch.ones_like(output)).attribute(x, 1)
    close(found, 2 * Seeded(mlp(), torch.ones_like).attribute(x, 1))


@pytest.mark.parametrize("name", [3, "", b"x", ("a",), True])
def test_a_name_is_a_string(name: Any) -> None:
    before = dict(Method.named)
    with pytest.raises(MethodError, match="Wrong: the name of a method is a string and must not be empty, got"):

        class Wrong(Gradient, name=name):
            pass

    assert Method.named == before
    explain(mlp(), vectors(), 1, "gradient")


def test_a_constructor_that_forgets_its_base_is_named() -> None:
    class Forgotten(Gradient):
        def __init__(self, model: nn.Module) -> None:
            self.mine = model

    for call in (lambda m: m.attribute(vectors(), 1), lambda m: m.explained(vectors(), 1)):
        with pytest.raises(MethodError, match=r"Forgotten has no model: .*super\(\).__init__\(model\)"):
            call(Forgotten(mlp()))


@pytest.mark.parametrize("name", ["smoothgrd", "SmoothGrd", "smooth-grd"])
def test_an_unknown_name_suggests_others(name: str) -> None:
    for kind in (MethodError, KeyError, RelpropError):
        with pytest.raises(kind, match=rf"^No method is named '{name}'. Did you mean 'smoothgrad'.* Known: combined,"):
            methods()[name]
    assert name not in methods()
    assert methods().get(name) is None
    assert 3 not in methods()


def test_options_of_a_method_that_takes_none() -> None:
    class Bare(Method, name="bare"):
        contract = Contract("", "relevance")

        def attribute(self, inputs: Any, target: Any = None) -> Any:
            return inputs

    with pytest.raises(MethodError, match=r"Bare takes no option 'return_convergence_delta'\. It takes no options\."):
        explain(mlp(), vectors(), 1, "bare", return_convergence_delta=True)


def test_a_class_without_a_docstring_has_no_summary() -> None:
    class Silent(Gradient, name="silent"):
        pass

    listed = methods()["silent"]
    assert (listed.summary, listed.source) == ("", "")
    assert "what" not in str(listed)
