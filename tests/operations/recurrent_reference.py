"""Recurrent networks by hand, sample by sample and step by step, with the relevance itself carried backwards.

Written from PyTorch's formulas for the forward and from Arras et al. 2017 for the relevance: gates are constants, tanh
and ReLU hand on what they receive, and a sum shares in proportion to its terms. The two linear maps of a step are
layers of their own. Nothing here uses relprop, nor autograd: what it returns can be differentiated like any formula.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

Share = Callable[[Tensor, Tensor, "Tensor | None", Tensor], Tensor]
Parameters = list["Tensor | None"]
STABILIZER = 1e-6


def _bias(weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.zeros_like(weight[:, 0]) if bias is None else bias


def _divided(relevance: Tensor, by: Tensor) -> Tensor:
    """R / z, and nothing where nothing arrived at z = 0."""
    zero = by == 0
    return torch.where(zero, 0.0, relevance / torch.where(zero, 1.0, by))


def _size(z: Tensor) -> Tensor:
    """The root mean square over the units of a map."""
    return z.square().mean().sqrt()


def _stab(z: Tensor, epsilon: float | Tensor) -> Tensor:
    return torch.where(z == 0, torch.inf, torch.where(z >= 0, z + epsilon, z - epsilon))  # nothing to share at 0


def lrp0(a: Tensor, weight: Tensor, bias: Tensor | None, relevance: Tensor) -> Tensor:
    """R_j = sum_k a_j w_kj / z_k R_k."""
    terms = a * weight
    return (terms * _divided(relevance, terms.sum(1) + _bias(weight, bias))[:, None]).sum(0)


def epsilon(a: Tensor, weight: Tensor, bias: Tensor | None, relevance: Tensor) -> Tensor:
    """R_j = sum_k a_j w_kj / (z_k + 0.1 sign(z_k)) R_k."""
    terms = a * weight
    return (terms * (relevance / _stab(terms.sum(1) + _bias(weight, bias), 0.1))[:, None]).sum(0)


def relative_epsilon(a: Tensor, weight: Tensor, bias: Tensor | None, relevance: Tensor) -> Tensor:
    """The same, with 0.1 in shares of the size of z."""
    terms = a * weight
    z = terms.sum(1) + _bias(weight, bias)
    return (terms * (relevance / _stab(z, 0.1 * _size(z)))[:, None]).sum(0)


def gamma(a: Tensor, weight: Tensor, bias: Tensor | None, relevance: Tensor) -> Tensor:
    """Terms of the sign of z_k count 1.25 times."""
    terms, b = a * weight, _bias(weight, bias)
    z = terms.sum(1) + b
    up, up_b = terms + 0.25 * terms.clamp(min=0), b + 0.25 * b.clamp(min=0)
    down, down_b = terms + 0.25 * terms.clamp(max=0), b + 0.25 * b.clamp(max=0)
    raised, lowered = up.sum(1) + up_b, down.sum(1) + down_b
    above, below = torch.where(z >= 0, relevance, 0.0), torch.where(z < 0, relevance, 0.0)
    found = (up * (above / _stab(raised, STABILIZER * _size(raised)))[:, None]).sum(0)
    return found + (down * (below / _stab(lowered, STABILIZER * _size(lowered)))[:, None]).sum(0)


@dataclass
class Memory:
    """What one step computed. ``state`` is what it started from; ``terms`` and ``rest`` are its own."""

    x: Tensor
    state: tuple[Tensor, ...]
    terms: dict[str, Tensor] = field(default_factory=dict)


def _maps(memory: Memory, parameters: Parameters) -> tuple[Tensor, Tensor]:
    w_ih, w_hh, b_ih, b_hh, _ = parameters
    assert w_ih is not None
    assert w_hh is not None
    return w_ih @ memory.x + _bias(w_ih, b_ih), w_hh @ memory.state[0] + _bias(w_hh, b_hh)


def _below(
    memory: Memory, parameters: Parameters, rows: slice, from_x: Tensor, from_h: Tensor, share: Share
) -> tuple[Tensor, Tensor]:
    """Through the two linear maps, of which only these rows receive relevance; their size is that of all rows."""
    w_ih, w_hh, b_ih, b_hh, _ = parameters
    assert w_ih is not None
    assert w_hh is not None
    of_x, of_h = torch.zeros_like(w_ih[:, 0]), torch.zeros_like(w_hh[:, 0])
    of_x[rows], of_h[rows] = from_x, from_h
    return share(memory.x, w_ih, b_ih, of_x), share(memory.state[0], w_hh, b_hh, of_h)


class RNN:
    """``h' = tanh(W x + b + V h + d)``, or with ReLU."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def forward(self, memory: Memory, parameters: Parameters) -> tuple[Tensor, ...]:
        x, h = _maps(memory, parameters)
        memory.terms |= {"x": x, "h": h}
        return (self.function(x + h),)

    def backward(
        self, memory: Memory, parameters: Parameters, relevance: tuple[Tensor, ...], share: Share
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        x, h = memory.terms["x"], memory.terms["h"]
        each = _divided(relevance[0], x + h)
        to_x, to_h = _below(memory, parameters, slice(None), x * each, h * each, share)
        return to_x, (to_h,)


class LSTM:
    """``c' = f c + i g``, ``h' = P (o tanh(c'))``."""

    def forward(self, memory: Memory, parameters: Parameters) -> tuple[Tensor, ...]:
        x, h = _maps(memory, parameters)
        c, size = memory.state[1], len(memory.state[1])
        z = x + h
        i, f, o = (torch.sigmoid(z[n * size : (n + 1) * size]) for n in (0, 1, 3))
        g = torch.tanh(z[2 * size : 3 * size])
        new = f * c + i * g
        out = o * torch.tanh(new)
        candidate = slice(2 * size, 3 * size)
        memory.terms |= {"kept": f * c, "added": i * g, "out": out, "x": x[candidate], "h": h[candidate]}
        return out if parameters[4] is None else parameters[4] @ out, new

    def backward(
        self, memory: Memory, parameters: Parameters, relevance: tuple[Tensor, ...], share: Share
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        at_h, at_c = relevance
        terms, size = memory.terms, len(at_c)
        if parameters[4] is not None:
            at_h = share(terms["out"], parameters[4], None, at_h)
        each = _divided(at_c + at_h, terms["kept"] + terms["added"])
        at_z = _divided(terms["added"] * each, terms["x"] + terms["h"])
        candidate = slice(2 * size, 3 * size)
        to_x, to_h = _below(memory, parameters, candidate, terms["x"] * at_z, terms["h"] * at_z, share)
        return to_x, (to_h, terms["kept"] * each)


class GRU:
    """``n = tanh(x_n + r h_n)``, ``h' = (1 - z) n + z h``."""

    def forward(self, memory: Memory, parameters: Parameters) -> tuple[Tensor, ...]:
        x, h = _maps(memory, parameters)
        size = len(memory.state[0])
        r, z = torch.sigmoid(x[:size] + h[:size]), torch.sigmoid(x[size : 2 * size] + h[size : 2 * size])
        n = torch.tanh(x[2 * size :] + r * h[2 * size :])
        memory.terms |= {"x": x[2 * size :], "h": r * h[2 * size :], "new": (1 - z) * n, "kept": z * memory.state[0]}
        return (memory.terms["new"] + memory.terms["kept"],)

    def backward(
        self, memory: Memory, parameters: Parameters, relevance: tuple[Tensor, ...], share: Share
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        terms, size = memory.terms, len(memory.state[0])
        each = _divided(relevance[0], terms["new"] + terms["kept"])
        at_n = _divided(terms["new"] * each, terms["x"] + terms["h"])
        rows = slice(2 * size, 3 * size)
        to_x, to_h = _below(memory, parameters, rows, terms["x"] * at_n, terms["h"] * at_n, share)
        return to_x, (to_h + terms["kept"] * each,)


def kind_of(module: nn.Module) -> RNN | LSTM | GRU:
    """What a layer or a cell of PyTorch computes in one step."""
    if isinstance(module, (nn.LSTM, nn.LSTMCell)):
        return LSTM()
    if isinstance(module, (nn.GRU, nn.GRUCell)):
        return GRU()
    return RNN(torch.relu if module.nonlinearity == "relu" else torch.tanh)


def parameters_of(module: nn.Module) -> list[Parameters]:
    """The parameters of a cell, or of every layer and direction."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    ends = [""]
    if isinstance(module, nn.RNNBase):
        ways = ["", "_reverse"] if module.bidirectional else [""]
        ends = [f"_l{layer}{way}" for layer in range(module.num_layers) for way in ways]
    return [[getattr(module, name + end, None) for name in names] for end in ends]


@dataclass
class Explained:
    """The outputs of one sample and the relevance of what went in: ``out [T, D H]``, states ``[L D, H]``."""

    out: Tensor
    ends: tuple[Tensor, ...]
    relevance: Tensor
    starts: tuple[Tensor, ...]


Seed = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, tuple[Tensor, ...]]]


def explain(module: nn.Module, x: Tensor, start: tuple[Tensor, ...], seed: Seed, share: Share) -> Explained:
    """Explain one sample ``[T, F]`` from states ``[L D, H]``, by a layer, or by a cell in a loop.

    ``seed`` receives the outputs and the final states and returns the relevance of each.
    """
    kind, parameters = kind_of(module), parameters_of(module)
    ways = 2 if getattr(module, "bidirectional", False) else 1
    memories: list[list[Memory]] = []
    ends: list[tuple[Tensor, ...]] = []
    data = list(x)
    for row, weights in enumerate(parameters):
        if row % ways == 0:
            below, data = data, [x.new_zeros(0)] * len(data)
        state, memories = tuple(part[row] for part in start), [*memories, []]
        for t in _order(len(below), row % ways):
            memories[-1].append(Memory(below[t], state))
            state = kind.forward(memories[-1][-1], weights)
            data[t] = torch.cat([data[t], state[0]])
        ends.append(state)
    out, final = torch.stack(data), tuple(torch.stack(parts) for parts in zip(*ends, strict=True))
    at_out, at_ends = seed(out, final)
    above, size = list(at_out), start[0].shape[1]
    starts: list[tuple[Tensor, ...]] = []
    for row in reversed(range(len(parameters))):
        way = row % ways
        if way == ways - 1:
            at_below: list[Tensor] = [torch.zeros_like(memory.x) for memory in memories[row]]
        relevance = tuple(part[row] for part in at_ends)
        for t, memory in reversed(list(zip(_order(len(above), way), memories[row], strict=True))):
            arrived = (relevance[0] + above[t][way * size : (way + 1) * size], *relevance[1:])
            to_x, relevance = kind.backward(memory, parameters[row], arrived, share)
            at_below[t] = at_below[t] + to_x
        starts.insert(0, relevance)
        if way == 0:
            above = at_below
    return Explained(out, final, torch.stack(above), tuple(torch.stack(parts) for parts in zip(*starts, strict=True)))


def _order(steps: int, backward: int) -> range:
    return range(steps - 1, -1, -1) if backward else range(steps)
