"""Recurrent layers, cells and loops by signal-takes-all: against networks unrolled and explained by hand."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from relprop import LRP, GradientXInput, Rules
from relprop.errors import RuleError, TrainingModeWarning
from relprop.rules import Epsilon, Flat, Gamma, LinearRule, Uniform, Zero
from tests.models import settle
from tests.operations import recurrent_reference as by_hand
from tests.two_phase_checks import agree
from tests.unrolled import Watched, assert_close, random, snapshot, weigh

# Layers ----------------------------------------------------------------------------------------------


RULES: dict[str, tuple[LinearRule, by_hand.Share]] = {
    "lrp0": (Zero(), by_hand.lrp0),
    "epsilon": (Epsilon(0.1), by_hand.epsilon),
    "gamma": (Gamma(0.25), by_hand.gamma),
}
each_rule = pytest.mark.parametrize("rule", RULES)
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


def check(model: Reader, *inputs: Tensor, rule: str) -> None:
    """The map is that of the reference, the report adds up, and the forward is the module's own."""
    plain = model(*inputs).detach()
    given: Any = inputs if len(inputs) > 1 else inputs[0]
    with snapshot(model):
        with torch.no_grad():
            outputs, expected = reference(model, rule, *inputs)
        assert_close(plain, outputs, "another network", 1e-12)
        lrp, target = LRP(model, RULES[rule][0], strict=True), Watched()
        found = lrp.attribute(given, target)
        for one, other in zip(found if isinstance(found, tuple) else (found,), expected, strict=True):
            assert_close(one, other)
        report = lrp.report(given, target)
        report.check(1e-9)
        total = torch.stack([part.flatten(1).sum(1) for part in expected]).sum(0)
        assert float((report.delta - (weigh(plain) - total)).abs().max()) < 1e-10 * float(plain.abs().max())
        for output in target.outputs:
            assert_close(output, plain, "the forward", 1e-12)


@each_rule
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_whole_maps(kind: str, shape: str, rule: str) -> None:
    check(Reader(kind, **SHAPES[shape]), random(3, 5, 3), rule=rule)


@each_rule
@pytest.mark.parametrize("packed", ["sorted", "unsorted"])
@pytest.mark.parametrize("shape", ["plain", "two layers, bidirectional"])
@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
def test_packed_sequences(kind: str, shape: str, packed: str, rule: str) -> None:
    check(Reader(kind, packed, **SHAPES[shape]), random(3, 5, 3), rule=rule)


@each_rule
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("packed", ["", "unsorted"])
def test_projections(shape: str, packed: str, rule: str) -> None:
    check(Reader("lstm", packed, proj_size=2, **SHAPES[shape]), random(3, 5, 3), rule=rule)


@each_rule
@pytest.mark.parametrize("packed", ["", "unsorted"])
@pytest.mark.parametrize("kind", KINDS)
def test_initial_states_are_inputs_too(kind: str, packed: str, rule: str) -> None:
    model = Reader(kind, packed, **SHAPES["two layers, bidirectional"])
    starts = tuple(random(*part.shape, seed=seed) for seed, part in enumerate(model.zeros(3), 1))
    check(model, random(3, 5, 3), *starts, rule=rule)


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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_in_single_precision(kind: str) -> None:
    model = Reader(kind, num_layers=2, bidirectional=True).float()
    x, target = random(3, 40, 3).float(), Watched()
    LRP(model).attribute(x, lambda output: target(output.double()))
    assert float((target.outputs[0] - model(x).detach().double()).abs().max()) < 1e-6


# Cells, and recurrent networks in a user's own words -------------------------------------------------


Step = Callable[[nn.Module, Tensor, Any], Any]


def native(cell: nn.Module, x: Tensor, state: Any) -> Any:
    return cell(x, state)


def _sums(cell: Any, x: Tensor, h: Tensor) -> Tensor:
    return F.linear(x, cell.weight_ih, cell.bias_ih) + torch.addmm(cell.bias_hh, h, cell.weight_hh.T)


def tanh_by_hand(cell: Any, x: Tensor, h: Tensor) -> Tensor:
    return torch.tanh(_sums(cell, x, h))


def relu_by_hand(cell: Any, x: Tensor, h: Tensor) -> Tensor:
    return torch.relu(_sums(cell, x, h))


def lstm_by_chunks(cell: Any, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    h, c = state
    i, f, g, o = _sums(cell, x, h).chunk(4, dim=1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def lstm_by_products(cell: Any, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    h, c = state
    sums = x @ cell.weight_ih.T + cell.bias_ih + h @ cell.weight_hh.T + cell.bias_hh
    i, f, g, o = (sums[:, n * SIZE : (n + 1) * SIZE] for n in range(4))
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def lstm_gate_by_gate(cell: Any, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    h, c = state
    parts = [slice(n * SIZE, (n + 1) * SIZE) for n in range(4)]
    i, f, g, o = (
        F.linear(x, cell.weight_ih[rows], cell.bias_ih[rows]) + F.linear(h, cell.weight_hh[rows], cell.bias_hh[rows])
        for rows in parts
    )
    c = c.mul(f.sigmoid()).add(g.tanh().mul(i.sigmoid()))
    return c.tanh() * o.sigmoid_(), c


def _gru(cell: Any, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    x_gates, x_n = F.linear(x, cell.weight_ih, cell.bias_ih).split([2 * SIZE, SIZE], dim=1)
    h_gates, h_n = F.linear(h, cell.weight_hh, cell.bias_hh).split([2 * SIZE, SIZE], dim=1)
    r, z = torch.sigmoid(x_gates + h_gates).chunk(2, dim=1)
    return z, torch.tanh(x_n + r * h_n)


def gru_as_in_the_docs(cell: Any, x: Tensor, h: Tensor) -> Tensor:
    z, n = _gru(cell, x, h)
    return (1 - z) * n + z * h


def gru_subtracted(cell: Any, x: Tensor, h: Tensor) -> Tensor:
    z, n = _gru(cell, x, h)
    return torch.rsub(z, 1.0) * n + h * z


def gru_as_an_update(cell: Any, x: Tensor, h: Tensor) -> Tensor:
    z, n = _gru(cell, x, h)
    return n + z * (h - n)


CELLS: dict[str, Callable[[], nn.Module]] = {
    "rnn": lambda: nn.RNNCell(3, SIZE),
    "rnn_relu": lambda: nn.RNNCell(3, SIZE, nonlinearity="relu"),
    "lstm": lambda: nn.LSTMCell(3, SIZE),
    "gru": lambda: nn.GRUCell(3, SIZE),
}
STEPS: dict[str, dict[str, Step]] = {
    "rnn": {"native": native, "by hand": tanh_by_hand},
    "rnn_relu": {"native": native, "by hand": relu_by_hand},
    "lstm": {"native": native, "by chunks": lstm_by_chunks, "gate by gate": lstm_gate_by_gate},
    "gru": {"native": native, "docs": gru_as_in_the_docs, "rsub": gru_subtracted, "update": gru_as_an_update},
}
CASES = [(kind, step) for kind, steps in STEPS.items() for step in steps]


class Loop(nn.Module):
    """[N, T, 3] and initial states [N, H] to [N, ...]: a cell in a loop, its outputs and its final state."""

    def __init__(self, kind: str, step: Step = native) -> None:
        super().__init__()
        self.cell, self.step, self.two = CELLS[kind](), step, kind == "lstm"
        settle(self)

    def forward(self, x: Tensor, *start: Tensor) -> Tensor:
        zeros = torch.zeros(len(x), SIZE, dtype=x.dtype)
        state: Any = start if self.two else start[0] if start else zeros
        if self.two and not start:
            state = zeros, zeros
        outputs = []
        for t in range(x.shape[1]):
            state = self.step(self.cell, x[:, t], state)
            outputs.append(state[0] if self.two else state)
        return torch.cat([*outputs, *(state if self.two else (state,))], 1)


def of_loop(model: Loop, rule: str, x: Tensor, *start: Tensor) -> list[Tensor]:
    """The relevance of the input and of the initial states."""
    found = []
    for n in range(len(x)):

        def seed(out: Tensor, ends: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
            row = torch.cat([out.flatten(), *(end.flatten() for end in ends)])
            at_out, *at_ends = (row * random(len(row), seed=9)).split([out.numel(), *(end.numel() for end in ends)])
            return at_out.view_as(out), tuple(map(Tensor.view_as, at_ends, ends))

        states = tuple(part[n : n + 1] for part in start) or (x.new_zeros(1, SIZE),) * (2 if model.two else 1)
        one = by_hand.explain(model.cell, x[n], states, seed, RULES[rule][1])
        found.append([one.relevance, *(part[0] for part in one.starts)])
    return [torch.stack(parts) for parts in zip(*found, strict=True)][: 1 + len(start)]


def starts_for(model: Loop) -> list[Tensor]:
    return [random(3, SIZE, seed=seed) for seed in range(1, 3 if model.two else 2)]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("kind", "step"), CASES)
def test_a_cell_in_a_loop(kind: str, step: str, rule: str) -> None:
    model = Loop(kind, STEPS[kind][step])
    x, starts = random(3, 4, 3), starts_for(model)
    with torch.no_grad():
        expected = of_loop(model, rule, x, *starts)
        assert_close(model(x, *starts), Loop(kind)(x, *starts), "another network", 1e-12)
    lrp = LRP(model, RULES[rule][0], strict=True)
    with snapshot(model):
        found = lrp.attribute((x, *starts), weigh)
        lrp.report((x, *starts), weigh).check(1e-9)
    # The reference has one map for all gates, over whose rows a stabilizer counts; here each gate has its own.
    within = 1e-5 if (step, rule) == ("gate by gate", "gamma") else 1e-10
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, rule, within)


def test_a_cell_of_matrix_products() -> None:
    # The biases are no part of these linear maps, which LRP-0 alone does not notice.
    model, x = Loop("lstm", lstm_by_products), random(3, 4, 3)
    with torch.no_grad():
        expected = of_loop(model, "lrp0", x)[0]
    assert_close(LRP(model, "lrp0", strict=True).attribute(x, weigh), expected)


@pytest.mark.parametrize(("kind", "step"), CASES)
def test_a_cell_that_starts_from_zeros(kind: str, step: str) -> None:
    # In the first step of a GRU, r multiplies nothing but a bias, and is a gate all the same.
    model = Loop(kind, STEPS[kind][step])
    x = random(3, 4, 3)
    with torch.no_grad():
        expected = of_loop(model, "epsilon", x)[0]
    assert_close(LRP(model, RULES["epsilon"][0]).attribute(x, weigh), expected)


@pytest.mark.parametrize(("kind", "step"), CASES)
def test_a_loss_on_relevance_of_cells(kind: str, step: str) -> None:
    model = Loop(kind, STEPS[kind][step])
    leaf, starts = random(3, 3, 3).requires_grad_(), starts_for(model)
    found = LRP(model, RULES["epsilon"][0]).attribute((leaf, *starts), weigh, create_graph=True)[0]
    agree(found, of_loop(model, "epsilon", leaf, *starts)[0], {"input": leaf, **dict(model.named_parameters())})


@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_is_its_layer(kind: str) -> None:
    cell = CELLS[kind]()
    options = {"nonlinearity": "relu"} if kind == "rnn_relu" else {}
    layer = {"rnn": nn.RNN, "rnn_relu": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[kind](3, SIZE, **options)
    with torch.no_grad():
        for name, parameter in cell.named_parameters():
            getattr(layer, name + "_l0").copy_(parameter)
    loop = Loop(kind)
    loop.cell = cell.double()

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer.double()

        def forward(self, x: Tensor) -> Tensor:
            out, ends = self.layer(x.transpose(0, 1))
            return torch.cat([*out, *(end[0] for end in (ends if isinstance(ends, tuple) else (ends,)))], 1)

    x = random(3, 4, 3)
    for name in ("epsilon_gamma", "zplus", "alpha2_beta1", "flat", "attnlrp"):
        assert_close(LRP(loop, name).attribute(x, weigh), LRP(Whole(), name).attribute(x, weigh), name)


class OneByOne(nn.Module):
    """[N, 3] to [N, 4]: every sample by itself, without a batch dimension."""

    def __init__(self, cell: nn.Module, batch: bool) -> None:
        super().__init__()
        self.cell, self.batch = cell, batch

    def forward(self, x: Tensor) -> Tensor:
        found = self.cell(x) if self.batch else [self.cell(row) for row in x]
        if self.batch:
            return found[0] if isinstance(found, tuple) else found
        return torch.stack([part[0] if isinstance(part, tuple) else part for part in found])


@pytest.mark.parametrize("kind", CELLS)
def test_cells_without_a_batch(kind: str) -> None:
    cell, x = settle(CELLS[kind]()), random(3, 3)
    assert_close(LRP(OneByOne(cell, False)).attribute(x, weigh), LRP(OneByOne(cell, True)).attribute(x, weigh))


def test_without_signal_takes_all_gates_receive_their_share() -> None:
    x = random(3, 4, 3)
    native_lstm, by_chunks = Loop("lstm"), Loop("lstm", lstm_by_chunks)
    rules = Rules().set(torch.mul, Uniform())
    starts = starts_for(native_lstm)
    whole = LRP(native_lstm, rules).attribute((x, *starts), weigh)
    assert_close(whole[0], LRP(by_chunks, rules).attribute((x, *starts), weigh)[0])
    signal = LRP(native_lstm).attribute((x, *starts), weigh)
    assert float((whole[0] - signal[0]).abs().max()) > 1e-3


def test_the_complement_of_a_gate_is_a_gate() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.gate = nn.Linear(3, 5), nn.Linear(3, 5), nn.Linear(3, 5)
            settle(self)

        def forward(self, x: Tensor) -> Tensor:
            z = torch.sigmoid(self.gate(x))
            return z * self.a(x) + (1 - z) * self.b(x)

    model, x = Mixed(), random(4, 3)
    z = torch.sigmoid(model.gate(x)).detach() * random(5, seed=9)
    keep = (1 - torch.sigmoid(model.gate(x)).detach()) * random(5, seed=9)
    expected = x * (z @ model.a.weight + keep @ model.b.weight).detach()
    assert_close(LRP(model, "lrp0").attribute(x, weigh), expected)


# As users meet them: in classifiers, with rules, reports, conditions, training and tokens ------------


TYPES = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


@pytest.fixture
def without_collector() -> Iterator[None]:
    """What is freed is freed at once, by its last of_classifier."""
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


def of_classifier(
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
            output = torch.zeros_like(model.head.bias)
            output[target] = model.head.weight[target] @ a + model.head.bias[target]
            at_a = head(a, model.head.weight, model.head.bias, output)
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
        mixed = of_classifier(model, x, 1, by_hand.epsilon, by_hand.gamma)[0]
        alike = of_classifier(model, x, 1, by_hand.relative_epsilon, by_hand.relative_epsilon)[0]
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
        expected = of_classifier(model, x, 0, by_hand.epsilon, by_hand.gamma)[0]
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
        expected = of_classifier(model, x, 1, by_hand.gamma, by_hand.epsilon)[1]
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
        expected = of_classifier(model, x, 1, by_hand.epsilon, by_hand.epsilon, slice(1, 3))[0]
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
