"""What a case is called: each parameter by what it is, so that `pytest -k` finds every case of a rule or of a layer.

pytest numbers what it has no name for (`rule0`, `layer3`, `<lambda>`). `name_of` names it; what still has no name, or
hides a rule behind another name, stops the collection. Strings, and names that a test gives itself, stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import cache, partial
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from relprop import Rules, rules
from relprop.rules import Rule

LONGEST = 100  # more than this nobody reads
RULE_NAMES = {
    name for name in rules.__all__ if isinstance(kind := getattr(rules, name), type) and issubclass(kind, Rule)
}


def name_of(value: Any, parameter: str) -> str | None:
    """The name of one parameter's value; None where pytest knows better (strings, classes) or nobody does."""
    if isinstance(value, bool | int | float | complex | None):
        return f"{parameter}={value}"
    if isinstance(value, str | bytes | type):
        return None
    name = " ".join(_named(value).split())
    return name if len(name) <= LONGEST else f"{name[:LONGEST]}..."


def _named(value: Any) -> str:
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, Rule):
        return _rule(value)
    if isinstance(value, Rules):
        return f"Rules({', '.join(_rule(entry.rule) for entry in value)})"
    if isinstance(value, Tensor | np.ndarray):
        return f"{type(value).__name__}({', '.join(map(str, value.shape))})"
    if isinstance(value, nn.Module):
        return type(value).__name__ if any(True for _ in value.children()) else repr(value)
    if isinstance(value, partial):
        return ", ".join(_inside(part) for part in (value.func, *value.args, value.keywords) if part != {})
    if isinstance(value, FunctionType) and value.__name__ == "<lambda>":
        return " ".join(value.__code__.co_names) or "<lambda>"
    if isinstance(value, dict):
        return ", ".join(f"{key}={_inside(each)}" for key, each in value.items()) or "nothing"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(_inside, value)))}}}"
    if type(value) in (tuple, list):
        return ("({})" if isinstance(value, tuple) else "[{}]").format(", ".join(map(_inside, value)))
    shown = str(getattr(value, "__name__", repr(value)))
    return type(value).__name__ if " at 0x" in shown else shown


def _inside(value: Any) -> str:
    """A value that stands in another."""
    return str(value) if isinstance(value, str | bool | int | float | complex | None) else _named(value)


def _rule(rule: Any) -> str:
    """A rule as one would write it: its class, and what differs from its defaults."""
    shown = []
    for field in fields(rule):
        value = getattr(rule, field.name)
        if isinstance(value, Tensor) or field.default is MISSING or value != field.default:
            shown.append(f"{field.name}={_inside(value)}")
    return f"{type(rule).__name__}({', '.join(shown)})"


@cache
def rules_in(code: CodeType) -> frozenset[str]:
    """The rules that a test's code names, for tests that compare several at once or one alone."""
    inner = [rules_in(part) for part in code.co_consts if isinstance(part, CodeType)]
    return frozenset(code.co_names).intersection(RULE_NAMES).union(*inner)


def unnamed(case: str, parameters: Mapping[str, Any]) -> bool:
    """Whether an id hides what a case is of: a value was numbered or printed as an address, or a rule is not named."""
    numbered = "|".join(map(re.escape, parameters))
    if re.search(rf"(?:^|-)(?:{numbered})\d+(?:-|$)|<lambda>| at 0x", case):
        return True
    letters = _letters(case)
    return not all(_letters(type(each).__name__) in letters for each in parameters.values() if isinstance(each, Rule))


def _letters(text: str) -> str:
    """Without case, digits and underscores: `alpha2_beta1` names AlphaBeta, and `lrp0` is the name of Zero."""
    return re.sub(r"[\d_]", "", text.lower().replace("lrp0", "zero"))
