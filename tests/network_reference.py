"""A network with every way relevance can branch, and its whole backward pass written out by hand.

The network has negative inputs, two residual branches, concatenation, batch norm that follows a linear layer
and batch norm that does not, max and average pooling, a transposed and a padded convolution, and activations
with and without a value at zero. `explain` is relevance form from top to bottom: no autograd, nothing from
the package.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.reference import linear
from tests.reference_steps import REACHES_ZEROS, activation, addition, batch_norm, pool

Assignment = dict[str, tuple[str, dict[str, Any]]]

# One rule for each linear layer. Nothing but `stem` gives relevance to zeros.
MIXED: Assignment = {
    "stem": ("zbox", {"low": -3.0, "high": 3.0}),
    "left": ("gamma", {"gamma": 0.5}),
    "right": ("alpha_beta", {"alpha": 2.0, "beta": 1.0}),
    "side": ("zplus", {"bias": "ignore"}),
    "wide": ("epsilon", {"epsilon": 0.1, "relative": True}),
    "up": ("gamma", {"gamma": 0.1, "bias": "ignore"}),
    "hidden": ("epsilon", {"epsilon": 0.25}),
    "head": ("lrp0", {}),
}

# Flat and w^2 in the middle: relevance arrives at units that are zero, and below them at every other rule.
THROUGH_ZEROS: Assignment = {
    "stem": ("flat", {}),
    "left": ("alpha_beta", {"alpha": 1.5, "beta": 0.5}),
    "right": ("gamma", {"gamma": 0.25}),
    "side": ("wsquare", {}),
    "wide": ("flat", {}),
    "up": ("wsquare", {"stabilizer": 0.0}),
    "hidden": ("flat", {"stabilizer": 0.0}),
    "head": ("zplus", {}),
}


class Branching(nn.Module):
    """Signed input [N, 3, 8, 8], three outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.stem_norm = nn.BatchNorm2d(4)
        self.left = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.left_act = nn.LeakyReLU(0.2)
        self.right = nn.Conv2d(4, 4, 1, bias=False)
        self.right_norm = nn.BatchNorm2d(4)
        self.join = nn.ReLU()
        self.shrink = nn.MaxPool2d(3, 2, padding=1)
        self.side = nn.Conv2d(4, 2, 3, padding=1, groups=2)
        self.smooth = nn.AvgPool2d(3, 1, padding=1)
        self.cat_norm = nn.BatchNorm2d(10)
        self.wide = nn.Conv2d(10, 4, 2, stride=2)
        self.gate = nn.SiLU()
        self.up = nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1)
        self.soft = nn.Softplus()
        self.halve = nn.AvgPool2d(2)
        self.hidden = nn.Linear(12, 6)
        self.bend = nn.Tanh()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.stem_norm(self.stem(x)))
        h = self.join(self.left_act(self.left(h)) + self.right_norm(self.right(h)) + h)
        p = self.shrink(h)
        h = self.cat_norm(torch.cat([F.relu(self.side(p)), self.smooth(p), p], 1))
        h = self.gate(self.wide(h))
        h = self.halve(self.soft(self.up(h)))
        out: Tensor = self.head(self.bend(self.hidden(h.flatten(1))))
        return out


def build() -> Branching:
    """The network in float64 and eval mode, with biases and batch-norm statistics that matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = Branching().double().eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.normal_(std=0.4)
                if "norm.weight" in name:
                    parameter.abs_().add_(0.5)
            for name, buffer in model.named_buffers():
                if name.endswith("mean"):
                    buffer.normal_(std=0.3)
                elif name.endswith("var"):
                    buffer.uniform_(0.5, 2.0)
            # A channel whose sum is mostly negative: dead units, and pooling windows that hold nothing else.
            model.right_norm.bias[0] = -8.0
    return model


def _added(first: Tensor, second: Tensor, third: Tensor, relevance: Tensor, equal: bool) -> tuple[Tensor, ...]:
    """Two additions, one after the other."""
    both, last = addition([first + second, third], relevance, equal)
    return (*addition([first, second], both, equal), last)


def explain(model: Branching, x: Tensor, seed: Tensor, rules: Assignment) -> dict[str, Tensor]:
    """Relevance at the output of every module, and at "input"; a folded layer has that of its pair."""
    m = model
    # The forward pass, with a name for everything.
    stem = m.stem(x)
    stem_n = m.stem_norm(stem)
    a = stem_n.relu()
    left = m.left(a)
    left_a = m.left_act(left)
    right = m.right(a)
    right_n = m.right_norm(right)
    total = left_a + right_n + a
    joined = m.join(total)
    p = m.shrink(joined)
    side = m.side(p)
    side_a = side.relu()
    smooth = m.smooth(p)
    cat = torch.cat([side_a, smooth, p], 1)
    cat_n = m.cat_norm(cat)
    wide = m.wide(cat_n)
    gated = m.gate(wide)
    up = m.up(gated)
    soft = m.soft(up)
    halved = m.halve(soft)
    flat = halved.flatten(1)
    hidden = m.hidden(flat)
    bent = m.bend(hidden)
    out = m.head(bent)

    def back(name: str, at: Tensor, relevance: Tensor, norm: nn.Module | None = None) -> Tensor:
        rule, options = rules[name]
        return linear(getattr(m, name), at, relevance, rule, norm, **options)

    def below(*names: str) -> bool:
        """One of these stands above, with a rule that reaches zeros: what has no weights shares equally."""
        return any(rules[name][0] in REACHES_ZEROS for name in names)

    r: dict[str, Tensor] = {"head": out * seed}
    r["bend"] = back("head", bent, r["head"])
    r["hidden"] = activation(m.bend, hidden, r["bend"], below("head"))
    r["halve"] = back("hidden", flat, r["hidden"]).reshape(halved.shape)
    r["soft"] = pool(m.halve, soft, r["halve"], equal=below("hidden", "head"))
    r["up"] = activation(m.soft, up, r["soft"], below("hidden", "head"), rules["hidden"])
    r["gate"] = back("up", gated, r["up"])
    r["wide"] = activation(m.gate, wide, r["gate"], below("up", "hidden", "head"))
    r["cat_norm"] = back("wide", cat_n, r["wide"])
    above = ("wide", "up", "hidden", "head")
    to_side, r["smooth"], to_p = batch_norm(m.cat_norm, cat, r["cat_norm"], below(*above)).split([2, 4, 4], 1)
    r["side"] = to_side  # ReLU passes relevance on
    r["shrink"] = to_p + pool(m.smooth, p, r["smooth"], equal=below(*above)) + back("side", p, r["side"])
    r["join"] = pool(m.shrink, joined, r["shrink"], equal=below("side", *above))
    r["left_act"], r["right_norm"], skipped = _added(left_a, right_n, a, r["join"], below("side", *above))
    r["left"] = r["left_act"]
    r["right"] = r["right_norm"]
    at_a = skipped + back("left", a, r["left"]) + back("right", a, r["right"], m.right_norm)
    r["stem_norm"] = at_a
    r["stem"] = r["stem_norm"]
    r["input"] = back("stem", x, r["stem"], m.stem_norm)
    return r
