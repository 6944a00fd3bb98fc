"""A graph network explained, nodes and edges: scikit-learn's digits as graphs of their inked pixels.

Every pixel with ink is a node that knows how much and where it is; those that touch are joined by edges both ways that
know their direction. Messages pass along the edges by ``index_add``, in a network that is written in plain PyTorch.
The relevance of the nodes and of the edges adds up to the output, less what the biases take; how far does the label's
output fall when the most relevant nodes or edges are taken away, and how far when as many are at random?

Run it: ``python examples/graph.py [folder]``.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from matplotlib.collections import LineCollection
from torch import Tensor, nn

from digits import load
from relprop import LRP, Keywords

TAKEN = 0.25  # of the nodes, or of the edges, that are taken away


class Graphs(NamedTuple):
    """Some graphs as one, without edges between them."""

    nodes: Tensor  # [V, 17]: ink, which row, which column
    edges: Tensor  # [2, E]: from, to
    directions: Tensor  # [E, 9]: which of the neighbours sends
    graph: Tensor  # [V]: the graph of every node
    count: int

    def without(self, nodes: Tensor, edges: Tensor) -> Graphs:
        """Return the same graphs without some nodes (their ink, features and edges) and without some edges."""
        kept = ~(edges | nodes[self.edges].any(0))
        return Graphs(
            torch.where(nodes[:, None], 0.0, self.nodes), self.edges[:, kept], self.directions[kept], self.graph,
            self.count,
        )  # fmt: skip


def graphs_of(images: Tensor) -> Graphs:
    """Return the graphs of images ``[N, 1, 8, 8]``."""
    ink = images.squeeze(1)
    graph, row, column = torch.where(ink > 0.25)
    number = torch.full(F.pad(ink, (1, 1, 1, 1)).shape, -1)  # of the node at every place, -1 where there is none
    number[graph, row + 1, column + 1] = torch.arange(len(graph))
    sources, targets, directions = [], [], []
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            source = number[graph, row + 1 + down, column + 1 + right]
            (target,) = torch.where((source >= 0) & bool(down or right))
            sources.append(source[target])
            targets.append(target)
            directions.append(torch.full_like(target, 3 * down + right + 4))
    nodes = torch.cat([ink[graph, row, column, None], F.one_hot(row, 8), F.one_hot(column, 8)], 1).float()
    edges = torch.stack([torch.cat(sources), torch.cat(targets)])
    return Graphs(nodes, edges, F.one_hot(torch.cat(directions), 9).float(), graph, len(images))


class GraphNet(nn.Module):
    """Two rounds of messages and a sum over the nodes: graphs to ``[N, 10]``."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.embed = nn.Linear(17, width)
        self.send = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.along = nn.ModuleList(nn.Linear(9, width, bias=False) for _ in range(2))
        self.update = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()) for _ in range(2)
        )
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, nodes: Tensor, edges: Tensor, directions: Tensor, graph: Tensor, count: int) -> Tensor:
        h = F.relu(self.embed(nodes))
        for send, along, update in zip(self.send, self.along, self.update, strict=True):
            sent = F.relu(send(h).index_select(0, edges[0]) + along(directions))
            received = torch.zeros_like(h).index_add(0, edges[1], sent) / 2
            h = update(torch.cat([h, received], 1))
        pooled = h.new_zeros(count, h.shape[1]).index_add(0, graph, h)
        return self.head(pooled / 4)


def train(model: GraphNet, x: Tensor, y: Tensor, epochs: int, seed: int) -> None:
    """Train on cross-entropy with Adam and a one-cycle schedule."""
    shuffle, batches = torch.Generator().manual_seed(seed), -(-len(x) // 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-2, total_steps=epochs * batches)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x), generator=shuffle).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(*graphs_of(x[chosen])), y[chosen]).backward()
            optimizer.step()
            schedule.step()
    model.eval()


def foremost(relevance: Tensor, graph: Tensor, share: float) -> Tensor:
    """Return a mask ``[M]`` of the share of every graph's parts that have the most relevance."""
    mask = torch.zeros(len(relevance), dtype=torch.bool)
    for index in graph.unique():
        (parts,) = torch.where(graph == index)
        mask[parts[relevance[parts].topk(round(share * len(parts))).indices]] = True
    return mask


def run(folder: str | Path, *, epochs: int = 12, width: int = 24, seed: int = 0) -> dict[str, dict[str, float]]:
    """Train, explain, print the table and draw; returns by how much the label's output falls."""
    data = load()
    torch.manual_seed(seed)
    model, start = GraphNet(width), time.perf_counter()
    train(model, data.train_x, data.train_y, epochs, seed)
    graphs, labels = graphs_of(data.test_x), data.test_y
    with torch.no_grad():
        score = float((model(*graphs).argmax(1) == labels).float().mean())
    print(f"Graph network: test accuracy {score:.1%}, trained in {time.perf_counter() - start:.1f} s")

    lrp = LRP(model, "epsilon", strict=True)
    given = Keywords(graphs._asdict())
    found = lrp.attribute(given, labels.tolist())
    nodes, edges = found["nodes"].sum(1), found["directions"].sum(1)
    report = lrp.report(given, labels.tolist())
    shares = {"nodes": nodes.sum(), "edges": edges.sum(), "biases": report.absorbed["bias"]}
    print("  of the output: " + ", ".join(f"{name} {float(part) / report.output:.1%}" for name, part in shares.items()))

    falls = measure(model, graphs, labels, nodes, edges, seed)
    print(f"  {f'taking away {TAKEN:.0%} of':<22}{'at random':>12}{'by relevance':>14}")
    for name, fall in falls.items():
        print(f"  {name:<22}{fall['at random']:>12.2f}{fall['by relevance']:>14.2f}")
    print(f"  wrote {draw(Path(folder) / 'graph.png', graphs, labels, nodes.detach(), edges.detach())}")
    return falls


@torch.no_grad()
def measure(
    model: GraphNet, graphs: Graphs, labels: Tensor, nodes: Tensor, edges: Tensor, seed: int
) -> dict[str, dict[str, float]]:
    """Return how far the labels' outputs fall, on average, when nodes or edges are taken away."""

    def fall(gone: Graphs) -> float:
        return float((model(*graphs) - model(*gone)).gather(1, labels[:, None]).mean())

    chance = torch.Generator().manual_seed(seed)
    no_node, no_edge = torch.zeros(len(nodes), dtype=torch.bool), torch.zeros(len(edges), dtype=torch.bool)
    falls: dict[str, dict[str, float]] = {"nodes": {}, "edges": {}}
    orders = {
        "at random": (torch.rand(len(nodes), generator=chance), torch.rand(len(edges), generator=chance)),
        "by relevance": (nodes, edges),
    }
    for name, (of_nodes, of_edges) in orders.items():
        chosen = foremost(of_nodes, graphs.graph, TAKEN)
        falls["nodes"][name] = fall(graphs.without(chosen, no_edge))
        chosen = foremost(of_edges, graphs.graph[graphs.edges[1]], TAKEN)
        falls["edges"][name] = fall(graphs.without(no_node, chosen))
    return falls


def places(nodes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows and the columns of nodes."""
    return nodes[:, 1:9].argmax(1), nodes[:, 9:].argmax(1)


def draw(path: Path, graphs: Graphs, labels: Tensor, nodes: Tensor, edges: Tensor) -> Path:
    """Draw the first graph of five classes: ink, then nodes and edges by relevance, each with a scale of its own."""
    figure, axes = plt.subplots(2, 5, figsize=(11, 5), layout="constrained")
    for column in range(5):
        index = int((labels == column).nonzero()[0, 0])
        mine, joined = graphs.graph == index, graphs.graph[graphs.edges[1]] == index
        ink, (row, col) = graphs.nodes[mine, 0], places(graphs.nodes[mine])
        upper, lower = axes[0, column], axes[1, column]
        upper.scatter(col, row, c=ink, cmap="gray_r", vmin=0, vmax=1, s=90, edgecolors="0.8")
        upper.set_title(f"{column}")
        rows, cols = places(graphs.nodes)
        ends = torch.stack([cols, rows], 1)[graphs.edges[:, joined]].movedim(0, 1).float()  # [E, 2, 2] as x, y
        middle = ends.mean(1, keepdim=True)
        of_edges = edges[joined]
        limit = float(of_edges.abs().max())
        halves = torch.cat([middle, ends[:, 1:]], 1)  # an edge is drawn at the end that receives
        lines = LineCollection(list(halves.numpy()), cmap="seismic", array=of_edges.numpy(), linewidths=2.5)
        lines.set_clim(-limit, limit)
        lower.add_collection(lines)
        limit = float(nodes[mine].abs().max())
        lower.scatter(
            col, row, c=nodes[mine].numpy(), cmap="seismic", vmin=-limit, vmax=limit, s=70, edgecolors="0.6",
            zorder=2,
        )  # fmt: skip
        for ax in (upper, lower):
            ax.set(xlim=(-0.6, 7.6), ylim=(7.6, -0.6), xticks=[], yticks=[], aspect="equal")
    axes[0, 0].set_ylabel("ink")
    axes[1, 0].set_ylabel("relevance (red: for)")
    figure.suptitle("A graph network on digits: relevance of nodes, and of edges at the end that receives")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


if __name__ == "__main__":
    plt.switch_backend("Agg")
    run(sys.argv[1] if len(sys.argv) > 1 else "build/demo")
