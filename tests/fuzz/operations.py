"""The table that steps are drawn from: each operation in its spellings, beside its surrogate.

All values have one shape, ``[N, FEATURES]`` or ``[N, PLACES, FEATURES]``, so that any step may read any value. A
spelling is Python: an expression of what it reads (``{0}``, ``{1}``, ``{2}``), or a statement that writes its result
into ``{0}``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fuzz.surrogate import Surrogate, Value

FEATURES, PLACES = 6, 4
EVERY_RANK, VECTORS, SEQUENCES = (2, 3), (2,), (3,)

# The parts of a model, made where a program names them.
PARTS: dict[str, Callable[[], nn.Module | nn.Parameter | Tensor]] = {
    "dense": lambda: nn.Linear(FEATURES, FEATURES),
    "other": lambda: nn.Linear(FEATURES, FEATURES, bias=False),
    "wide": lambda: nn.Linear(2 * FEATURES, FEATURES),
    "double": lambda: nn.Linear(FEATURES, 2 * FEATURES),
    "conv": lambda: nn.Conv1d(FEATURES, FEATURES, 3, padding=1),
    "weight": lambda: nn.Parameter(torch.empty(FEATURES, FEATURES)),
    "mixing": lambda: nn.Parameter(torch.empty(PLACES, PLACES)),
    "gain": lambda: nn.Parameter(torch.empty(FEATURES)),
    "shift": lambda: nn.Parameter(torch.empty(FEATURES)),
    "fixed": lambda: torch.empty(FEATURES),  # a buffer
    "position": lambda: nn.Parameter(torch.empty(PLACES, FEATURES)),
    "place_gain": lambda: nn.Parameter(torch.empty(PLACES, 1)),
    "batch_norm": lambda: nn.BatchNorm1d(FEATURES),
    "layer_norm": lambda: nn.LayerNorm(FEATURES),
    "rms_norm": lambda: nn.RMSNorm(FEATURES, eps=1e-5),
    "group_norm": lambda: nn.GroupNorm(2, FEATURES),
    "act": lambda: nn.ReLU(),
    "lstm": lambda: nn.LSTM(FEATURES, FEATURES, batch_first=True),
    "gru": lambda: nn.GRU(FEATURES, FEATURES, batch_first=True),
    "lstm_cell": lambda: nn.LSTMCell(FEATURES, FEATURES),
    "gru_cell": lambda: nn.GRUCell(FEATURES, FEATURES),
    "attention": lambda: nn.MultiheadAttention(FEATURES, 2, batch_first=True),
}

Run = Callable[..., Value]
"""The surrogate of an operation: of the surrogate, the parts of the model, and the values that it reads."""


@dataclass(frozen=True)
class Operation:
    """A row of the table.

    Attributes:
        run: its surrogate.
        reads: how many values it reads.
        spellings: expressions for it.
        writes: statements for it, which leave the result in ``{0}``.
        aliases: expressions for ``{0}`` itself, in the same memory.
        ranks: the numbers of dimensions that it takes.
        offset: it adds a constant, by which z+ and alpha-beta may share by sign.
        joins: it adds branches, or a constant that no linear map takes up.
        cuts: under CP-LRP, nothing may pass.
    """

    run: Run
    reads: int
    spellings: tuple[str, ...]
    writes: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    ranks: tuple[int, ...] = EVERY_RANK
    offset: bool = False
    joins: bool = False
    cuts: bool = False


OPERATIONS: dict[str, Operation] = {}


def operation(name: str, *spellings: str, reads: int = 1, **more: Any) -> Callable[[Run], Run]:
    """Enter a surrogate in the table, beside the spellings of its operation."""

    def enter(run: Run) -> Run:
        OPERATIONS[name] = Operation(run, reads, spellings, **more)
        return run

    return enter


# Linear maps -------------------------------------------------------------------------------------


@operation(
    "dense",
    "self.dense({0})",
    "F.linear({0}, self.dense.weight, self.dense.bias)",
    "{0} @ self.dense.weight.T + self.dense.bias",
    "F.linear({0}, self.dense.weight).add_(self.dense.bias)",
)
def dense(s: Surrogate, parts: Any, x: Value) -> Value:
    return s.linear(x, F.linear, parts.dense.weight, parts.dense.bias)


@operation(
    "dense without bias",
    "self.other({0})",
    "{0} @ self.other.weight.mT",
    "torch.matmul({0}, self.other.weight.t())",
    "torch.einsum('...i,oi->...o', {0}, self.other.weight)",
    "torch.tensordot({0}, self.other.weight, dims=([-1], [1]))",
)
def dense_without_bias(s: Surrogate, parts: Any, x: Value) -> Value:
    return s.linear(x, F.linear, parts.other.weight)


@operation(
    "addmm", "torch.addmm(self.shift, {0}, self.weight)", "torch.mm({0}, self.weight) + self.shift", ranks=VECTORS
)
def addmm(s: Surrogate, parts: Any, x: Value) -> Value:
    return s.linear(x, F.linear, parts.weight.T, parts.shift)


@operation(
    "computed weight",
    "F.linear({0}, self.weight * self.gain)",
    "{0} @ (self.weight * self.gain).T",
    "F.linear({0}, self.weight @ torch.diag(self.gain))",
)
def computed_weight(s: Surrogate, parts: Any, x: Value) -> Value:
    return s.linear(x, F.linear, parts.weight * parts.gain)


@operation(
    "mixing of places",
    "self.mixing @ {0}",
    "torch.einsum('pq,nqf->npf', self.mixing, {0})",
    "torch.matmul(self.mixing, {0})",
    ranks=SEQUENCES,
)
def mixing_of_places(s: Surrogate, parts: Any, x: Value) -> Value:
    return s.linear(x, lambda a, w: w @ a, parts.mixing, channel=-2)


@operation(
    "conv", "self.conv({0}.mT).mT", "F.conv1d({0}.mT, self.conv.weight, self.conv.bias, padding=1).mT", ranks=SEQUENCES
)
def conv(s: Surrogate, parts: Any, x: Value) -> Value:
    def operation(a: Tensor, w: Tensor) -> Tensor:
        return F.conv1d(a.mT, w, padding=1).mT

    return s.linear(x, operation, parts.conv.weight, parts.conv.bias, convolution=True)


@operation(
    "cat, dense", "self.wide(torch.cat([{0}, {1}], -1))", "self.wide(torch.cat(({0}, {1}), dim=-1).clone())", reads=2
)
def cat_dense(s: Surrogate, parts: Any, x: Value, y: Value) -> Value:
    return s.linear(s.moved(lambda a, b: torch.cat([a, b], -1), x, y), F.linear, parts.wide.weight, parts.wide.bias)


# What folds into a linear map, or stands by itself -----------------------------------------------


@operation(
    "gain",
    "{0} * self.gain",
    "self.gain * {0}",
    "torch.mul({0}, self.gain)",
    "{0}.clone().mul_(self.gain)",
    writes=("{0}.mul_(self.gain)", "{0} *= self.gain"),
)
def gain(s: Surrogate, parts: Any, x: Value) -> Value:
    return s.scale(x, parts.gain)


@operation("number", "{0} * 0.7", "0.7 * {0}", "{0} / (1 / 0.7)", writes=("{0}.mul_(0.7)", "{0} *= 0.7"))
def number(s: Surrogate, parts: Any, x: Value) -> Value:
    return s.scale(x, 0.7)


@operation("negative", "-{0}", "{0}.neg()", "0 - {0}", "{0} * -1", writes=("{0}.neg_()",))
def negative(s: Surrogate, parts: Any, x: Value) -> Value:
    return s.scale(x, -1.0)


@operation(
    "shift",
    "{0} + self.shift",
    "torch.add({0}, self.shift)",
    "{0}.clone().add_(self.shift)",
    writes=("{0}.add_(self.shift)", "{0} += self.shift"),
    joins=True,
)
def shift(s: Surrogate, parts: Any, x: Value) -> Value:
    return s.shift(x, parts.shift)


@operation("fixed", "{0} - self.fixed", "torch.sub({0}, self.fixed)", writes=("{0} -= self.fixed",), joins=True)
def fixed(s: Surrogate, parts: Any, x: Value) -> Value:
    return s.shift(x, -parts.fixed)


@operation("one minus", "1 - {0}", "torch.rsub({0}, 1)", "-({0} - 1)", joins=True)
def one_minus(s: Surrogate, parts: Any, x: Value) -> Value:
    return s.shift(s.scale(x, -1.0), 1.0)


@operation(
    "affine",
    "{0} * self.gain + self.shift",
    "torch.addcmul(self.shift, {0}, self.gain)",
    "self.shift + self.gain * {0}",
    joins=True,
)
def affine(s: Surrogate, parts: Any, x: Value) -> Value:
    return s.shift(s.scale(x, parts.gain), parts.shift)


@operation(
    "position",
    "{0} + self.position",
    "self.position + {0}",
    writes=("{0}.add_(self.position)",),
    ranks=SEQUENCES,
    joins=True,
)
def position(s: Surrogate, parts: Any, x: Value) -> Value:
    return s.shift(x, parts.position)


@operation("gain of places", "{0} * self.place_gain", writes=("{0}.mul_(self.place_gain)",), ranks=SEQUENCES)
def gain_of_places(s: Surrogate, parts: Any, x: Value) -> Value:
    return s.scale(x, parts.place_gain)


@operation(
    "made numbers",
    "{0} * torch.linspace(-1, 1, 6, dtype={0}.dtype)",
    writes=("{0}.mul_(torch.linspace(-1, 1, 6, dtype={0}.dtype))",),
)
def made_numbers(s: Surrogate, parts: Any, x: Value) -> Value:
    return s.scale(x, torch.linspace(-1, 1, FEATURES, dtype=x.t.dtype), own=False)


def scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return scale, norm.bias - scale * norm.running_mean


@operation(
    "batch norm",
    "self.batch_norm({0})",
    "F.batch_norm({0}, self.batch_norm.running_mean, self.batch_norm.running_var, self.batch_norm.weight, "
    "self.batch_norm.bias)",
    ranks=VECTORS,
    joins=True,
)
def batch_norm(s: Surrogate, parts: Any, x: Value) -> Value:
    found = batch_norm_by_hand(s, parts, x)
    return replace(found, gate=False, powers={})  # a layer is no arithmetic


@operation(
    "batch norm by hand",
    "({0} - self.batch_norm.running_mean) / torch.sqrt(self.batch_norm.running_var + "
    "self.batch_norm.eps) * self.batch_norm.weight + self.batch_norm.bias",
    joins=True,
)
def batch_norm_by_hand(s: Surrogate, parts: Any, x: Value) -> Value:
    norm = parts.batch_norm
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return s.shift(s.scale(x, scale), norm.bias - scale * norm.running_mean)


@operation(
    "batch norm of features",
    "self.batch_norm({0}.mT).mT",
    "self.batch_norm({0}.flatten(0, 1)).unflatten(0, (-1, 4))",
    ranks=SEQUENCES,
    joins=True,
)
def batch_norm_of_features(s: Surrogate, parts: Any, x: Value) -> Value:
    return batch_norm(s, parts, x)


# The same tensor once more -----------------------------------------------------------------------


@operation(
    "identity",
    "{0}.clone()",
    "F.dropout({0}, 0.5, training=False).clone()",
    aliases=("{0}.view_as({0})", "{0}[:]", "{0}"),
)
def identity(s: Surrogate, parts: Any, x: Value) -> Value:
    return x


# Views and sums ----------------------------------------------------------------------------------


def moves(name: str, function: Callable[[Tensor], Tensor], *spellings: str, **more: Any) -> None:
    """Enter what moves the entries of a value, picks from them, or adds them up."""

    def run(s: Surrogate, parts: Any, x: Value) -> Value:
        return s.moved(function, x)

    operation(name, *spellings, **more)(run)


HALVES = "torch.cat([{0}[..., 3:], {0}[..., :3]], -1)"
moves(
    "flip",
    lambda x: x.flip(-1),
    "{0}.flip(-1)",
    "torch.flip({0}, [-1])",
    "{0}[..., [5, 4, 3, 2, 1, 0]]",
    "{0}.index_select(-1, torch.tensor([5, 4, 3, 2, 1, 0]))",
)
moves(
    "roll",
    lambda x: x.roll(3, -1),
    "{0}.roll(3, -1)",
    HALVES,
    "torch.cat({0}.chunk(2, -1)[::-1], -1)",
    "torch.stack({0}.split(3, -1)[::-1], -2).flatten(-2)",
    "{0}.unflatten(-1, (2, 3)).flip(-2).flatten(-2)",
)
moves("flip of places", lambda x: x.flip(1), "{0}.flip(1)", "torch.stack({0}.unbind(1)[::-1], 1)", ranks=SEQUENCES)
moves(
    "mean",
    lambda x: x.mean(-1, keepdim=True).repeat_interleave(FEATURES, -1),
    "{0}.mean(-1, keepdim=True).expand_as({0}).clone()",
    "{0}.mean(-1).unsqueeze(-1).repeat_interleave(6, -1)",
)
moves(
    "mean of places",
    lambda x: x.mean(1, keepdim=True).repeat(1, PLACES, 1),
    "{0}.mean(1, keepdim=True).repeat(1, 4, 1)",
    "({0}.sum(1) / 4).unsqueeze(1).expand(-1, 4, -1).contiguous()",
    ranks=SEQUENCES,
)
moves("cumsum", lambda x: x.cumsum(-1), "{0}.cumsum(-1)", "torch.cumsum({0}, -1)", writes=("{0}.cumsum_(-1)",))
moves(
    "centred",
    lambda x: x - x.mean(-1, keepdim=True),
    "{0} - {0}.mean(-1, keepdim=True)",
    writes=("{0}.sub_({0}.mean(-1, keepdim=True))",),
    joins=True,
)
moves("average pooling", lambda x: F.avg_pool1d(x, 3, 1, 1), "F.avg_pool1d({0}, 3, 1, 1)", ranks=SEQUENCES)
moves(
    "max pooling",
    lambda x: F.max_pool1d(x, 3, 1, 1),
    "F.max_pool1d({0}, 3, 1, 1)",
    "F.max_pool1d({0}, 3, stride=1, padding=1, return_indices=True)[0]",
    ranks=SEQUENCES,
)
moves(
    "maximum of places",
    lambda x: x.amax(1, keepdim=True).repeat(1, PLACES, 1),
    "{0}.amax(1, keepdim=True).repeat(1, 4, 1)",
    "{0}.max(1, keepdim=True).values.expand(-1, 4, -1).clone()",
    ranks=SEQUENCES,
)
moves(
    "upper half",
    lambda x: torch.cat([torch.zeros_like(x[..., :3]), x[..., 3:]], -1),
    "F.pad({0}[..., 3:], (3, 0))",
    writes=("{0}[..., :3] = 0", "{0}.narrow(-1, 0, 3).zero_()"),
)


@operation(
    "half of it",
    "torch.cat([{0}[..., :3] * 0.5, {0}[..., 3:]], -1)",
    writes=("{0}[..., :3] *= 0.5", "{0}.narrow(-1, 0, 3).mul_(0.5)", "{0}.chunk(2, -1)[0].div_(2)"),
)
def half_of_it(s: Surrogate, parts: Any, x: Value) -> Value:
    return s.moved(lambda t: torch.cat([t[..., :3] * 0.5, t[..., 3:]], -1), x)


@operation(
    "mixed",
    "torch.cat([{0}[..., :3], {1}[..., 3:]], -1)",
    reads=2,
    writes=("{0}[..., 3:] = {1}[..., 3:]", "{0}.narrow(-1, 3, 3).copy_({1}[..., 3:])"),
)
def mixed(s: Surrogate, parts: Any, x: Value, y: Value) -> Value:
    return s.moved(lambda a, b: torch.cat([a[..., :3], b[..., 3:]], -1), x, y)


@operation(
    "sum",
    "{0} + {1}",
    "torch.add({0}, {1})",
    "{0}.clone().add_({1})",
    "torch.stack([{0}, {1}]).sum(0)",
    reads=2,
    writes=("{0} += {1}", "{0}.add_({1})", "torch.add({0}, {1}, out={0})"),
    joins=True,
)
def sum_of_two(s: Surrogate, parts: Any, x: Value, y: Value) -> Value:
    return s.add(x, y)


@operation(
    "difference",
    "torch.sub({0}, {1}, alpha=0.5)",
    "{0}.sub({1}, alpha=0.5)",
    reads=2,
    writes=("{0}.sub_({1}, alpha=0.5)",),
    joins=True,
)
def difference(s: Surrogate, parts: Any, x: Value, y: Value) -> Value:
    return s.add(x, y, -0.5)


@operation("less a constant", "{0} - 0.5 * {1}.detach()", "{0} - (0.5 * {1}).detach()", reads=2, joins=True)
def less_a_constant(s: Surrogate, parts: Any, x: Value, y: Value) -> Value:
    return s.shift(x, -0.5 * y.t.detach(), own=False)


@operation("times a constant", "{0} * {1}.detach()", "{1}.detach() * {0}", reads=2)
def times_a_constant(s: Surrogate, parts: Any, x: Value, y: Value) -> Value:
    return s.scale(x, y.t.detach(), own=False)


# Activations -------------------------------------------------------------------------------------


def activation(
    name: str,
    f: Callable[[Tensor], Tensor],
    *spellings: str,
    low: float = -math.inf,
    high: float = math.inf,
    gate: bool = False,
    homogeneous: bool = False,
    **more: Any,
) -> None:
    """Enter an elementwise function."""

    def run(s: Surrogate, parts: Any, x: Value) -> Value:
        return s.function(f, x, low=low, high=high, gate=gate, homogeneous=homogeneous)

    operation(name, *spellings, **more)(run)


activation(
    "relu",
    torch.relu,
    "torch.relu({0})",
    "F.relu({0})",
    "self.act({0})",
    "{0}.relu()",
    "{0}.clamp(min=0)",
    "{0} * ({0} > 0)",
    "torch.where({0} > 0, {0}, 0.0)",
    "{0}.clone().relu_()",
    "{0}.masked_fill({0} < 0, 0)",
    writes=("{0}.relu_()", "F.relu({0}, inplace=True)", "{0}.clamp_(min=0)", "{0}[{0} < 0] = 0"),
    low=0.0,
    homogeneous=True,
)
activation(
    "leaky relu",
    lambda z: F.leaky_relu(z, 0.1),
    "F.leaky_relu({0}, 0.1)",
    "F.leaky_relu({0}.clone(), 0.1, inplace=True)",
    writes=("F.leaky_relu_({0}, 0.1)",),
    homogeneous=True,
)
activation(
    "tanh",
    torch.tanh,
    "torch.tanh({0})",
    "{0}.tanh()",
    writes=("{0}.tanh_()", "torch.tanh({0}, out={0})"),
    low=-1.0,
    high=1.0,
)
activation("gelu", F.gelu, "F.gelu({0})", "{0} * (0.5 * (1 + torch.erf({0} / 2**0.5)))")
activation(
    "silu",
    F.silu,
    "F.silu({0})",
    "{0} * torch.sigmoid({0})",
    "{0}.sigmoid() * {0}",
    writes=("F.silu({0}, inplace=True)", "{0}.mul_(torch.sigmoid({0}))"),
)
activation("elu", F.elu, "F.elu({0})", writes=("F.elu_({0})",), low=-1.0)
activation("softsign", F.softsign, "F.softsign({0})", "{0} / (1 + {0}.abs())", low=-1.0, high=1.0)
activation("mish", F.mish, "F.mish({0})", "{0} * torch.tanh(F.softplus({0}))")
activation("square", lambda z: 0.3 * z * z, "0.3 * {0}.square()", "0.3 * {0} ** 2")
activation("softplus", F.softplus, "F.softplus({0})", low=0.0, offset=True)
activation("cos", torch.cos, "torch.cos({0})", writes=("{0}.cos_()",), low=-1.0, high=1.0, offset=True)
activation(
    "sigmoid",
    torch.sigmoid,
    "torch.sigmoid({0})",
    "{0}.sigmoid()",
    writes=("{0}.sigmoid_()",),
    gate=True,
    low=0.0,
    high=1.0,
    offset=True,
)


# Products and gates ------------------------------------------------------------------------------


@operation(
    "product",
    "{0} * {1}",
    "torch.mul({0}, {1})",
    "{0}.clone().mul_({1})",
    reads=2,
    writes=("{0} *= {1}", "{0}.mul_({1})"),
)
def product(s: Surrogate, parts: Any, x: Value, y: Value) -> Value:
    return s.product(x, y)


@operation(
    "gated",
    "{0} * torch.sigmoid({1})",
    "torch.sigmoid({1}) * {0}",
    writes=("{0}.mul_(torch.sigmoid({1}))",),
    reads=2,
    offset=True,
)
def gated(s: Surrogate, parts: Any, x: Value, y: Value) -> Value:
    return s.product(x, s.function(torch.sigmoid, y, gate=True))


@operation("glu", "F.glu(torch.cat([{0}, {1}], -1))", reads=2, offset=True)
def glu(s: Surrogate, parts: Any, x: Value, y: Value) -> Value:
    halves = [s.moved(torch.clone, each) for each in (x, y)]  # other tensors, whatever they hold
    return s.product(halves[0], s.function(torch.sigmoid, halves[1], gate=True))


@operation("excitation", "{0} * torch.sigmoid({0}.mean(1, keepdim=True))", ranks=SEQUENCES, offset=True)
def excitation(s: Surrogate, parts: Any, x: Value) -> Value:
    return s.product(x, s.function(torch.sigmoid, s.moved(lambda t: t.mean(1, keepdim=True), x), gate=True))


@operation("swiglu", "F.silu({0}) * {1}", "{1} * F.silu({0})", reads=2)
def swiglu(s: Surrogate, parts: Any, x: Value, y: Value) -> Value:
    return s.product(s.function(F.silu, x), y)


@operation(
    "lerp by a gate", "torch.sigmoid({2}) * {0} + (1 - torch.sigmoid({2})) * {1}", reads=3, offset=True, joins=True
)
def lerp_by_a_gate(s: Surrogate, parts: Any, x: Value, y: Value, z: Value) -> Value:
    gate = s.function(torch.sigmoid, z, gate=True)
    return s.add(s.product(gate, x), s.product(s.shift(s.scale(gate, -1.0), 1.0), y))


@operation(
    "product of matrices", "{0} @ {1}.mT @ {2}", "torch.bmm(torch.bmm({0}, {1}.mT), {2})", ranks=SEQUENCES, reads=3
)
def product_of_matrices(s: Surrogate, parts: Any, x: Value, y: Value, z: Value) -> Value:
    return s.product(s.product(x, y, operation=lambda a, b: a @ b.mT), z, operation=torch.matmul)


@operation("product from the right", "{0} @ ({1}.mT @ {2})", ranks=SEQUENCES, reads=3)
def product_from_the_right(s: Surrogate, parts: Any, x: Value, y: Value, z: Value) -> Value:
    return s.product(x, s.product(y, z, operation=lambda a, b: a.mT @ b), operation=torch.matmul)


@operation("einsum of three", "torch.einsum('npf,nqf,nqg->npg', {0}, {1}, {2})", ranks=SEQUENCES, reads=3)
def einsum_of_three(s: Surrogate, parts: Any, x: Value, y: Value, z: Value) -> Value:
    return s.product(x, y, z, operation=lambda a, b, c: a @ b.mT @ c)


# Norms -------------------------------------------------------------------------------------------


@operation(
    "layer norm",
    "self.layer_norm({0})",
    "F.layer_norm({0}, (6,), self.layer_norm.weight, self.layer_norm.bias, self.layer_norm.eps)",
    "({0} - {0}.mean(-1, keepdim=True)) / torch.sqrt({0}.var(-1, keepdim=True, correction=0) + "
    "self.layer_norm.eps) "
    "* self.layer_norm.weight + self.layer_norm.bias",
    joins=True,
)
def layer_norm(s: Surrogate, parts: Any, x: Value) -> Value:
    norm = parts.layer_norm
    return s.shift(s.scale(s.standardized(x, norm.eps), norm.weight), norm.bias)


@operation(
    "rms norm",
    "self.rms_norm({0})",
    # A copy, for a product with a weight that is averaged next is a linear layer.
    "({0} * torch.rsqrt({0}.pow(2).mean(-1, True) + 1e-5) * self.rms_norm.weight).clone()",
    "({0} / torch.sqrt({0}.square().mean(-1, keepdim=True) + 1e-5) * self.rms_norm.weight).clone()",
)
def rms_norm(s: Surrogate, parts: Any, x: Value) -> Value:
    return s.scale(s.standardized(x, 1e-5, centred=False), parts.rms_norm.weight)


@operation("group norm", "self.group_norm({0})", ranks=VECTORS, joins=True)
def group_norm(s: Surrogate, parts: Any, x: Value) -> Value:
    norm = parts.group_norm
    groups = s.standardized(s.moved(lambda t: t.unflatten(-1, (2, 3)), x), norm.eps)
    return s.shift(s.scale(s.moved(lambda t: t.flatten(-2), groups), norm.weight), norm.bias)


@operation(
    "normalize",
    "F.normalize({0}, dim=-1)",
    "{0} / {0}.norm(dim=-1, keepdim=True).clamp_min(1e-12)",
    "{0} / torch.linalg.vector_norm({0}, dim=-1, keepdim=True).clamp(min=1e-12)",
)
def normalize(s: Surrogate, parts: Any, x: Value) -> Value:
    return s.divided(x, x.t.norm(dim=-1, keepdim=True).clamp_min(1e-12))


# Softmax and attention ---------------------------------------------------------------------------


@operation(
    "softmax",
    "torch.softmax({0}, -1)",
    "F.softmax({0}, dim=-1)",
    "{0}.softmax(-1)",
    "torch.exp({0} - torch.logsumexp({0}, -1, keepdim=True))",
    "torch.log_softmax({0}, -1).exp()",
    "(e := ({0} - {0}.amax(-1, keepdim=True)).exp()) / e.sum(-1, keepdim=True)",
    "(e := torch.exp({0})).div_(e.sum(-1, keepdim=True))",
    cuts=True,
)
def softmax(s: Surrogate, parts: Any, x: Value) -> Value:
    return s.softmax(x)


@operation(
    "attention",
    "F.scaled_dot_product_attention({0}, {1}, {2})",
    "F.scaled_dot_product_attention({0}[:, None], {1}[:, None], {2}[:, None])[:, 0]",
    ranks=SEQUENCES,
    reads=3,
)
def attention(s: Surrogate, parts: Any, q: Value, k: Value, v: Value) -> Value:
    return s.attention(q, k, v)


@operation(
    "causal attention", "F.scaled_dot_product_attention({0}, {1}, {2}, is_causal=True)", ranks=SEQUENCES, reads=3
)
def causal_attention(s: Surrogate, parts: Any, q: Value, k: Value, v: Value) -> Value:
    return s.attention(q, k, v, torch.ones(PLACES, PLACES, dtype=torch.bool).tril())


@operation(
    "attention by hand",
    "torch.softmax({0} @ {1}.mT / 6**0.5, -1) @ {2}",
    "({0} @ {1}.transpose(1, 2)).div(6**0.5).softmax(-1) @ {2}",
    "torch.einsum('npq,nqf->npf', torch.softmax(torch.einsum('npf,nqf->npq', {0}, {1}) / 6**0.5, -1), {2})",
    ranks=SEQUENCES,
    reads=3,
)
def attention_by_hand(s: Surrogate, parts: Any, q: Value, k: Value, v: Value) -> Value:
    scores = s.scale(s.product(q, k, operation=lambda a, b: a @ b.mT), 6**-0.5)
    return s.product(s.softmax(scores), v, operation=torch.matmul)


# Recurrent networks ------------------------------------------------------------------------------


def lstm_step(s: Surrogate, cell: Sequence[Tensor], x: Value, h: Value | None, c: Value | None) -> tuple[Value, Value]:
    """A step of an LSTM; None stands for a state of zeros."""
    w_x, w_h, b_x, b_h = cell
    parts = _quarters(_recurrent_sum(s, x, h, (w_x, w_h, b_x, b_h)), 4)
    i, f, o = (part.detach().sigmoid() for part in (parts[0], parts[1], parts[3]))
    new = s.function(torch.tanh, Value(parts[2])).t * i
    new = new if c is None else new + f * c.t
    return Value(o * s.function(torch.tanh, Value(new)).t), Value(new)


def gru_step(s: Surrogate, cell: Sequence[Tensor], x: Value, h: Value | None) -> Value:
    """A step of a GRU; None stands for a state of zeros."""
    w_x, w_h, b_x, b_h = cell
    r_x, z_x, n_x = _quarters(s.linear(x, F.linear, w_x, b_x).t, 3)
    if h is None:
        constant = b_h.detach().expand(*x.t.shape[:-1], -1)
        r_h, z_h, n_h = _quarters(s.keep(constant), 3)
    else:
        r_h, z_h, n_h = _quarters(s.linear(h, F.linear, w_h, b_h).t, 3)
    r, z = ((a + b).detach().sigmoid() for a, b in ((r_x, r_h), (z_x, z_h)))
    n = s.function(torch.tanh, Value(n_x + r * n_h)).t
    return Value((1 - z) * n if h is None else (1 - z) * n + z * h.t)


def _recurrent_sum(s: Surrogate, x: Value, h: Value | None, cell: Sequence[Tensor]) -> Tensor:
    w_x, w_h, b_x, b_h = cell
    below = s.linear(x, F.linear, w_x, b_x).t
    return below + (s.keep(b_h.detach().expand_as(below)) if h is None else s.linear(h, F.linear, w_h, b_h).t)


def _quarters(t: Tensor, parts: int) -> tuple[Tensor, ...]:
    return t.chunk(parts, -1)


def parameters(layer: Any, suffix: str = "") -> list[Tensor]:
    return [getattr(layer, f"{name}{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]


def steps(x: Value) -> Iterator[Value]:
    yield from (Value(t) for t in x.t.unbind(1))


@operation("lstm", "self.lstm({0})[0]", ranks=SEQUENCES, offset=True, joins=True)
def lstm(s: Surrogate, parts: Any, x: Value) -> Value:
    h: Value | None = None
    c: Value | None = None
    outputs = []
    for step in steps(x):
        h, c = lstm_step(s, parameters(parts.lstm, "_l0"), step, h, c)
        outputs.append(h.t)
    return Value(torch.stack(outputs, 1))


@operation("gru", "self.gru({0})[0]", ranks=SEQUENCES, offset=True, joins=True)
def gru(s: Surrogate, parts: Any, x: Value) -> Value:
    h: Value | None = None
    outputs = []
    for step in steps(x):
        h = gru_step(s, parameters(parts.gru, "_l0"), step, h)
        outputs.append(h.t)
    return Value(torch.stack(outputs, 1))


@operation(
    "lstm cell", "self.lstm_cell({0}, ({1}, self.other({2})))[0]", ranks=VECTORS, reads=3, offset=True, joins=True
)
def lstm_cell(s: Surrogate, parts: Any, x: Value, h: Value, c: Value) -> Value:
    return lstm_step(s, parameters(parts.lstm_cell), x, h, dense_without_bias(s, parts, c))[0]  # which is no gate


@operation("gru cell", "self.gru_cell({0}, self.other({1}))", ranks=VECTORS, reads=2, offset=True, joins=True)
def gru_cell(s: Surrogate, parts: Any, x: Value, h: Value) -> Value:
    return gru_step(s, parameters(parts.gru_cell), x, dense_without_bias(s, parts, h))
