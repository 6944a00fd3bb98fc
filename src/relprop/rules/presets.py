"""Compositions of rules under the names the field knows them by.

Sources: Kohlbrenner et al. 2020 (arXiv:1910.09840) for the composites of epsilon on dense and another rule on
convolutional layers; Montavon et al. 2019 for gamma; Montavon et al. 2017 for deep Taylor; Achtibat et al. 2024
(arXiv:2402.05602) for AttnLRP; Ali et al. 2022 (arXiv:2202.07304) for CP-LRP; Alber et al. 2019 (arXiv:1808.04260)
for those of iNNvestigate, ``preset_*`` and ``*_ignore_bias``, as its code composes them
(``analyzer/relevance_based/relevance_analyzer.py``: ``LRPSequentialPresetA`` and its kin).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop.arguments import Registered
from relprop.errors import RuleError
from relprop.rules.input import Flat, WSquare, ZBox
from relprop.rules.linear import Epsilon, Gamma, Zero
from relprop.rules.products import Equal, SignalTakesAll
from relprop.rules.registry import PresetName, Rules, as_rule
from relprop.rules.rule import LinearRule, Rule
from relprop.rules.selection import Entry
from relprop.rules.selectors import Joins, PartsOf
from relprop.rules.signed import AbsoluteValue, AlphaBeta, ZPlus
from relprop.rules.softmax import CPLRP
from relprop.rules.universal import Detach

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def everywhere(rule: Rule) -> Rules:
    """Return the registry of one rule for every linear layer.

    >>> print(everywhere(Zero()))
    every linear layer => Zero()
    """
    return Rules().set(every_linear_layer, rule)


def every_linear_layer(name: str, module: nn.Module) -> bool:
    """Say yes: only linear calls ask for a linear rule."""
    return True


every_linear_layer.__name__ = "every linear layer"


def every_product(name: str, module: nn.Module) -> bool:
    """Say yes: only products ask for a rule for products."""
    return True


every_product.__name__ = "every product"

CELLS = PartsOf(("lstm", "lstm_cell", "gru", "gru_cell"))


def _composite(convolution: Rule, epsilon: float = 1e-6, *, relative: bool = True) -> Rules:
    """Return epsilon on dense layers and a rule on convolutions; a source that names an epsilon means its unit."""
    dense = Epsilon(epsilon, relative)
    return Rules().set(nn.Linear, dense, optional=True).set(CONVOLUTIONS, convolution, optional=True)


def _deep_taylor() -> Rules:
    return everywhere(ZPlus(bias="ignore")).first(WSquare())


def _deep_taylor_bounded(low: float | Tensor, high: float | Tensor) -> Rules:
    return everywhere(ZPlus(bias="ignore")).first(ZBox(low, high))


def _epsilon_gamma_box(low: float | Tensor, high: float | Tensor, epsilon: float = 1e-6, gamma: float = 0.25) -> Rules:
    return _composite(Gamma(gamma), epsilon).first(ZBox(low, high))


def _attnlrp(epsilon: float = 1e-6) -> Rules:
    rules = everywhere(Epsilon(epsilon, relative=True)).set(every_product, Equal())
    return Rules((*rules, Entry(CELLS, SignalTakesAll(), optional=True)))  # of which the paper does not speak


def _cp_lrp(epsilon: float = 1e-6) -> Rules:
    rules = everywhere(Epsilon(epsilon, relative=True)).set(torch.softmax, Detach(), optional=True)
    return rules.set(F.scaled_dot_product_attention, CPLRP(), optional=True)


def _preset_a(epsilon: float = 0.1) -> Rules:
    return _composite(AlphaBeta(1, 0), epsilon, relative=False)


def _preset_b(epsilon: float = 0.1) -> Rules:
    return _alpha2_beta1(_composite(AlphaBeta(2, 1), epsilon, relative=False))


def _alpha2_beta1(rules: Rules) -> Rules:
    """Return the rules with sums of branches shared by size: what alpha-beta gives them may cancel there."""
    return Rules((*rules, Entry(Joins(), AbsoluteValue(), optional=True)))


def _until(rules: Rules, until: int | str) -> Rules:
    """Return the rules with flat from the first layer up to a given one, included."""
    return rules.first(Flat()).until(until, Flat())


PRESETS: dict[PresetName, Callable[..., Rules]] = {
    "lrp0": lambda: everywhere(Zero()),
    "epsilon": lambda epsilon=1e-6: everywhere(Epsilon(epsilon, relative=True)),
    "epsilon_plus": lambda epsilon=1e-6: _composite(ZPlus(), epsilon),
    "epsilon_plus_flat": lambda epsilon=1e-6: _composite(ZPlus(), epsilon).first(Flat()),
    "epsilon_gamma": lambda epsilon=1e-6, gamma=0.25: _composite(Gamma(gamma), epsilon),
    "epsilon_gamma_box": _epsilon_gamma_box,
    "epsilon_alpha2_beta1": lambda epsilon=1e-6: _alpha2_beta1(_composite(AlphaBeta(2, 1), epsilon)),
    "epsilon_alpha2_beta1_flat": lambda epsilon=1e-6: _alpha2_beta1(_composite(AlphaBeta(2, 1), epsilon)).first(Flat()),
    "alpha1_beta0": lambda: everywhere(AlphaBeta(1, 0)),
    "alpha2_beta1": lambda: _alpha2_beta1(everywhere(AlphaBeta(2, 1))),
    "zplus": lambda: everywhere(ZPlus()),
    "wsquare": lambda: everywhere(WSquare()),
    "flat": lambda: everywhere(Flat()),
    "lrp0_ignore_bias": lambda: everywhere(Epsilon(0.0, bias="ignore")),
    # Sums without their bias may cancel, with all of its relevance on them: less does not hold that.
    "epsilon_ignore_bias": lambda epsilon=0.25: everywhere(Epsilon(epsilon, relative=True, bias="ignore")),
    "alpha1_beta0_ignore_bias": lambda: everywhere(AlphaBeta(1, 0, bias="ignore")),
    "alpha2_beta1_ignore_bias": lambda: _alpha2_beta1(everywhere(AlphaBeta(2, 1, bias="ignore"))),
    "preset_a": _preset_a,
    "preset_b": _preset_b,
    "preset_a_flat": lambda epsilon=0.1: _preset_a(epsilon).first(Flat()),
    "preset_b_flat": lambda epsilon=0.1: _preset_b(epsilon).first(Flat()),
    "preset_a_flat_until_idx": lambda until, epsilon=0.1: _until(_preset_a(epsilon), until),
    "preset_b_flat_until_idx": lambda until, epsilon=0.1: _until(_preset_b(epsilon), until),
    "deep_taylor": _deep_taylor,
    "deep_taylor_bounded": _deep_taylor_bounded,
    "attnlrp": _attnlrp,
    "cp_lrp": _cp_lrp,
}
for _name, _make in PRESETS.items():
    Rules.presets[_name] = _make

preset = Rules.preset


def as_rules(rules: Any) -> Rules:
    """Return a registry from a preset's name, a registry, or one rule for every linear layer, itself or by its name.

    Raises:
        RuleError: for anything else.
    """
    if isinstance(rules, Rules):
        return rules
    if isinstance(rules, str):
        if rules in PRESETS or rules not in Rules.named:
            return Rules.preset(cast("PresetName", rules))
        rules = as_rule(Registered(rules))
    if isinstance(rules, LinearRule):
        return everywhere(rules)
    if isinstance(rules, Rule):
        raise RuleError(f"One rule for every linear layer must be a LinearRule; set {rules!r} by Rules().set(...).")
    raise RuleError(f"rules must be a preset's name, a Rules or one rule, got {rules!r}.")
