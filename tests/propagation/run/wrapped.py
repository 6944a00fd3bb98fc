"""A network that many ways of wrapping it must leave as it is, and how its maps are compared."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from relprop import LRP, Rules
from relprop.rules import Flat
from tests.models import settle
from tests.unrolled import RULES, assert_close, random, snapshot, weigh

EVERY: dict[str, Any] = {name: rule for name, (rule, _) in RULES.items()} | {
    "flat": Flat(),
    "box": Rules.preset("epsilon_gamma_box", low=-4.0, high=4.0),
}


def images() -> Tensor:
    return random(2, 2, 6, 6)


class Net(nn.Module):
    """[N, 2, 6, 6] to [N, 3]: a folded batch norm, an in-place ReLU, a residual sum, pooling, a gate."""

    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=inplace))
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(36, 3)
        settle(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.pool(x + self.body(x))
        return self.head(F.silu(x).flatten(1))  # type: ignore[no-any-return]


def assert_same(model: nn.Module, plain: nn.Module | None = None, x: Tensor | None = None) -> None:
    """Whatever is asked under whatever rule, both models answer the same, and neither changes."""
    plain, x = plain or Net(), images() if x is None else x
    for name, rule in EVERY.items():
        found, expected = LRP(model, rule), LRP(plain, rule)
        with snapshot(model):
            assert_close(found.attribute(x, weigh), expected.attribute(x, weigh), name)
            connected = found.attribute(x, weigh, create_graph=True)
            assert_close(connected.detach(), expected.attribute(x, weigh), name)
            report, other = found.report(x, weigh), expected.report(x, weigh)
        # Of f, since a rule that conserves has no delta but rounding.
        off, size = (report.delta - other.delta).abs().max(), expected.attribute(x, weigh).abs().sum()
        assert float(off) <= 1e-10 * float(size), name
        assert [entry.rule for entry in report.entries] == [entry.rule for entry in other.entries]


def three_layers() -> nn.Sequential:
    return settle(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)))
