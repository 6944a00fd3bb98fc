"""`Rules.until`, and iNNvestigate's presets that are flat up to a layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, RuleError, Rules, Unit
from relprop.rules import AlphaBeta, Epsilon, Flat, Gamma
from tests.models import close, images, mlp, residual, settle, vectors


def rules_of(rules: Rules, model: nn.Module, x: Tensor, target: Any = None) -> list[str]:
    """The rules of the linear calls, in order."""
    return [row.rule for row in rules.plan(model, x, target).rows if row.kind == "linear"]


@pytest.mark.parametrize(("until", "flat"), [(0, 1), (1, 2), (2, 3), ("stem", 1), ("branch.0", 2), ("branch", 2)])
def test_the_preset_is_flat_up_to_the_layer(until: int | str, flat: int) -> None:
    above = [repr(AlphaBeta(2, 1)), repr(AlphaBeta(2, 1)), repr(Epsilon(0.1))]
    found = rules_of(Rules.preset("preset_b_flat_until_idx", until=until), residual(), images())
    assert found == [repr(Flat())] * flat + above[flat:]


def test_flat_until_zero_is_flat() -> None:
    model, x = residual(), images()
    for letter in "ab":
        until = Rules.preset(f"preset_{letter}_flat_until_idx", until=0)
        close(LRP(model, until).attribute(x, 1), LRP(model, f"preset_{letter}_flat").attribute(x, 1))


def test_relevance_of_flat_layers_reaches_zeros() -> None:
    """On all of a ReLU network flat is the flat preset, dead units and all."""
    model, x = mlp(bias=False), vectors()
    x[0, 1] = 0.0
    model[0].weight.data[2] = 0.0
    close(LRP(model, Rules().until(2, Flat())).attribute(x, 1), LRP(model, "flat").attribute(x, 1))


def test_a_layer_that_is_called_again_ends_it_the_first_time() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
            self.out = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.out(self.inside(self.out(self.inside(x))))
            return out

    rules = Rules().until("inside", Flat())
    default = "Zero()"
    assert rules_of(rules, settle(Twice()), vectors()) == [repr(Flat())] * 2 + [default] * 4
    assert rules_of(Rules().until("inside.2", Flat()), settle(Twice()), vectors()) == [repr(Flat())] * 2 + [default] * 4
    assert rules_of(Rules().until("out", Flat()), settle(Twice()), vectors()) == [repr(Flat())] * 3 + [default] * 3


def test_the_last_entry_wins() -> None:
    rules = Rules().until(1, Flat()).set("branch.0", Gamma(0.5)).until(0, Epsilon(0.5))
    assert rules_of(rules, residual(), images()) == [repr(Epsilon(0.5)), repr(Gamma(0.5)), "Zero()"]
    assert str(rules).splitlines()[0].startswith("until 1")
    assert str(Rules().until("stem", Flat())).startswith("until 'stem' => ")


def test_until_a_layer_that_never_runs() -> None:
    model, x = residual(), images()
    with pytest.raises(RuleError, match="until 3, where no linear layer runs"):
        LRP(model, Rules().until(3, Flat())).attribute(x, 1)
    with pytest.raises(RuleError, match="until 'pool', where no linear layer runs"):
        LRP(model, Rules().until("pool", Flat())).attribute(x, 1)
    with pytest.raises(RuleError, match=r"no module 'heat'\. Did you mean 'head'"):
        LRP(model, Rules().until("heat", Flat())).attribute(x, 1)
    for end in (-1, True, 1.5, None):
        with pytest.raises(RuleError, match="index of a linear layer"):
            Rules().until(end, Flat())  # type: ignore[arg-type]
    with pytest.raises(RuleError, match="takes until, epsilon"):
        Rules.preset("preset_a_flat_until_idx")


def test_a_unit_below_the_end_has_flat_everywhere() -> None:
    model, x = residual(), images()
    unit = Unit("branch.0", (1, 2, 3))
    found = LRP(model, Rules().until("head", Flat())).attribute(x, unit)
    close(found, LRP(model, "flat").attribute(x, unit))
    assert bool(torch.isfinite(found).all())
