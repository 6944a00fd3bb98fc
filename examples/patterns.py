"""Fit PatternNet and PatternAttribution to a digits network, judge the patterns, and draw what they show.

Run it: ``python examples/patterns.py [folder]``; pictures go to ``build/patterns`` by default.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from digits import Digits, trained
from relprop import (
    LRP,
    Attribution,
    DeepTaylor,
    DeepTaylorWarning,
    Gradient,
    PatternAttribution,
    PatternNet,
    SignalQuality,
)
from relprop.visual import boxes, grid

FITTED = 0.67  # of the training images; the residuals of the signal are fitted to the others


def splits(digits: Digits) -> tuple[tuple[Tensor, ...], ...]:
    """Batches to fit the patterns to, batches to fit the residuals to, and batches to measure on."""
    cut = int(FITTED * len(digits.train_x))
    return tuple(part.split(128) for part in (digits.train_x[:cut], digits.train_x[cut:], digits.test_x))


def explain(model: nn.Module, fitted: PatternNet, x: Tensor, target: Tensor) -> dict[str, Tensor]:
    """The maps of the patterns beside those of other methods."""
    methods: dict[str, Callable[[], Attribution]] = {
        "Gradient": lambda: Gradient(model),
        "LRP\nepsilon_plus": lambda: LRP(model, "epsilon_plus"),
        "DeepTaylor\nzB": lambda: DeepTaylor(model, bounds=(0.0, 1.0)),
        "PatternNet": lambda: fitted,
        "Pattern-\nAttribution": lambda: PatternAttribution(model, fitted.patterns),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeepTaylorWarning)  # digits networks have positive biases
        return {name: make().attribute(x, target) for name, make in methods.items()}


def run(folder: Path, *, epochs: int = 12, width: int = 16, units: int = 16, rows: int = 6) -> SignalQuality:
    """Train, fit, measure, explain and draw; returns the signal quality."""
    model, digits = trained(epochs=epochs, width=width)
    fit, second, test = splits(digits)
    method = PatternNet(model).fit(fit, "relu+-")
    print(f"\nthe patterns, fitted to {sum(map(len, fit))} images\n\n{method.patterns}")
    quality = method.signal_quality(second, test, units=units)
    print(f"\nthe signal quality rho on {len(digits.test_x)} test images, mean of the units\n\n{quality}")

    folder.mkdir(parents=True, exist_ok=True)
    boxes(
        quality.values,
        ylabel="signal quality rho",
        title="Signal estimators, held out",
        limits=(-0.02, 1.02),
        path=folder / "signal_quality.png",
    )
    (folder / "signal_quality.txt").write_text(f"{quality}\n", encoding="utf-8")
    chosen = torch.stack([(digits.test_y == digit).nonzero()[0, 0] for digit in range(rows)])
    x, y = digits.test_x[chosen], digits.test_y[chosen]
    grid(
        x,
        explain(model, method, x, y),
        labels=[f"digit {int(digit)}" for digit in y],
        title="What the digits network detects",
        path=folder / "maps.png",
    )
    method.save(folder / "patterns.safetensors")
    print(f"\nwritten to {folder}: signal_quality.png, signal_quality.txt, maps.png, patterns.safetensors")
    return quality


if __name__ == "__main__":
    run(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("build/patterns"))
