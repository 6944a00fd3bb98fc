"""Filter rules: what they do to relevance, what a report says of them, and where they are out of sight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import LRP, RuleError, Rules, UncoveredOperationError, UncoveredOperationWarning
from relprop.rules import Block, Detach, FilterRule, Flow, Gamma, Mask, Pass, Rule
from tests.models import close, settle


def random(*shape: int) -> Tensor:
    torch.manual_seed(sum(shape))
    return torch.randn(shape, dtype=torch.float64)


class Calls(nn.Module):
    """A module that runs a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *given: Any) -> Any:
        return self.function(*given)


def network(function: Callable[..., Any], width: int = 4) -> nn.Module:
    return settle(nn.Sequential(nn.Linear(3, 4), Calls(function), nn.Linear(width, 2)))


# ----------------------------------------------------------------------------------------------- what they account for


class Twice(FilterRule):
    """A mask after a mask after a factor: what passes is their product."""

    def output(self, flow: Flow, out: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        half = flow.scale(flow.scale(out, 0.5), (out > 0).to(out.dtype))
        return flow.scale(half, torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=out.dtype))


class Sum(FilterRule):
    """A sum of two parts, each scaled: a third of the one entries pass, all of the others."""

    def output(self, flow: Flow, out: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        mask = (torch.arange(out.shape[1]) % 2).to(out.dtype)
        return flow.switch(out, flow.scale(out * mask, 1 / 3) + out * (1 - mask))


class Round(FilterRule):
    """Half goes through the operation, a quarter around it to its input; a quarter is taken."""

    by_output_alone = False

    def output(self, flow: Flow, out: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        (a,) = inputs
        around = a * flow.constant(out / a)
        return flow.switch(out, flow.scale(out, 0.5) + flow.scale(around, 0.25))


class Gives(FilterRule):
    """More leaves than arrives."""

    def output(self, flow: Flow, out: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        return flow.scale(out, 3.0)


FILTERS: list[FilterRule] = [Twice(), Sum(), Round(), Gives(), Block(), Mask((1, 3))]
OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "tanh": torch.tanh,
    "relu": F.relu,
    "in place": torch.Tensor.tanh_,
    "softmax": lambda x: torch.softmax(x, 1),
    "view": lambda x: x.view(-1, 4),
    "composite": lambda x: F.normalize(x, dim=1),
    "uncovered": torch.lgamma,
}


@pytest.mark.filterwarnings("ignore::relprop.UncoveredOperationWarning")
@pytest.mark.parametrize("operation", list(OPERATIONS))
@pytest.mark.parametrize("rule", FILTERS, ids=lambda rule: type(rule).__name__)
def test_a_report_counts_what_a_filter_withholds(rule: FilterRule, operation: str) -> None:
    """By `c` on both sides of it: relevance at the module, and at an identity behind it."""
    if operation in ("composite", "view") and isinstance(rule, Round):
        return  # its input is not of one entry each
    function, x = OPERATIONS[operation], random(5, 3)
    model = settle(nn.Sequential(nn.Linear(3, 4), Calls(function), nn.Linear(4, 2)))
    rules = Rules().set("1", rule)
    lrp = LRP(model, rules)
    report = lrp.report(x, 1)
    found = lrp.attribute(x, 1)
    assert report.relevance == pytest.approx(float(found.sum()), abs=1e-12)
    with torch.no_grad():
        z = model[0](x)
        out = model[1](z)
        arrived = out * model[2].weight[1]
    factor = {
        Twice: lambda: 0.5 * (out > 0) * torch.tensor([1, 0, 1, 1]),
        Sum: lambda: torch.tensor([1, 1 / 3, 1, 1 / 3], dtype=torch.float64),
        Round: lambda: torch.tensor(0.75),
        Gives: lambda: torch.tensor(3.0),
        Block: lambda: torch.tensor(0.0),
        Mask: lambda: torch.tensor([0, 1, 0, 1]),
    }[type(rule)]()
    taken = float((arrived * (1 - factor)).sum())
    assert report.absorbed["rule"] == pytest.approx(taken, abs=1e-12)
    if operation != "uncovered":
        report.check(1e-9)


@pytest.mark.parametrize("rule", [Twice(), Sum(), Gives()], ids=lambda rule: type(rule).__name__)
def test_a_filter_of_ones_own_behind_a_folded_batch_norm(rule: FilterRule) -> None:
    model = settle(nn.Sequential(nn.Conv1d(2, 4, 1), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(4, 2)))
    x = random(5, 2, 1)

    class PerChannel(FilterRule):
        def output(self, flow: Flow, out: Tensor, inputs: Sequence[Tensor]) -> Tensor:
            return rule.output(flow, out.flatten(1), inputs).unflatten(1, (4, 1))

    base = Rules().set(nn.Conv1d, Gamma())
    at = [base.set(name, PerChannel()) for name in ("0", "1")]
    expected = LRP(model, base.set("2", rule)).attribute(x, 0)
    for rules in at:
        close(LRP(model, rules).attribute(x, 0), expected)
        LRP(model, rules).report(x, 0).check(1e-9)


# ------------------------------------------------------------------------------------------------------- out of sight


class Doubled(torch.autograd.Function):
    """A function that relprop cannot see."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * 2


class Parts(torch.autograd.Function):
    """Another, with two outputs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 2, x * 3

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * 2 + gradients[1] * 3


def both(x: Tensor) -> Tensor:
    first, second = Parts.apply(x)
    return first + second


UNSEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "what leaves the module": Doubled.apply,
    "what goes on inside": lambda x: Doubled.apply(x).flip(1),
    "what is written to": lambda x: Doubled.apply(x).mul_(2),
    "several outputs": both,
    "a second behind the first": lambda x: Doubled.apply(Doubled.apply(x)),
    "what is used twice": lambda x: (lambda y: y + y.flip(1))(Doubled.apply(x)),
}


@pytest.mark.parametrize("case", list(UNSEEN))
def test_a_block_where_nothing_can_be_seen(case: str) -> None:
    model, x = network(UNSEEN[case]), random(2, 3)
    for create_graph in (False, True):
        found = LRP(model, Rules().set("1", Block()), strict=True).attribute(x, 1, create_graph=create_graph)
        assert float(found.detach().abs().max()) == 0.0
    report = LRP(model, Rules().set("1", Block())).report(x, 1)
    assert report.relevance == 0.0
    assert report.unexplained == pytest.approx(0.0, abs=1e-12)


class Split(nn.Module):
    """A custom function in a module of its own, which returns its two outputs in a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.parts, self.same, self.head = (
            nn.Linear(3, 4),
            Calls(Parts.apply),
            Calls(self.both),
            nn.Linear(4, 2),
        )

    @staticmethod
    def both(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return pair[0].clone(), pair[1].clone()

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.same(self.parts(self.first(x)))
        out: Tensor = self.head(one + two)
        return out


@pytest.mark.filterwarnings("ignore::relprop.UncoveredOperationWarning")
@pytest.mark.parametrize("rule", [Mask((0, 2)), Twice(), Sum(), Gives()], ids=lambda rule: type(rule).__name__)
def test_any_filter_where_nothing_can_be_seen(rule: FilterRule) -> None:
    """As behind an identity; of every output, in both phases; and the report counts it."""
    model, x = settle(Split()), random(2, 3)
    expected = LRP(model, Rules().set("same", rule)).attribute(x, 1)
    at = LRP(model, Rules().set("parts", rule))
    close(at.attribute(x, 1), expected)
    close(at.attribute(x, 1, create_graph=True).detach(), expected)
    close(at.attribute_targets(x, [0, 1])[1], expected)
    assert at.report(x, 1).absorbed["rule"] == pytest.approx(
        LRP(model, Rules().set("same", rule)).report(x, 1).absorbed["rule"], abs=1e-12
    )


def test_after_the_explanation_the_network_is_as_it_is() -> None:
    model, x = network(Doubled.apply), random(2, 3).requires_grad_()
    found = LRP(model, Rules().set("1", Mask((0, 2)), optional=False)).attribute
    with pytest.warns(UncoveredOperationWarning):
        relevance = found(x, 1, create_graph=True)
    (gradient,) = torch.autograd.grad(relevance.square().sum(), x)
    mask = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    y = x.detach().requires_grad_()
    explicit = y * ((model[2].weight[1] * mask * 2) @ model[0].weight)
    (expected,) = torch.autograd.grad(explicit.square().sum(), y)
    close(gradient, expected)


def test_a_detached_custom_function_is_a_constant_factor() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.value = Calls(Doubled.apply), nn.Linear(3, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.gate(x) * self.value(x)

    model, x = settle(Gated()), random(2, 3)
    expected = (2 * x).detach()[:, 1:2] * x * model.value.weight[1]
    for create_graph in (False, True):
        rules = Rules().set("gate", Detach())
        close(LRP(model, rules, strict=True).attribute(x, 1, create_graph=create_graph).detach(), expected.detach())


def test_what_is_covered_by_no_rule_is_still_named_where_relevance_passes() -> None:
    for function, name in ((Doubled.apply, "Doubled"), (torch.lgamma, "lgamma")):
        model, x = network(function), random(2, 3)
        with pytest.raises(UncoveredOperationError, match=name):
            LRP(model, Rules().set("1", Mask((0,))), strict=True).attribute(x, 1)
        with (
            pytest.raises(
                RuleError, match=rf"Gamma.* was set at '1', where '{name}\w*' .* serves operations of kind lin"
            ),
            pytest.warns(UncoveredOperationWarning),
        ):
            LRP(model, Rules().set("1", Gamma())).attribute(x, 1)


def test_pass_needs_to_see_the_input() -> None:
    model, x = network(Doubled.apply), random(2, 3)
    with (
        pytest.warns(UncoveredOperationWarning),
        pytest.raises(RuleError, match="Pass cannot stand at 'DoubledBackward'"),
    ):
        LRP(model, Rules().set("1", Pass())).attribute(x, 1)
    model = network(torch.lgamma)
    with pytest.warns(UncoveredOperationWarning):
        found = LRP(model, Rules().set("1", Pass())).attribute(x, 1)
    with torch.no_grad():
        z = model[0](x)
        coefficient = model[2].weight[1] * torch.lgamma(z) / z
    close(found, x * (coefficient @ model[0].weight))


# --------------------------------------------------------------------------------------------- of several operations


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module], **options: Any) -> None:
        super().__init__()
        self.cell = kind(3, 4, batch_first=True, **options)
        self.same, self.head = Calls(torch.clone), nn.Linear(self.width, 2)

    @property
    def width(self) -> int:
        return 4 * (2 if self.cell.bidirectional else 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.same(self.cell(x)[0]).mean(1))
        return out


class Last(FilterRule):
    """Features of the upper half pass."""

    def output(self, flow: Flow, out: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        return flow.scale(out, (torch.arange(out.shape[-1]) >= out.shape[-1] // 2).to(out.dtype))


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"bidirectional": True}], ids=str)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_is_one_operation(kind: type[nn.Module], options: dict[str, Any]) -> None:
    model, x = settle(Recurrent(kind, **options)), random(2, 3, 3)
    assert float(LRP(model, Rules().set(kind, Block())).attribute(x, 1).abs().max()) == 0.0
    rule = Last()
    close(LRP(model, Rules().set(kind, rule)).attribute(x, 1), LRP(model, Rules().set("same", rule)).attribute(x, 1))
    for rule in (Last(), Block()):
        report = LRP(model, Rules().set(kind, rule)).report(x, 1)
        report.check(1e-9)
        assert report.absorbed["rule"] == pytest.approx(
            LRP(model, Rules().set("same", rule)).report(x, 1).absorbed["rule"], abs=1e-12
        )


def test_a_filter_inside_a_composite_is_set_at_the_operation() -> None:
    model, x = settle(Recurrent(nn.LSTM)), random(2, 3, 3)
    plain = LRP(model, "lrp0").attribute(x, 1)
    assert float(LRP(model, Rules().set(torch.tanh, Block())).attribute(x, 1).abs().max()) == 0.0
    both = Rules().set(nn.LSTM, Last()).set(torch.sigmoid, Detach())  # gates are constants by themselves
    close(LRP(model, both).attribute(x, 1), LRP(model, Rules().set(nn.LSTM, Last())).attribute(x, 1))
    assert plain.abs().max() > 0


def test_attention_is_one_operation() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.same, self.head = nn.MultiheadAttention(4, 2), Calls(torch.clone), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = x.transpose(0, 1)
            out: Tensor = self.head(self.same(self.attention(x, x, x)[0]).mean(0))
            return out

    model, x = settle(Attends()), random(2, 3, 4)
    expected = LRP(model, Rules().set("same", Last())).attribute(x, 1)
    close(LRP(model, Rules().set(nn.MultiheadAttention, Last())).attribute(x, 1), expected)
    blocked = LRP(model, Rules().set(nn.MultiheadAttention, Block())).attribute(x, 1)
    assert float(blocked.abs().max()) == 0.0


# ------------------------------------------------------------------------------------------------ at the very input


INPUTS: dict[str, Callable[[], tuple[nn.Module, Tensor, Any]]] = {
    "an embedding": lambda: (
        nn.Sequential(nn.Embedding(9, 3), nn.Flatten(), nn.Linear(6, 2)),
        torch.tensor([[1, 2], [3, 3]]),
        nn.Embedding,
    ),
    "a bag": lambda: (nn.Sequential(nn.EmbeddingBag(9, 3), nn.Linear(3, 2)), torch.tensor([[1, 2], [3, 3]]), "0"),
    "a view": lambda: (nn.Sequential(nn.Flatten(), nn.Linear(6, 2)), random(2, 2, 3), nn.Flatten),
    "an activation": lambda: (nn.Sequential(nn.Tanh(), nn.Linear(3, 2)), random(2, 3), nn.Tanh),
    "an uncovered function": lambda: (nn.Sequential(Calls(torch.lgamma), nn.Linear(3, 2)), random(2, 3), "0"),
    "a custom function": lambda: (nn.Sequential(Calls(Doubled.apply), nn.Linear(3, 2)), random(2, 3), "0"),
    "a layer": lambda: (nn.Sequential(nn.Linear(3, 2)), random(2, 3), nn.Linear),
}


@pytest.mark.parametrize("case", list(INPUTS))
def test_a_block_at_the_very_input_gives_zeros(case: str) -> None:
    model, x, selector = INPUTS[case]()
    settle(model)
    for lrp in (LRP(model, Rules().set(selector, Block())), LRP(model, Rules.preset("epsilon").set(selector, Block()))):
        found = lrp.attribute(x, 1)
        assert found.shape == x.shape
        assert float(found.abs().max()) == 0.0
        report = lrp.report(x, 1)
        assert (report.relevance, report.unexplained) == pytest.approx((0.0, 0.0), abs=1e-12)
        assert float(lrp.attribute_targets(x, [0, 1]).abs().max()) == 0.0


def test_writes_without_a_twin() -> None:
    """What only exists in place meets a filter too."""

    def turned(x: Tensor) -> Tensor:
        y = x * 1
        y.t_()
        return y.t()

    class Turns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.turn = Calls(lambda y: y.t_())

        def forward(self, x: Tensor) -> Tensor:
            return self.turn(x * 1).t()

    assert turned(random(2, 3)).shape == (2, 3)
    model, x = settle(nn.Sequential(nn.Linear(3, 4), Turns(), nn.Linear(4, 2))), random(3, 3)
    plain = LRP(model, "lrp0").attribute(x, 1)
    assert float(plain.abs().max()) > 0
    assert float(LRP(model, Rules().set("1.turn", Block())).attribute(x, 1).abs().max()) == 0.0
    masked = LRP(model, Rules().set("1.turn", Mask((1,)))).attribute(x, 1)  # dimension 1 is the batch there
    close(masked[1], plain[1])
    assert float(masked[[0, 2]].abs().max()) == 0.0


def test_flows_say_where_they_are() -> None:
    seen: list[tuple[str, str]] = []

    class Looks(FilterRule):
        def output(self, flow: Flow, out: Tensor, inputs: Sequence[Tensor]) -> Tensor:
            if flow.module:  # the target is read outside every module but the model
                seen.append((flow.module, flow.operation))
            assert "Call" not in repr(flow)
            return out

    model, x = network(torch.tanh), random(2, 3)
    close(LRP(model, Rules().set("*", Looks())).attribute(x, 1), LRP(model, "lrp0").attribute(x, 1))
    assert seen == [("0", "linear"), ("1", "tanh"), ("2", "linear")]


# --------------------------------------------------------------------------------------------------- rules as values


@dataclass(frozen=True)
class Holds(FilterRule):
    """A rule of one's own that holds something."""

    what: Any
    more: float = 0.5

    def output(self, flow: Flow, out: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        return out


ALIKE: dict[str, tuple[Any, Any]] = {
    "tensors": (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])),
    "types": (torch.tensor([1.0, 2.0]), torch.tensor([1, 2], dtype=torch.float16)),
    "an array": (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]).numpy()),
    "nan": (torch.tensor([float("nan"), 2.0]), torch.tensor([float("nan"), 2.0])),
    "numbers": (float("nan"), float("nan")),
    "a number and a tensor": (0.5, torch.tensor(0.5)),
    "a number in another type": (1, 1.0),
    "lists": ([torch.ones(2), 3], [torch.ones(2), 3]),
    "nested tuples": ((1, (torch.ones(2), "a")), (1, (torch.ones(2), "a"))),
    "mappings": ({"a": torch.ones(2)}, {"a": torch.ones(2)}),
    "complex": (torch.tensor([1j]), torch.tensor([1j], dtype=torch.complex128)),
    "sparse": (torch.eye(2).to_sparse(), torch.eye(2)),
    "sets": ({1, 2}, {2, 1}),
    "no entries": (torch.ones(0, 2), torch.ones(0, 2)),
    "rules": (Mask((1,)), Mask([1])),  # type: ignore[arg-type]
}
APART: dict[str, tuple[Any, Any]] = {
    "values": (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])),
    "shapes": (torch.ones(2), torch.ones(1, 2)),
    "shapes that broadcast": (torch.ones(2), 1.0),
    "nothing": (torch.ones(2), None),
    "a list and a tuple": ([1], (1,)),
    "lengths": ((torch.ones(2),), (torch.ones(2), 1)),
    "keys": ({"a": torch.ones(2)}, {"b": torch.ones(2)}),
    "no entries": (torch.ones(0, 2), torch.ones(0, 3)),
    "text": (torch.ones(2), "ones"),
    "meta": (torch.ones(2, device="meta"), torch.ones(2, device="meta")),
}


@pytest.mark.parametrize("case", list(ALIKE))
def test_rules_that_hold_the_same_are_one(case: str) -> None:
    first, second = (Holds(what) for what in ALIKE[case])
    assert first == second
    assert hash(first) == hash(second)
    assert {first: 1}[second] == 1
    one, other = (Rules().set(nn.Linear, rule).first("flat") for rule in (first, second))
    assert one == other
    assert hash(one) == hash(other)


@pytest.mark.parametrize("case", list(APART))
def test_rules_that_hold_something_else_are_not(case: str) -> None:
    first, second = (Holds(what) for what in APART[case])
    assert first != second
    assert first == Holds(APART[case][0])
    assert hash(first) == hash(Holds(APART[case][0]))
    assert Rules().set("*", first) != Rules().set("*", second)


def test_rules_of_other_classes_are_others() -> None:
    @dataclass(frozen=True)
    class Same(Holds):
        pass

    class Plain(FilterRule):
        def __init__(self, k: int) -> None:
            self.k = k

        def output(self, flow: Flow, out: Tensor, inputs: Sequence[Tensor]) -> Tensor:
            return out

    @dataclass(frozen=True)
    class Own(Holds):
        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 7

        def __repr__(self) -> str:
            return "own"

    assert Same(1) != Holds(1)
    assert Same(1) == Same(1)
    assert Plain(1) == Plain(1)
    assert Plain(1) != Plain(2)
    assert repr(Plain(1)).endswith("Plain(k=1)")
    assert Own(1) == Own(2)
    assert hash(Own(1)) == 7
    assert repr(Own(1)) == "own"
    assert Block() == Block() != Detach()


def test_rules_print_shortly() -> None:
    assert repr(Holds(torch.zeros(3, 224, 224))) == "Holds(what=tensor[3, 224, 224], more=0.5)"
    assert repr(Holds(torch.zeros(3, 224, 224).numpy())) == "Holds(what=array[3, 224, 224], more=0.5)"
    assert repr(Holds((torch.zeros(9), 1))) == "Holds(what=(tensor[9], 1), more=0.5)"
    assert repr(Holds(torch.zeros(3, 1))) == "Holds(what=tensor([[0.],[0.],[0.]]), more=0.5)"
    assert repr(Holds(0.25)) == "Holds(what=0.25, more=0.5)"
    assert str(Rules().set(nn.Linear, Holds(torch.zeros(9)))) == "Linear => Holds(what=tensor[9], more=0.5)"


def test_a_class_that_is_defined_again_takes_its_own_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rules, "named", dict(Rules.named))

    def cell(kept: int) -> tuple[type[Rule], Callable[[], Rule]]:
        class Mine(Mask):
            def __init__(self) -> None:
                super().__init__((kept,))

        def mine() -> Rule:
            return Mask((kept,))

        return Mine, mine

    for kept in (1, 2):  # as the cell of a notebook that runs twice
        found, made = cell(kept)
        Rules.register("mine", found)
        Rules.register("made", made)
        assert [entry.rule.indices for entry in Rules().set("*", "mine").set("*", "made")] == [(kept,), (kept,)]  # type: ignore[attr-defined]
    for name, other in (("mine", Mask), ("made", lambda: Block()), ("epsilon", found)):
        with pytest.raises(RuleError, match=f"'{name}' is already registered"):
            Rules.register(name, other)
    Rules.register("anonymous", lambda: Block())
    with pytest.raises(RuleError, match="'anonymous' is already registered"):
        Rules.register("anonymous", lambda: Detach())


def test_the_factor_of_a_filter_is_differentiated() -> None:
    """A loss on the relevance is derived through a factor that depends on the input, as through all else."""

    class Weighed(FilterRule):
        def output(self, flow: Flow, out: Tensor, inputs: Sequence[Tensor]) -> Tensor:
            return flow.scale(out, out.sigmoid())

    layer = nn.Linear(2, 1, bias=False).double()
    layer.weight.data = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    lrp = LRP(nn.Sequential(layer, nn.Tanh()), Rules().set(nn.Tanh, Weighed()))
    x = torch.tensor([[0.3, 0.4]], dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(lrp.attribute(x, create_graph=True).sum(), x)
    step = 1e-6
    for entry in range(2):
        moved = torch.zeros_like(x).index_fill(1, torch.tensor([entry]), step)
        up, down = (float(lrp.attribute((x + sign * moved).detach()).sum()) for sign in (1, -1))
        assert float(found[0, entry]) == pytest.approx((up - down) / (2 * step), rel=1e-6)
