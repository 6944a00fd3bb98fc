"""The walk of the LRP tutorial: one rule for each depth, and the relevance of every layer.

After Montavon, Binder, Lapuschkin, Samek and Mueller, "Layer-wise relevance propagation: an overview" (2019,
doi:10.1007/978-3-030-28954-6_10): LRP-0 on top, epsilon relative to the size of the activations below,
gamma below that, zB at the pixels, and max pooling treated as average pooling. Its two networks: a dense one
on digits, and VGG-16, here with random weights, on a photograph.

Run it: ``python examples/tutorial_walk.py [folder]``.
"""

from __future__ import annotations

import sys
import time
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

from digits import accuracy, load, train
from relprop import LRP, Rules
from relprop.rules import AveragePool, Epsilon, Gamma, ZBox, Zero
from relprop.visual import layers

# Mean and standard deviation of the colours of ImageNet, as VGG-16 is used with them.
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def tutorial_rules(gamma: str, epsilon: str, low: float | Tensor, high: float | Tensor) -> Rules:
    """The tutorial's composition.

    Args:
        gamma: glob over the names of the lower layers.
        epsilon: glob over the names of the middle layers.
        low, high: the smallest and largest value a pixel of the model's input can take.
    """
    return (
        Rules()
        .set((nn.Linear, nn.Conv2d), Zero())
        .set(epsilon, Epsilon(0.1, relative="layer"))
        .set(gamma, Gamma(0.1))
        .set(nn.MaxPool2d, AveragePool(), optional=True)  # the dense network has none
        .first(ZBox(low, high))
    )


def dense_network(widths: Sequence[int] = (300, 200, 100)) -> nn.Sequential:
    """``dense1`` to ``dense4`` with ReLU between them: [N, 1, 8, 8] -> [N, 10]."""
    parts: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    sizes = [64, *widths, 10]
    for n, (fan_in, fan_out) in enumerate(pairwise(sizes), start=1):
        parts[f"dense{n}"] = nn.Linear(fan_in, fan_out)
        if n < len(sizes) - 1:
            parts[f"relu{n}"] = nn.ReLU()
    return nn.Sequential(parts)


def vgg16(width: int = 64, hidden: int = 4096, side: int = 224, classes: int = 1000) -> nn.Sequential:
    """The layers of VGG-16 (configuration D), ``conv1_1`` to ``fc8``: [N, 3, side, side] -> [N, classes].

    Weights are drawn after He et al. (2015, doi:10.1109/ICCV.2015.123), which keeps the size of the
    activations from layer to layer; biases are zero, so nothing is absorbed by them.
    """
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for block, convolutions in enumerate((2, 2, 3, 3, 3), start=1):
        out = width * min(2 ** (block - 1), 8)
        for n in range(1, convolutions + 1):
            parts[f"conv{block}_{n}"] = nn.Conv2d(channels, out, 3, padding=1)
            parts[f"relu{block}_{n}"] = nn.ReLU()
            channels = out
        parts[f"pool{block}"] = nn.MaxPool2d(2)
    parts["flatten"] = nn.Flatten()
    sizes = [channels * (side // 32) ** 2, hidden, hidden, classes]
    for n, (fan_in, fan_out) in enumerate(pairwise(sizes), start=6):
        # Each weight is written once, below: for 138 million of them, drawing twice takes a while.
        parts[f"fc{n}"] = nn.utils.skip_init(nn.Linear, fan_in, fan_out)
        if n < 8:
            parts[f"relu{n}"] = nn.ReLU()
    model = nn.Sequential(parts)
    for module in model:
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return model.eval()


def photograph(side: int = 224) -> Tensor:
    """The left square of scikit-learn's photograph of a temple, resized: [1, 3, side, side], in [0, 1]."""
    pixels = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None].float() / 255
    square = pixels[..., : pixels.shape[-2]]
    # Bilinear and antialiased: each new pixel is a mean of old ones, so it stays in [0, 1] but for rounding.
    small = nn.functional.interpolate(square, size=(side, side), mode="bilinear", antialias=True)
    return small.clamp(0, 1)


def walk(
    name: str,
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    rules: Rules,
    shown: Sequence[str],
    *,
    labels: Sequence[str],
    title: str,
    path: Path,
    quantile: float = 1.0,
) -> dict[str, Tensor]:
    """Relevance at the layers ``shown``, from the output down, and at the pixels; prints sums, draws maps."""
    method = LRP(model, rules)
    start = time.perf_counter()
    maps = method.attribute_layers(x, list(shown), target)
    maps["pixels"] = method.attribute(x, target)
    seconds = time.perf_counter() - start
    output = model(x).detach()[torch.arange(len(x)), target].sum()
    print(f"{name}: explained in {seconds:.1f} s; sum of relevance / f")
    for n in range(0, len(maps), 6):
        chunk = list(maps.items())[n : n + 6]
        print("  " + "  ".join(f"{layer} {float(each.sum() / output):.3f}" for layer, each in chunk))
    layers(maps, x, labels=labels, title=title, path=path, quantile=quantile)
    print(f"  wrote {path}")
    return maps


def walk_dense(folder: str | Path, *, epochs: int = 12, seed: int = 0) -> dict[str, Tensor]:
    """Train the dense network on digits and explain one digit of four classes.

    zB measures each pixel against what it could have been, so empty pixels speak as well: the hole of a zero.
    """
    data = load()
    torch.manual_seed(seed)
    model = dense_network()
    train(model, data.train_x, data.train_y, epochs=epochs, seed=seed)
    print(f"dense network on digits: test accuracy {accuracy(model, data.test_x, data.test_y):.2%}")
    shown = torch.stack([(data.test_y == digit).nonzero()[0, 0] for digit in (0, 3, 4, 8)])
    return walk(
        "tutorial walk, dense network",
        model,
        data.test_x[shown],
        data.test_y[shown],
        tutorial_rules("dense2", "dense3", low=0.0, high=1.0),
        ["dense4", "dense3", "dense2", "dense1"],
        labels=[f"target {int(label)}" for label in data.test_y[shown]],
        title="Dense network: LRP-0 (dense4), epsilon (dense3), gamma (dense2), zB (dense1)",
        path=Path(folder) / "tutorial_dense.png",
    )


def walk_photograph(
    folder: str | Path, *, side: int = 224, width: int = 64, hidden: int = 4096, seed: int = 0
) -> dict[str, Tensor]:
    """Explain the largest output of a VGG-16 with random weights on a photograph."""
    torch.manual_seed(seed)
    model = vgg16(width, hidden, side)
    x = (photograph(side) - MEAN) / STD
    with torch.no_grad():
        target = model(x).argmax(dim=1)
    names = [name for name, module in model.named_children() if not isinstance(module, (nn.ReLU, nn.Flatten))]
    return walk(
        "tutorial walk, VGG-16 with random weights",
        model,
        x,
        target,
        tutorial_rules("conv[1-3]_*", "conv[45]_*", low=-MEAN / STD, high=(1 - MEAN) / STD),
        names[::-1],
        labels=[f"output {int(target)}"],
        title="VGG-16, random weights: LRP-0 (fc), epsilon (conv4, conv5), gamma (conv1-conv3), zB (conv1_1)",
        path=Path(folder) / "tutorial_vgg16.png",
        quantile=0.995,
    )


def run(folder: str | Path) -> None:
    """Both walks."""
    walk_dense(folder)
    walk_photograph(folder)


if __name__ == "__main__":
    run(sys.argv[1] if len(sys.argv) > 1 else "build/demo")
