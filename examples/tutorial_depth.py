"""Depth: the gradient shatters, propagated relevance does not.

After the tutorial "Validating Explanations" of Samek, Montavon and Mueller. On the tent map,
iterated, everything is known: the gradient grows as 2^depth, z+ keeps all relevance, and gamma loses some, at biases
that the report names. Beside it stand networks of depth 2 to 12 trained on digits: how much do their explanations
move with the input?

Run it: ``python examples/tutorial_depth.py [folder]``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn

from digits import accuracy, load
from relprop import LRP, Attribution, Gradient, GradientXInput
from relprop.metrics import absorbed_shares, average_sensitivity, conservation, random_neighbours
from relprop.rules import Gamma, ZPlus
from relprop.visual import grid

DEPTHS = (2, 4, 6, 8, 10, 12)


def tent(depth: int) -> nn.Sequential:
    """``y = 2 relu(x) - 4 relu(x - 1/2)``, applied ``depth`` times; maps [0, 1] onto itself: [N, 1] -> [N, 1]."""
    parts: list[nn.Module] = []
    for _ in range(depth):
        up, down = nn.Linear(1, 2), nn.Linear(2, 1, bias=False)
        up.weight.data = torch.tensor([[1.0], [1.0]])
        up.bias.data = torch.tensor([0.0, -0.5])
        down.weight.data = torch.tensor([[2.0, -4.0]])
        parts += [up, nn.ReLU(), down]
    return nn.Sequential(*parts).double().eval()


def tent_facts(depth: int, x: Tensor) -> dict[str, float]:
    """The size of the gradient and ``sum R / f`` by rule, means over x; the report must explain what is gone."""
    model = tent(depth)
    with torch.no_grad():
        f = model(x)[:, 0]
    rules = {
        "z+": ZPlus(stabilizer=0),
        "gamma": Gamma(1.0, stabilizer=0),
        "gamma, bias ignored": Gamma(1.0, bias="ignore", stabilizer=0),
    }
    facts = {"gradient": float(Gradient(model).attribute(x).abs().mean())}
    for name, rule in rules.items():
        method = LRP(model, rule)
        facts[name] = float((method.attribute(x)[:, 0] / f).mean())
        method.report(x).check()
    return facts


def tent_map(depths: Sequence[int] = DEPTHS, points: int = 200) -> dict[int, dict[str, float]]:
    """The facts at every depth, printed."""
    # In the middle of equal parts, away from the kinks and from the zeros of f, which lie at multiples of 1 / 2^depth.
    x = ((torch.arange(points, dtype=torch.float64) + 0.5) / points + 1e-4)[:, None]
    facts = {depth: tent_facts(depth, x) for depth in depths}
    print("iterated tent map: |gradient|, and sum R / f, on average")
    for depth, each in facts.items():
        print(f"  depth {depth:2}: " + ", ".join(f"{name} {value:.6g}" for name, value in each.items()))
    point = x[[points // 8]]
    report = LRP(tent(depths[1]), Gamma(1.0, stabilizer=0)).report(point)
    taken = absorbed_shares(report.to_dict())
    print(f"where gamma lost it, at depth {depths[1]} and x = {float(point):.4f}:\n{taken}")
    return facts


def dense(depth: int, width: int = 64) -> nn.Sequential:
    """``depth`` dense layers with ReLU between them: [N, 1, 8, 8] -> [N, 10]."""
    sizes = [64] + [width] * (depth - 1)
    parts: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in zip(sizes, [*sizes[1:], 10], strict=True):
        layer = nn.Linear(fan_in, fan_out)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
        parts += [layer, nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def fit(model: nn.Module, x: Tensor, y: Tensor, *, epochs: int, seed: int = 0) -> None:
    """Train gently enough for twelve layers; leaves the model in float64 and in evaluation mode."""
    shuffle = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=epochs * -(-len(x) // 64))
    for _ in range(epochs):
        for chosen in torch.randperm(len(x), generator=shuffle).split(64):
            loss = nn.functional.cross_entropy(model(x[chosen]), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.double().eval()


def methods(model: nn.Module) -> dict[str, Attribution]:
    """What is compared."""
    return {
        "Gradient x Input": GradientXInput(model),
        "gamma": LRP(model, Gamma(0.25)),
        "z+": LRP(model, ZPlus()),
    }


def trained(
    folder: str | Path, depths: Sequence[int] = DEPTHS, *, epochs: int = 15, samples: int = 100, seed: int = 0
) -> dict[int, dict[str, float]]:
    """Average sensitivity of every method at every depth; draws the maps of one digit."""
    data = load()
    # The digits in the order of the test set; the one that is drawn is the first three.
    x, y = data.test_x[:samples].double(), data.test_y[:samples]
    three = int((y == 3).nonzero()[0])
    near = random_neighbours(x, 0.1, samples=10)
    moved: dict[int, dict[str, float]] = {}
    maps: dict[str, list[Tensor]] = {}
    labels = []
    print("digits: average sensitivity at distance 0.1, relative delta, median over samples")
    for depth in depths:
        torch.manual_seed(seed)
        model = dense(depth)
        fit(model, data.train_x, data.train_y, epochs=epochs, seed=seed)
        score = accuracy(model, data.test_x.double(), data.test_y)
        moved[depth] = {}
        notes = []
        for name, method in methods(model).items():

            def explain(model: nn.Module, x: Tensor, target: Tensor, method: Attribution = method) -> Tensor:
                return method.attribute(x, target)

            moved[depth][name] = float(average_sensitivity(explain, model, x, y, near).median())
            delta = float(conservation(explain, model, x, y).values.median())
            notes.append(f"{name} {moved[depth][name]:.3f}, {delta:.3f}")
            maps.setdefault(name, []).append(method.attribute(x[three : three + 1], 3))
        labels.append(f"depth {depth}")
        print(f"  depth {depth:2} (accuracy {score:.1%}): " + "; ".join(notes))
    grid(
        x[three : three + 1].expand(len(depths), 1, 8, 8),
        {name: torch.cat(each) for name, each in maps.items()},
        labels=labels,
        title="The same digit, networks of growing depth",
        path=Path(folder) / "tutorial_depth_maps.png",
    )
    return moved


def draw(facts: dict[int, dict[str, float]], moved: dict[int, dict[str, float]], path: Path, *, shown: int = 5) -> None:
    """Three panels: the iterated tent map, what its explanations do with depth, and those of trained networks."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    x = torch.linspace(0, 1, 2**shown * 8 + 1, dtype=torch.float64)[:, None]  # every kink is a point
    for depth in (1, 3, shown):
        with torch.no_grad():
            left.plot(x[:, 0], tent(depth)(x)[:, 0], label=f"depth {depth}", linewidth=1.6 if depth == 1 else 0.8)
    left.set(title="Tent map, iterated", xlabel="x", ylabel="f(x)")
    depths = list(facts)
    for name in ("gradient", "gamma", "gamma, bias ignored", "z+"):
        style = "s--" if name == "z+" else "o-"  # drawn over by another line at 1
        middle.semilogy(depths, [facts[depth][name] for depth in depths], style, markersize=4, label=name, zorder=3)
    middle.set(title="Tent map: |gradient|, and sum R / f", xlabel="depth")
    for name in next(iter(moved.values())):
        right.plot(list(moved), [each[name] for each in moved.values()], "o-", markersize=3, label=name)
    right.set(title="Digits: average sensitivity of the map", xlabel="depth", ylim=(0, None))
    left.set_ylim(0, 1.35)  # room for the legend
    for ax in (left, middle, right):
        ax.legend(fontsize=7, ncols=3 if ax is left else 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def run(folder: str | Path) -> None:
    """The tent map, the trained networks, and their pictures."""
    facts = tent_map()
    moved = trained(folder)
    path = Path(folder) / "tutorial_depth.png"
    draw(facts, moved, path)
    print(f"wrote {path} and {path.with_stem('tutorial_depth_maps')}")


if __name__ == "__main__":
    run(sys.argv[1] if len(sys.argv) > 1 else "build/demo")
