"""How often a rule evaluates its layer: no more convolutions and matrix products than the table says.

The table was measured with PyTorch 2.13 on a CPU, by `evaluations`: it counts what reaches ATen during one whole call
of `attribute` or `report`, so that the model's own forward pass is one of the evaluations forward and a plain
gradient makes 1+1. Forward and transposed were told apart by what a transposed product costs two of.

It was first measured when every rule was written by itself (commit e8e95fc). The one relevance function has saved
since: for Contrast 7+6 became 5+4, for RescaledExcitation(0.5) 5+4 became 3+2 and for (1.0) 1+1, where a >= 0
likewise; reports make one evaluation forward less for every sum that they share (gamma 7+4, z+ 7+2, alpha-beta 13+4,
Contrast 19+6 before). No number is larger than it was.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from relprop import LRP, Rules
from relprop.rules import (
    AbsoluteValue,
    AlphaBeta,
    Contrast,
    Epsilon,
    Flat,
    Gamma,
    LinearRule,
    RescaledExcitation,
    Rho,
    WSquare,
    ZBox,
    Zero,
    ZPlus,
)
from tests.cases import more_positive, signed

Columns = tuple[str, str, str, str, str, str]

# Evaluations of one layer, "forward+transposed", for a map and for a report, which accounts for what is absorbed too.
# "signed" and "a >= 0": what is known of the layer's input. "ReLU": alone it takes the output, and no zB, w^2 or flat
# stands above; behind a layer with signed input it changes nothing. A bias changes nothing either, and all linear
# layers are alike.
LIMITS: list[tuple[LinearRule, Columns]] = [
    #                                 signed          a >= 0          a >= 0, ReLU
    #                                 map    report   map    report   map    report
    (Zero(),                         ("1+1", "1+1",   "1+1", "1+1",   "1+1", "1+1")),
    (Epsilon(),                      ("1+1", "1+1",   "1+1", "1+1",   "1+1", "1+1")),
    (Epsilon(0.1, relative=True),    ("1+1", "1+1",   "1+1", "1+1",   "1+1", "1+1")),
    (Epsilon(bias="ignore"),         ("1+1", "1+1",   "1+1", "1+1",   "1+1", "1+1")),
    (Gamma(),                        ("3+4", "5+4",   "2+2", "3+2",   "2+1", "3+1")),
    (Gamma(bias="ignore"),           ("3+4", "5+4",   "2+2", "3+2",   "2+2", "3+2")),
    (AlphaBeta(2, 1),                ("5+4", "9+4",   "3+2", "5+2",   "3+2", "5+2")),
    (AlphaBeta(2, 1, bias="ignore"), ("5+4", "9+4",   "3+2", "5+2",   "3+2", "5+2")),
    (AlphaBeta(1, 0),                ("3+2", "5+2",   "2+1", "3+1",   "2+1", "3+1")),
    (AlphaBeta(1, 0, bias="ignore"), ("3+2", "5+2",   "2+1", "3+1",   "2+1", "3+1")),
    (ZPlus(),                        ("3+2", "5+2",   "2+1", "3+1",   "2+1", "3+1")),
    (ZPlus(bias="ignore"),           ("3+2", "5+2",   "2+1", "3+1",   "2+1", "3+1")),
    (AbsoluteValue(),                ("3+2", "5+2",   "2+1", "3+1",   "2+1", "3+1")),
    (RescaledExcitation(0.0),        ("3+2", "5+2",   "2+1", "3+1",   "2+1", "3+1")),
    (RescaledExcitation(0.5),        ("3+2", "5+2",   "2+1", "3+1",   "2+1", "3+1")),
    (RescaledExcitation(1.0),        ("1+1", "1+1",   "1+1", "1+1",   "1+1", "1+1")),
    (Contrast(),                     ("5+4", "9+4",   "3+2", "5+2",   "3+2", "5+2")),
    (ZBox(-2.0, 2.0),                ("3+2", "5+2",   "3+2", "5+2",   "3+2", "5+2")),
    (WSquare(),                      ("2+1", "3+1",   "2+1", "3+1",   "2+1", "3+1")),
    (Flat(),                         ("2+1", "3+1",   "2+1", "3+1",   "2+1", "3+1")),
    (Rho(more_positive),             ("2+1", "3+1",   "2+1", "3+1",   "2+1", "3+1")),
]  # fmt: skip
ROWS = [pytest.param(*row, id=repr(row[0]).split(" at ")[0]) for row in LIMITS]  # without the address of a function

# What linear calls and their derivatives end in.
EVALUATIONS = frozenset(
    """
    convolution convolution_overrideable convolution_backward convolution_backward_overrideable _convolution
    mm addmm _addmm_activation bmm baddbmm addbmm mv addmv dot vdot addr linear linear_backward matmul matmul_backward
    mkldnn_linear mkldnn_convolution _int_mm _scaled_mm _grouped_mm _sparse_mm sparse_sampled_addmm
    """.split()  # noqa: SIM905  # easier to read
)


class Counter(TorchDispatchMode):
    """Counts convolutions and matrix products below autograd, whose backward on a CPU runs on the same thread."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in EVALUATIONS
        return func(*args, **(kwargs or {}))


def evaluations(run: Callable[[], object]) -> int:
    with Counter() as counter:
        run()
    return counter.count


# Layers and where they stand ---------------------------------------------------------------------


class Product(nn.Module):
    """A product with a parameter [4, 5], written out; the bias is added behind it."""

    def __init__(self, product: Callable[[Tensor, Tensor], Tensor], bias: bool) -> None:
        super().__init__()
        self.product, self.weight = product, nn.Parameter(torch.empty(4, 5))
        self.bias = nn.Parameter(torch.empty(5)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        z = self.product(x, self.weight)
        return z if self.bias is None else z + self.bias


@dataclass(frozen=True)
class Layer:
    """A linear layer.

    Attributes:
        build: makes it, with a bias or without.
        shape: of its input.
        transposed: what a transposed product costs: 2 where the product runs once more to be differentiated.
        adds: the bias is an addition of its own, which takes the product's output in the place of the ReLU.
    """

    build: Callable[[bool], nn.Module]
    shape: tuple[int, ...]
    transposed: int = 1
    adds: bool = False

    def cost(self, entry: str) -> int:
        """The evaluations that an entry of the table stands for."""
        forward, transposed = map(int, entry.split("+"))
        return forward + transposed * self.transposed


def normed_convolution(bias: bool) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 5, 3, bias=bias), nn.BatchNorm2d(5))


def by_einsum(x: Tensor, weight: Tensor) -> Tensor:
    return torch.einsum("nd,de->ne", x, weight)


LAYERS = {
    "Linear": Layer(lambda bias: nn.Linear(4, 5, bias), (2, 4)),
    "Conv2d": Layer(lambda bias: nn.Conv2d(3, 5, 3, padding=1, bias=bias), (2, 3, 5, 4)),
    "ConvTranspose2d": Layer(lambda bias: nn.ConvTranspose2d(3, 5, 3, stride=2, bias=bias), (2, 3, 3, 3)),
    "Conv2d, BatchNorm2d": Layer(normed_convolution, (2, 3, 5, 5)),
    "matmul": Layer(lambda bias: Product(torch.matmul, bias), (2, 4), adds=True),
    "einsum": Layer(lambda bias: Product(by_einsum, bias), (2, 4), transposed=2, adds=True),
}


@dataclass(frozen=True)
class Place:
    """Where a layer stands: behind a ReLU (`a >= 0`), in front of one, under a flat layer; and with a bias or not."""

    nonnegative: bool
    relu: bool
    bias: bool
    under_flat: bool = False

    def entries(self, layer: Layer, columns: Columns) -> tuple[str, str]:
        """The entries of a row that hold here, for a map and for a report."""
        if not self.nonnegative:
            return columns[0:2]
        alone = self.relu and not self.under_flat and not (self.bias and layer.adds)
        return columns[4:6] if alone else columns[2:4]

    def model(self, layer: Layer) -> nn.Sequential:
        modules = [nn.ReLU()] * self.nonnegative + [layer.build(self.bias)] + [nn.ReLU()] * self.relu
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if self.under_flat:
                features = nn.Sequential(*modules)(torch.zeros(layer.shape)).shape[1:].numel()
                modules += [nn.Flatten(), nn.Linear(features, 3)]
            model = nn.Sequential(*modules).double().eval()
            for parameter in model.parameters():
                nn.init.normal_(parameter)
        return model


PLACES = [Place(*flags) for flags in itertools.product((False, True), repeat=3)]
PLACES += [Place(nonnegative, True, True, under_flat=True) for nonnegative in (False, True)]
ONE_FOR_EACH_COLUMN = PLACES[1], PLACES[5], PLACES[7]

Call = Callable[[LRP, Tensor], object]


def total(out: Tensor) -> Tensor:
    return out.flatten(1).sum(1)


def attribute(lrp: LRP, x: Tensor) -> object:
    return lrp.attribute(x, total)


def report(lrp: LRP, x: Tensor) -> object:
    return lrp.report(x, total)


@functools.cache
def of_flat(call: Call) -> int:
    return evaluations(lambda: call(LRP(nn.Linear(4, 3), Flat()), signed((2, 4), dtype=torch.float32)))


def of_layer(rule: LinearRule, layer: Layer, place: Place, call: Call = attribute, **options: Any) -> int:
    """The evaluations of the layer in a call; those of the flat layer above it are left out."""
    model, rules = place.model(layer), Rules().set(lambda name, module: True, rule)
    if place.under_flat:
        rules = rules.set(str(len(model) - 1), Flat())
    found = evaluations(lambda: call(LRP(model, rules, **options), signed(layer.shape)))
    return found - of_flat(call) if place.under_flat else found


# Tests -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize(("rule", "columns"), ROWS)
def test_no_more_evaluations_than_the_table_says(rule: LinearRule, columns: Columns, layer: Layer) -> None:
    more = {}
    for place in PLACES if layer is LAYERS["Linear"] else ONE_FOR_EACH_COLUMN:
        for call, entry in zip((attribute, report), place.entries(layer, columns), strict=True):
            found = of_layer(rule, layer, place, call)
            if found > layer.cost(entry):
                more[f"{call.__name__} at {place}"] = f"{found} evaluations; the table: {layer.cost(entry)} = {entry}"
    assert not more


@pytest.mark.parametrize("place", ONE_FOR_EACH_COLUMN, ids=str)
@pytest.mark.parametrize(("rule", "columns"), ROWS)
def test_other_calls_cost_no_more(rule: LinearRule, columns: Columns, place: Place) -> None:
    """Graphs for a loss and kept weights cost nothing, and every further target one backward pass."""
    layer = LAYERS["Conv2d"]
    before = layer.cost(place.entries(layer, columns)[0])

    def several(lrp: LRP, x: Tensor) -> object:
        return lrp.attribute_targets(x, [total] * 3)

    assert of_layer(rule, layer, place, lambda lrp, x: lrp.attribute(x, total, create_graph=True)) <= before
    assert of_layer(rule, layer, place, cache_weights=True) <= before
    assert of_layer(rule, layer, place, several) <= 1 + 3 * (before - 1)  # the model itself runs once


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_the_plain_gradient_is_counted(layer: Layer) -> None:
    model, x = PLACES[0].model(layer), signed(layer.shape).requires_grad_()
    assert evaluations(lambda: model(x)) == 1
    assert evaluations(lambda: torch.autograd.grad(total(model(x)).sum(), x)) == 2


class OnceMoreForward(Zero):
    def coefficient(self, layer: Any, a: Tensor, z: Tensor, c: Tensor) -> Tensor:
        layer.forward(a)
        return super().coefficient(layer, a, z, c)


class OnceMoreTransposed(Zero):
    def coefficient(self, layer: Any, a: Tensor, z: Tensor, c: Tensor) -> Tensor:
        layer.transpose(c)
        return super().coefficient(layer, a, z, c)


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_one_more_evaluation_is_counted(layer: Layer) -> None:
    for place in PLACES:
        usual = of_layer(Zero(), layer, place)
        assert of_layer(OnceMoreForward(), layer, place) == usual + 1
        assert of_layer(OnceMoreTransposed(), layer, place) == usual + layer.transposed
