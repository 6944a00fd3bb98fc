"""`Rules`: which entry wins, what a selector matches, and that nothing is ever changed in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, dataclass
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import LRP, RuleError, Rules
from relprop.propagation.math.linear_map import LinearMap
from relprop.rules import AveragePool, Block, Detach, Epsilon, Flat, Gamma, LinearRule, Rule, WSquare, Zero, ZPlus
from tests.models import close, images, mlp, residual, settle, vectors


def chosen(rules: Rules, model: nn.Module, x: Tensor, target: Any = None, kind: str = "linear") -> list[str]:
    """The rules of all calls of a kind, in order."""
    return [row.rule for row in rules.plan(model, x, target).rows if row.kind == kind]


def names(*rules: Rule) -> list[str]:
    return [repr(rule) for rule in rules]


# -------------------------------------------------------------------------------------------- precedence

ENTRIES: dict[str, Callable[[Rules, Rule], Rules]] = {
    "type": lambda rules, rule: rules.set(nn.Linear, rule),
    "tuple of types": lambda rules, rule: rules.set((nn.Conv1d, nn.Linear), rule),
    "base class": lambda rules, rule: rules.set(nn.Module, rule),
    "name": lambda rules, rule: rules.set("0", rule),
    "glob": lambda rules, rule: rules.set("[0-9]", rule),
    "predicate": lambda rules, rule: rules.set(lambda name, module: name == "0", rule),
    "operation": lambda rules, rule: rules.set(F.linear, rule),
    "first": lambda rules, rule: rules.first(rule),
    "last": lambda rules, rule: rules.last(rule),
}


@pytest.mark.parametrize("second", list(ENTRIES))
@pytest.mark.parametrize("first", list(ENTRIES))
def test_the_last_matching_entry_wins_whichever_its_kind(first: str, second: str) -> None:
    """On a model of one layer every one of them matches."""
    model, x = settle(nn.Sequential(nn.Linear(4, 3))), vectors()
    rules = ENTRIES[second](ENTRIES[first](Rules(), ZPlus()), Epsilon(0.3))
    assert torch.equal(LRP(model, rules).attribute(x, 1), LRP(model, Epsilon(0.3)).attribute(x, 1))
    assert chosen(rules, model, x, 1) == names(Epsilon(0.3))


def test_order_decides_and_nothing_else() -> None:
    model, x = mlp(), vectors()
    specific_first = Rules().set("2", Gamma()).set(nn.Linear, Epsilon())
    specific_last = Rules().set(nn.Linear, Epsilon()).set("2", Gamma())
    assert chosen(specific_first, model, x) == names(Epsilon(), Epsilon(), Epsilon())
    assert chosen(specific_last, model, x) == names(Epsilon(), Gamma(), Epsilon())
    last_early = Rules().last(Zero()).set("4", Gamma())
    assert chosen(last_early, model, x, 0) == names(Zero(), Zero(), Gamma())
    last_late = Rules().set("4", Gamma()).last(Zero())
    assert chosen(last_late, model, x, 0) == names(Zero(), Zero(), Zero())
    two_lasts = Rules().set(nn.Linear, Epsilon()).last(Gamma()).last(ZPlus())
    assert chosen(two_lasts, model, x, 0) == names(Epsilon(), Epsilon(), ZPlus())


def test_an_entry_that_cannot_serve_a_call_is_passed_over() -> None:
    # Rules for pooling and for linear layers may be set at the same names.
    model, x = residual(), images()
    rules = Rules().set("*", Gamma()).set("*", AveragePool())
    assert set(chosen(rules, model, x)) == {repr(Gamma())}
    assert chosen(rules, model, x, kind="pooling") == names(AveragePool())


def test_an_entry_that_later_ones_replace_everywhere_is_no_error() -> None:
    model, x = residual(), images()
    rules = Rules().set("*", Epsilon()).set("*", Gamma()).set("head", ZPlus())
    assert chosen(rules, model, x) == names(Gamma(), Gamma(), ZPlus())
    assert chosen(rules.set("*", Flat()).set("head", ZPlus()), model, x) == names(Flat(), Flat(), ZPlus())


def test_what_nothing_matches_gets_zero_by_default() -> None:
    model, x = mlp(), vectors()
    rows = [row for row in Rules().set("2", Gamma()).plan(model, x).rows if row.kind == "linear"]
    assert [row.rule for row in rows] == names(Zero(), Gamma(), Zero())
    assert [row.default for row in rows] == [True, False, True]
    assert torch.equal(LRP(model, Rules()).attribute(x, 0), LRP(model, "lrp0").attribute(x, 0))


# --------------------------------------------------------------------------------------------- values


def test_rules_are_immutable_values() -> None:
    base = Rules().set(nn.Linear, Epsilon())
    grown = base.set("0", Gamma()).first("flat").last("lrp0")
    assert len(list(base)) == 1
    assert len(list(grown)) == 4
    assert isinstance(iter(grown), Iterator)
    assert [entry.rule for entry in grown] == [Epsilon(), Gamma(), Flat(), Zero()]
    with pytest.raises(FrozenInstanceError):
        base.entries = ()  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        next(iter(base)).rule = Gamma()  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        Epsilon().epsilon = 1.0  # type: ignore[misc]
    assert Rules().set(nn.Linear, Epsilon()) == base
    assert hash(Rules().set(nn.Linear, Epsilon())) == hash(base)
    assert base != grown


def test_one_registry_serves_several_models_and_methods() -> None:
    rules = Rules().set(nn.Linear, Epsilon()).set(nn.Conv2d, Gamma(), optional=True).first(WSquare()).last(Zero())
    one, other = residual(), mlp()
    expected = LRP(one, rules).attribute(images(), 1)
    LRP(other, rules).attribute(vectors(), 1)
    assert torch.equal(LRP(one, rules).attribute(images(), 1), expected)


def test_rules_print_one_entry_a_line() -> None:
    def dense(name: str, module: nn.Module) -> bool:
        return isinstance(module, nn.Linear)

    rules = (
        Rules()
        .set((nn.Linear, nn.Conv2d), Epsilon(0.25))
        .set("features.*", "gamma")
        .set(dense, Zero())
        .set(torch.softmax, Detach())
        .first(Flat())
        .last("lrp0")
    )
    assert str(rules).splitlines() == [
        "Linear | Conv2d => Epsilon(epsilon=0.25, relative=False, bias='absorb')",
        "'features.*'    => Gamma(gamma=0.25, bias='absorb', stabilizer=1e-06)",
        "dense           => Zero()",
        "softmax         => Detach()",
        "first           => Flat(stabilizer=0.0)",
        "last            => Zero()",
    ]
    assert "no entries" in str(Rules())
    assert repr(rules).startswith("Rules(")


# ------------------------------------------------------------------------------------------ types and names


class Own(nn.Linear):
    """A subclass."""


class Scaled(nn.Module):
    """A linear call in a module of no layer type, and one with the parameter of another."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))
        self.kernel = nn.Parameter(torch.randn(2, 1, 2))

    def forward(self, x: Tensor) -> Tensor:
        h = F.linear(x, self.weight)
        return F.conv1d(h[:, None], self.kernel).flatten(1) @ torch.ones(4, 2, dtype=x.dtype)


def test_subclasses_match() -> None:
    model, x = settle(nn.Sequential(Own(4, 5), nn.ReLU(), nn.Linear(5, 3))), vectors()
    assert chosen(Rules().set(nn.Linear, Gamma()), model, x) == names(Gamma(), Gamma())
    assert chosen(Rules().set(Own, Gamma()), model, x) == names(Gamma(), Zero())
    assert chosen(Rules().set(nn.Linear, Gamma()).set(Own, Epsilon()), model, x) == names(Epsilon(), Gamma())
    assert chosen(Rules().set((Own, nn.Conv2d), Gamma()), model, x) == names(Gamma(), Zero())


def test_a_functional_call_is_the_layer_it_is() -> None:
    model, x = settle(Scaled()), vectors()
    rules = Rules().set(nn.Linear, Gamma()).set(nn.Conv1d, ZPlus())
    assert chosen(rules, model, x) == names(Gamma(), ZPlus())
    absent = Rules().set(nn.Linear, Gamma()).set(nn.Conv2d, ZPlus(), optional=True)
    assert chosen(absent, model, x) == names(Gamma(), Zero())
    assert chosen(rules.set(Scaled, Epsilon()), model, x) == names(Epsilon(), Epsilon())
    assert chosen(Rules.preset("epsilon_gamma"), model, x) == names(Epsilon(1e-6, relative=True), Gamma(0.25))


@pytest.mark.parametrize(
    ("function", "kind", "weight", "shape"),
    [
        (F.conv1d, nn.Conv1d, (2, 3, 2), (2, 3, 5)),
        (F.conv2d, nn.Conv2d, (2, 3, 2, 2), (2, 3, 5, 5)),
        (F.conv3d, nn.Conv3d, (2, 3, 2, 2, 2), (2, 3, 3, 3, 3)),
        (F.conv_transpose1d, nn.ConvTranspose1d, (3, 2, 2), (2, 3, 5)),
        (F.conv_transpose2d, nn.ConvTranspose2d, (3, 2, 2, 2), (2, 3, 4, 4)),
        (F.conv_transpose3d, nn.ConvTranspose3d, (3, 2, 2, 2, 2), (2, 3, 3, 3, 3)),
        (F.linear, nn.Linear, (2, 3), (2, 3)),
        (torch.matmul, nn.Linear, (3, 2), (2, 3)),
        (torch.mm, nn.Linear, (3, 2), (2, 3)),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_every_functional_layer(function: Any, kind: Any, weight: tuple[int, ...], shape: tuple[int, ...]) -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(weight))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = function(x, self.kernel)
            return out

    model, x = settle(Functional()), torch.randn(shape, dtype=torch.float64)
    total = lambda out: out.flatten(1).sum(1)  # noqa: E731
    found = LRP(model, Rules().set(kind, Gamma())).attribute(x, total)
    assert torch.equal(found, LRP(model, Gamma()).attribute(x, total))
    assert not torch.allclose(found, LRP(model, Zero()).attribute(x, total))


def test_entries_are_asked_about_the_innermost_module() -> None:
    model, x = residual(), images()
    rules = Rules().set("branch.0", Gamma())
    rows = [row for row in rules.plan(model, x).rows if row.kind == "linear"]
    assert [(row.name, row.default) for row in rows] == [("stem", True), ("branch.0", False), ("head", True)]
    # A type that only contains the layers is not the type of the module that runs them.
    around = Rules().set(nn.Sequential, Gamma(), optional=True)
    assert chosen(around, nn.Sequential(residual()), x) == names(Zero(), Zero(), Zero())
    with pytest.raises(RuleError, match="matches modules in which nothing runs but their parts"):
        Rules().set(nn.Sequential, Gamma()).plan(nn.Sequential(residual()), x)


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("stem", ["stem"]),
        ("branch.*", ["branch.0"]),
        ("*", ["stem", "branch.0", "head"]),
        ("[sh]*", ["stem", "head"]),
        ("branch.[0-9]", ["branch.0"]),
        ("?tem", ["stem"]),
        ("*.0", ["branch.0"]),
    ],
)
def test_globs(glob: str, expected: list[str]) -> None:
    rows = Rules().set(glob, Gamma()).plan(residual(), images()).rows
    assert [row.name for row in rows if row.rule == repr(Gamma())] == expected


def test_predicates() -> None:
    model, x = residual(), images()
    seen: dict[str, nn.Module] = {}

    def wide(name: str, module: nn.Module) -> bool:
        seen[name] = module
        return isinstance(module, nn.Conv2d) and module.in_channels > 3

    assert chosen(Rules().set(wide, Gamma()), model, x) == names(Zero(), Gamma(), Zero())
    assert seen["stem"] is model.stem
    assert seen["branch.0"] is model.branch[0]
    by_lambda = Rules().set(lambda name, module: name.startswith("br"), Gamma())
    assert chosen(by_lambda, model, x) == names(Zero(), Gamma(), Zero())


# ---------------------------------------------------------------------------------------------- operations

RELU: dict[str, Callable[[Tensor], Tensor]] = {
    "torch": torch.relu,
    "functional": F.relu,
    "method": lambda h: h.relu(),
    "module": nn.ReLU(),
    "in-place module": nn.ReLU(inplace=True),
    "in-place function": lambda h: F.relu(h, inplace=True),
    "in-place method": lambda h: h.relu_(),
    "torch in place": torch.relu_,
    "in-place statement": lambda h: (h.relu_(), h)[1],
    "keyword": lambda h: F.relu(input=h),
}

SOFTMAX: dict[str, Callable[[Tensor], Tensor]] = {
    "torch": lambda h: torch.softmax(h, 1),
    "functional": lambda h: F.softmax(h, dim=1),
    "method": lambda h: h.softmax(1),
    "module": nn.Softmax(1),
    "special": lambda h: torch.special.softmax(h, 1),
    "keyword": lambda h: torch.softmax(input=h, dim=1),
}


class Uses(nn.Module):
    """Two factors, one of them through `function`."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.left = nn.Linear(4, 5)
        self.right = nn.Linear(4, 5)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.left(x)) * self.right(x)


def gated(model: nn.Module, x: Tensor) -> Tensor:
    """Relevance of output 1 where the left factor is a constant: all of it goes through the right layer."""
    with torch.no_grad():
        gate = model.function(model.left(x))[:, 1:2]
        return gate * x * model.right.weight[1]


@pytest.mark.parametrize("how", list(RELU))
@pytest.mark.parametrize("selector", [torch.relu, F.relu, torch.Tensor.relu], ids=["torch", "functional", "method"])
def test_relu_however_it_is_called(selector: Any, how: str) -> None:
    model, x = settle(Uses(RELU[how])), vectors(6)
    expected = gated(model, x)
    close(LRP(model, Rules().set(selector, Detach())).attribute(x, 1), expected)
    with pytest.raises(AssertionError, match="differ"):
        close(LRP(model, Rules()).attribute(x, 1), expected)


@pytest.mark.parametrize("how", list(SOFTMAX))
@pytest.mark.parametrize(
    "selector", [torch.softmax, F.softmax, torch.Tensor.softmax], ids=["torch", "functional", "method"]
)
def test_softmax_however_it_is_called(selector: Any, how: str) -> None:
    model, x = settle(Uses(SOFTMAX[how])), vectors()
    close(LRP(model, Rules().set(selector, Detach())).attribute(x, 1), gated(model, x))


def test_an_operation_can_be_taken_back_by_a_later_entry() -> None:
    model, x = settle(Uses(torch.relu)), vectors(6)
    rules = Rules().set(torch.relu, Block()).set(torch.relu, Detach())
    close(LRP(model, rules).attribute(x, 1), gated(model, x))


# --------------------------------------------------------------------------------------------- by name

STRINGS = {
    "lrp0": "Zero()",
    "epsilon": "Epsilon(epsilon=1e-06, relative=False, bias='absorb')",
    "gamma": "Gamma(gamma=0.25, bias='absorb', stabilizer=1e-06)",
    "zplus": "ZPlus(bias='absorb', stabilizer=1e-06)",
    "alpha2_beta1": "AlphaBeta(alpha=2.0, beta=1.0, bias='absorb', stabilizer=1e-06)",
    "alpha1_beta0": "AlphaBeta(alpha=1.0, beta=0.0, bias='absorb', stabilizer=1e-06)",
    "wsquare": "WSquare(stabilizer=0.0)",
    "flat": "Flat(stabilizer=0.0)",
    "pass": "Pass()",
    "block": "Block()",
    "detach": "Detach()",
    "average_pool": "AveragePool(stabilizer=1e-06)",
}


@pytest.mark.parametrize("name", list(STRINGS))
def test_rules_by_name(name: str) -> None:
    (entry,) = Rules().set(nn.Linear, name)
    assert repr(entry.rule) == STRINGS[name]


@pytest.fixture
def register() -> Iterator[Callable[[str, Any], None]]:
    """`Rules.register`, whose names are gone after the test."""
    before = dict(Rules.named)
    yield Rules.register
    Rules.named.clear()
    Rules.named.update(before)


@dataclass(frozen=True)
class Half(LinearRule):
    """LRP-0 of which half is lost."""

    factor: float = 0.5

    def coefficient(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> Tensor:
        return layer.transpose(c * self.factor)


def test_register_a_rule_of_ones_own(register: Callable[[str, Any], None]) -> None:
    register("half", Half)
    register("quarter", lambda: Half(0.25))
    model, x = mlp(), vectors()
    whole = LRP(model, "lrp0").attribute(x, 1)
    close(LRP(model, Rules().set("2", "half")).attribute(x, 1), whole / 2)
    close(LRP(model, Rules().set("2", "half").first("quarter").last("half")).attribute(x, 1), whole / 16)
    close(LRP(model, Half()).attribute(x, 1), whole / 8)
    register("half", Half)  # the same once more is no mistake, as when a notebook cell runs twice
    with pytest.raises(RuleError, match="'half' is already registered"):
        register("half", Zero)
    with pytest.raises(RuleError, match="'epsilon' is already registered"):
        register("epsilon", Half)
    with pytest.raises(RuleError, match=r"needs a name and a rule class, got Half\("):
        register("other", Half())
    with pytest.raises(RuleError, match=r"registered as 'hal'.*Did you mean 'half'"):
        Rules().set(nn.Linear, "hal")


def test_a_registered_name_is_known_to_all_registries(register: Callable[[str, Any], None]) -> None:
    rules = Rules()
    register("mine", Half)
    assert next(iter(rules.set("*", "mine"))).rule == Half()


@dataclass(frozen=True)
class Needs(LinearRule):
    """A rule without defaults."""

    weight: float

    def coefficient(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> Tensor:
        return layer.transpose(self.weight * c)


def test_the_name_of_a_rule_is_that_rule_on_every_linear_layer(register: Callable[[str, Any], None]) -> None:
    model, x = mlp(), vectors()
    register("half", Half)
    register("tenth", partial(Needs, weight=0.1))
    for name, rule in (("half", Half()), ("tenth", Needs(0.1)), ("gamma", Gamma())):
        assert torch.equal(LRP(model, name).attribute(x, 1), LRP(model, rule).attribute(x, 1))
        assert chosen(LRP(model, name).rules, model, x) == names(*[rule] * 3)
    register("tenth", partial(Needs, weight=0.1))  # once more, as when a notebook cell runs twice
    for name, other in (("tenth", partial(Needs, weight=0.2)), ("epsilon", partial(Epsilon, 0.1))):
        with pytest.raises(RuleError, match=f"'{name}' is already registered"):
            register(name, other)
    assert str(LRP(model, "epsilon").rules) == str(Rules.preset("epsilon"))
    with pytest.raises(RuleError, match="One rule for every linear layer must be a LinearRule; set AveragePool"):
        LRP(model, "average_pool")
    with pytest.raises(RuleError, match="No preset is named 'hlf'"):
        LRP(model, "hlf")


@pytest.mark.parametrize("name", [3, None, ""])
def test_a_rule_is_registered_by_a_string(register: Callable[[Any, Any], None], name: Any) -> None:
    with pytest.raises(RuleError, match="register needs a name, a string that is not empty, got"):
        register(name, Half)


@pytest.mark.parametrize("rule", [nn.Linear, int, Half(), "epsilon", None])
def test_what_can_make_no_rule_is_not_registered(register: Callable[[str, Any], None], rule: Any) -> None:
    with pytest.raises(RuleError, match=r"needs a name and a rule class, got .* A function that makes one will do"):
        register("wrong", rule)
    assert "wrong" not in Rules.named


@pytest.mark.parametrize("use", [lambda: Rules().set(nn.Linear, "own"), lambda: LRP(mlp(), "own")], ids=["set", "LRP"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: None, "'own' was registered for <lambda>, which returned None; expected a rule, such as Epsilon"),
        (lambda: Half, "'own' was registered for <lambda>, which returned <class .*; expected a rule"),
        (
            Needs,
            r"needs arguments; pass an instance of it, Needs\(weight=...\), .*functools.partial\(Needs, weight=...\)",
        ),
    ],
    ids=["it makes nothing", "it makes a class", "it needs arguments"],
)
def test_what_makes_no_rule_is_named_where_it_is_used(
    register: Callable[[str, Any], None], make: Any, message: str, use: Callable[[], Any]
) -> None:
    register("own", make)
    with pytest.raises(RuleError, match=message):
        use()
