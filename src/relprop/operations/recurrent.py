"""Recurrent layers, run as the steps they are made of, so that each step meets the rules of its operations.

The input-to-hidden and the hidden-to-hidden map are linear layers of their own, as PyTorch defines them; gates are
sigmoids that multiply, so SignalTakesAll holds them constant; tanh passes relevance on. The steps of a sequence
differ in what they depend on: a gate stays a gate where the state that it multiplies is a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from relprop.operations.rows import Rows, composite
from relprop.propagation.call.operation_call import Here
from relprop.propagation.facts.operation import Difference, Holds

State = tuple[Tensor, ...]
Step = Callable[[Here, Tensor, Tensor, State, "Tensor | None"], State]


@dataclass(frozen=True)
class Weights:
    """The parameters of one layer in one direction; ``projection`` where an LSTM has one (``proj_size``)."""

    input: Tensor
    hidden: Tensor
    input_bias: Tensor | None = None
    hidden_bias: Tensor | None = None
    projection: Tensor | None = None


def _parts(here: Here, x: Tensor, sizes: int | list[int], dim: int = 1) -> Sequence[Tensor]:
    """Split into views. Nobody writes to these, so that one node can be that of all."""
    origins = here.call.known.origins
    origin = origins.of(x).elsewhere
    with torch._C.DisableTorchFunction():
        parts: Sequence[Tensor] = x.split(sizes, dim)
        spread = origin.spread
        split = spread is not None and spread.shape == x.shape  # a pass on baselines knows of it alone
        spreads = spread.split(sizes, dim) if spread is not None and split else [spread] * len(parts)
    for part, own in zip(parts, spreads, strict=True):
        origins.note(part, origin._replace(spread=own))
    return parts


# One step: from the input's part of the sums, the hidden state's part and the state to the next state -----------


def _tanh(here: Here, x: Tensor, h: Tensor, state: State, projection: Tensor | None) -> State:
    """``h' = tanh(W_ih x + b_ih + W_hh h + b_hh)``."""
    return (torch.tanh(x + h),)


def _relu(here: Here, x: Tensor, h: Tensor, state: State, projection: Tensor | None) -> State:
    """``h' = relu(W_ih x + b_ih + W_hh h + b_hh)``."""
    return (torch.relu(x + h),)


def _lstm(here: Here, x: Tensor, h: Tensor, state: State, projection: Tensor | None) -> State:
    """``c' = sigmoid(f) c + sigmoid(i) tanh(g)``, ``h' = sigmoid(o) tanh(c')``, then the projection."""
    c, size = state[1], state[1].shape[1]
    first, g, o = _parts(here, x + h, [2 * size, size, size])
    i, f = _parts(here, torch.sigmoid(first), size)
    c = f * c + i * torch.tanh(g)
    out = torch.sigmoid(o) * torch.tanh(c)
    return out if projection is None else F.linear(out, projection), c


def _gru(here: Here, x: Tensor, h: Tensor, state: State, projection: Tensor | None) -> State:
    """``n = tanh(x_n + sigmoid(r) h_n)``, ``h' = (1 - sigmoid(z)) n + sigmoid(z) h``, as ``n + sigmoid(z) (h - n)``."""
    (before,) = state
    size = before.shape[1]
    (x_gates, x_n), (h_gates, h_n) = (_parts(here, part, [2 * size, size]) for part in (x, h))
    r, z = _parts(here, torch.sigmoid(x_gates + h_gates), size)
    n = torch.tanh(x_n + r * h_n)
    return (n + z * (before - n),)


STEPS: dict[str, Step] = {"rnn_tanh": _tanh, "rnn_relu": _relu, "lstm": _lstm, "gru": _gru}
"""By the name of the function of torch; the names of cells end in ``_cell``."""


# A single step, as the cells call it ---------------------------------------------------------------------------


def cell(
    here: Here,
    input: Tensor,
    hx: Tensor | Sequence[Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor | State:
    """``rnn_tanh_cell``, ``rnn_relu_cell``, ``lstm_cell`` and ``gru_cell``."""
    step = STEPS[here.operation.removesuffix("_cell")]
    state = (hx,) if isinstance(hx, Tensor) else tuple(hx)
    found = step(here, F.linear(input, w_ih, b_ih), F.linear(state[0], w_hh, b_hh), state, None)
    return found[0] if isinstance(hx, Tensor) else found


# A whole sequence ----------------------------------------------------------------------------------------------


def sequence(here: Here, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    """``rnn_tanh``, ``rnn_relu``, ``lstm`` and ``gru``: of a padded sequence, or of a packed one with its sizes."""
    second = args[1] if len(args) > 1 else None
    packed = "batch_sizes" in kwargs or (isinstance(second, Tensor) and not second.is_floating_point())
    return (_packed if packed else _padded)(here, *args, **kwargs)


def _padded(
    here: Here,
    input: Tensor,
    hx: Tensor | Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """A sequence ``[T, N, F]`` (``[N, T, F]`` where the batch is first)."""
    inner = input.transpose(0, 1) if batch_first else input
    steps, samples = inner.shape[:2]
    network = _Network(here, hx, params, has_biases, num_layers, dropout if train else 0.0, bidirectional)
    data = network.run(inner.reshape(steps * samples, -1), [samples] * steps)
    out = data.reshape(steps, samples, -1)
    out = out.transpose(0, 1) if batch_first else out
    time = 1 if batch_first else 0
    return network.returned(out, lambda backward: out.select(time, 0 if backward else steps - 1))


def _packed(
    here: Here,
    data: Tensor,
    batch_sizes: Tensor,
    hx: Tensor | Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
) -> tuple[Tensor, ...]:
    """The data of a packed sequence: of every step, the rows of the samples that are as long."""
    sizes: list[int] = batch_sizes.tolist()
    network = _Network(here, hx, params, has_biases, num_layers, dropout if train else 0.0, bidirectional)
    out = network.run(data, sizes)
    starts = [0, *accumulate(sizes)]
    last = [starts[sum(size > sample for size in sizes) - 1] + sample for sample in range(sizes[0])]
    rows = torch.tensor([range(sizes[0]), last], device=out.device)
    return network.returned(out, lambda backward: out.index_select(0, rows[0 if backward else 1]))


class _Network:
    """The layers and directions of one call, on the rows of all steps, one step after the other."""

    def __init__(
        self,
        here: Here,
        hx: Tensor | Sequence[Tensor],
        params: Sequence[Tensor],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        bidirectional: bool,
    ) -> None:
        self.here = here
        self.step = STEPS[here.operation]
        self.start: State = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        self.directions = 2 if bidirectional else 1
        self.layers, self.dropout = num_layers, dropout
        projected = len(self.start) == 2 and self.start[0].shape[2] != self.start[1].shape[2]
        count = 2 + 2 * has_biases + projected
        self.weights = [
            Weights(
                params[at],
                params[at + 1],
                params[at + 2] if has_biases else None,
                params[at + 3] if has_biases else None,
                params[at + count - 1] if projected else None,
            )
            for at in range(0, len(params), count)
        ]
        self.ends: list[State] = []

    def run(self, data: Tensor, sizes: list[int]) -> Tensor:
        """Return the hidden states of the last layer for the rows of all steps."""
        for layer in range(self.layers):
            found = [self._direction(data, sizes, self.directions * layer + way) for way in range(self.directions)]
            data = torch.cat(found, 1) if self.directions == 2 else found[0]
            if self.dropout and layer < self.layers - 1:
                data = F.dropout(data, self.dropout, True)
        return data

    def returned(self, out: Tensor, end: Callable[[bool], Tensor]) -> tuple[Tensor, ...]:
        """Return ``out`` and the final states; ``end`` gives of ``out`` the last step that ran, forward or backward.

        The last layer's hidden states are taken from ``out``, whose relevance then counts what passes by them.
        """
        size = self.start[0].shape[2]
        for way in range(self.directions):
            index = way - self.directions
            self.ends[index] = (end(way == 1).narrow(-1, way * size, size), *self.ends[index][1:])
        return out, *(torch.stack(parts) for parts in zip(*self.ends, strict=True))

    def _direction(self, data: Tensor, sizes: list[int], index: int) -> Tensor:
        """Run one layer in one direction and keep its final state."""
        weights, backward = self.weights[index], index % self.directions == 1
        start: State = tuple(part.select(0, index) for part in self.start)
        sums = _parts(self.here, F.linear(data, weights.input, weights.input_bias), sizes, 0)
        with self.here.call.trace.repeating():
            order = reversed(range(len(sizes))) if backward else range(len(sizes))
            state: State = tuple(part[: sizes[-1]] for part in start) if backward else start
            outputs: list[Tensor] = []
            finished: list[State] = []
            for t in order:
                rows = state[0].shape[0]
                if sizes[t] < rows:  # forward: the shorter samples end
                    finished.append(tuple(part[sizes[t] :] for part in state))
                    state = tuple(part[: sizes[t]] for part in state)
                elif sizes[t] > rows:  # backward: they begin
                    begin = (part[rows : sizes[t]] for part in start)
                    state = tuple(torch.cat(pair) for pair in zip(state, begin, strict=True))
                hidden = F.linear(state[0], weights.hidden, weights.hidden_bias)
                state = self.step(self.here, sums[t], hidden, state, weights.projection)
                outputs.append(state[0])
            if finished:
                state = tuple(torch.cat(parts) for parts in zip(state, *reversed(finished), strict=True))
        self.ends.append(state)
        return torch.cat(outputs[::-1] if backward else outputs)


# The rows ----------------------------------------------------------------------------------------


def _layer(name: str, holds: Holds) -> Rows:
    """The layer and the cell of one kind."""
    as_rules = Difference.AS_RULES
    return [
        *composite(name, handler=sequence, difference=as_rules, holds=holds),
        *composite(f"{name}_cell", handler=cell, difference=as_rules, holds=holds),
    ]


ROWS: Rows = [
    *_layer("rnn_tanh", Holds.LINEAR),
    *_layer("rnn_relu", Holds.LINEAR | Holds.RELU),
    *_layer("lstm", Holds.LINEAR),
    *_layer("gru", Holds.LINEAR),
]
