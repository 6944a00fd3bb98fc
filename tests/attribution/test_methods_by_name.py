"""Methods by their names: the list, how `explain` makes and runs one, and how a class registers."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import relprop
from relprop import (
    LRP,
    Attribution,
    Contract,
    DeepTaylor,
    Gradient,
    GradientXInput,
    InputError,
    Method,
    MethodError,
    PatternError,
    RelpropError,
    Unit,
    explain,
    methods,
)
from relprop.rules import Epsilon
from tests.checks import refuses
from tests.models import close, images, mlp, residual, vectors


@pytest.fixture(autouse=True)
def own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(Method, "named", dict(Method.named))


def concrete() -> list[type[Method]]:
    """The methods that the package exports."""
    exported = (getattr(relprop, name) for name in relprop.__all__)
    kinds = (item for item in exported if isinstance(item, type) and issubclass(item, Method))
    return [kind for kind in kinds if not inspect.isabstract(kind)]


def required_of(function: Any) -> list[str]:
    """What a function cannot do without."""
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]


# ------------------------------------------------------------------------------------------------- the list


def test_every_method_of_the_package_is_listed() -> None:
    listed = {entry.method for entry in methods().values()}
    assert listed == set(concrete())
    assert {LRP, DeepTaylor, Gradient, GradientXInput} <= listed


def test_every_entry_is_complete() -> None:
    for name, entry in methods().items():
        assert entry.name == name and re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", name)
        assert len(entry.summary) > 20 and entry.summary.endswith("."), name
        assert entry.source, f"{name} cites no source"
        assert entry.takes in ("model", "method", "methods"), f"{name} is made from {entry.takes!r}"
        if entry.takes == "model":
            assert isinstance(entry.contract, Contract), f"{name} declares no contract"
            assert bool(entry.contract.sums_to) == bool(entry.contract.conditions), name


def test_values() -> None:
    entry = methods()["lrp"]
    assert entry.method is LRP and entry.contract == LRP.contract and entry.takes == "model"
    assert entry.summary == "Layer-wise relevance propagation, by the rules of a registry."
    assert entry.defaults == "rules='epsilon_gamma', strict=False, cache_weights=False"
    assert entry.source.startswith("Bach et al. 2015 (doi:10.1371/journal.pone.0130140); Montavon et al. 2019")
    assert methods()["GradientXInput"] is not None and methods()["gradient x-input"].method is GradientXInput
    assert "lrp" in methods() and "LRP" in methods() and "lrq" not in methods()
    with pytest.raises(KeyError):
        methods()["lrq"]
    data = json.loads(json.dumps(methods().to_dict()))
    assert data["gradient"]["method"] == "Gradient" and data["gradient"]["contract"]["output"] == "coefficient"
    assert len(methods()) == len(data)


def test_it_prints() -> None:
    text = str(methods())
    header, rule, *lines = text.splitlines()
    assert header.split() == ["name", "what", "defaults", "seed", "output", "sums", "to", "source"]
    assert len(lines) == len(methods()) and set(rule) == {"-", " "}
    (line,) = [line for line in lines if line.startswith("lrp ")]
    assert re.search(r"f_t +relevance +f +Bach et al\. 2015$", line)
    html = methods()._repr_html_()
    assert html.count("<tr>") == len(methods()) + 1 and "Layer-wise relevance propagation" in html


# -------------------------------------------------------------------------------------------------- explain


def test_explain_is_the_method() -> None:
    model, x = residual(), images()
    assert torch.equal(explain(model, x, 1), LRP(model).attribute(x, 1))
    assert torch.equal(explain(model, x, 1, "LRP", rules="flat"), LRP(model, "flat").attribute(x, 1))
    assert torch.equal(explain(model, x, 1, LRP, rules=Epsilon(0.5)), LRP(model, Epsilon(0.5)).attribute(x, 1))
    assert torch.equal(
        explain(model, x, 2, method="Gradient", form="squared"), Gradient(model, "squared").attribute(x, 2)
    )
    unit = Unit("branch.0", (1, 2, 3))
    assert torch.equal(explain(model, x, unit, "guided-backprop"), relprop.GuidedBackprop(model).attribute(x, unit))


def test_options_are_split() -> None:
    model, x = residual(), images()
    found, delta = explain(
        model, x, 1, "lrp", rules="epsilon", strict=True, condition={"act": [1]}, return_convergence_delta=True
    )
    expected = LRP(model, "epsilon", strict=True).attribute(x, 1, condition={"act": [1]}, return_convergence_delta=True)
    assert torch.equal(found, expected[0]) and torch.equal(delta, expected[1])


class Mean(Method, name="mean_of_copies"):
    """A wrapper around one method, as others write them: what it does not know it hands on."""

    def __init__(self, method: Method, copies: int = 2) -> None:
        super().__init__(method.model)
        self.method, self.copies, self.contract = method, copies, method.contract

    def attribute(self, inputs: Any, target: Any = None, *args: Any, scale: float = 1.0, **kwargs: Any) -> Any:
        found = [self.method.attribute(inputs, target, *args, **kwargs) for _ in range(self.copies)]
        return scale * sum(found) / self.copies


class Total(Method, name="total_of_methods"):
    """A wrapper around several methods."""

    def __init__(self, methods: list[Method], weights: tuple[float, ...] = (1.0, 1.0)) -> None:
        super().__init__(methods[0].model)
        self.methods, self.weights = methods, weights

    def attribute(self, inputs: Any, target: Any = None, *args: Any, **kwargs: Any) -> Any:
        maps = [method.attribute(inputs, target, *args, **kwargs) for method in self.methods]
        return sum(weight * found for weight, found in zip(self.weights, maps, strict=True))


Method.named.pop("mean_of_copies"), Method.named.pop("total_of_methods")


@pytest.fixture
def wrappers(own_names: None) -> None:
    Method.named.update(mean_of_copies=Mean, total_of_methods=Total)


def test_what_wraps_another(wrappers: None) -> None:
    model, x = residual(), images()
    unit = Unit("branch.0", (1, 2, 3))
    assert methods()["mean_of_copies"].contract is None and methods()["mean_of_copies"].takes == "method"
    assert "as what it wraps" in str(methods())
    for target in (1, unit):
        expected = LRP(model, "flat").attribute(x, target)
        for over in ("lrp", LRP):
            found = explain(model, x, target, "mean_of_copies", over=over, rules="flat", copies=4, scale=2.0)
            close(found, 2 * expected)
        close(explain(model, x, target, Mean, over=LRP(model, "flat")), expected)
    close(
        explain(model, x, 1, "mean_of_copies", over="gradient_x_input", condition={"act": [1]}),
        GradientXInput(model).attribute(x, 1, condition={"act": [1]}),
    )
    found = explain(model, x, 1, "total_of_methods", over=["lrp", Gradient(model)], weights=(2.0, 1.0))
    close(found, 2 * LRP(model).attribute(x, 1) + Gradient(model).attribute(x, 1))


def test_an_option_with_the_name_of_a_parameter() -> None:
    class Chooser(Attribution):
        contract = Contract("1", "coefficient")

        def attribute(self, inputs: Any, target: Any = None, method: str = "a", over: str = "b") -> Any:  # type: ignore[override]
            return method, over

        def result(self, call: Any, x: Tensor, c: Tensor) -> Tensor:
            return c

    assert explain(mlp(), vectors(), 1, Chooser) == ("a", "b")
    assert explain(mlp(), vectors(), 1, Chooser, method_="c", over_="d") == ("c", "d")


def test_options_through_keyword_arguments_of_a_subclass() -> None:
    class Chatty(LRP):
        def __init__(self, *args: Any, word: str = "", **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.word = word

        def attribute(self, *args: Any, loud: bool = False, **kwargs: Any) -> Any:
            return super().attribute(*args, **kwargs)

    model, x = mlp(), vectors()
    found = explain(model, x, 1, Chatty, word="hm", rules="flat", loud=True, create_graph=True)
    assert torch.equal(found, LRP(model, "flat").attribute(x, 1))

    class Named(Chatty, name="chatty"):
        pass

    assert methods()["chatty"].takes == "model"
    assert methods()["chatty"].defaults == "word='', rules='epsilon_gamma', strict=False, cache_weights=False"


BAD: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "unknown": ({"method": "lpr"}, ("'lpr'", "Did you mean 'lrp'", "Known: ", "gradient_x_input")),
    "near": ({"method": "GuidedBackPropagation"}, ("Did you mean 'guided_backprop'",)),
    "number": ({"method": 3}, ("by its name or its class", "3")),
    "other class": ({"method": nn.Linear}, ("by its name or its class", "Linear")),
    "option": ({"method": "lrp", "rule": "flat"}, ("LRP takes no option 'rule'", "Did you mean 'rules'", "strict")),
    "option of another": ({"method": "gradient", "rules": "flat"}, ("Gradient takes no option 'rules'", "form")),
    "nothing to wrap": ({"method": "lrp", "over": "gradient"}, ("LRP wraps no other", "'gradient'")),
    "what to wrap": ({"method": "mean_of_copies"}, ("Mean wraps another", "over='gradient'")),
    "unknown to wrap": ({"method": "mean_of_copies", "over": "lpr"}, ("'lpr'", "Did you mean 'lrp'")),
    "option of the wrapped": (
        {"method": "mean_of_copies", "over": "gradient", "rules": "flat"},
        ("Mean takes no option 'rules'", "copies"),
    ),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_calls(wrappers: None, case: str) -> None:
    options, words = BAD[case]
    model = mlp()
    with refuses(model, MethodError, ValueError, *words):
        explain(model, vectors(), 1, **options)


def test_a_missing_option() -> None:
    class Needy(Gradient):
        def __init__(self, model: nn.Module, layer: str) -> None:
            super().__init__(model)

    model = mlp()
    with refuses(model, MethodError, ValueError, "Needy cannot be made", "'layer'"):
        explain(model, vectors(), 1, Needy)


# What a method need not do at length to be made and run.
BRIEF: dict[type[Method], dict[str, Any]] = {relprop.SimpleTaylor: {"starts": 1, "n_steps": 20}}


@pytest.mark.parametrize("name", sorted(methods()))
def test_every_method_from_a_model_by_its_name(name: str) -> None:
    entry = methods()[name]
    required = [*required_of(entry.method)[1:], *required_of(entry.method.attribute)[2:]]
    model, x = mlp(), vectors().abs()
    if entry.takes != "model" or required:
        with pytest.raises(MethodError):
            explain(model, x, 1, name)
        return
    if hasattr(entry.method, "fit"):
        with pytest.raises(PatternError, match="Call fit"):
            explain(model, x, 1, name)
        return
    with pytest.warns() if name == "deep_taylor" else pytest.MonkeyPatch.context():
        found = explain(model, x, 1, name, **BRIEF.get(entry.method, {}))
    assert found.shape == x.shape and found.dtype == x.dtype and bool(torch.isfinite(found).all())


# ------------------------------------------------------------------------------------------------ contracts


@pytest.mark.parametrize("kind", [kind for kind in concrete() if isinstance(getattr(kind, "contract", None), Contract)])
def test_a_delta_exists_only_where_a_sum_is_claimed(kind: type[Method]) -> None:
    model, x = mlp(), vectors().abs()
    if len(required_of(kind)) > 1:
        pytest.skip("it needs more than a model")
    needed = {"baselines": 0.0, "sliding_window_shapes": (2,)}
    options = {name: needed[name] for name in required_of(kind.attribute)[2:]}
    made = BRIEF.get(kind, {})
    parameters = inspect.signature(kind.attribute).parameters
    if "return_convergence_delta" not in parameters:
        assert not kind.contract.complete, "a sum is claimed, and there is no way to ask how far off it is"
    elif kind.contract.complete:
        with pytest.warns() if kind is DeepTaylor else pytest.MonkeyPatch.context():
            _, delta = kind(model, **made).attribute(x, target=1, return_convergence_delta=True, **options)
        assert delta.shape == (2,)
    else:
        with refuses(model, InputError, ValueError, kind.__name__, "no convergence delta"):
            kind(model).attribute(x, target=1, return_convergence_delta=True, **options)


def test_a_delta_is_refused_before_anything_runs() -> None:
    class Counting(nn.Linear):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Counting.calls += 1
            return super().forward(x)

    with pytest.raises(InputError, match="Gradient does not claim"):
        Gradient(Counting(4, 2)).attribute(torch.ones(1, 4), 1, return_convergence_delta=True)
    assert Counting.calls == 0


# --------------------------------------------------------------------------------------------- registration


def test_a_class_registers_by_its_name() -> None:
    class Mine(Attribution, name="mine"):
        """Something of one's own."""

        contract = Contract("1", "coefficient")

        def result(self, call: Any, x: Tensor, c: Tensor) -> Tensor:
            return 2 * c

    class Unnamed(Mine):
        pass

    model, x = mlp(), vectors()
    assert methods()["mine"].method is Mine and Unnamed not in {entry.method for entry in methods().values()}
    assert methods()["mine"].source == "" and "source" not in str(methods()["mine"])
    close(explain(model, x, 1, "mine"), 2 * Gradient(model).attribute(x, 1))
    close(explain(model, x, 1, Unnamed), 2 * Gradient(model).attribute(x, 1))


def test_a_class_that_is_defined_again_takes_its_own_place() -> None:
    def define(factor: float) -> type[Method]:
        class Again(Gradient, name="again"):
            def result(self, call: Any, x: Tensor, c: Tensor) -> Tensor:
                return factor * c

        return Again

    define(2.0)
    second = define(3.0)
    assert methods()["again"].method is second


def test_names_that_are_taken_or_empty() -> None:
    with pytest.raises(MethodError, match="'lrp' is the name of LRP; choose another"):

        class Other(Gradient, name="lrp"):
            pass

    with pytest.raises(MethodError, match="must not be empty"):

        class Nameless(Gradient, name=""):
            pass

    assert methods()["lrp"].method is LRP
    assert issubclass(MethodError, RelpropError)


def test_the_contract_of_an_instance_may_be_its_own(wrappers: None) -> None:
    model = mlp()
    assert Mean(LRP(model)).contract is LRP.contract
    Mean(LRP(model)).require_completeness()
    with pytest.raises(InputError, match="Mean does not claim"):
        Mean(Gradient(model)).require_completeness()
