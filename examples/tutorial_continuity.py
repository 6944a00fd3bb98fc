"""Continuity: a digit moves, its explanation should move with it.

After Montavon, Samek and Mueller, "Methods for interpreting and understanding deep neural networks" (2018,
arXiv:1706.07979), section 7.1. A three moves to the right in parts of a pixel. At each kink of the network that it
crosses, Gradient x Input jumps; gamma's map glides. Halving the step tells a jump from a steep slope: a jump stays.

Run it: ``python examples/tutorial_continuity.py [folder]``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn

from digits import accuracy, load, train
from relprop import LRP, GradientXInput
from relprop.metrics import PathContinuity, Trajectory, path_continuity, trajectory, translation
from relprop.rules import Gamma, ZPlus
from relprop.visual import animation

SIDE = 14


def scattered(x: Tensor, seed: int) -> Tensor:
    """Put digits anywhere on a canvas: [N, 1, 8, 8] -> [N, 1, SIDE, SIDE]."""
    places = torch.randint(SIDE - 7, (len(x), 2), generator=torch.Generator().manual_seed(seed))
    canvas = torch.zeros(len(x), 1, SIDE, SIDE)
    for n, (top, left) in enumerate(places.tolist()):
        canvas[n, :, top : top + 8, left : left + 8] = x[n]
    return canvas


def network(width: int = 16) -> nn.Sequential:
    """Four convolutions, [N, 1, SIDE, SIDE] -> [N, 10]; average pooling, for where a maximum switches even z+ jumps."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(2 * width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * width * (SIDE // 4) ** 2, 10),
    )


def trained(*, epochs: int = 6, copies: int = 4, width: int = 16, seed: int = 0) -> tuple[nn.Sequential, Tensor]:
    """A network that knows digits wherever they are, and a three at the left of its canvas, in float64."""
    data = load()
    torch.manual_seed(seed)
    model = network(width)
    x = torch.cat([scattered(data.train_x, seed=n) for n in range(copies)])
    train(model, x, data.train_y.repeat(copies), epochs=epochs, seed=seed)
    score = accuracy(model, scattered(data.test_x, seed=copies), data.test_y)
    print(f"network on scattered digits: test accuracy {score:.2%}")
    three = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.float64)
    three[..., 3:11, :8] = data.test_x[data.test_y == 3][0]
    return model.double(), three


def followed(model: nn.Module, x: Tensor, *, pixels: float, steps: int) -> dict[str, Trajectory]:
    """What every method says while ``x`` moves to the right."""
    path = translation(x, (0, pixels), steps)
    methods = {
        "Gradient x Input": GradientXInput(model),
        "gamma": LRP(model, Gamma(0.25)),
        "z+": LRP(model, ZPlus()),
    }
    return {
        name: trajectory(lambda model, x, target, method=method: method.attribute(x, target), model, path, target=3)
        for name, method in methods.items()
    }


def measured(along: Mapping[str, Trajectory], *, halvings: int = 6) -> dict[str, PathContinuity]:
    """The jumps and ratios of every method under halving, printed."""
    results = {name: path_continuity(each, halvings=halvings) for name, each in along.items()}
    print("largest jump |R(x') - R(x)|_1 of a step, and largest ratio to |x' - x|_2, by number of steps")
    for name, result in results.items():
        jumps = ", ".join(f"{float(jump):.3g}" for jump in result.jumps)
        ratios = ", ".join(f"{float(ratio):.3g}" for ratio in result.ratios)
        print(f"  {name}: steps {', '.join(map(str, result.steps))}\n    jump  {jumps}\n    ratio {ratios}")
        print(f"    the ratio last grew as 2^{float(result.values):.2f} (0: continuous, 1: it jumps)")
    return results


def draw(results: Mapping[str, PathContinuity], path: Path) -> None:
    """Two panels: jumps and ratios against the number of steps, both axes logarithmic."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.4), layout="constrained")
    for name, result in results.items():
        left.loglog(result.steps, result.jumps[:, 0], "o-", markersize=3, base=2, label=name)
        right.loglog(result.steps, result.ratios[:, 0], "o-", markersize=3, base=2, label=name)
    left.set(title="Largest jump: gone with the step, or not", ylabel=r"max $|R(x_{t+1}) - R(x_t)|_1$")
    right.set(title="Largest ratio: converges, or not", ylabel=r"max $|\Delta R|_1 / |\Delta x|_2$")
    for ax in (left, right):
        ax.set_xlabel("steps on the path")
        ax.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def film(along: Mapping[str, Trajectory], path: Path) -> None:
    """The moving three, its maps, and how much they change from frame to frame."""
    animation(
        next(iter(along.values())).inputs[:, 0],
        {name: each.relevance[:, 0] for name, each in along.items()},
        path,
        curves={name: each.jumps[:, 0] for name, each in along.items()},
        curves_label="change of the map",
        title="A three moves to the right; what speaks for three?",
    )


def run(folder: str | Path) -> None:
    """Train, follow, measure, draw."""
    model, three = trained()
    picture, gif = Path(folder) / "tutorial_continuity.png", Path(folder) / "tutorial_continuity.gif"
    draw(measured(followed(model, three, pixels=1, steps=1024)), picture)
    film(followed(model, three, pixels=SIDE - 8, steps=64), gif)
    print(f"wrote {picture} and {gif}")


if __name__ == "__main__":
    run(sys.argv[1] if len(sys.argv) > 1 else "build/demo")
