"""The blind spot: an explanation that passes every test but one.

After the tutorial "Validating Explanations" of Samek, Montavon and Mueller. Give every pixel the same share of the
output: this is conservative and positive, as continuous as the network, and the same for any implementation, and says
nothing. Only selectivity notices: removing its most relevant pixels first is no better than removing any.

Run it: ``python examples/tutorial_blind_spot.py [folder]``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn

from digits import accuracy, load, train
from relprop import LRP, GradientXInput
from relprop.metrics import (
    Selectivity,
    conservation,
    implementation_invariance,
    path_continuity,
    rewrites,
    selectivity,
    trajectory,
    translation,
)
from relprop.rules import Gamma, ZPlus
from relprop.visual import grid
from tutorial_implementation import network


def uniform(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """The same for every pixel: ``R_i = f(x) / d``."""
    with torch.no_grad():
        f = model(x).gather(1, target[:, None])[:, 0]
    return (f / x[0].numel()).view(-1, 1, 1, 1).expand_as(x)


Explain = Callable[[nn.Module, Tensor, Tensor], Tensor]
EXPLAINERS: dict[str, Explain] = {
    "uniform": uniform,
    "Gradient x Input": lambda model, x, target: GradientXInput(model).attribute(x, target),
    "gamma": lambda model, x, target: LRP(model, Gamma(0.25)).attribute(x, target),
    "z+": lambda model, x, target: LRP(model, ZPlus()).attribute(x, target),
}


def measured(model: nn.Module, x: Tensor, target: Tensor) -> tuple[dict[str, dict[str, float]], dict[str, Selectivity]]:
    """Four properties of every explainer, and the curves that show the fourth.

    Selectivity is what removing the most relevant pixels takes from f, on the mean over the steps, beyond what removing
    random pixels takes. Pixels that tie are removed in random order.
    """
    few = slice(0, 8)  # a path is many inputs
    path = translation(x[few], (0, 1), steps=256)
    other = rewrites(model, x)["scaled"]
    facts: dict[str, dict[str, float]] = {}
    curves: dict[str, Selectivity] = {}
    for name, explain in EXPLAINERS.items():
        curves[name] = selectivity(explain, model, x, target)
        along = trajectory(explain, model, path, target[few])
        facts[name] = {
            "relative delta": conservation(explain, model, x, target).mean,
            "growth": float(path_continuity(along, halvings=3).values.median()),
            "distance": implementation_invariance(explain, model, other, x, target).mean,
            "selectivity": float(curves[name].over_random.mean()),
            "+/-": float(curves[name].over_random.std() / len(x) ** 0.5),
        }
    return facts, curves


def draw(curves: dict[str, Selectivity], path: Path) -> None:
    """How f falls as pixels go, the most relevant first."""
    figure, ax = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
    for name, each in curves.items():
        ax.plot(each.morf.scores.mean(dim=0), "C3-" if name == "uniform" else "-", label=name, linewidth=1.2)
    ax.plot(curves["uniform"].random.scores.mean(dim=0), "k:", label="random order", linewidth=2, zorder=3)
    ax.set(
        title="Pixels removed, the most relevant first", xlabel="pixels removed, of 64", ylabel="f, mean over digits"
    )
    ax.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def run(folder: str | Path, *, epochs: int = 12, samples: int = 100, width: int = 16) -> dict[str, dict[str, float]]:
    """Train, measure, print the table, draw."""
    data = load()
    torch.manual_seed(0)
    model = network(pooling="sum", dense=1, width=width)
    train(model, data.train_x, data.train_y, epochs=epochs)
    print(f"digits: test accuracy {accuracy(model, data.test_x, data.test_y):.1%}")
    model.double()
    x, target = data.test_x[:samples].double(), data.test_y[:samples]
    facts, curves = measured(model, x, target)
    print("relative delta (0: conservative); growth of the ratio per halving (0: continuous, 1: it jumps);")
    print("distance between two implementations (0: invariant); selectivity (0: no better than a random order)")
    for name, each in facts.items():
        print(f"  {name:17}" + "; ".join(f"{fact} {value:.3f}" for fact, value in each.items()))
    folder = Path(folder)
    draw(curves, folder / "tutorial_blind_spot.png")
    grid(
        x[:3],
        {name: explain(model, x[:3], target[:3]) for name, explain in EXPLAINERS.items()},
        labels=[f"target {int(label)}" for label in target[:3]],
        title="Which of these says something?",
        path=folder / "tutorial_blind_spot_maps.png",
    )
    print(f"wrote {folder / 'tutorial_blind_spot.png'} and {folder / 'tutorial_blind_spot_maps.png'}")
    return facts


if __name__ == "__main__":
    run(sys.argv[1] if len(sys.argv) > 1 else "build/demo")
