"""Right for the right reasons: train a network while its relevance is kept inside a mask.

Each digit stands in a frame, and in the training data a bright mark in the frame gives the label away. A
network trained on cross-entropy alone reads the mark; it fails where marks are shuffled. Adding the share of
relevance outside the mask (the digit) to the loss, through ``attribute(..., create_graph=True)``, keeps it
to the digit (the idea of Ross, Hughes and Doshi-Velez, IJCAI 2017, doi:10.24963/ijcai.2017/371, with
relevance in place of the gradient). What is explained is the label's output less the mean output: with the
label's output alone the network learns to let the mark lower all the others.

Run it: ``python examples/right_reasons.py [folder]``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from digits import accuracy, load
from relprop import LRP
from relprop.visual import grid

FRAME = 2  # pixels around the 8 x 8 digit
SIDE = 8 + 2 * FRAME


class Outcome(NamedTuple):
    """What is measured of one trained network, on test data."""

    outside: float  # share of |relevance| outside the mask, marks as trained
    marked: float  # accuracy with the marks as trained
    shuffled: float  # accuracy with marks that say nothing


def mask() -> Tensor:
    """1 on the digit, 0 on the frame: [SIDE, SIDE]."""
    inside = torch.zeros(SIDE, SIDE)
    inside[FRAME:-FRAME, FRAME:-FRAME] = 1
    return inside


def framed(digits: Tensor, marks: Tensor) -> Tensor:
    """Put each digit in a frame with a bright 2 x 2 mark whose place says ``marks``: [N, 1, SIDE, SIDE]."""
    x = nn.functional.pad(digits, (FRAME,) * 4)
    for mark in range(10):
        row, column = (0, 2 * mark + 1) if mark < 5 else (SIDE - 2, 2 * (mark - 5) + 1)
        x[marks == mark, :, row : row + 2, column : column + 2] = 1
    return x


def network(width: int = 16) -> nn.Sequential:
    """Two convolutions and a dense layer, without batch norm: explaining while training needs no care."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * width * (SIDE // 4) ** 2, 10),
    )


def share_outside(relevance: Tensor) -> Tensor:
    """``sum |R| outside the mask / sum |R|``, per sample: [N, 1, SIDE, SIDE] -> [N]."""
    size = relevance.abs().sum(dim=1)
    return (size * (1 - mask())).sum(dim=(1, 2)) / (size.sum(dim=(1, 2)) + 1e-9)


def margin(labels: Tensor) -> Callable[[Tensor], Tensor]:
    """The target that is explained: each label's output less the mean of all outputs, [N, 10] -> [N]."""
    return lambda output: output.gather(1, labels[:, None])[:, 0] - output.mean(dim=1)


def train(model: nn.Module, x: Tensor, y: Tensor, *, penalty: float, epochs: int, seed: int = 0) -> None:
    """Minimise cross-entropy + ``penalty`` times the mean share of relevance outside the mask."""
    shuffle = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-len(x) // 64))
    method = LRP(model, "epsilon")
    for _ in range(epochs):
        for chosen in torch.randperm(len(x), generator=shuffle).split(64):
            loss = nn.functional.cross_entropy(model(x[chosen]), y[chosen])
            if penalty:
                relevance = method.attribute(x[chosen], margin(y[chosen]), create_graph=True)
                loss = loss + penalty * share_outside(relevance).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def run(folder: str | Path, *, epochs: int = 20, penalty: float = 3.0, seed: int = 0) -> tuple[Outcome, Outcome]:
    """Train without and with the penalty, print and draw what changed; returns both outcomes."""
    data = load()
    train_x = framed(data.train_x, data.train_y)
    test_x = framed(data.test_x, data.test_y)
    order = torch.randperm(len(data.test_y), generator=torch.Generator().manual_seed(seed))
    shuffled_x = framed(data.test_x, data.test_y[order])

    outcomes, maps = [], {}
    print("right reasons: a mark in the frame gives the label away while training")
    print(f"  {'loss':<28}{'relevance outside':>18}{'accuracy':>10}{'marks shuffled':>16}{'time':>8}")
    for name, weight in (("cross-entropy", 0.0), (f"cross-entropy + {penalty:g} share", penalty)):
        torch.manual_seed(seed)
        model = network()
        start = time.perf_counter()
        train(model, train_x, data.train_y, penalty=weight, epochs=epochs, seed=seed)
        seconds = time.perf_counter() - start
        relevance = LRP(model, "epsilon").attribute(test_x, margin(data.test_y))
        outcome = Outcome(
            float(share_outside(relevance).mean()),
            accuracy(model, test_x, data.test_y),
            accuracy(model, shuffled_x, data.test_y),
        )
        shares = f"{outcome.outside:>18.1%}{outcome.marked:>10.1%}{outcome.shuffled:>16.1%}"
        print(f"  {name:<28}{shares}{seconds:>7.1f}s")
        outcomes.append(outcome)
        maps[name.replace(" + ", "\n+ ")] = relevance

    shown = torch.stack([(data.test_y == digit).nonzero()[0, 0] for digit in range(4)])
    path = Path(folder) / "right_reasons.png"
    grid(
        test_x[shown],
        {name: relevance[shown] for name, relevance in maps.items()},
        labels=[str(digit) for digit in range(4)],
        title="Relevance kept inside a mask",
        path=path,
    )
    print(f"  wrote {path}")
    return outcomes[0], outcomes[1]


if __name__ == "__main__":
    run(sys.argv[1] if len(sys.argv) > 1 else "build/demo")
