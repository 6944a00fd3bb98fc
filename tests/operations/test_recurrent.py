"""Recurrent layers by signal-takes-all: whole maps against networks unrolled and explained by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from relprop import LRP
from relprop.rules import Epsilon, Gamma, LinearRule, Zero
from tests.models import settle
from tests.operations import recurrent_reference as by_hand
from tests.two_phase_checks import agree
from tests.unrolled import Watched, assert_close, random, snapshot, weigh

RULES: dict[str, tuple[LinearRule, by_hand.Share]] = {
    "lrp0": (Zero(), by_hand.lrp0),
    "epsilon": (Epsilon(0.1), by_hand.epsilon),
    "gamma": (Gamma(0.25), by_hand.gamma),
}
KINDS: dict[str, tuple[type[nn.RNNBase], dict[str, Any]]] = {
    "rnn": (nn.RNN, {}),
    "rnn_relu": (nn.RNN, {"nonlinearity": "relu"}),
    "lstm": (nn.LSTM, {}),
    "gru": (nn.GRU, {}),
}
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch_first": {"batch_first": True},
    "bidirectional": {"bidirectional": True},
    "two layers": {"num_layers": 2},
    "two layers, bidirectional": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "no bias": {"bias": False},
}
LENGTHS = [3, 5, 1]
SIZE = 4


class Reader(nn.Module):
    """[N, T, 3] and initial states [N, L D, H] to [N, ...]: the outputs and all final states, in one row."""

    def __init__(self, kind: str = "lstm", packed: str = "", **options: Any) -> None:
        super().__init__()
        layer, more = KINDS[kind]
        self.layer, self.packed = layer(3, SIZE, **more, **options), packed
        settle(self)

    def forward(self, x: Tensor, *start: Tensor) -> Tensor:
        states = [part.transpose(0, 1).contiguous() for part in start]
        hx: Any = None if not states else states[0] if len(states) == 1 else tuple(states)
        first = self.layer.batch_first
        given: Any = x if first else x.transpose(0, 1)
        if self.packed:
            lengths = torch.tensor(LENGTHS if self.packed == "unsorted" else sorted(LENGTHS, reverse=True))
            given = pack_padded_sequence(given, lengths, first, enforce_sorted=self.packed == "sorted")
        out, ends = self.layer(given, hx)
        if isinstance(out, PackedSequence):
            out, _ = pad_packed_sequence(out, first, total_length=x.shape[1])
        out = out if first else out.transpose(0, 1)
        ends = ends if isinstance(ends, tuple) else (ends,)
        return torch.cat([part.flatten(1) for part in (out, *(end.transpose(0, 1) for end in ends))], 1)

    def lengths(self, x: Tensor) -> list[int]:
        if not self.packed:
            return [x.shape[1]] * len(x)
        return LENGTHS if self.packed == "unsorted" else sorted(LENGTHS, reverse=True)

    def zeros(self, samples: int) -> tuple[Tensor, ...]:
        rows = self.layer.num_layers * (2 if self.layer.bidirectional else 1)
        hidden = torch.zeros(samples, rows, self.layer.proj_size or SIZE, dtype=torch.float64)
        return (hidden, torch.zeros(samples, rows, SIZE).double()) if isinstance(self.layer, nn.LSTM) else (hidden,)


def reference(model: Reader, rule: str, x: Tensor, *start: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The outputs in rows as the model returns them, and the relevance of every input."""
    states = start or model.zeros(len(x))
    outputs: list[Tensor] = []
    relevance: list[list[Tensor]] = []
    ways = 2 if model.layer.bidirectional else 1
    steps, width = x.shape[1], ways * (model.layer.proj_size or SIZE)
    for n, length in enumerate(model.lengths(x)):

        def seed(out: Tensor, ends: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
            padded = torch.cat([out, out.new_zeros(steps - len(out), width)])
            row = torch.cat([padded.flatten(), *(end.flatten() for end in ends)])
            outputs.append(row)
            at = row * random(len(row), seed=9)
            at_out, *at_ends = at.split([padded.numel(), *(end.numel() for end in ends)])
            return at_out.view(steps, width)[: len(out)], tuple(map(Tensor.view_as, at_ends, ends))

        start_n = tuple(part[n] for part in states)
        found = by_hand.explain(model.layer, x[n, :length], start_n, seed, RULES[rule][1])
        padding = x.new_zeros(steps - length, x.shape[2])
        relevance.append([torch.cat([found.relevance, padding]), *found.starts])
    maps = [torch.stack(parts) for parts in zip(*relevance, strict=True)]
    return torch.stack(outputs), maps[: 1 + len(start)]


def check(model: Reader, *inputs: Tensor, rules: tuple[str, ...] = tuple(RULES)) -> None:
    """Under every rule, the map is that of the reference, the report adds up, and the forward is the module's own."""
    plain = model(*inputs).detach()
    given: Any = inputs if len(inputs) > 1 else inputs[0]
    with snapshot(model):
        for name in rules:
            with torch.no_grad():
                outputs, expected = reference(model, name, *inputs)
            assert_close(plain, outputs, f"{name}: another network", 1e-12)
            lrp, target = LRP(model, RULES[name][0], strict=True), Watched()
            found = lrp.attribute(given, target)
            for one, other in zip(found if isinstance(found, tuple) else (found,), expected, strict=True):
                assert_close(one, other, name)
            report = lrp.report(given, target)
            report.check(1e-9)
            total = torch.stack([part.flatten(1).sum(1) for part in expected]).sum(0)
            assert float((report.delta - (weigh(plain) - total)).abs().max()) < 1e-10 * float(plain.abs().max())
            for output in target.outputs:
                assert_close(output, plain, f"{name}: the forward", 1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_whole_maps(kind: str, shape: str) -> None:
    check(Reader(kind, **SHAPES[shape]), random(3, 5, 3))


@pytest.mark.parametrize("packed", ["sorted", "unsorted"])
@pytest.mark.parametrize("shape", ["plain", "two layers, bidirectional"])
@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
def test_packed_sequences(kind: str, shape: str, packed: str) -> None:
    check(Reader(kind, packed, **SHAPES[shape]), random(3, 5, 3))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("packed", ["", "unsorted"])
def test_projections(shape: str, packed: str) -> None:
    check(Reader("lstm", packed, proj_size=2, **SHAPES[shape]), random(3, 5, 3))


@pytest.mark.parametrize("packed", ["", "unsorted"])
@pytest.mark.parametrize("kind", KINDS)
def test_initial_states_are_inputs_too(kind: str, packed: str) -> None:
    model = Reader(kind, packed, **SHAPES["two layers, bidirectional"])
    starts = tuple(random(*part.shape, seed=seed) for seed, part in enumerate(model.zeros(3), 1))
    check(model, random(3, 5, 3), *starts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given", ["the input", "the states"])
def test_what_is_not_explained_is_a_constant_and_gates_stay_gates(kind: str, given: str) -> None:
    model = Reader(kind, num_layers=2)
    x, *starts = [random(3, 5, 3), *(random(*part.shape, seed=8) for part in model.zeros(3))]
    with torch.no_grad():
        _, expected = reference(model, "epsilon", x, *starts)
    lrp = LRP(model, RULES["epsilon"][0])
    if given == "the input":
        assert_close(lrp.attribute(x, weigh, tuple(starts)), expected[0])
        lrp.report(x, weigh, tuple(starts)).check(1e-9)
        return

    def of_states(*states: Tensor) -> Tensor:
        return model(x, *states)

    states_alone = _Of(model, of_states)
    found = LRP(states_alone, RULES["epsilon"][0]).attribute(tuple(starts), weigh)
    for one, other in zip(found, expected[1:], strict=True):
        assert_close(one, other)


class _Of(nn.Module):
    """A function of a model as a model."""

    def __init__(self, model: nn.Module, function: Any) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", ["plain", "two layers, bidirectional"])
def test_without_biases_all_relevance_arrives(kind: str, shape: str) -> None:
    model = Reader(kind, bias=False, **SHAPES[shape])
    x = random(4, 6, 3)
    relevance, delta = LRP(model, "lrp0").attribute(x, weigh, return_convergence_delta=True)
    output = weigh(model(x)).detach()
    assert float((relevance.flatten(1).sum(1) - output).abs().max()) < 1e-9 * float(output.abs().max())
    assert float(delta.abs().max()) < 1e-9
    report = LRP(model, "lrp0").report(x, weigh)
    assert abs(report.unexplained) < 1e-12
    assert abs(report.absorbed.get("bias", 0.0)) < 1e-12


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_on_relevance_is_differentiated_truly(kind: str, rule: str) -> None:
    model = Reader(kind, bidirectional=True)
    x = random(2, 4, 3)
    starts = [random(*part.shape, seed=3).requires_grad_() for part in model.zeros(2)]
    leaf = x.clone().requires_grad_()
    found = LRP(model, RULES[rule][0]).attribute((leaf, *starts), weigh, create_graph=True)
    _, expected = reference(model, rule, leaf, *starts)
    tensors = {"input": leaf, **{f"state {n}": part for n, part in enumerate(starts)}, **dict(model.named_parameters())}
    agree(torch.cat([part.flatten() for part in found]), torch.cat([part.flatten() for part in expected]), tensors)


@pytest.mark.parametrize("packed", ["", "unsorted"])
@pytest.mark.parametrize("constant", [False, True])
def test_a_loss_on_relevance_of_packed_and_stacked_networks(packed: str, constant: bool) -> None:
    for kind, more in (("lstm", {"proj_size": 2}), ("gru", {})):
        model = Reader(kind, packed, num_layers=2, **more)
        leaf = random(3, 5, 3).requires_grad_()
        starts = [random(*part.shape, seed=3) for part in model.zeros(3)] if constant else []
        found = LRP(model, Epsilon(0.1)).attribute(leaf, weigh, tuple(starts) or None, create_graph=True)
        _, expected = reference(model, "epsilon", leaf, *starts)
        agree(found, expected[0], {"input": leaf, **dict(model.named_parameters())})


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_in_single_precision(kind: str) -> None:
    model = Reader(kind, num_layers=2, bidirectional=True).float()
    x, target = random(3, 40, 3).float(), Watched()
    LRP(model).attribute(x, lambda output: target(output.double()))
    assert float((target.outputs[0] - model(x).detach().double()).abs().max()) < 1e-6
