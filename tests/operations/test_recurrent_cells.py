"""Cells, and recurrent networks in a user's own words: they are explained as the layers of PyTorch are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import LRP, Rules
from relprop.rules import Uniform
from tests.models import settle
from tests.operations import recurrent_reference as by_hand
from tests.operations.test_recurrent import RULES, SIZE
from tests.two_phase_checks import agree
from tests.unrolled import assert_close, random, snapshot, weigh

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


def reference(model: Loop, rule: str, x: Tensor, *start: Tensor) -> list[Tensor]:
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
        expected = reference(model, rule, x, *starts)
        assert_close(model(x, *starts), Loop(kind)(x, *starts), "another network", 1e-12)
    lrp = LRP(model, RULES[rule][0], strict=True)
    with snapshot(model):
        found = lrp.attribute((x, *starts), weigh)
        lrp.report((x, *starts), weigh).check(1e-9)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, rule)


def test_a_cell_of_matrix_products() -> None:
    # The biases are no part of these linear maps, which LRP-0 alone does not notice.
    model, x = Loop("lstm", lstm_by_products), random(3, 4, 3)
    with torch.no_grad():
        expected = reference(model, "lrp0", x)[0]
    assert_close(LRP(model, "lrp0", strict=True).attribute(x, weigh), expected)


@pytest.mark.parametrize(("kind", "step"), CASES)
def test_a_cell_that_starts_from_zeros(kind: str, step: str) -> None:
    # In the first step of a GRU, r multiplies nothing but a bias, and is a gate all the same.
    model = Loop(kind, STEPS[kind][step])
    x = random(3, 4, 3)
    with torch.no_grad():
        expected = reference(model, "epsilon", x)[0]
    assert_close(LRP(model, RULES["epsilon"][0]).attribute(x, weigh), expected)


@pytest.mark.parametrize(("kind", "step"), CASES)
def test_a_loss_on_relevance_of_cells(kind: str, step: str) -> None:
    model = Loop(kind, STEPS[kind][step])
    leaf, starts = random(3, 3, 3).requires_grad_(), starts_for(model)
    found = LRP(model, RULES["epsilon"][0]).attribute((leaf, *starts), weigh, create_graph=True)[0]
    agree(found, reference(model, "epsilon", leaf, *starts)[0], {"input": leaf, **dict(model.named_parameters())})


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
