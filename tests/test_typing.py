"""What type checkers read says what runs: names, options, and the file of cases that `make check` gives to mypy."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import nn

import relprop
from relprop import InputTypeError, Method, metrics
from relprop.arguments import Default
from relprop.attribution import options as attribution_options
from relprop.attribution.methods import MethodName
from relprop.metrics import options as metric_options
from relprop.rules import registry
from relprop.rules.presets import PRESETS
from relprop.rules.registry import PresetName, RuleName

CASES = (Path(__file__).parent / "typing_cases.py").read_text(encoding="utf-8")
METHODS = [entry.method for entry in relprop.methods().values() if entry.method.__module__.startswith("relprop.")]
CALLS = {
    f"{kind.__name__}.{name}": getattr(kind, name)
    for kind in METHODS
    for name in ("attribute", "attribute_layers", "attribute_targets", "report", "expand")
    if hasattr(kind, name)
} | {
    name: getattr(metrics, name)
    for name in (
        "perturbation_curve", "pixel_flipping", "deletion", "insertion", "selectivity", "irof", "monotonicity_arya",
        "monotonicity_nguyen", "faithfulness_correlation", "faithfulness_estimate", "sensitivity_n",
    )
}  # fmt: skip
WRAPPERS = ("NoiseTunnel", "SmoothGrad", "SmoothGradSquared", "VarGrad", "Translated", "Combined")


@pytest.mark.parametrize(
    ("literal", "table"),
    [
        (PresetName, PRESETS),
        (RuleName, {name: rule for name, rule in registry._NAMED.items() if rule.__module__.startswith("relprop.")}),
        (MethodName, {name: kind for name, kind in Method.named.items() if kind.__module__.startswith("relprop.")}),
    ],
    ids=["presets", "rules", "methods"],
)
def test_literals_are_the_names_there_are(literal: Any, table: Mapping[str, Any]) -> None:
    assert len(get_args(literal)) == len(set(get_args(literal)))
    assert set(get_args(literal)) == set(table)


def test_every_method_has_a_typing_case() -> None:
    missing = [kind.__name__ for kind in METHODS if f"relprop.{kind.__name__}(" not in CASES]
    assert not missing


@pytest.mark.parametrize("name", [name for name in CALLS if not name.startswith(WRAPPERS)])
def test_a_misspelled_argument_names_the_nearest(name: str) -> None:
    call: Callable[..., Any] = CALLS[name]
    own = inspect.signature(call).parameters
    last = [parameter for parameter in own.values() if parameter.name != "self"][-1]
    assert last.kind is last.KEYWORD_ONLY and not any(p.kind is p.VAR_KEYWORD for p in own.values())
    with pytest.raises(InputTypeError, match=f"takes no argument '{last.name}s'.*Did you mean.*'{last.name}'"):
        call(SimpleNamespace(model=nn.Linear(1, 1)), None, None, None, **{f"{last.name}s": None})


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapper_asks_what_it_wraps(name: str) -> None:
    kind, method = getattr(relprop, name), relprop.LRP(nn.Linear(2, 1))
    with pytest.raises(InputTypeError, match=r"LRP.*'create_graph'"):
        kind([method] if name == "Combined" else method).attribute(torch.ones(1, 2), creat_graph=True)


@pytest.mark.parametrize("module", [attribution_options, metric_options], ids=["attribution", "metrics"])
def test_every_option_has_a_type_and_a_default(module: Any) -> None:
    kinds = [kind for name, kind in vars(module).items() if name.endswith("Options")]
    assert kinds
    for kind in kinds:
        for hint in get_type_hints(kind, include_extras=True).values():
            (default,) = hint.__metadata__
            assert isinstance(default, Default)


def test_options_stand_in_the_signature_and_are_all_received() -> None:
    shown = inspect.signature(relprop.LRP.attribute).parameters
    assert list(shown)[1:4] == ["inputs", "target", "additional_forward_args"]
    assert shown["create_graph"].default is False and shown["condition"].default is None
    assert inspect.signature(metrics.deletion).parameters["output"].default == "probability"
    assert inspect.signature(metrics.insertion).parameters["baseline"].default == "blur"
    assert inspect.signature(metrics.perturbation_curve).parameters["output"].default == "logit"
