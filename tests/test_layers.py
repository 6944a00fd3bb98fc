"""The layers of `src` hold, and an import upward is found."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

UPWARD = {
    "propagation/math/numerics.py": "from relprop.propagation.facts import origins",
    "propagation/facts/origins.py": "from relprop.propagation.call import trace",
    "propagation/call/trace.py": "from relprop.propagation.run import taps",
    "propagation/run/taps.py": "from relprop.operations import table",
    "operations/rows.py": "from relprop.rules import rule",
    "rules/relevance.py": "from relprop.rules import selection",
    "rules/selection.py": "from relprop.rules import registry",
    "rules/rule.py": "from relprop.attribution import base",
    "metrics/curves.py": "from relprop.attribution import lrp",
    "trees.py": "from relprop import inputs",
}
"""An import upward, by the file that it is added to."""


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    """Hold the contracts of pyproject.toml against the sources in a folder."""
    program = "import sys; sys.path.insert(0, 'src'); from importlinter.cli import lint_imports_command; "
    command = [sys.executable, "-c", program + "lint_imports_command(['--no-cache'])"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def test_the_contracts_hold() -> None:
    pytest.importorskip("importlinter")
    found = lint(ROOT)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("file", UPWARD)
def test_an_import_upward_breaks_a_contract(file: str, tmp_path: Path) -> None:
    pytest.importorskip("importlinter")
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    path = tmp_path / "src" / "relprop" / file
    path.write_text(f"{path.read_text(encoding='utf-8')}\n\n{UPWARD[file]}\n", encoding="utf-8")
    found = lint(tmp_path)
    assert found.returncode != 0
    assert "BROKEN" in found.stdout
