"""The demo that ``make demo`` runs: train, explain with many methods, check conservation, draw.

Run it: ``python examples/demo.py [folder]``; pictures go to ``build/demo`` by default.
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

import all_methods
import right_reasons
import tutorial_walk
from digits import trained
from relprop import (
    LRP,
    Attribution,
    ConservationReport,
    DeepTaylor,
    Gradient,
    GradientXInput,
    RelpropWarning,
    Rules,
)
from relprop.visual import grid

LOW, HIGH = 0.0, 1.0  # the range of a pixel
DASHES = "".join(f"{'-':>{width}}" for width in (9, 12, 12, 12, 13, 13))


def methods(model: nn.Module) -> dict[str, Attribution]:
    """The methods of the table and of the picture, by the names they are shown under."""
    presets = ("lrp0", "epsilon", "epsilon_gamma", "epsilon_plus", "alpha2_beta1", "zplus", "flat")
    return {
        "Gradient": Gradient(model),
        "Gradient\nx Input": GradientXInput(model),
        **{f"LRP\n{preset}": LRP(model, preset) for preset in presets},
        "LRP epsilon_\ngamma_box": LRP(model, Rules.preset("epsilon_gamma_box", low=LOW, high=HIGH)),
        "DeepTaylor\nzB": DeepTaylor(model, bounds=(LOW, HIGH)),
    }


def conservation(report: ConservationReport) -> str:
    """One line of the table: delta, and how the output f is shared out, all parts adding up to 1."""
    bias, stabilizer, rule = (report.absorbed.get(kind, 0.0) for kind in ("bias", "stabilizer", "rule"))
    unexplained = report.output - report.relevance - sum(report.absorbed.values())
    shares = "".join(f"{part / report.output:>12.1%}" for part in (report.relevance, bias, rule))
    tiny = "".join(f"{part / report.output:>13.0e}" for part in (stabilizer, unexplained))
    return f"{round(float(report.delta.mean()), 3) + 0.0:>9.3f}" + shares + tiny  # + 0.0: no minus zero


def explain(model: nn.Module, x: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Explain ``x`` with every method, print one line of the table for each, return the relevances.

    Delta is the mean of ``f - sum R`` over the samples; the other columns are sums over the samples as shares of
    the sum of f: what the pixels got, what biases, the definition of a rule and stabilisers absorbed, and the rest.
    """
    columns = f"{'sum R / f':>12}{'bias':>12}{'rule':>12}{'stabilizer':>13}{'unexplained':>13}"
    print(f"\nconservation on {len(x)} test digits, their labels as targets")
    print(f"  {'method':<26}{'delta':>9}{columns}{'time':>9}")
    relevances: dict[str, Tensor] = {}
    notes: list[str] = []
    for name, method in methods(model).items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RelpropWarning)
            start = time.perf_counter()
            relevances[name] = method.attribute(x, target)
            milliseconds = 1000 * (time.perf_counter() - start)
            # A gradient does not claim to sum to f: it has neither delta nor report.
            line = DASHES if isinstance(method, Gradient) else conservation(method.report(x, target))
        plain = name.replace("_\n", "_").replace("\n", " ")
        print(f"  {plain:<26}{line}{milliseconds:>6.0f} ms")
        notes += [str(each.message) for each in caught]
    for note in dict.fromkeys(notes):
        print(f"  note: {note}")
    return relevances


def run(folder: str | Path, *, epochs: int = 12, rows: int = 5) -> None:
    """The digits network: train, explain, draw."""
    model, data = trained(epochs)
    shown = torch.stack([(data.test_y == digit).nonzero()[0, 0] for digit in range(rows)])
    x, target = data.test_x[shown], data.test_y[shown]
    path = Path(folder) / "digits.png"
    grid(
        x,
        explain(model, x, target),
        labels=[f"target {int(label)}" for label in target],
        title="One network, one input, many methods: each map on its own scale",
        path=path,
    )
    print(f"  wrote {path}\n")


def main(folder: str | Path = "build/demo") -> None:
    """All parts, one after the other."""
    start = time.perf_counter()
    run(folder)
    all_methods.run(folder)
    print()
    tutorial_walk.run(folder)
    print()
    right_reasons.run(folder)
    print(f"\ndone in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main(*sys.argv[1:2])
