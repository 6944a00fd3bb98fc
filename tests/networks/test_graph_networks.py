"""Message passing by index_add, scatter and sparse products: nodes and edges, against references by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import LRP, InputError, Keywords, TargetError
from tests.models import settle
from tests.unrolled import RULES, Share, assert_close, dense, random, share_by

SOURCE = torch.tensor([0, 1, 1, 2, 3, 3, 4, 0])
TARGET = torch.tensor([1, 0, 2, 1, 2, 4, 3, 4])
EDGES = torch.stack([SOURCE, TARGET])
NODES = 5


def adjacency(layout: str) -> Tensor:
    """``A[i, j] = 1 / degree(i)`` for an edge from j to i, and 1 at i = j."""
    dense_ = torch.eye(NODES, dtype=torch.float64)
    dense_[TARGET, SOURCE] = 1.0
    dense_ = dense_ / dense_.sum(1, keepdim=True)
    if layout == "coo":
        return dense_.to_sparse()
    return dense_.to_sparse_csr() if layout == "csr" else dense_


class Convolution(nn.Module):
    """[V, 4] to [V, 3]: two graph convolutions by a product with a (sparse) matrix, which is given or its own."""

    def __init__(self, layout: str, multiply: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)
        self.multiply = multiply
        settle(self)
        self.register_buffer("matrix", adjacency(layout))

    def forward(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        matrix = self.matrix if given is None else given
        h = F.relu(self.multiply(matrix, self.first(x)))
        return self.multiply(matrix, self.second(h))


class Isomorphism(nn.Module):
    """Nodes [V, 4] and edges [2, E] to [1, 3]: sums over neighbours by index_add, then over the graph."""

    def __init__(self, add: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.add = add
        settle(self)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        for layer in (self.first, self.second):
            x = F.relu(layer(1.5 * x + self.add(torch.zeros_like(x), edges[1], x[edges[0]])))
        return self.head(x.sum(0, keepdim=True))  # type: ignore[no-any-return]


class Messages(nn.Module):
    """Nodes [V, 4], edges [2, E] with features [E, 2] to [V, 3]: a network makes each message of what it joins."""

    def __init__(self) -> None:
        super().__init__()
        self.message = nn.Sequential(nn.Linear(10, 7), nn.ReLU(), nn.Linear(7, 5))
        self.update = nn.Linear(9, 3)
        settle(self)

    def forward(self, x: Tensor, edges: Tensor, features: Tensor) -> Tensor:
        i, j = edges[1], edges[0]
        messages = self.message(torch.cat([x[i], x[j], features], 1))
        gathered = x.new_zeros(len(x), 5).scatter_add(0, i[:, None].expand_as(messages), messages)
        return self.update(torch.cat([x, gathered], 1))  # type: ignore[no-any-return]


def explain(reference: Callable[..., Tensor], rule: str, *leaves: Tensor) -> list[Tensor]:
    """Input times gradient of the reference's output of class 1, summed over its rows."""
    given = [x.clone().requires_grad_() for x in leaves]
    output = reference(share_by(rule), *given)[:, 1].sum()
    return [x.detach() * c for x, c in zip(given, torch.autograd.grad(output, given), strict=True)]


def gather(x: Tensor, messages: Tensor) -> Tensor:
    """The sum of the messages that arrive at every node, one by one."""
    rows = [
        sum((messages[e] for e in range(len(SOURCE)) if TARGET[e] == node), torch.zeros_like(messages[0]))
        for node in range(len(x))
    ]
    return torch.stack(rows)


MULTIPLY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "@": lambda a, h: a @ h,
    "torch.sparse.mm": torch.sparse.mm,
    "torch.mm": torch.mm,
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("layout", ["dense", "coo", "csr"])
@pytest.mark.parametrize("product", MULTIPLY)
@pytest.mark.parametrize("owned", [True, False], ids=["a buffer", "given"])
def test_graph_convolution(owned: bool, product: str, layout: str, rule: str) -> None:
    """The matrix is a weight where the model owns it, and data, of a sum by LRP-0, where it is given."""
    if layout == "dense" and product == "torch.sparse.mm":
        pytest.skip("torch.sparse.mm takes a sparse matrix")
    model, x = Convolution(layout, MULTIPLY[product]), random(NODES, 4)
    matrix = adjacency("dense")

    def reference(share: Share, x: Tensor) -> Tensor:
        def gathered(h: Tensor) -> Tensor:
            # The rows of the matrix are the channels: written with them last.
            return share(lambda a, weight, _: a @ weight.mT, h.mT, matrix).mT if owned else matrix @ h

        return gathered(dense(share, model.second, gathered(dense(share, model.first, x)).relu()))

    (expected,) = explain(reference, rule, x)
    lrp, given = LRP(model, RULES[rule][0], strict=True), None if owned else (adjacency(layout),)
    assert_close(lrp.attribute(x, lambda out: out[:, 1], given), expected)
    lrp.report(x, lambda out: out[:, 1], given).check(1e-9)


class Weighted(nn.Module):
    """Nodes [V, 4] and weights of edges [E] to [V, 3]: the weights fill a sparse matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)
        settle(self)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        matrix = torch.sparse_coo_tensor(EDGES.flip(0), weights, (NODES, NODES), check_invariants=True).coalesce()
        return self.second(torch.sparse.mm(matrix, F.relu(self.first(x))))  # type: ignore[no-any-return]


@pytest.mark.parametrize("rule", RULES)
def test_weights_of_edges(rule: str) -> None:
    """A product of two that depend on the input: each has half of the relevance."""
    model, x, weights = Weighted(), random(NODES, 4), random(len(SOURCE), seed=1)

    def reference(share: Share, x: Tensor, weights: Tensor) -> Tensor:
        h, matrix = dense(share, model.first, x).relu(), x.new_zeros(NODES, NODES)
        matrix = matrix.index_put((TARGET, SOURCE), weights)
        slopes = matrix.detach() @ h + matrix @ h.detach()
        return dense(share, model.second, (matrix @ h).detach() + (slopes - slopes.detach()) / 2)

    nodes, edges = explain(reference, rule, x, weights)
    lrp, given = LRP(model, RULES[rule][0], strict=True), Keywords(x=x, weights=weights)
    found = lrp.attribute(given, 1)
    assert_close(found["x"], nodes, "nodes")
    assert_close(found["weights"], edges, "edges")
    lrp.report(given, 1).check(1e-9)


ADD: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "index_add": lambda out, index, x: out.index_add(0, index, x),
    "index_add_": lambda out, index, x: out.index_add_(0, index, x),
    "scatter_add": lambda out, index, x: out.scatter_add(0, index[:, None].expand_as(x), x),
    "scatter_reduce": lambda out, index, x: out.scatter_reduce(0, index[:, None].expand_as(x), x, "sum"),
    "index_put": lambda out, index, x: out.index_put((index,), x, accumulate=True),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("way", ADD)
def test_sums_over_neighbours(way: str, rule: str) -> None:
    model, x = Isomorphism(ADD[way]), random(NODES, 4)

    def reference(share: Share, x: Tensor) -> Tensor:
        for layer in (model.first, model.second):
            x = dense(share, layer, 1.5 * x + gather(x, x[SOURCE])).relu()
        return dense(share, model.head, x.sum(0, keepdim=True))

    (expected,) = explain(reference, rule, x)
    lrp = LRP(model, RULES[rule][0], strict=True)
    given = Keywords(x=x, edges=EDGES)
    found, delta = lrp.attribute(given, 1, return_convergence_delta=True)
    assert isinstance(found, Keywords)
    assert found["edges"] is None
    assert_close(found["x"], expected)
    assert delta.shape == (1,)
    assert_close(delta, model(x, EDGES)[:, 1].detach() - expected.sum(), tolerance=1e-9)
    report = lrp.report(given, 1)
    report.check(1e-9)
    assert_close(report.delta, delta, tolerance=1e-9)


@dataclass
class Graph:
    """A graph as a data class, with what a model needs besides its tensors."""

    x: Tensor
    edges: Tensor
    features: Tensor
    name: str = "molecule"


class Around(nn.Module):
    """The model, given a graph as one argument."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, graph: Any) -> Tensor:
        entries = graph if isinstance(graph, dict) else vars(graph)
        return self.model(entries["x"], entries["edges"], entries["features"])  # type: ignore[no-any-return]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("form", ["keywords", "dict", "dataclass", "nested"])
def test_nodes_and_edges(form: str, rule: str) -> None:
    model, x, features = Messages(), random(NODES, 4), random(len(SOURCE), 2, seed=1)

    def reference(share: Share, x: Tensor, features: Tensor) -> Tensor:
        joined = torch.cat([x[TARGET], x[SOURCE], features], 1)
        messages = dense(share, model.message[2], dense(share, model.message[0], joined).relu())
        return dense(share, model.update, torch.cat([x, gather(x, messages)], 1))

    nodes, edges = explain(reference, rule, x, features)
    rules = RULES[rule][0]
    if form == "keywords":
        found = dict(LRP(model, rules).attribute(Keywords(x=x, edges=EDGES, features=features), 1))
    elif form == "dict":
        found = LRP(Around(model), rules).attribute({"x": x, "edges": EDGES, "features": features}, 1)
    elif form == "dataclass":
        graph = LRP(Around(model), rules).attribute(Graph(x, EDGES, features), 1)
        assert isinstance(graph, Graph)
        assert graph.name == "molecule"
        found = vars(graph)
    else:
        nested = LRP(Unpacked(model), rules).attribute(([x, {"e": EDGES}], features), 1)
        assert isinstance(nested, tuple)
        assert isinstance(nested[0], list)
        found = {"x": nested[0][0], "edges": nested[0][1]["e"], "features": nested[1]}
    assert_close(found["x"], nodes, "nodes")
    assert_close(found["features"], edges, "edges")
    assert found["edges"] is None


class Unpacked(nn.Module):
    """The model, given a list with a mapping in it, and a tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, nodes: list[Any], features: Tensor) -> Tensor:
        return self.model(nodes[0], nodes[1]["e"], features)  # type: ignore[no-any-return]


def test_layers_targets_and_one_node() -> None:
    """The other questions, and the relevance of one node's output, which stays among its neighbours."""
    model, x, features = Messages(), random(NODES, 4), random(len(SOURCE), 2, seed=1)
    given = Keywords(x=x, edges=EDGES, features=features)
    lrp = LRP(model, "lrp0")
    layers = lrp.attribute_layers(given, ["message.0", "update"], 1)
    assert layers["message.0"].shape == (8, 7)
    every = lrp.attribute_targets(given, [0, 1])
    assert every["features"].shape == (2, 8, 2)
    assert every["edges"] is None
    assert_close(every["x"][1], lrp.attribute(given, 1)["x"])
    node = lrp.attribute(given, lambda out: out[2:3, 1])
    reached = {2, *SOURCE[TARGET == 2].tolist()}
    assert {row for row in range(NODES) if bool(node["x"][row].any())} == reached
    assert {e for e in range(8) if bool(node["features"][e].any())} == set(torch.where(TARGET == 2)[0].tolist())


def test_what_does_not_fit() -> None:
    model, x, features = Messages(), random(NODES, 4), random(len(SOURCE), 2, seed=1)
    lrp = LRP(model, "lrp0")
    with pytest.raises(InputError, match=r"batch of 8, the first one of 5. .* relprop\.Keywords"):
        lrp.attribute((x, features), 1)
    with pytest.raises(TargetError, match="lists 2 entries for 5 samples"):
        lrp.attribute(Keywords(x=x, edges=EDGES, features=features), [0, 1])
    with pytest.raises(InputError, match="holds no tensor that can be explained"):
        lrp.attribute(Keywords(mask=EDGES > 0), 1)
    with pytest.raises(InputError, match="does not depend on"):
        lrp.attribute(Keywords(x=x.detach(), edges=EDGES, features=features), lambda out: out.detach()[:, 0])
