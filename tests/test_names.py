"""The page of names elsewhere: what it says to write here runs, and what it says of presets is so."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import relprop
from relprop import DeepTaylorWarning, Method, PatternWarning, Rules
from relprop import rules as all_rules
from relprop.rules.presets import PRESETS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "names.md"
NAMES = {
    **{name: getattr(relprop, name) for name in relprop.__all__},
    **{name: getattr(all_rules, name) for name in all_rules.__all__},
    "nn": nn, "low": -3.0, "high": 3.0, "alpha": 2.0, "beta": 1.0, "rule": all_rules.Epsilon(0.1),
    "baselines": torch.zeros(1, 1, 3, 3, dtype=torch.float64),
}  # fmt: skip


def tables() -> Iterator[tuple[str, list[list[str]]]]:
    """The heading of every table, and its rows as lists of cells."""
    for section in re.split(r"^#+ ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE):
        rows = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("|")]
        if rows:
            yield section.partition("\n")[0], [[cell.strip(" |") for cell in row] for row in rows[2:]]


CODES = [
    (code, heading)
    for heading, rows in tables()
    if heading != "The presets"
    for row in rows
    for code in re.findall(r"`([^`]+)`", row[1])
]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    return nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4), *layers).double()


@pytest.mark.filterwarnings("ignore::relprop.NoEffectWarning")  # some read a unit before which no ReLU is
@pytest.mark.parametrize("code", [code for code, _ in CODES], ids=[f"{heading}-{code}" for code, heading in CODES])
def test_what_to_write_runs(code: str) -> None:
    """Either it is a method, which then explains, or it is a map already."""
    x = torch.rand(2, 1, 3, 3, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeepTaylorWarning)
        warnings.simplefilter("ignore", PatternWarning)  # of units that two images say nothing of
        found = eval(code.replace('Unit("0", 2)', 'Unit("0", (1, 1, 1))'), {**NAMES, "model": network(), "x": x})
        if isinstance(found, Method):
            found = found.attribute(x, target=1)
    maps = list(found.values()) if isinstance(found, dict) else [found]
    assert maps and all(isinstance(item, Tensor) and bool(item.any()) for item in maps)


def test_every_table_has_rows() -> None:
    assert {heading for heading, _ in tables()} == {"iNNvestigate", "The presets", "Zennit", "Captum"}
    assert len(CODES) > 40


def test_the_presets_are_what_the_page_says() -> None:
    model, x = network(), torch.rand(2, 1, 3, 3, dtype=torch.float64)
    said: dict[str, tuple[str, str]] = {}
    for row in dict(tables())["The presets"]:
        for name in re.findall(r"`(\w+)`", row[0]):
            dense, convolution = row[1].strip("`"), row[2].strip("`")
            if dense == "as above":
                dense, convolution = said[name[: len("preset_a")]]
            said[name] = (dense, dense if convolution == "the same" else convolution)
    assert set(said) == {name for name in PRESETS if name.startswith("preset") or name.endswith("ignore_bias")}
    for name, rules in said.items():
        until = {"until": 1} if name.endswith("idx") else {}
        rows = [row.rule for row in Rules.preset(name, **until).plan(model, x).rows if row.kind == "linear"]
        dense, convolution = (repr(eval(rule, dict(NAMES))) for rule in rules)
        flat = 2 if until else 1 if name.endswith("flat") else 0
        assert rows == ([repr(all_rules.Flat())] * flat + [convolution, dense, dense, dense, dense][flat:])


def row_of(name: str) -> str:
    """What the page says to write for one of iNNvestigate's names."""
    (code,) = (row[1].strip("`") for row in dict(tables())["iNNvestigate"] if row[0].split(",")[0] == f"`{name}`")
    return code


@pytest.mark.parametrize("name", ["deconvnet", "guided_backprop", "deep_taylor"])
def test_what_innvestigate_calls_so(name: str) -> None:
    """By hand, from f downwards, as its analyzers go: a convolution, a ReLU, a dense layer without ReLU."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).double()
    conv, dense = model[0], model[3]
    x = torch.rand(2, 1, 3, 3, dtype=torch.float64)
    with torch.no_grad():
        z = conv(x)
        a = torch.relu(z)
        dense.bias += 2.0
        f = model(x)[:, 1]
        assert bool((f > 0).all())
        if name == "deep_taylor":  # z+ at both, without biases
            contributions = (a.flatten(1) * dense.weight[1]).clamp(min=0)
            r = (contributions / contributions.sum(1, keepdim=True) * f[:, None]).view_as(z)
            weight = conv.weight.clamp(min=0)  # x >= 0
            expected = x * nn.functional.conv_transpose2d(r / nn.functional.conv2d(x, weight), weight)
        else:
            r = (dense.weight[1] * f[:, None]).view_as(z).clamp(min=0)
            expected = nn.functional.conv_transpose2d(r * (z > 0) if name == "guided_backprop" else r, conv.weight)
    found = eval(row_of(name), {**NAMES, "model": model, "x": x})
    found = found.attribute(x, target=1) if isinstance(found, Method) else found
    scale = float(expected.abs().max())
    assert scale > 0 and float((found.detach() - expected).abs().max()) < 1e-4 * scale  # a stabilizer
