"""Implementation: one function, several networks, and what their explanations say.

After the tutorial "Validating Explanations" of Samek, Montavon and Mueller. Two networks compute the maximum of two
positive numbers; Gradient x Input sees only the function, gamma and z+ see how it is built. Then a network trained on
digits, rewritten without changing what it computes; and, since propagation depends on structure, the advice of
Montavon et al. 2018 (arXiv:1706.07979), section 6, taken step by step: few dense layers, with dropout; sum-pooling;
no positive biases.

Run it: ``python examples/tutorial_implementation.py [folder]``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn
from torch.nn.utils import parametrize

from digits import Digits, accuracy, load, train
from relprop import LRP, Attribution, GradientXInput
from relprop.metrics import (
    absorbed_shares,
    implementation_invariance,
    path_continuity,
    rewrites,
    trajectory,
    translation,
)
from relprop.rules import Epsilon, Gamma, LinearRule, WSquare, ZPlus
from relprop.visual import grid

RULES: dict[str, LinearRule | None] = {
    "Gradient x Input": None,
    "gamma": Gamma(0.25),
    "z+": ZPlus(),
    "epsilon 0.1": Epsilon(0.1),
    "w^2": WSquare(),
}


def method(model: nn.Module, rule: LinearRule | None) -> Attribution:
    """The method of a rule; Gradient x Input where there is none."""
    return GradientXInput(model) if rule is None else LRP(model, rule)


def linear(weight: list[list[float]]) -> nn.Linear:
    """A linear layer without bias, in float64."""
    layer = nn.Linear(len(weight[0]), len(weight), bias=False, dtype=torch.float64)
    layer.weight.data = torch.tensor(weight, dtype=torch.float64)
    return layer


def maxima() -> tuple[nn.Sequential, nn.Sequential]:
    """max(x1, x2) for x >= 0, twice: [N, 2] -> [N, 1].

    a: relu(x1 - x2) + relu(x2); b: (relu(x1 - x2) + relu(x2 - x1) + relu(x1 + x2)) / 2.
    """
    a = nn.Sequential(linear([[1, -1], [0, 1]]), nn.ReLU(), linear([[1, 1]]))
    b = nn.Sequential(linear([[1, -1], [-1, 1], [1, 1]]), nn.ReLU(), linear([[0.5, 0.5, 0.5]]))
    return a, b


def of_maximum() -> dict[str, tuple[list[float], list[float]]]:
    """What each rule says of both at (3, 1), and how far apart they are on random points."""
    a, b = maxima()
    x = torch.tensor([[3.0, 1.0]], dtype=torch.float64)
    points = torch.rand(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    maps = {}
    print("max(x1, x2) at (3, 1), implementations a and b; distance of their maps over 200 points")
    for name in ("Gradient x Input", "gamma", "z+"):
        rule = RULES[name]
        maps[name] = tuple(method(model, rule).attribute(x)[0].tolist() for model in (a, b))
        apart = implementation_invariance(
            lambda model, x, target, rule=rule: method(model, rule).attribute(x), a, b, points
        )
        shown = [f"({first:.3f}, {second:.3f})" for first, second in maps[name]]
        print(f"  {name:17} a {shown[0]:17} b {shown[1]:17} distance {apart.mean:.3f}")
    return maps


def draw_maximum(path: Path, *, points: int = 60) -> None:
    """The share of the first input, R_1 / f, over the square: a row an implementation, a column a method."""
    axis = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    x = torch.cartesian_prod(axis, axis + 1e-6)  # x1, x2; off the diagonal
    names = ("Gradient x Input", "gamma", "z+")
    figure, panels = plt.subplots(2, 3, figsize=(7, 4.4), layout="constrained", sharex=True, sharey=True)
    for row, (letter, model) in zip(panels, zip("ab", maxima(), strict=True), strict=True):
        with torch.no_grad():
            f = model(x)[:, 0]
        for ax, name in zip(row, names, strict=True):
            share = (method(model, RULES[name]).attribute(x)[:, 0] / f).view(points, points).T.numpy()
            image = ax.imshow(share, origin="lower", extent=(0, 1, 0, 1), cmap="bwr", vmin=-1, vmax=1)
            ax.set_title(f"{letter}: {name}", fontsize=9)
        row[0].set_ylabel("x2")
    for ax in panels[1]:
        ax.set_xlabel("x1")
    figure.colorbar(image, ax=panels, label="R_1 / f")
    figure.suptitle("max(x1, x2): what the first input is given", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
    plt.close(figure)
    print(f"wrote {path}")


def of_rewriting(model: nn.Module, x: Tensor, target: Tensor) -> dict[str, dict[str, float]]:
    """The distance of every rule's maps between a network and its rewritten copies."""
    copies = rewrites(model, x)
    apart: dict[str, dict[str, float]] = {}
    print("the digits network rewritten: distance of the maps, mean over samples")
    print(f"  {'':17} " + " ".join(f"{name:>9}" for name in copies))
    for name, rule in RULES.items():
        apart[name] = {
            kind: implementation_invariance(
                lambda model, x, target, rule=rule: method(model, rule).attribute(x, target), model, copy, x, target
            ).mean
            for kind, copy in copies.items()
        }
        print(f"  {name:17} " + " ".join(f"{value:9.1e}" for value in apart[name].values()))
    return apart


class NotPositive(nn.Module):
    """A bias as minus the size of a free parameter."""

    def forward(self, free: Tensor) -> Tensor:
        return -free.abs()


def network(*, pooling: str = "max", dense: int = 3, free_bias: bool = True, width: int = 16) -> nn.Sequential:
    """A convolutional network on digits, more or less as section 6 advises: [N, 1, 8, 8] -> [N, 10]."""
    pool = {"max": nn.MaxPool2d, "sum": nn.AvgPool2d}[pooling]  # the mean is the sum, up to a factor
    parts: list[nn.Module] = []
    channels = 1
    for out in (width, 2 * width):
        for _ in range(2):
            parts += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU()]
            channels = out
        parts.append(pool(2))
    parts.append(nn.Flatten())
    features = 4 * channels
    for _ in range(dense - 1):
        parts += [nn.Linear(features, 64), nn.ReLU()]
        features = 64
    if dense == 1:
        parts.append(nn.Dropout(0.25))
    parts.append(nn.Linear(features, 10))
    model = nn.Sequential(*parts)
    if not free_bias:
        for layer in model:
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                parametrize.register_parametrization(layer, "bias", NotPositive())
    return model


def advised() -> dict[str, nn.Sequential]:
    """The same task, each network one piece of advice further."""
    return {
        "max pooling, 3 dense": network(),
        "+ sum-pooling": network(pooling="sum"),
        "+ 1 dense, dropout": network(pooling="sum", dense=1),
        "+ no positive bias": network(pooling="sum", dense=1, free_bias=False),
    }


def of_structure(
    folder: str | Path, data: Digits, *, epochs: int = 12, samples: int = 20, seed: int = 0
) -> dict[str, dict[str, float]]:
    """How much gamma jumps on a path, and how much biases take from z+, for every network."""
    x, target = data.test_x[:samples].double(), data.test_y[:samples]
    path = translation(x, (0, 1), steps=64)
    facts: dict[str, dict[str, float]] = {}
    maps = {}
    print("structure: growth of the ratio per halving (0: continuous, 1: it jumps); share of the output biases took")
    torch.manual_seed(seed)
    for name, model in advised().items():
        train(model, data.train_x, data.train_y, epochs=epochs, seed=seed)
        score = accuracy(model, data.test_x, data.test_y)
        model.double()
        gamma, zplus = LRP(model, Gamma(0.25)), LRP(model, ZPlus())
        along = trajectory(lambda model, x, target, gamma=gamma: gamma.attribute(x, target), model, path, target)
        shares = absorbed_shares(zplus.report(x, target).to_dict()).shares
        facts[name] = {"growth": path_continuity(along).mean, "bias": shares["bias"]}
        maps[name.replace(", ", ",\n")] = gamma.attribute(x[:4], target[:4])
        growth, bias = facts[name].values()
        print(f"  {name:21} accuracy {score:.1%}; gamma: growth {growth:.2f}; z+: bias {bias:.1%}")
    file = Path(folder) / "tutorial_implementation.png"
    grid(
        x[:4],
        maps,
        labels=[f"target {int(label)}" for label in target[:4]],
        title="Gamma on networks built for explaining, one step after the other",
        path=file,
    )
    print(f"wrote {file}")
    return facts


def run(folder: str | Path) -> None:
    """Maximum, rewriting, structure."""
    of_maximum()
    draw_maximum(Path(folder) / "tutorial_maximum.png")
    data = load()
    torch.manual_seed(0)
    model = network()
    train(model, data.train_x, data.train_y)
    of_rewriting(model.double(), data.test_x[:50].double(), data.test_y[:50])
    of_structure(folder, data)


if __name__ == "__main__":
    run(sys.argv[1] if len(sys.argv) > 1 else "build/demo")
