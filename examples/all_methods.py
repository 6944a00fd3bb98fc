"""Every method of relprop beside one another on the digits network: its maps, what it claims, its delta, its time.

Run it: ``python examples/all_methods.py [folder]``; the picture goes to ``build/demo`` by default.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

import relprop
from digits import trained
from relprop import LRP, Gradient, Method, Rules
from relprop.rules import Gamma
from relprop.visual import channel_sum, symmetric_scale

LOW, HIGH = 0.0, 1.0  # the range of a pixel


@dataclass(frozen=True)
class Shown:
    """A method, the options of its ``attribute``, and what came of it."""

    title: str
    method: Method
    options: dict[str, Any]
    maps: Tensor  # [N, C, H, W]
    delta: Tensor | None  # [N]; None where no sum is claimed
    milliseconds: float

    @property
    def claim(self) -> str:
        """What the numbers are, and what they are meant to sum to."""
        contract = self.method.contract
        return f"sums to {contract.sums_to}" if contract.complete else contract.output


def methods(model: nn.Module, background: Tensor) -> list[tuple[str, Method, dict[str, Any]]]:
    """Every method with the options it needs, under the title it is shown by."""
    box = Rules.preset("epsilon_gamma_box", low=LOW, high=HIGH)
    gammas = [LRP(model, Gamma(gamma)) for gamma in (0.1, 0.5, 2.5)]
    shown: list[tuple[str, Method, dict[str, Any]]] = [
        ("Input", relprop.Input(model), {}),
        ("Random", relprop.Random(model, seed=0), {}),
        ("Gradient", Gradient(model), {}),
        ("Sensitivity", relprop.Sensitivity(model), {}),
        ("Gradient x Input", relprop.GradientXInput(model), {}),
        ("Deconvolution", relprop.Deconvolution(model), {}),
        ("Guided backprop", relprop.GuidedBackprop(model), {}),
        ("Excitation backprop", relprop.ExcitationBackprop(model), {}),
        ("contrastive", relprop.ContrastiveExcitationBackprop(model), {}),
        ("SmoothGrad", relprop.SmoothGrad(Gradient(model)), {"seed": 0}),
        ("SmoothGrad squared", relprop.SmoothGradSquared(Gradient(model)), {"seed": 0}),
        ("VarGrad", relprop.VarGrad(Gradient(model)), {"seed": 0}),
        ("Integrated gradients", relprop.IntegratedGradients(model), {}),
        ("Expected gradients", relprop.GradientShap(model), {"baselines": background, "seed": 0}),
        ("DeepLIFT, Rescale", relprop.DeepLift(model), {}),
        ("DeepLIFT, RevealCancel", relprop.DeepLift(model, "reveal_cancel"), {}),
        ("DeepLIFT SHAP", relprop.DeepLiftShap(model), {"baselines": background}),
        ("Simple Taylor", relprop.SimpleTaylor(model, iterations=10, starts=2), {}),
        ("Deep Taylor, z+ and zB", relprop.DeepTaylor(model, bounds=(LOW, HIGH)), {}),
        ("LRP-0", LRP(model, "lrp0"), {}),
        ("LRP epsilon-gamma", LRP(model), {}),
        ("LRP, zB first", LRP(model, box), {}),
        ("LRP alpha 2, beta 1", LRP(model, "alpha2_beta1"), {}),
        ("LRP flat", LRP(model, "flat"), {}),
        ("LRP, shifted by up to 1", relprop.Translated(LRP(model), 1, border="zero"), {}),
        ("LRP, three gammas", relprop.Combined(gammas), {}),
        ("Occlusion, 2 x 2", relprop.Occlusion(model), {"sliding_window_shapes": (1, 2, 2)}),
        ("Feature ablation", relprop.FeatureAblation(model), {}),
        ("Grad-CAM", relprop.LayerGradCam(model, "block2"), {"interpolate_mode": "nearest"}),
        ("Guided Grad-CAM", relprop.GuidedGradCam(model, "block2"), {}),
    ]
    if find_spec("captum"):
        shown += [
            ("Shapley sampling", relprop.ShapleyValueSampling(model), {"n_samples": 10}),
            ("KernelSHAP", relprop.KernelShap(model), {"n_samples": 300}),
        ]
    return shown


def explain(title: str, method: Method, options: dict[str, Any], x: Tensor, target: Tensor) -> Shown:
    """Run one method, with its delta where it claims a sum."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", relprop.RelpropWarning)  # such as the premises of deep Taylor decomposition
        complete = method.contract.complete
        start = time.perf_counter()
        found = method.attribute(
            x, target=target, **options, **({"return_convergence_delta": True} if complete else {})
        )
        milliseconds = 1000 * (time.perf_counter() - start)
    maps, delta = found if complete else (found, None)
    return Shown(title, method, options, maps, delta, milliseconds)


def table(shown: list[Shown]) -> str:
    """One line for each method: the contract, the largest |delta| over the samples, the time."""
    lines = [f"{'method':<24}{'seed':<6}{'numbers':<13}{'sum to':<9}{'max |delta|':>12}{'time':>10}"]
    for each in shown:
        contract = each.method.contract
        delta = "" if each.delta is None else f"{float(each.delta.abs().max()):.4f}"
        lines.append(
            f"{each.title:<24}{contract.seed:<6}{contract.output:<13}{contract.sums_to:<9}"
            f"{delta:>12}{each.milliseconds:>7.0f} ms"
        )
    return "\n".join(lines)


def picture(shown: list[Shown], x: Tensor, path: Path, *, columns: int = 3) -> None:
    """Draw the maps of every method, each on a scale of its own, beside what it claims, its delta and its time."""
    rows, samples = math.ceil(len(shown) / columns), len(x)
    figure = plt.figure(figsize=(columns * (0.75 * samples + 2.1), 0.78 * (rows + 1) + 0.6), layout="constrained")
    figure.suptitle("Every method on the same digits: red for, blue against; each map on its own scale", fontsize=11)
    panels = figure.subplots(
        rows + 1, columns * (samples + 1), squeeze=False, width_ratios=[2.4, *[1] * samples] * columns
    )
    for ax in panels.flat:
        ax.axis("off")
    for column in range(columns):
        first = column * (samples + 1)
        panels[0][first].text(1, 0.5, "input", ha="right", va="center", fontsize=8)
        for ax, image in zip(panels[0][first + 1 :], x, strict=False):
            ax.imshow(image[0].numpy(), cmap="gray", vmin=LOW, vmax=HIGH)
    for position, each in enumerate(shown):
        row, first = position % rows + 1, position // rows * (samples + 1)
        delta = "" if each.delta is None else f"|delta| {float(each.delta.abs().max()):.2g}\n"
        note = f"{each.claim}\n{delta}{each.milliseconds:.0f} ms"
        panels[row][first].text(1, 0.98, each.title, ha="right", va="top", fontsize=8, weight="bold")
        panels[row][first].text(1, 0.72, note, ha="right", va="top", fontsize=6.5, color="0.35")
        for ax, one in zip(panels[row][first + 1 :], each.maps, strict=False):
            values = channel_sum(one)
            scale = symmetric_scale(values)
            ax.imshow(values, cmap="bwr", vmin=-scale, vmax=scale, interpolation="nearest")
            ax.axis("on")
            ax.set(xticks=[], yticks=[])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def run(folder: str | Path = "build/demo", *, epochs: int = 12, digits: tuple[int, ...] = (0, 3, 4, 7)) -> None:
    """Train, explain with every method, print the table, draw the picture."""
    model, data = trained(epochs)
    chosen = torch.stack([(data.test_y == digit).nonzero()[0, 0] for digit in digits])
    x, target = data.test_x[chosen], data.test_y[chosen]
    shown = [explain(*each, x, target) for each in methods(model, data.train_x[:20])]
    print(f"\n{len(x)} test digits, their labels as targets\n{table(shown)}")
    path = Path(folder) / "methods.png"
    picture(shown, x, path)
    print(f"wrote {path}")


if __name__ == "__main__":
    run(*sys.argv[1:2])
