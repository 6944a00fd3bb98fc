"""The examples as modules, for every test of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import matplotlib
import pytest
from matplotlib import pyplot as plt

FOLDER = Path(__file__).resolve().parents[2] / "examples"
NAMES = (
    "digits",
    "all_methods",
    "graph",
    "patterns",
    "right_reasons",
    "sequence",
    "tutorial_walk",
    "tutorial_depth",
    "tutorial_continuity",
    "tutorial_implementation",
    "tutorial_blind_spot",
    "demo",
    "validate",
)


@pytest.fixture(scope="module")
def examples() -> Iterator[dict[str, ModuleType]]:
    """The examples as modules, imported as they import each other, and forgotten afterwards."""
    with pytest.MonkeyPatch.context() as patch, matplotlib.rc_context():
        plt.switch_backend("Agg")
        patch.syspath_prepend(str(FOLDER))
        yield {name: import_module(name) for name in NAMES}
        for name in NAMES:
            sys.modules.pop(name, None)
