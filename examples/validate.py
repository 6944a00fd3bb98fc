"""Which of these explanations is any good? Several methods, several metrics, on digits: tables and pictures.

    python examples/validate.py [folder]

writes ``selectivity.png``, ``road.png``, ``sanity.png``, ``randomised_maps.png`` and ``mosaics.png`` into the folder
(``build/validate`` by default).
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from digits import Digits, trained
from relprop import LRP, Gradient, GradientXInput, GuidedBackprop
from relprop.metrics import (
    efficient_randomisation,
    evaluate,
    faithfulness_correlation,
    gini_sparseness,
    infidelity,
    input_invariance,
    inside_total_ratio,
    localisation_auc,
    parameter_randomisation,
    pointing_game,
    random_logit,
    relevance_rank_accuracy,
    road,
    selectivity,
)
from relprop.rules import Rules
from relprop.visual import curves, grid


def explainers() -> dict[str, Any]:
    """The methods: functions from a model, an input and a target to relevance."""
    laplace = torch.tensor([[0.0, -1.0, 0.0], [-1.0, 4.0, -1.0], [0.0, -1.0, 0.0]])

    def edges(model: nn.Module, x: Tensor, target: Any) -> Tensor:
        """The input's edges: looks like an explanation and never asks the model."""
        kernel = laplace.expand(x.shape[1], 1, 3, 3)
        return torch.nn.functional.conv2d(x, kernel, padding=1, groups=x.shape[1]).abs()

    return {
        "LRP": lambda model, x, target: LRP(model, Rules.preset("epsilon_plus")).attribute(x, target),
        "Gradient x Input": lambda model, x, target: GradientXInput(model).attribute(x, target),
        "|Gradient|": lambda model, x, target: Gradient(model).attribute(x, target).abs(),
        "Guided backprop": lambda model, x, target: GuidedBackprop(model).attribute(x, target),
        "Edges": edges,
        "Uniform": lambda model, x, target: torch.ones_like(x),
    }


def mosaics(digits: Digits, count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return 2 x 2 mosaics of digits of 16 x 16 pixels, ``[count, 1, 32, 32]``, a class, and where it is.

    The class stands in one of the four quadrants; the others are of other classes.
    """
    source = torch.Generator().manual_seed(seed)
    x = torch.zeros(count, 1, 32, 32)
    mask = torch.zeros(count, 32, 32, dtype=torch.bool)
    target = torch.zeros(count, dtype=torch.long)
    for n in range(count):
        chosen = torch.randperm(len(digits.test_x), generator=source)
        target[n] = digits.test_y[chosen[0]]
        others = chosen[digits.test_y[chosen] != target[n]][:3]
        places = torch.randperm(4, generator=source)
        for place, sample in zip(places, (chosen[0], *others), strict=True):
            row, column = 16 * int(place // 2), 16 * int(place % 2)
            tile = digits.test_x[sample].repeat_interleave(2, 1).repeat_interleave(2, 2)
            x[n, :, row : row + 16, column : column + 16] = tile
            if sample == chosen[0]:
                mask[n, row : row + 16, column : column + 16] = True
    return x, target, mask


class OnMosaics(nn.Module):
    """The digits network on each quadrant, the outputs added: what is in a mosaic, wherever it is."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        small = torch.nn.functional.avg_pool2d(x, 2)
        quadrants = [small[:, :, r : r + 8, c : c + 8] for r in (0, 8) for c in (0, 8)]
        return sum(torch.relu(self.model(each)) for each in quadrants)


def show_selectivity(model: nn.Module, x: Tensor, y: Tensor, folder: Path) -> None:
    """Flip pixels in three orders, and impute them."""
    start = time.perf_counter()
    found = {name: selectivity(explain, model, x, y) for name, explain in explainers().items()}
    print(f"\n{len(found)} x 3 curves of {len(x)} images x 64 steps in {time.perf_counter() - start:.1f} s")
    for name, each in found.items():
        print(f"\n{name}\n{each}")
    orders = {
        "most relevant first": {name: each.morf.scores for name, each in found.items()},
        "least relevant first": {name: each.lerf.scores for name, each in found.items()},
    }
    orders["most relevant first"]["random"] = found["LRP"].random.scores
    orders["least relevant first"]["random"] = found["LRP"].random.scores
    curves(orders, xlabel="pixels set to 0", ylabel="logit of the class", path=folder / "selectivity.png")

    parts = {name: road(explain, model, x, y) for name, explain in explainers().items()}
    panels = {
        "most relevant first": {name: each.morf for name, each in parts.items()},
        "least relevant first": {name: each.lerf for name, each in parts.items()},
    }
    steps = parts["LRP"].fractions
    curves(panels, steps, xlabel="part imputed (ROAD)", ylabel="accuracy", path=folder / "road.png")


def show_sanity(model: nn.Module, x: Tensor, y: Tensor, folder: Path) -> None:
    """Randomise layers, from the output to the input."""
    methods = {name: each for name, each in explainers().items() if name != "Uniform"}  # nothing to correlate
    ways: dict[str, dict[str, Any]] = {
        "cascading, rank correlation": {},
        "independent, rank correlation": {"order": "independent"},
        "cascading, SSIM": {"similarity": "ssim"},
    }
    every = {
        title: {name: parameter_randomisation(each, model, x, y, **options) for name, each in methods.items()}
        for title, options in ways.items()
    }
    panels = {title: {name: each.similarity for name, each in found.items()} for title, found in every.items()}
    first = every["cascading, rank correlation"]
    layers = first["LRP"].layers
    curves(panels, layers, ylabel="similarity", path=folder / "sanity.png")
    maps = {
        f"{name}\n{(None, *layers)[k] or 'the model'}": first[name].maps[k, :3]
        for name in ("LRP", "Edges")
        for k in (0, 1, 4, 8, len(layers))
    }
    grid(x[:3], maps, title="Randomised from the output down to ...", path=folder / "randomised_maps.png")


def show_localisation(model: nn.Module, digits: Digits, tiles: int, folder: Path) -> None:
    """Ask where in a mosaic the class is."""
    x, y, mask = mosaics(digits, tiles)
    whole = OnMosaics(model).eval()
    maps = {name: explain(whole, x, y) for name, explain in explainers().items()}
    print("\nmosaics: pointing game, inside-total ratio, rank accuracy, AUC (chance 0.25, 0.25, 0.25, 0.5)")
    for name, each in maps.items():
        values = [
            metric(each, mask).mean()
            for metric in (pointing_game, inside_total_ratio, relevance_rank_accuracy, localisation_auc)
        ]
        print(f"  {name:18s}" + "".join(f"{float(value):8.3f}" for value in values))
    grid(
        x[:4],
        {name: each[:4] for name, each in maps.items()},
        labels=[f"a {int(t)}" for t in y[:4]],
        path=folder / "mosaics.png",
    )


def run(folder: Path, *, epochs: int = 12, samples: int = 64, tiles: int = 48) -> None:
    """Train, measure, print, draw.

    Args:
        folder: where the pictures go.
        epochs: of training.
        samples: test images to explain.
        tiles: mosaics to explain.
    """
    model, digits = trained(epochs)
    x, y = digits.test_x[:samples], digits.test_y[:samples]
    show_selectivity(model, x, y, folder)
    show_sanity(model, x, y, folder)
    show_localisation(model, digits, tiles, folder)
    metrics = {
        "faithfulness": faithfulness_correlation,
        "infidelity": partial(infidelity, rescale=True),
        "eMPRT": efficient_randomisation,
        "random logit": partial(random_logit, classes=10),
        "shift by 1": input_invariance,
        "Gini": lambda explain, model, x, target: gini_sparseness(explain(model, x, target)),
    }
    batches = list(zip(x.split(32), y.split(32), strict=True))
    print(f"\n{evaluate(explainers(), metrics, model, batches)}")
    print(f"\npictures in {folder}")


if __name__ == "__main__":
    run(Path(sys.argv[1] if len(sys.argv) > 1 else "build/validate"))
