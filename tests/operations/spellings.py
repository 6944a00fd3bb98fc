"""Every way of writing an operation: steps with alternatives, of which a spelling is one choice each.

A spelling is named by what it is made of. `spellings` draws some of all combinations, of which there are thousands: a
larger number, or another seed, runs others.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Function = Callable[..., Any]
Steps = Mapping[str, Mapping[str, Function]]
Spelling = tuple[str, ...]


def spellings(steps: Steps, number: int, seed: int = 0) -> list[Spelling]:
    """So many combinations; the first of them hold as many pairs of alternatives as can be."""
    names = [list(alternatives) for alternatives in steps.values()]
    draw = random.Random(seed)
    met: set[tuple[int, str, int, str]] = set()
    found: dict[Spelling, None] = {}
    while len(found) < number:
        drawn = (tuple(draw.choice(each) for each in names) for _ in range(50))
        best = max(drawn, key=lambda spelling: len(_pairs(spelling) - met))
        met |= _pairs(best)
        found[best] = None
    return list(found)


def _pairs(spelling: Spelling) -> set[tuple[int, str, int, str]]:
    return {(i, one, j, other) for (i, one), (j, other) in itertools.combinations(enumerate(spelling), 2)}


def alternatives(steps: Steps, spelling: Spelling) -> Iterator[Function]:
    """The functions of a spelling, in the order of the steps."""
    return (choices[name] for choices, name in zip(steps.values(), spelling, strict=True))


# Softmax over the last dimension ---------------------------------------------------------------------

LOG2 = math.log(2)

SHIFTS: dict[str, Function] = {
    "no shift": lambda z: z,
    "minus a number": lambda z: z - 1.5,
    "minus the maximum": lambda z: z - z.max(-1, keepdim=True).values,
    "minus the maximum, detached": lambda z: z - z.amax(-1, keepdim=True).detach(),
    "plus minus the maximum": lambda z: z + -z.amax(-1)[..., None],
    "minus the largest of all": lambda z: torch.sub(z, z.max()),
    "minus the mean": lambda z: z - z.mean(-1, keepdim=True),
    "in place": lambda z: z.clone().sub_(z.amax(-1, keepdim=True)),
    "minus the larger of two halves": lambda z: z - torch.maximum(z[..., :1], z[..., 1:].amax(-1, keepdim=True)),
}
EXPONENTIALS: dict[str, Function] = {
    "exp": torch.exp,
    "exp_": lambda z: z.clone().exp_(),
    "exp2": lambda z: torch.exp2(z / LOG2),
    "2 **": lambda z: 2 ** (z / LOG2),
    "e **": lambda z: math.e**z,
    "pow": lambda z: torch.pow(torch.tensor(math.e, dtype=z.dtype), z),
    "of a full base": lambda z: torch.full_like(z, math.e) ** z,
    "float_power": lambda z: torch.float_power(2.0, z / LOG2),
    "expm1 + 1": lambda z: torch.expm1(z) + 1,
    "1 + expm1": lambda z: 1 + z.expm1(),
    "of the inverse": lambda z: torch.exp(-z).reciprocal(),
    "squared": lambda z: torch.exp(z / 2) ** 2,
    "of two parts": lambda z: torch.exp(z / 2) * torch.exp(z / 2),
    "through half": lambda z: torch.cat([torch.exp(z[..., :1]), torch.exp(z[..., 1:])], -1),
}
SUMS: dict[str, Function] = {
    "sum": lambda e: e.sum(-1, keepdim=True),
    "sum unsqueezed": lambda e: e.sum(-1).unsqueeze(-1),
    "sum of a list of dimensions": lambda e: torch.sum(e, [-1], True),
    "mean": lambda e: e.mean(-1, keepdim=True) * e.shape[-1],
    "einsum": lambda e: torch.einsum("...i->...", e)[..., None],
    "ones": lambda e: e @ torch.ones(e.shape[-1], 1, dtype=e.dtype),
    "ones before": lambda e: (torch.ones(1, e.shape[-1], dtype=e.dtype) @ e.mT).mT,
    "linear with ones": lambda e: F.linear(e, torch.ones(1, e.shape[-1], dtype=e.dtype)),
    "norm": lambda e: e.norm(p=1, dim=-1, keepdim=True),
    "vector_norm": lambda e: torch.linalg.vector_norm(e, 1, dim=-1, keepdim=True),
    "cumsum": lambda e: e.cumsum(-1)[..., -1:],
    "unbind": lambda e: sum(e.unbind(-1))[..., None],  # type: ignore[index]
    "average pooling": lambda e: F.avg_pool1d(e, e.shape[-1]) * e.shape[-1],
    "convolution": lambda e: F.conv1d(e.flatten(0, 1)[:, None], torch.ones(1, 1, e.shape[-1], dtype=e.dtype)).view(
        *e.shape[:2], 1),
    "halves": lambda e: e[..., :1] + e[..., 1:].sum(-1, keepdim=True),
    "index_add": lambda e: e.new_zeros(*e.shape[:-1], 1).index_add(
        -1, torch.zeros(e.shape[-1], dtype=torch.long), e),
    "scatter_add": lambda e: e.new_zeros(*e.shape[:-1], 1).scatter_add(-1, torch.zeros_like(e, dtype=torch.long), e),
    "logsumexp": lambda e: e.log().logsumexp(-1, keepdim=True).exp(),
    "with a small number": lambda e: e.sum(-1, keepdim=True) + 0.0,
}  # fmt: skip
QUOTIENTS: dict[str, Function] = {
    "/": lambda e, s: e / s,
    "without rounding": lambda e, s: torch.div(e, s, rounding_mode=None),
    "div": lambda e, s: torch.true_divide(e, s.expand_as(e)),
    "div_": lambda e, s: e.clone().div_(s),
    "times the reciprocal": lambda e, s: e * s.reciprocal(),
    "times 1 /": lambda e, s: (1 / s) * e,
    "times ** -1": lambda e, s: e * s**-1,
    "times pow": lambda e, s: torch.mul(torch.pow(s, -1.0), e),
    "by parts": lambda e, s: torch.stack([part / s[..., 0] for part in e.unbind(-1)], -1),
    "transposed": lambda e, s: (e.mT / s.mT).mT,
    "by logarithms": lambda e, s: torch.exp(e.log() - s.log()),
    "scaled": lambda e, s: (3 * e) / (3 * s),
    "einsum": lambda e, s: torch.einsum("...ij,...i->...ij", e, 1 / s[..., 0]),
}
SOFTMAX: Steps = {"shift": SHIFTS, "exponential": EXPONENTIALS, "sum": SUMS, "quotient": QUOTIENTS}


def softmax(spelling: Spelling, twice: bool = False) -> Function:
    """One spelling of softmax over the last dimension; with the exponentials computed ``twice``."""
    shift, exponential, total, quotient = alternatives(SOFTMAX, spelling)

    def computed(z: Tensor) -> Tensor:
        e = exponential(shift(z))
        return quotient(e, total(exponential(shift(z)) if twice else e))  # type: ignore[no-any-return]

    return computed


# Whole softmaxes -------------------------------------------------------------------------------------


def _in_two_halves(z: Tensor) -> Tensor:
    """The entries are in two tensors, with one shift."""
    first, rest = z[..., :1], z[..., 1:]
    m = torch.maximum(first, rest.amax(-1, keepdim=True))
    e, others = torch.exp(first - m), torch.exp(rest - m)
    total = e + others.sum(-1, keepdim=True)
    return torch.cat([e / total, others / total], -1)


def _in_columns(z: Tensor) -> Tensor:
    """The entries are in a list of tensors of one shape, as is their shift."""
    parts = z.unbind(-1)
    m = torch.maximum(torch.maximum(parts[0], parts[1]), parts[2])
    e = [torch.exp(part - m) for part in parts]
    total = e[0] + e[1] + e[2]
    return torch.stack([each / total for each in e], -1)


def _summed_as_one(z: Tensor) -> Tensor:
    e = [part.exp() for part in z.unbind(-1)]
    total = torch.stack(e).sum(0)
    return torch.stack([each * total.reciprocal() for each in e], -1)


def _scores_twice(z: Tensor) -> Tensor:
    return torch.exp(2 * (z / 2)) / torch.exp(2 * (z / 2)).sum(-1, keepdim=True)


def _sparse_softmax(z: Tensor) -> Tensor:
    matrix = torch.sparse.softmax(_block_diagonal(z), 1).to_dense()
    batch, targets, sources = z.shape
    return torch.stack([matrix[n * targets : (n + 1) * targets, n * sources : (n + 1) * sources] for n in range(batch)])


def _by_segments(z: Tensor) -> Tensor:
    """As `torch_geometric.utils.softmax` writes it: the largest and the sum of every segment, looked up."""
    source, segments = z.flatten(), torch.arange(z.shape[0] * z.shape[1]).repeat_interleave(z.shape[2])
    size = z.shape[0] * z.shape[1]
    largest = source.new_zeros(size).scatter_reduce(0, segments, source.detach(), "amax", include_self=False)
    out = (source - largest.index_select(0, segments)).exp()
    total = out.new_zeros(size).scatter_add_(0, segments, out) + 1e-16
    return (out / total.index_select(0, segments)).view_as(z)


WHOLE: dict[str, Function] = {
    "nn.Softmax": torch.nn.Softmax(-1),
    "nn.LogSoftmax": lambda z: torch.nn.LogSoftmax(-1)(z).exp(),
    "softmin": lambda z: F.softmin(-z, -1),
    "log_softmax": lambda z: torch.exp(F.log_softmax(z, -1)),
    "log_softmax, base 2": lambda z: 2 ** (z.log_softmax(-1) / LOG2),
    "minus logsumexp": lambda z: torch.exp(z - z.logsumexp(-1, keepdim=True)),
    "minus logcumsumexp": lambda z: torch.exp(z - z.logcumsumexp(-1)[..., -1:]),
    "minus logsumexp, base 2": lambda z: torch.exp2((z - z.logsumexp(-1, keepdim=True)) / LOG2),
    "minus log2": lambda z: (lambda y: torch.exp2(y - torch.log2(torch.exp2(y).sum(-1, keepdim=True))))(z / LOG2),
    "plus minus the logarithm": lambda z: torch.exp(z + -torch.log(z.exp().sum(-1, keepdim=True))),
    "minus the shift and the logarithm": lambda z: (
        lambda y: torch.exp(y - y.exp().sum(-1, keepdim=True).log()))(z - z.amax(-1, keepdim=True)),
    "normalize": lambda z: F.normalize(torch.exp(z), p=1, dim=-1),
    "normalize, shifted": lambda z: F.normalize(torch.exp(z - z.amax(-1, keepdim=True)), 1.0, -1),
    "two tensors": _in_two_halves,
    "columns": _in_columns,
    "columns, stacked": _summed_as_one,
    "scores twice": _scores_twice,
    "sparse": _sparse_softmax,
    "segments": _by_segments,
}  # fmt: skip
"""Spellings that are made of no such steps."""

KEPT = torch.ones(3, 3, dtype=torch.bool).tril()
MASKED: dict[str, Function] = {
    "minus infinity": lambda z: torch.softmax(z.masked_fill(~KEPT, -torch.inf), -1),
    "added": lambda z: torch.softmax(z + torch.zeros(3, 3, dtype=z.dtype).masked_fill(~KEPT, -torch.inf), -1),
    "where": lambda z: torch.softmax(torch.where(KEPT, z, -torch.inf), -1),
    "by hand, minus infinity": lambda z: _by_hand(z.masked_fill(~KEPT, -torch.inf), -1),
    "by hand, times": lambda z: (lambda e: e / e.sum(-1, keepdim=True))(torch.exp(z) * KEPT),
    "by hand, times numbers": lambda z: (lambda e: e / e.sum(-1, keepdim=True))(KEPT.to(z.dtype) * torch.exp(z)),
    "by hand, filled": lambda z: F.normalize(torch.exp(z).masked_fill(~KEPT, 0.0), p=1, dim=-1),
    "by hand, where": lambda z: (lambda e: e / e.sum(-1, keepdim=True))(torch.where(KEPT, torch.exp(z), 0.0)),
    "by hand, tril": lambda z: (lambda e: e / e.sum(-1, keepdim=True))(torch.exp(z).tril()),
    "by hand, set": lambda z: (lambda e: e / e.sum(-1, keepdim=True))(set_to_zero(torch.exp(z))),
}  # fmt: skip


def set_to_zero(e: Tensor) -> Tensor:
    e[..., ~KEPT] = 0.0
    return e


def _masked_last(mask: Function) -> Function:
    return lambda z, v: (lambda e: (e @ v) / e.sum(-1, keepdim=True))(mask(torch.exp(z)))


MASKED_LAST: dict[str, Function] = {
    "times": _masked_last(lambda e: e * KEPT),
    "filled": _masked_last(lambda e: e.masked_fill(~KEPT, 0.0)),
    "tril": _masked_last(lambda e: e.tril()),
    "set": _masked_last(set_to_zero),
    "sparse": lambda z, v: torch.stack([_over_edges(y, x) for y, x in zip(z, v, strict=True)]),
    "sparse softmax": lambda z, v: torch.stack(
        [torch.sparse.mm(torch.sparse.softmax(_edges(y, torch.clone), 1), x) for y, x in zip(z, v, strict=True)]),
}  # fmt: skip


def _over_edges(z: Tensor, v: Tensor) -> Tensor:
    e = _edges(z)
    return (e @ v) / torch.sparse.sum(e, 1).to_dense()[:, None]


def _edges(z: Tensor, function: Function = torch.exp) -> Tensor:
    """The entries that are kept, as a sparse matrix."""
    index = KEPT.nonzero().T
    return torch.sparse_coo_tensor(index, function(z[index[0], index[1]]), (3, 3), check_invariants=True)


# Attention that divides last -------------------------------------------------------------------------


def _by_edges(e: Tensor, v: Tensor) -> Tensor:
    """As libraries for graphs write it: a message for every edge, added up where it goes."""
    batch, targets, sources = e.shape
    to, by = torch.meshgrid(torch.arange(targets), torch.arange(sources), indexing="ij")
    messages = e.flatten(1)[..., None] * v[:, by.flatten()]
    return e.new_zeros(batch, targets, v.shape[-1]).index_add(1, to.flatten(), messages)


def _scattered(e: Tensor, v: Tensor) -> Tensor:
    batch, targets, sources = e.shape
    to, by = torch.meshgrid(torch.arange(targets), torch.arange(sources), indexing="ij")
    messages = e.flatten(1).unsqueeze(-1) * v.index_select(1, by.flatten())
    index = to.flatten()[None, :, None].expand_as(messages)
    return e.new_zeros(batch, targets, v.shape[-1]).scatter_add_(1, index, messages)


def _sparse(e: Tensor, v: Tensor) -> Tensor:
    """One sparse matrix for all samples, as graphs are batched."""
    matrix, (batch, targets, sources) = _block_diagonal(e), e.shape
    return (matrix @ v.reshape(batch * sources, -1)).view(batch, targets, -1)


def _block_diagonal(e: Tensor) -> Tensor:
    batch, targets, sources = e.shape
    n, to, by = torch.meshgrid(torch.arange(batch), torch.arange(targets), torch.arange(sources), indexing="ij")
    index = torch.stack([(n * targets + to).flatten(), (n * sources + by).flatten()])
    size = (batch * targets, batch * sources)
    return torch.sparse_coo_tensor(index, e.flatten(), size, check_invariants=True)


AVERAGES: dict[str, Function] = {
    "@": lambda e, v: e @ v,
    "bmm": torch.bmm,
    "einsum": lambda e, v: torch.einsum("nij,njd->nid", e, v),
    "einsum, values first": lambda e, v: torch.einsum("njd,nij->nid", v, e),
    "transposed": lambda e, v: (v.mT @ e.mT).mT,
    "products summed": lambda e, v: (e[..., None] * v[:, None]).sum(2),
    "products summed, values first": lambda e, v: (v.unsqueeze(1) * e.unsqueeze(-1)).sum(-2),
    "row by row": lambda e, v: torch.stack([(row.unsqueeze(1) @ v).squeeze(1) for row in e.unbind(1)], 1),
    "column by column": lambda e, v: sum(e[..., j, None] * v[:, None, j] for j in range(e.shape[-1])),
    "edges": _by_edges,
    "edges, scattered": _scattered,
    "sparse": _sparse,
}
DIVISORS: dict[str, Function] = {
    **{name: SUMS[name] for name in ("sum", "sum unsqueezed", "einsum", "ones", "norm", "cumsum", "halves")},
    "average of ones": lambda e: e @ torch.ones(len(e), e.shape[-1], 1, dtype=e.dtype),
    "sparse sum": lambda e: torch.sparse.sum(_block_diagonal(e), 1).to_dense().view(*e.shape[:2], 1),
}
LAST: dict[str, Function] = {
    "/": lambda y, s: y / s,
    "div_": lambda y, s: y.clone().div_(s),
    "times the reciprocal": lambda y, s: y * s.reciprocal(),
    "times 1 /": lambda y, s: (1 / s) * y,
    "times pow": lambda y, s: torch.mul(y, s**-1),
    "einsum": lambda y, s: torch.einsum("nid,ni->nid", y, 1 / s.squeeze(-1)),
    "transposed": lambda y, s: (y.mT / s.mT).mT,
    "expanded": lambda y, s: y / s.expand_as(y),
}
SHIFTED = {name: SHIFTS[name] for name in ("no shift", "minus the maximum", "minus the maximum, detached", "in place")}
ATTENTION: Steps = {
    "shift": SHIFTED, "exponential": EXPONENTIALS, "average": AVERAGES, "sum": DIVISORS, "quotient": LAST,
}  # fmt: skip


def attention(spelling: Spelling) -> Function:
    """One spelling of attention that divides by the sum last."""
    shift, exponential, average, total, quotient = alternatives(ATTENTION, spelling)

    def computed(z: Tensor, v: Tensor) -> Tensor:
        e = exponential(shift(z))
        return quotient(average(e, v), total(e))  # type: ignore[no-any-return]

    return computed


# Gates -----------------------------------------------------------------------------------------------


def _stable(g: Tensor) -> Tensor:
    """Without overflow: another quotient on each side of zero."""
    below = torch.exp(-g.abs())
    return torch.where(g >= 0, 1 / (1 + below), below / (1 + below))


def _over_zero(softmax: Function, join: Function, position: int) -> Function:
    def gate(g: Tensor) -> Tensor:
        return softmax(join(g), -1).select(-1, position)  # type: ignore[no-any-return]

    return gate


def _by_hand(z: Tensor, dim: int) -> Tensor:
    e = torch.exp(z - z.amax(dim, keepdim=True))
    return e / e.sum(dim, keepdim=True)


def _beside_zeros(g: Tensor) -> Tensor:
    both = g.new_zeros(*g.shape, 2)
    both[..., 0] = g
    return both


SIGMOIDS: dict[str, Function] = {
    "sigmoid": torch.sigmoid,
    "sigmoid_": lambda g: g.clone().sigmoid_(),
    "expit": torch.special.expit,
    "1 / (1 + exp(-g))": lambda g: 1 / (1 + torch.exp(-g)),
    "1 / (exp(-g) + 1)": lambda g: torch.div(1.0, g.neg().exp() + 1.0),
    "in place": lambda g: g.neg().exp_().add_(1).reciprocal_(),
    "reciprocal": lambda g: (1 + (-g).exp()).reciprocal(),
    "** -1": lambda g: (1 + torch.exp(-g)) ** -1,
    "expm1": lambda g: 1 / (2 + torch.expm1(-g)),
    "of base 2": lambda g: 1 / (1 + 2 ** (-g / LOG2)),
    "1 / (1 + 1 / exp(g))": lambda g: 1 / (1 + 1 / torch.exp(g)),
    "1 + ones": lambda g: 1 / (torch.ones_like(g) + torch.exp(-g)),
    "exp(g) / (1 + exp(g))": lambda g: torch.exp(g) / (1 + torch.exp(g)),
    "exp(g) times": lambda g: torch.exp(g) * (1 / (1 + torch.exp(g))),
    "1 - 1 / (1 + exp(g))": lambda g: 1 - 1 / (1 + torch.exp(g)),
    "1 - sigmoid(-g)": lambda g: 1 - torch.sigmoid(-g),
    "exp(logsigmoid)": lambda g: F.logsigmoid(g).exp(),
    "exp(-softplus)": lambda g: torch.exp(-F.softplus(-g)),
    "exp(g - softplus)": lambda g: torch.exp(g - F.softplus(g)),
    "exp(-log)": lambda g: torch.exp(-torch.log(1 + torch.exp(-g))),
    "exp(-log1p)": lambda g: torch.exp(-torch.log1p(torch.exp(-g))),
    "exp2(-log2)": lambda g: torch.exp2(-torch.log2(1 + torch.exp(-g))),
    "tanh": lambda g: (1 + torch.tanh(g / 2)) / 2,
    "tanh + 0.5": lambda g: 0.5 * torch.tanh(0.5 * g) + 0.5,
    "on each side": _stable,
    "softmax [g, 0]": _over_zero(torch.softmax, lambda g: torch.stack([g, torch.zeros_like(g)], -1), 0),
    "softmax [0, g]": _over_zero(F.softmax, lambda g: torch.stack([g.new_zeros(g.shape), g], -1), 1),
    "softmax, joined": _over_zero(torch.softmax, lambda g: torch.cat([g[..., None], 0 * g[..., None].detach()], -1), 0),
    "softmax, padded": _over_zero(torch.softmax, lambda g: F.pad(g.unsqueeze(-1), (0, 1)), 0),
    "softmax, transposed": _over_zero(torch.softmax, lambda g: torch.stack([g, torch.zeros_like(g)]).movedim(0, -1), 0),
    "softmax, set": _over_zero(torch.softmax, lambda g: _beside_zeros(g), 0),
    "softmax by hand": _over_zero(_by_hand, lambda g: torch.stack([g, torch.zeros_like(g)], -1), 0),
}
PRODUCTS: dict[str, Function] = {
    "signal times gate": lambda z, s: z * s,
    "gate times signal": lambda z, s: torch.mul(s, z),
    "mul_": lambda z, s: z.clone().mul_(s),
    "einsum": lambda z, s: torch.einsum("ni,ni->ni", z, s),
    "addcmul": lambda z, s: torch.addcmul(torch.zeros_like(z), z, s),
}
GATE: Steps = {"gate": SIGMOIDS, "product": PRODUCTS}
DIVIDED: dict[str, Function] = {
    "z / (1 + exp(-g))": lambda z, g: z / (1 + torch.exp(-g)),
    "div_": lambda z, g: z.clone().div_(1 + torch.exp(-g)),
    "glu": lambda z, g: F.glu(torch.cat([z, g], -1)),
}
"""In one step."""


def gate(spelling: Spelling) -> Function:
    """One spelling of ``z sigmoid(g)``."""
    if len(spelling) == 1:
        return DIVIDED[spelling[0]]
    sigmoid, product = alternatives(GATE, spelling)
    return lambda z, g: product(z, sigmoid(g))


# Constants -------------------------------------------------------------------------------------------


def _written(*writes: Callable[[Tensor], Any]) -> Function:
    """What a copy of a tensor is after some writes."""

    def constant(h: Tensor) -> Tensor:
        h = h.clone()
        for write in writes:
            write(h)
        return h

    return constant


def _set(index: Any, value: Any = 2.0) -> Callable[[Tensor], Any]:
    return lambda h: h.__setitem__(index, value)


def _by_columns(h: Tensor) -> Tensor:
    for j in range(h.shape[1]):
        h[:, j] = 2.0
    return h


TWOS = torch.full((5,), 2.0, dtype=torch.float64)
CONSTANTS: dict[str, Function] = {
    "full_like": lambda h: torch.full_like(h, 2.0),
    "new_full": lambda h: h.new_full(h.shape, 2.0),
    "ones_like": lambda h: torch.ones_like(h) + 1,
    "h[:]": _written(_set(slice(None))),
    "h[...]": _written(_set(...)),
    "h[:, :]": _written(_set((slice(None), slice(None)))),
    "h[:] of a tensor": _written(_set(slice(None), TWOS)),
    "h[:] of a scalar": _written(_set(slice(None), torch.tensor(2.0, dtype=torch.float64))),
    "by truth values": lambda h: _written(_set(torch.ones_like(h, dtype=torch.bool)))(h),
    "halves": _written(_set(slice(0, 1)), _set(slice(1, None))),
    "halves that overlap": _written(_set(slice(0, 2), 1.0), _set(slice(1, None)), _set(slice(0, 1))),
    "columns": lambda h: _by_columns(h.clone()),
    "a mask and its opposite": lambda h: (lambda mask: _written(_set(mask), _set(~mask))(h))(h > 0),
    "fill_": _written(lambda h: h.fill_(2.0)),
    "zero_ and add_": _written(Tensor.zero_, lambda h: h.add_(2.0)),
    "copy_": _written(lambda h: h.copy_(TWOS.expand_as(h))),
    "masked_fill_": _written(lambda h: h.masked_fill_(h > 0, 2.0), lambda h: h.masked_fill_(h != 2, 2.0)),
    "by keyword": _written(lambda h: h.masked_fill_(mask=h == h, value=2.0)),
    "index_fill_": _written(lambda h: h.index_fill_(1, torch.arange(5), 2.0)),
    "of a view": _written(lambda h: h.view(-1).__setitem__(slice(None), 2.0)),
    "view.fill_": _written(lambda h: h.view(-1).fill_(2.0)),
    "rows": _written(lambda h: [row.fill_(2.0) for row in h]),
    "parts": _written(lambda h: h[:1].fill_(2.0), lambda h: h[1:].copy_(TWOS)),
    "times zero": lambda h: h * 0 + 2,
    "zero times": lambda h: 2 + 0.0 * h,
    "mul_ by zero": lambda h: h.clone().mul_(0).add_(2.0),
}
"""Twos, whatever the tensor holds."""


# Linear layers -----------------------------------------------------------------------------------------

MULTIPLIED: dict[str, Function] = {
    "h w": lambda h, w: h * w,
    "w h": lambda h, w: torch.mul(w, h),
    "h w, expanded": lambda h, w: h.expand(*h.shape[:-2], w.shape[-2], w.shape[-1]) * w,
    "h w, copied": lambda h, w: h.clone() * w.clone(),
}
SUMMED: dict[str, Function] = {
    "sum": lambda y, dim: y.sum(dim),
    "sum over a list": lambda y, dim: torch.sum(y, dim=[dim]),
    "sum kept": lambda y, dim: y.sum(dim, keepdim=True).squeeze(dim),
    "nansum": lambda y, dim: y.nansum(dim),
    "mean": lambda y, dim: torch.mean(y, dim) * y.shape[dim],
}
LAID: dict[str, tuple[Function, Function, int]] = {
    "h[:, None], w": (lambda h: h[:, None], lambda w: w, -1),
    "h.unsqueeze(1), w[None]": (lambda h: h.unsqueeze(1), lambda w: w[None], 2),
    "h[..., None], w.T": (lambda h: h[..., None], lambda w: w.T, 1),
}
LAYER: Steps = {"laid": LAID, "multiplied": MULTIPLIED, "summed": SUMMED}  # type: ignore[dict-item]
LAYERS: dict[str, Function] = {
    "@": lambda h, w: h @ w.T,
    "w @": lambda h, w: (w @ h[..., None]).squeeze(-1),
    "w @ h.T": lambda h, w: (w @ h.T).T,
    "einsum": lambda h, w: torch.einsum("ni,oi->no", h, w),
    "einsum, weight first": lambda h, w: torch.einsum("oi,ni", w, h),
    "tensordot": lambda h, w: torch.tensordot(h, w, dims=([1], [1])),
    "inner": torch.inner,
    "bmm": lambda h, w: torch.bmm(h[:, None], w.T.expand(len(h), -1, -1)).squeeze(1),
    "addmm": lambda h, w: torch.addmm(torch.zeros(len(w), dtype=w.dtype), h, w.T),
    "vecdot": lambda h, w: torch.linalg.vecdot(h[:, None], w),
    "rows": lambda h, w: torch.stack([w @ row for row in h]),
}


def layer(spelling: Spelling) -> Function:
    """One spelling of ``F.linear(h, w)``."""
    if len(spelling) == 1:
        return LAYERS[spelling[0]]
    laid, multiplied, summed = alternatives(LAYER, spelling)
    of_input, of_weight, dim = laid  # type: ignore[misc]
    return lambda h, w: summed(multiplied(of_input(h), of_weight(w)), dim)
