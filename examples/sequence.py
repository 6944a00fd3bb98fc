"""A recurrent network explained: an LSTM that reads scikit-learn's digits row by row.

Each image is a sequence of eight rows of eight pixels, and the class is decided from the last hidden state. The
relevance of every pixel at every step is compared with Gradient x Input: how far does the label's output fall when the
pixels with the most relevance are erased, and how far when as many are erased at random?

Run it: ``python examples/sequence.py [folder]``.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from digits import accuracy, load, train
from relprop import LRP, Attribution, GradientXInput
from relprop.visual import grid


class Outcome(NamedTuple):
    """What is measured of the explanations of one method, on test data."""

    fall: float  # of the label's output when the most relevant pixels are erased
    unexplained: float  # share of the output that no rule accounts for
    relevance: Tensor  # [N, 1, 8, 8]


class RowReader(nn.Module):
    """An LSTM over the rows of an image, and a linear layer on its last hidden state: [N, 1, 8, 8] -> [N, 10]."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.layer = nn.LSTM(8, width, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        _, (h, _) = self.layer(x.squeeze(1))
        return self.head(h[-1])


@torch.no_grad()
def fall(model: nn.Module, x: Tensor, labels: Tensor, order: Tensor, pixels: int) -> float:
    """Return how far the labels' outputs fall, on average, when the pixels that come first in ``order`` are erased."""
    erased = x.flatten(1).scatter(1, order[:, :pixels], 0.0).view_as(x)
    outputs = model(x) - model(erased)
    return float(outputs.gather(1, labels[:, None]).mean())


def run(folder: str | Path, *, epochs: int = 20, width: int = 48, pixels: int = 6, seed: int = 0) -> dict[str, Outcome]:
    """Train, explain, print the table and draw the maps; returns what was measured of every method."""
    data = load()
    torch.manual_seed(seed)
    model = RowReader(width)
    start = time.perf_counter()
    train(model, data.train_x, data.train_y, epochs=epochs, seed=seed)
    score = accuracy(model, data.test_x, data.test_y)
    print(f"LSTM over rows: test accuracy {score:.1%}, trained in {time.perf_counter() - start:.1f} s")

    # Erasing is about ink: a pixel without any has nothing to erase, so it comes last in every order.
    x, labels = data.test_x, data.test_y
    blank = (x == 0).flatten(1)
    chance = torch.rand(blank.shape, generator=torch.Generator().manual_seed(seed)).masked_fill(blank, -1.0)
    print(f"  {f'erasing {pixels} pixels':<22}{'output falls by':>16}{'unexplained':>13}")
    print(f"  {'at random':<22}{fall(model, x, labels, chance.argsort(1, descending=True), pixels):>16.2f}")
    methods: dict[str, Attribution] = {"Gradient x Input": GradientXInput(model), "LRP": LRP(model, "epsilon")}
    outcomes: dict[str, Outcome] = {}
    for name, method in methods.items():
        relevance = method.attribute(x, labels)
        order = relevance.flatten(1).masked_fill(blank, -torch.inf).argsort(1, descending=True)
        report = method.report(x, labels)
        outcome = Outcome(fall(model, x, labels, order, pixels), abs(report.unexplained / report.output), relevance)
        outcomes[name] = outcome
        print(f"  {name:<22}{outcome.fall:>16.2f}{outcome.unexplained:>13.0e}")

    shown = torch.stack([(labels == digit).nonzero()[0, 0] for digit in range(5)])
    path = Path(folder) / "sequence.png"
    grid(
        x[shown],
        {name: outcome.relevance[shown] for name, outcome in outcomes.items()},
        labels=[str(digit) for digit in range(5)],
        title="An LSTM reads digits from top to bottom",
        path=path,
    )
    print(f"  wrote {path}")
    return outcomes


if __name__ == "__main__":
    run(sys.argv[1] if len(sys.argv) > 1 else "build/demo")
