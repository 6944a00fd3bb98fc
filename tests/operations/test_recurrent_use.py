"""Recurrent layers as users meet them: in classifiers, with rules, reports, layers, conditions, training and tokens."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from relprop import LRP, GradientXInput, Rules
from relprop.errors import RuleError, TrainingModeWarning
from relprop.rules import Epsilon, Flat, Gamma, Zero
from tests.models import settle
from tests.operations import recurrent_reference as by_hand
from tests.operations.test_recurrent import Reader
from tests.unrolled import Watched, assert_close, random, snapshot, weigh

TYPES = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


@pytest.fixture
def without_collector() -> Iterator[None]:
    """What is freed is freed at once, by its last reference."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Classifier(nn.Module):
    """[N, T, 3] to [N, 2], from the last hidden state or from the mean of the outputs."""

    def __init__(self, kind: str = "lstm", by: str = "state", **options: Any) -> None:
        super().__init__()
        self.layer = TYPES[kind](3, 4, batch_first=True, **options)
        self.head, self.by = nn.Linear(4, 2), by
        settle(self)

    def forward(self, x: Tensor) -> Tensor:
        out, ends = self.layer(x)
        state = (ends[0] if isinstance(ends, tuple) else ends)[-1]
        return self.head(state if self.by == "state" else out.mean(1))


def reference(
    model: Classifier,
    x: Tensor,
    target: int,
    inside: by_hand.Share,
    head: by_hand.Share,
    through: slice = slice(None),
) -> tuple[Tensor, Tensor]:
    """The relevance of the input, and of the outputs of the layer, of which these steps pass theirs on."""
    found, between = [], []
    for sample in x:

        def seed(out: Tensor, ends: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
            a = ends[0][-1] if model.by == "state" else out.mean(0)
            output = model.head.weight[target] @ a + model.head.bias[target]
            at_a = head(a, model.head.weight[target][None], model.head.bias[target][None], output[None])
            at_out = torch.zeros_like(out)
            if model.by == "state":  # which is the last output
                at_out[-1] = at_a
            else:
                at_out = out / out.sum(0) * at_a
            between.append(at_out)
            passed = torch.zeros_like(out)
            passed[through] = at_out[through]
            return passed, tuple(torch.zeros_like(end) for end in ends)

        start = (x.new_zeros(model.layer.num_layers, 4),) * (2 if isinstance(model.layer, nn.LSTM) else 1)
        found.append(by_hand.explain(model.layer, sample, start, seed, inside).relevance)
    return torch.stack(found).detach(), torch.stack(between).detach()


@pytest.mark.parametrize("by", ["state", "mean"])
@pytest.mark.parametrize("kind", TYPES)
def test_rules_go_to_a_recurrent_layer_by_its_type_its_name_and_as_a_linear_layer(kind: str, by: str) -> None:
    model, x = Classifier(kind, by), random(3, 5, 3)
    with torch.no_grad():
        mixed = reference(model, x, 1, by_hand.epsilon, by_hand.gamma)[0]
        alike = reference(model, x, 1, by_hand.epsilon, by_hand.epsilon)[0]
    gamma = Rules().set(nn.Linear, Gamma(0.25))
    for rules in (
        gamma.set(TYPES[kind], Epsilon(0.1)),
        gamma.set("layer", Epsilon(0.1)),
        gamma.set(nn.RNNBase, Epsilon(0.1)),
    ):
        assert_close(LRP(model, rules).attribute(x, 1), mixed)
    for preset in ("epsilon", "epsilon_gamma", "epsilon_plus", "attnlrp"):
        assert_close(LRP(model, Rules.preset(preset, epsilon=0.1)).attribute(x, 1), alike, preset)
    cached = LRP(model, gamma.set(TYPES[kind], Epsilon(0.1)), cache_weights=True)
    for _ in range(2):
        assert_close(cached.attribute(x, 1), mixed)


def test_first_is_the_map_of_the_input_in_the_lowest_layer() -> None:
    model, x = Reader("lstm", num_layers=2, bidirectional=True), random(3, 5, 3)
    plan = Rules().set(nn.LSTM, Epsilon(0.1)).first(Flat()).plan(model, x)
    linear = [row for row in plan.rows if row.operation == "linear"]
    assert [row.rule.split("(")[0] for row in linear] == ["Flat", "Epsilon"] * 2 + ["Epsilon"] * 4
    relevance = LRP(model, Rules().set(nn.LSTM, Zero()).first(Flat())).attribute(x, weigh)
    spread = relevance.mean(2, keepdim=True).expand_as(relevance)
    assert_close(relevance, spread)  # flat: alike for the three features of every step


def test_last_is_the_head() -> None:
    model, x = Classifier(), random(3, 5, 3)
    with torch.no_grad():
        expected = reference(model, x, 0, by_hand.epsilon, by_hand.gamma)[0]
    assert_close(LRP(model, Rules().set(nn.LSTM, Epsilon(0.1)).last(Gamma(0.25))).attribute(x, 0), expected)


def test_a_plan_and_a_report_have_one_line_for_the_steps_of_a_loop() -> None:
    model = Classifier(num_layers=2)
    short, long = (LRP(model).rules.plan(model, random(2, steps, 3), 0) for steps in (4, 9))
    assert len(short.rows) == len(long.rows)
    assert [m.position for m in short.modules] == [m.position for m in long.modules]
    heads = [row for row in long.rows if row.name == "head"]
    assert [row.position for row in long.modules if row.name == "head"] == [long.rows.index(heads[0])]
    (inputs, steps, *_) = [row for row in long.rows if row.operation == "linear"]
    assert (inputs.inputs, inputs.notes) == (((18, 3),), ())
    assert (steps.inputs, steps.notes) == (((2, 4),), ("8 times",))
    assert not long.uncovered
    entries = [LRP(model).report(random(2, steps, 3), 0).entries for steps in (4, 9)]
    assert [entry.operation for entry in entries[0]] == [entry.operation for entry in entries[1]]
    products = [entry for entry in entries[1] if entry.operation == "mul"]
    assert [entry.rule for entry in products] == ["SignalTakesAll()"] * 2
    assert not any(entry.operation == "sigmoid" for entry in entries[1])  # gates receive nothing


def test_a_recurrent_function_has_no_rule_of_its_own() -> None:
    with pytest.raises(RuleError, match="lstm is made of other operations"):
        Rules().set(torch.lstm, Epsilon())


@pytest.mark.parametrize("by", ["state", "mean"])
@pytest.mark.parametrize("kind", TYPES)
def test_relevance_at_the_outputs_counts_what_passes_by_the_final_state(kind: str, by: str) -> None:
    model, x = Classifier(kind, by, num_layers=2), random(3, 5, 3)
    with torch.no_grad():
        expected = reference(model, x, 1, by_hand.gamma, by_hand.epsilon)[1]
    rules = Rules().set(nn.RNNBase, Gamma(0.25)).set("head", Epsilon(0.1))
    assert_close(LRP(model, rules).attribute_layers(x, ["layer", "head"], 1)["layer"], expected)


def test_relevance_at_packed_outputs_counts_what_passes_by_the_final_state() -> None:
    class Packed(Classifier):
        def forward(self, x: Tensor) -> Tensor:
            out, (h, _) = self.layer(pack_padded_sequence(x, [5, 3, 2], True))
            return self.head(h[-1]) + 0 * pad_packed_sequence(out, True)[0].sum()

    model, x = Packed(), random(3, 5, 3)
    found = LRP(model, "lrp0").attribute_layers(x, "layer", 1)["layer"]  # [10, 4], as the layer returned it
    a = model.layer(pack_padded_sequence(x, [5, 3, 2], True))[1][0][-1].detach()
    expected = torch.zeros(10, 4).double()
    expected[[9, 7, 5]] = a * model.head.weight[1].detach()
    assert_close(found, expected)


def test_a_condition_on_the_outputs_stands_in_the_way_of_the_final_state_too() -> None:
    model, x = Classifier(by="mean"), random(3, 5, 3)
    with torch.no_grad():
        expected = reference(model, x, 1, by_hand.epsilon, by_hand.epsilon, slice(1, 3))[0]
    lrp = LRP(model, Epsilon(0.1))  # dimension 1 is time
    assert_close(lrp.attribute(x, 1, condition={"layer": [1, 2]}), expected)
    lrp.report(x, 1, condition={"layer": [1, 2]}).check(1e-9)
    model.by = "state"
    assert float(lrp.attribute(x, 1, condition={"layer": [0, 1, 2, 3]}).abs().max()) == 0.0
    assert_close(lrp.attribute(x, 1, condition={"layer": [4]}), lrp.attribute(x, 1))


class Tagger(nn.Module):
    """Token ids [N, T], with lengths or without, to [N, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.layer = nn.Embedding(9, 3), nn.LSTM(3, 4, bidirectional=True, batch_first=True)
        self.head = nn.Linear(8, 2)
        settle(self)

    def forward(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.after(self.words(tokens), lengths)

    def after(self, given: Tensor, lengths: Tensor | None) -> Tensor:
        if lengths is not None:
            given = pack_padded_sequence(given, lengths, True, enforce_sorted=False)
        return self.head(self.layer(given)[1][0].transpose(0, 1).flatten(1))


@pytest.mark.parametrize("lengths", [None, [3, 6, 1]])
def test_tokens(lengths: list[int] | None) -> None:
    class After(nn.Module):
        def __init__(self, model: Tagger) -> None:
            super().__init__()
            self.inner = model

        def forward(self, embedded: Tensor, lengths: Tensor | None = None) -> Tensor:
            return self.inner.after(embedded, lengths)

    model, tokens = Tagger(), torch.randint(9, (3, 6))
    more = None if lengths is None else torch.tensor(lengths)
    embedded = model.words(tokens).detach()
    lrp = LRP(model, Epsilon(0.1), strict=True)
    found = lrp.attribute(tokens, 0, more)
    assert_close(found, LRP(After(model), Epsilon(0.1)).attribute(embedded, 0, more).sum(-1))
    lrp.report(tokens, 0, more).check(1e-9)
    if lengths is not None:
        for row, length in zip(found, lengths, strict=True):
            assert float(row[length:].abs().sum()) == 0.0
            assert int((row != 0).sum()) == length


@pytest.mark.parametrize("packed", ["", "unsorted"])
def test_dropout_between_layers_draws_what_the_layer_draws(packed: str) -> None:
    model, x = Reader("lstm", packed, num_layers=3, dropout=0.5, bidirectional=True).train(), random(3, 5, 3)
    torch.manual_seed(3)
    plain = model(x).detach()
    eager = model.eval()(x).detach()
    assert float((plain - eager).abs().max()) > 1e-3
    model.train()
    torch.manual_seed(3)
    target = Watched()
    with pytest.warns(TrainingModeWarning, match="'layer' \\(LSTM\\)"), snapshot(model):
        relevance = LRP(model).attribute(x, target)
    assert_close(target.outputs[0], plain, tolerance=1e-12)
    assert relevance.isfinite().all()


def test_no_warning_where_no_dropout_is_drawn() -> None:
    model = Classifier().train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LRP(model).attribute(random(2, 4, 3), 0)


@pytest.mark.parametrize("kind", TYPES)
def test_gradients_are_those_of_the_layer(kind: str) -> None:
    model, x = Classifier(kind, num_layers=2), random(3, 5, 3)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    method = GradientXInput(model)
    assert_close(method.attribute(x, 1), x * gradient)
    report = method.report(x, 1)
    total = sum(entry.leak for entry in report.entries)
    assert abs(report.unseen) < 1e-12
    assert abs(float(report.delta.sum()) - total) < 1e-10


def test_attach_explains_a_recurrent_network() -> None:
    model, x = Classifier("gru"), random(3, 5, 3)
    leaf = x.clone().requires_grad_()
    with Rules.preset("epsilon").attach(model) as attached:
        output = model(leaf)[:, 1]
    (coefficient,) = torch.autograd.grad(output.sum(), leaf)
    attached.finish()
    assert_close(leaf.detach() * coefficient, LRP(model, "epsilon").attribute(x, 1))


def test_a_learned_start_and_a_frozen_layer() -> None:
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LSTM(3, 4, batch_first=True)
            self.h, self.c = nn.Parameter(torch.zeros(1, 1, 4)), nn.Parameter(torch.zeros(1, 1, 4))
            settle(self)
            self.layer.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            start = (self.h.expand(-1, len(x), -1).contiguous(), self.c.expand(-1, len(x), -1).contiguous())
            return self.layer(x, start)[0].flatten(1)

    model, x = Learned(), random(3, 5, 3)
    whole = Reader("lstm", batch_first=True)
    whole.layer = model.layer
    states = [part.detach().transpose(0, 1).expand(3, -1, -1) for part in (model.h, model.c)]

    def outputs(output: Tensor) -> Tensor:
        return weigh(output[:, :20])

    assert_close(LRP(model).attribute(x, weigh), LRP(whole).attribute((x, *states), outputs)[0])
    leaf = x.clone().requires_grad_()
    found = LRP(model).attribute(leaf, weigh, create_graph=True)
    assert_close(found.detach(), LRP(model).attribute(x, weigh))
    gradients = torch.autograd.grad(found.square().sum(), [leaf, model.h, model.c])
    assert all(float(gradient.abs().max()) > 0 for gradient in gradients)


def test_states_die_with_the_call(without_collector: None) -> None:
    model, x = Classifier("lstm", num_layers=2), random(3, 5, 3)
    seen: list[weakref.ref[Tensor]] = []

    def look(module: nn.Module, args: Any, out: Any) -> None:
        seen.extend(map(weakref.ref, (out[0], *out[1])))

    model.layer.register_forward_hook(look)
    lrp = LRP(model)
    lrp.attribute(x, 1)
    lrp.report(x, 1)
    lrp.rules.plan(model, x, 1)
    lrp.attribute(x.clone().requires_grad_(), 1, create_graph=True)
    assert len(seen) == 12
    assert [ref() for ref in seen] == [None] * 12


@pytest.mark.parametrize("kind", TYPES)
def test_autocast_and_half_precision(kind: str) -> None:
    model, x, target = Classifier(kind, "mean").float(), random(3, 5, 3).float(), Watched()
    full = LRP(model).attribute(x, 1)
    with torch.autocast("cpu", torch.bfloat16):
        try:
            plain = model(x).detach()
        except RuntimeError as error:  # not every processor has kernels for it
            pytest.skip(f"PyTorch itself cannot run it here: {str(error).splitlines()[0]}")
        found = LRP(model).attribute(x, lambda output: target(output))
        halved = LRP(model).attribute(x, 1)
    assert_close(target.outputs[0], plain, tolerance=0.03)
    assert found.dtype == torch.float32
    assert_close(halved, full, tolerance=0.1)
    assert LRP(model.bfloat16()).attribute(x.bfloat16(), 1).dtype == torch.bfloat16


def test_a_wrong_shape_is_told_by_the_layer() -> None:
    with pytest.raises(RuntimeError, match=r"input.size"):
        LRP(Classifier()).attribute(torch.randn(2, 4, 5).double(), 0)
