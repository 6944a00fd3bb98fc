"""What a rule returns is checked: first mistakes, at every kind of rule, are errors that name the rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import LRP, NumericalError, RuleError, Rules
from relprop.propagation.math.linear_map import LinearMap
from relprop.rules import (
    ActivationRule,
    FilterRule,
    Flow,
    LinearRule,
    NormRule,
    PoolingRule,
    ProductRule,
    Rule,
    SoftmaxRule,
    Zero,
)
from tests.checks import refuses
from tests.models import close, settle


def yielding(found: Tensor) -> Iterator[Tensor]:
    yield found


SHAPE, KIND = "a tensor of shape", "expected a tensor of shape"
MISTAKES: dict[str, tuple[Callable[[Tensor], Any], tuple[str, ...]]] = {
    "nothing": (lambda found: None, ("returned None", KIND, "Write `return`")),
    "a number": (lambda found: 1, ("returned int (1)", KIND)),
    "a float": (lambda found: float(found.detach().sum()), ("returned float", KIND)),
    "an array": (lambda found: found.detach().numpy(), ("returned ndarray", KIND, "torch.as_tensor")),
    "a tuple": (lambda found: (found,), ("returned a tuple of 1: Tensor", KIND)),
    "a pair": (lambda found: (found, found), ("returned a tuple of 2: Tensor, Tensor", KIND)),
    "a list": (lambda found: list(found), ("returned a list of", KIND)),
    "a dict": (lambda found: {"c": found}, ("returned dict", KIND)),
    "a generator": (yielding, ("returned generator", "Write `return` in the place of `yield`")),
    "a function": (lambda found: found.sum, ("returned builtin_function_or_method", KIND)),
    "a stack": (lambda found: torch.stack([found, found]), (SHAPE, KIND)),
    "one sample": (lambda found: found[0], (SHAPE, KIND)),
    "one entry": (lambda found: found.flatten()[0], (SHAPE, KIND)),
    "a sum that keeps its dimension": (lambda found: found.sum(-1, keepdim=True), (SHAPE, KIND)),
    "squeezed": (lambda found: found[:1].squeeze(0), (SHAPE, KIND)),
    "with a dimension too many": (lambda found: found.unsqueeze(0), (SHAPE, KIND)),
    "transposed": (lambda found: found.transpose(0, 1), (SHAPE, KIND)),
    "flattened": (lambda found: found.flatten(), (SHAPE, KIND)),
    "of as many entries": (lambda found: found.reshape(-1, 1), (SHAPE, KIND)),
    "half": (lambda found: found.half(), ("a tensor of torch.float16", "Write .to(torch.float64)")),
    "single": (lambda found: found.float(), ("a tensor of torch.float32", "Write .to(torch.float64)")),
    "whole numbers": (lambda found: found.long(), ("a tensor of torch.int64", "Write .to(torch.float64)")),
    "truth values": (lambda found: found > 0, ("a tensor of torch.bool",)),
    "complex": (lambda found: found * 1j, ("a tensor of torch.complex128",)),
    "elsewhere": (lambda found: found.to("meta"), ("a tensor on meta", "expected one on cpu")),
    "not a number": (lambda found: found * float("nan"), ("returned NaN or infinity", "all it was given is finite")),
    "zero by zero": (lambda found: found * 0 / (found * 0), ("returned NaN or infinity",)),
}


@dataclass(frozen=True)
class LinearMistake(LinearRule):
    change: Callable[[Tensor], Any]

    def coefficient(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> Any:
        return self.change(layer.transpose(c))


@dataclass(frozen=True)
class ActivationMistake(ActivationRule):
    change: Callable[[Tensor], Any]

    def surrogate(self, flow: Flow, z: Tensor, out: Tensor, quotient: Tensor) -> Any:
        return self.change(z * flow.constant(quotient))


@dataclass(frozen=True)
class PoolingMistake(PoolingRule):
    change: Callable[[Tensor], Any]

    def pooled(self, flow: Flow, a: Tensor, out: Tensor, average: Any) -> Any:
        return self.change(average(a))


@dataclass(frozen=True)
class NormMistake(NormRule):
    change: Callable[[Tensor], Any]

    def denominator(self, flow: Flow, x: Tensor) -> Any:
        return self.change(x)


@dataclass(frozen=True)
class SoftmaxMistake(SoftmaxRule):
    change: Callable[[Tensor], Any]

    def probabilities(self, flow: Flow, p: Tensor) -> Any:
        return self.change(p)


@dataclass(frozen=True)
class FilterMistake(FilterRule):
    change: Callable[[Tensor], Any]

    def output(self, flow: Flow, out: Tensor, inputs: Any) -> Any:
        return self.change(flow.scale(out, 0.5))


class Divided(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / (x.abs().sum(1, keepdim=True) + x.exp())


def network(middle: nn.Module, width: int = 4) -> nn.Module:
    return settle(nn.Sequential(nn.Linear(3, 4), middle, nn.Linear(width, 2)))


class Attends(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        q = x.reshape(-1, 2, 2)
        return F.scaled_dot_product_attention(q, q * 2, q + 1).flatten(1)


PLACES: dict[str, tuple[Callable[[Any], Rule], nn.Module, nn.Module, Any, str]] = {
    "dense": (LinearMistake, nn.Linear(4, 4), nn.Identity(), "1", "coefficient at 'linear' in module '1' (Linear)"),
    "conv": (
        LinearMistake,
        nn.Unflatten(1, (2, 2)),
        nn.Sequential(nn.Conv1d(2, 2, 1), nn.Flatten()),
        "2.0",
        "'conv1d'",
    ),
    "transposed": (
        LinearMistake,
        nn.Unflatten(1, (2, 2)),
        nn.Sequential(nn.ConvTranspose1d(2, 2, 1), nn.Flatten()),
        "2.0",
        "coefficient at 'conv_transpose1d'",
    ),
    "batch norm": (
        LinearMistake,
        nn.Unflatten(1, (2, 2)),
        nn.Sequential(nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2), nn.Flatten()),
        "2.0",
        "coefficient at 'conv1d'",
    ),
    "tanh": (ActivationMistake, nn.Tanh(), nn.Identity(), nn.Tanh, "surrogate at 'tanh' in module '1' (Tanh)"),
    "relu": (ActivationMistake, nn.ReLU(), nn.Identity(), nn.ReLU, "surrogate at 'relu'"),
    "in-place silu": (ActivationMistake, nn.SiLU(inplace=True), nn.Identity(), nn.SiLU, "surrogate at 'silu'"),
    "log": (ActivationMistake, nn.Softplus(), nn.LogSigmoid(), "2", "surrogate at 'log"),
    "pooling": (
        PoolingMistake,
        nn.Unflatten(1, (1, 4)),
        nn.Sequential(nn.MaxPool1d(2, 1, 1), nn.Flatten(), nn.Linear(5, 4)),
        nn.MaxPool1d,
        "pooled at 'max_pool1d'",
    ),
    "layer norm": (NormMistake, nn.LayerNorm(4), nn.Identity(), nn.LayerNorm, "denominator at 'layer_norm'"),
    "division": (NormMistake, Divided(), nn.Identity(), Divided, "denominator at 'div'"),
    "softmax": (SoftmaxMistake, nn.Softmax(1), nn.Identity(), nn.Softmax, "probabilities at 'softmax'"),
    "attention": (SoftmaxMistake, Attends(), nn.Identity(), Attends, "probabilities at 'scaled_dot_product_attention'"),
    "filter of an activation": (FilterMistake, nn.Tanh(), nn.Identity(), "1", "output at 'tanh'"),
    "filter of a layer": (FilterMistake, nn.Linear(4, 4), nn.Identity(), "1", "output at 'linear'"),
    "filter of a view": (FilterMistake, nn.Unflatten(1, (2, 2)), nn.Flatten(), "2", "output at 'flatten'"),
    "filter of a composite": (FilterMistake, nn.Softmin(1), nn.Identity(), "1", "output at 'softmin'"),
}
ALIKE = {("layer norm", "a sum that keeps its dimension"), ("layer norm", "of as many entries")}
"""No mistakes: a divisor for every sample has the shape [N, 1]."""
CASES = [(place, mistake) for place in PLACES for mistake in MISTAKES if (place, mistake) not in ALIKE]


def given(place: str, mistake: str) -> tuple[nn.Module, Tensor, Rules, Rule, tuple[str, ...]]:
    """A model in which a rule that makes a mistake stands at a place, and the words of the error."""
    kind, first, second, selector, title = PLACES[place]
    change, words = MISTAKES[mistake]
    model = settle(nn.Sequential(nn.Linear(3, 4), first, second, nn.Linear(4, 2)))
    torch.manual_seed(1)
    rule = kind(change)
    return model, torch.randn(5, 3, dtype=torch.float64), Rules().set(selector, rule), rule, (title, *words)


@pytest.mark.parametrize(("place", "mistake"), CASES)
def test_a_first_mistake_is_named(place: str, mistake: str) -> None:
    model, x, rules, rule, words = given(place, mistake)
    with refuses(model, RuleError, ValueError, type(rule).__name__, *words):
        LRP(model, rules).attribute(x, 0)


@pytest.mark.parametrize("mistake", ["nothing", "a stack", "flattened", "half", "a generator"])
@pytest.mark.parametrize("place", list(PLACES))
def test_wherever_a_rule_is_asked(place: str, mistake: str) -> None:
    model, x, rules, rule, words = given(place, mistake)
    lrp = LRP(model, rules)
    calls: list[Callable[[], Any]] = [
        lambda: lrp.report(x, 0),
        lambda: lrp.attribute_layers(x, ["0"], 0),
        lambda: lrp.attribute_targets(x, [0, 1]),
        lambda: lrp.attribute(x, 0, create_graph=True),
    ]
    for call in calls:
        with refuses(model, RuleError, ValueError, type(rule).__name__, *words):
            call()
    with refuses(model, RuleError, ValueError, type(rule).__name__, *words), rules.attach(model) as attached:
        torch.autograd.grad(model(x.requires_grad_()).sum(), x)
    attached.finish()


@pytest.mark.parametrize("place", list(PLACES))
def test_what_is_right_passes(place: str) -> None:
    """The same rules without the mistake; their numbers may be huge."""
    kind, first, second, selector, _ = PLACES[place]
    model = settle(nn.Sequential(nn.Linear(3, 4), first, second, nn.Linear(4, 2)))
    x = torch.randn(5, 3, dtype=torch.float64)
    found = LRP(model, Rules().set(selector, kind(lambda found: found))).attribute(x, 0)
    assert found.isfinite().all()
    huge = LRP(model, Rules().set(selector, kind(lambda found: found * 1e30))).attribute(x, 0)
    assert huge.isfinite().all()


@pytest.mark.parametrize("place", list(PLACES))
def test_what_is_detached_is_found_where_it_is_to_be_differentiated(place: str) -> None:
    kind, first, second, selector, title = PLACES[place]
    model = settle(nn.Sequential(nn.Linear(3, 4), first, second, nn.Linear(4, 2)))
    x = torch.randn(5, 3, dtype=torch.float64)
    rules = Rules().set(selector, kind(torch.Tensor.detach))
    with refuses(model, RuleError, ValueError, title, "returned a tensor without a gradient", "create_graph=True"):
        LRP(model, rules).attribute(x, 0, create_graph=True)


# ------------------------------------------------------------------------------------- writes into what is given


@dataclass(frozen=True)
class Writes(LinearRule):
    what: str

    def coefficient(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> Tensor:
        {"a": a, "z": z, "c": c, "layer.bias": layer.bias, "layer.weight": layer.weight}[self.what].mul_(1)
        return layer.transpose(c)


@dataclass(frozen=True)
class WritesToo(ActivationRule):
    what: str

    def surrogate(self, flow: Flow, z: Tensor, out: Tensor, quotient: Tensor) -> Tensor:
        with torch.no_grad():
            {"z": z, "out": out, "quotient": quotient}[self.what].mul_(1)
        return z * flow.constant(quotient)


@pytest.mark.parametrize("what", ["a", "z", "c", "layer.weight", "layer.bias"])
def test_a_rule_that_writes_into_what_it_is_given(what: str) -> None:
    model = network(nn.Tanh())
    with pytest.raises(RuleError, match=rf"Writes\(what='{what}'\).coefficient at 'linear' .* writes into {what}, "):
        LRP(model, Writes(what)).attribute(torch.randn(2, 3, dtype=torch.float64), 0)


@pytest.mark.parametrize("what", ["z", "out", "quotient"])
def test_an_activation_rule_that_writes_into_what_it_is_given(what: str) -> None:
    model = network(nn.Tanh())
    with pytest.raises(RuleError, match=rf"surrogate at 'tanh' .* writes into {what}, .*{what}.clone"):
        LRP(model, Rules().set(nn.Tanh, WritesToo(what))).attribute(torch.randn(2, 3, dtype=torch.float64), 0)


# ----------------------------------------------------------------------------------------------- shares and accounts


@dataclass(frozen=True)
class Shares(ProductRule):
    found: Any

    def shares(self, counts: Any, gates: Any) -> Any:
        return self.found


SHARES = {
    "nothing": (None, "returned None"),
    "one number": (0.5, "returned float"),
    "one share": ((1.0,), "a tuple of 1"),
    "three shares": ((0.5, 0.25, 0.25), "a tuple of 3"),
    "tensors": ((torch.tensor(0.5), torch.tensor(0.5)), "a tuple of 2: Tensor, Tensor"),
    "a tensor": (torch.tensor([0.5, 0.5]), "a tensor of shape"),
    "nan": ((0.5, float("nan")), "a tuple of 2: float, float"),
    "truth values": ((True, False), "a tuple of 2: bool, bool"),
    "strings": ("ab", "returned str"),
}


class Squared(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.flip(1)


class Product(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, 2, 2).prod(2)


@pytest.mark.parametrize("case", list(SHARES))
def test_shares_of_a_product(case: str) -> None:
    found, words = SHARES[case]
    title = ("Shares(", "shares at 'mul' in module '1' (Squared)", words, "a tuple of 2 finite numbers")
    model = network(Squared())
    with refuses(model, RuleError, ValueError, *title):
        LRP(model, Rules().set(Squared, Shares(found))).attribute(torch.randn(2, 3, dtype=torch.float64), 0)


def test_shares_of_a_product_of_the_entries_of_one_tensor() -> None:
    with refuses(
        model := network(Product(), 2), RuleError, ValueError, "shares at 'prod'", "a tuple of 2 finite numbers"
    ):
        LRP(model, Rules().set(Product, Shares((1.0,)))).attribute(torch.randn(2, 3, dtype=torch.float64), 0)


@dataclass(frozen=True)
class Absorbs(LinearRule):
    found: Callable[[Tensor], Any]

    def coefficient(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> Tensor:
        return layer.transpose(c)

    def absorbed(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> Any:
        return self.found(c)


ACCOUNTS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "nothing": (lambda c: None, "returned None"),
    "a tensor": (lambda c: c, "returned a tensor of shape"),
    "a list": (lambda c: [c], "a list of 1: Tensor"),
    "a number": (lambda c: {"bias": 0.0}, "returned float (0.0) for 'bias'"),
    "no name": (lambda c: {0: c}, "returned int (0) as a name"),
    "another shape": (lambda c: {"bias": c[:, :1].expand(-1, 7)}, "for 'bias'"),
    "a dimension too many": (lambda c: {"bias": c[None]}, "for 'bias'"),
}


@pytest.mark.parametrize("case", list(ACCOUNTS))
def test_what_a_rule_says_it_absorbs(case: str) -> None:
    found, words = ACCOUNTS[case]
    with refuses(
        model := network(nn.Tanh()), RuleError, ValueError, "absorbed at 'linear'", words, "a dict from names"
    ):
        LRP(model, Absorbs(found)).report(torch.randn(2, 3, dtype=torch.float64), 0)


def test_a_share_that_broadcasts_is_that_of_every_output() -> None:
    model, x = network(nn.Tanh()), torch.randn(2, 3, dtype=torch.float64)
    whole = LRP(model, Absorbs(lambda c: {"bias": torch.ones_like(c)})).report(x, 0)
    small = LRP(model, Absorbs(lambda c: {"bias": torch.ones_like(c[:1])})).report(x, 0)
    assert whole.absorbed["bias"] == small.absorbed["bias"] == 2 * (4 + 2)


# ------------------------------------------------------------------------------------------------------- numbers


@dataclass(frozen=True)
class Named(LinearRule):
    """LRP-0, or not a number where it stands at the layer named."""

    shape: tuple[int, ...] = ()

    def coefficient(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> Tensor:
        found = layer.transpose(c)
        return found / 0 if tuple(layer.weight.shape) == self.shape else found


@pytest.mark.parametrize(("shape", "name"), [((4, 3), "'0'"), ((5, 4), "'2'"), ((2, 5), "'4'")])
def test_the_first_rule_that_is_not_finite_is_named(shape: tuple[int, ...], name: str) -> None:
    model = settle(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)))
    x = torch.randn(2, 3, dtype=torch.float64)
    for call in (
        lambda lrp: lrp.attribute(x, 0),
        lambda lrp: lrp.attribute_targets(x, [0, 1]),
        lambda lrp: lrp.report(x, 0),
        lambda lrp: lrp.attribute(x, 0, create_graph=True),
    ):
        with refuses(
            model, RuleError, ValueError, f"Named(shape={shape}).coefficient", f"in module {name}", "NaN or inf"
        ):
            call(LRP(model, Named(shape)))
    layers = LRP(model, Named((4, 3))).attribute_layers(x, ["0", "2"], 0)  # which lie above the fault
    assert all(part.isfinite().all() for part in layers.values())
    with refuses(model, RuleError, ValueError, "in module '4'"):
        LRP(model, Named((2, 5))).attribute_layers(x, ["0", "2"], 0)


def test_what_no_rule_made_infinite_is_named_otherwise() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sqrt(x - x.detach())

    class Tangent(ActivationRule):
        def surrogate(self, flow: Flow, z: Tensor, out: Tensor, quotient: Tensor) -> Tensor:
            return out

    model = settle(nn.Sequential(nn.Linear(3, 4), Root(), nn.Linear(4, 2)))
    with refuses(model, NumericalError, ValueError, "no rule made it so", "infinite slope"):
        LRP(model, Rules().set(Root, Tangent())).attribute(torch.randn(2, 3, dtype=torch.float64), 0)


def test_numbers_where_no_relevance_arrives_do_not_count() -> None:
    @dataclass(frozen=True)
    class Odd(LinearRule):
        def coefficient(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> Tensor:
            return torch.where(a == 0, torch.nan, layer.transpose(c))  # at units that pass nothing on

    model = settle(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    x = torch.randn(6, 3, dtype=torch.float64)
    assert (model[1](model[0](x)) == 0).any()

    @dataclass(frozen=True)
    class Guarded(LinearRule):
        def coefficient(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> Tensor:
            return layer.transpose(torch.where(z <= 0, 0.0, c))

    rules = Rules().set("0", Guarded()).set("2", Odd())
    close(LRP(model, rules).attribute(x, 0), LRP(model, "lrp0").attribute(x, 0))


def test_complex_numbers_are_looked_at_too() -> None:
    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.view_as_real(torch.complex(x, x * 2) * (1 + 1j)).flatten(1)

    model = settle(nn.Sequential(nn.Linear(3, 4), Doubled(), nn.Linear(8, 2)))
    x = torch.randn(2, 3, dtype=torch.float64)
    for change, words in (
        (lambda found: found.real, "a tensor of torch.float64"),
        (lambda found: found * torch.nan, "NaN or infinity"),
        (lambda found: found[0], "of shape (4,)"),
    ):
        with refuses(model, RuleError, ValueError, "output at 'complex' in module '1' (Doubled)", words):
            LRP(model, Rules().set(torch.complex, FilterMistake(change))).attribute(x, 0)


def test_the_value_stays_that_of_the_model() -> None:
    """A filter, a softmax or a divisor that computes another value explains so, and changes no forward pass."""

    class Halves(FilterRule):
        def output(self, flow: Flow, out: Tensor, inputs: Any) -> Tensor:
            return out * 0.5

    class HalvesToo(SoftmaxRule):
        def probabilities(self, flow: Flow, p: Tensor) -> Tensor:
            return p * 0.5

    model = settle(nn.Sequential(nn.Linear(3, 4), nn.Softmax(1), nn.Linear(4, 2)))
    x = torch.randn(2, 3, dtype=torch.float64)
    whole = LRP(model, "lrp0").attribute(x, 0)
    for rule in (Halves(), HalvesToo()):
        report = LRP(model, Rules().set(nn.Softmax, rule)).report(x, 0)
        assert report.output == pytest.approx(float(model(x).detach()[:, 0].sum()), abs=1e-12)
        close(LRP(model, Rules().set(nn.Softmax, rule)).attribute(x, 0), whole / 2)


def test_under_autocast_a_rule_may_return_what_autocast_made() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert LRP(model, Zero()).attribute(x, 0).dtype == torch.float32


@pytest.mark.parametrize(
    "factor", [None, "half", float("nan"), torch.ones(3), torch.ones(2, 5), torch.ones(2, 2, 4)], ids=str
)
def test_factors_that_no_flow_takes(factor: Any) -> None:
    class Scales(FilterRule):
        def output(self, flow: Flow, out: Tensor, inputs: Any) -> Tensor:
            return flow.scale(out, factor)

    with refuses(model := network(nn.Tanh()), RuleError, ValueError, "flow.scale at 'tanh' in module '1'", "it takes"):
        LRP(model, Rules().set(nn.Tanh, Scales())).attribute(torch.randn(2, 3, dtype=torch.float64), 0)


def test_surrogates_that_no_flow_takes() -> None:
    class Switches(FilterRule):
        def output(self, flow: Flow, out: Tensor, inputs: Any) -> Tensor:
            return flow.switch(out, out.sum(1, keepdim=True))

    with refuses(model := network(nn.Tanh()), RuleError, ValueError, "flow.switch at 'tanh'", "(2, 1)", "(2, 4)"):
        LRP(model, Rules().set(nn.Tanh, Switches())).attribute(torch.randn(2, 3, dtype=torch.float64), 0)


@pytest.mark.parametrize("frozen", [False, True])
def test_what_has_no_gradient_by_itself_is_no_mistake(frozen: bool) -> None:
    """The coefficient of LRP-0 is made of weights: of frozen ones it has no gradient."""
    model = settle(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    model.requires_grad_(not frozen)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    close(LRP(model, Zero()).attribute(x, 0, create_graph=True).detach(), LRP(model, Zero()).attribute(x, 0))
