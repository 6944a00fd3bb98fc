"""The documentation runs: every Python block, and every output that is shown."""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from relprop import Method, Rules
from relprop.operations import table
from relprop.rules.presets import PRESETS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]

FENCE = re.compile(r"^```(?P<kind>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
TOKEN = re.compile(r"-?\d+(?:\.\d*)?(?:e[+-]?\d+)?|[^\s\d]+")
NOISE = 1e-9  # rounding errors differ from machine to machine, and an exact zero prints as a dot


class Block(NamedTuple):
    """A fenced block; `shown` is the output that stands behind it, if any."""

    line: int
    code: str
    shown: str | None


def blocks(page: Path) -> Iterator[Block]:
    """The Python blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = list(FENCE.finditer(text))
    for index, fence in enumerate(found):
        if fence["kind"] == "python":
            # A sentence may stand before the output, another block may not.
            after = found[index + 1 : index + 2]
            shown = after[0]["text"] if after and after[0]["kind"] == "text" else None
            yield Block(text.count("\n", 0, fence.start()) + 2, fence["text"], shown)


def same(shown: str, printed: str) -> bool:
    """Compare word by word; numbers to three digits."""
    ours, theirs = (TOKEN.findall(re.sub(r"-{2,}", "--", text)) for text in (shown, printed))
    return len(ours) == len(theirs) and all(map(_same_token, ours, theirs))


def _same_token(ours: str, theirs: str) -> bool:
    if ours == theirs:
        return True
    try:
        a, b = (0.0 if token == "." else float(token) for token in (ours, theirs))
    except ValueError:
        return False
    return math.isclose(a, b, rel_tol=1e-3, abs_tol=NOISE)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_code_runs_and_prints_what_is_shown(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Rules, "named", dict(Rules.named))  # a page may register rules,
    monkeypatch.setattr(Method, "named", dict(Method.named))  # and methods
    monkeypatch.setattr(table, "_known", table.operations())  # and declare operations
    namespace: dict[str, object] = {"__name__": page.stem}
    for block in blocks(page):
        padded = "\n" * (block.line - 1) + block.code  # a traceback names the line of the page
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(padded, str(page), "exec", dont_inherit=True), namespace)
        if block.shown is not None:
            assert same(block.shown, printed.getvalue()), f"{page.name}:{block.line} printed\n{printed.getvalue()}"
        else:
            assert not printed.getvalue(), f"{page.name}:{block.line} prints what the page does not show"
    if page.name == "README.md":
        assert (tmp_path / "digits.png").stat().st_size > 10_000


def test_comparison_of_outputs_can_fail() -> None:
    shown = "module  out  in\n------  ---  --\n0       1.25  .\n"
    assert same(shown, "module out in\n--- --- ---\n0 1.2500001 3e-17\n")
    assert not same(shown, "module out in\n--- --- ---\n0 1.26 3e-17\n")
    assert not same(shown, "module out in\n--- --- ---\n0 1.25 0.1\n")
    assert not same(shown, "module out to\n--- --- ---\n0 1.25 .\n")
    assert not same(shown, shown + "more\n")


def test_every_preset_stands_in_a_table() -> None:
    pages = [(ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/names.md")]
    rows = [line.split("|")[1] for page in pages for line in page.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert set(PRESETS) <= named


def test_reference_names_what_exists() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    named = re.findall(r"^\.\. auto(?:class|function):: (\S+)\.(\w+)$", text, re.MULTILINE)
    for module, name in named:
        assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\((?!https?://|#)([^)#\s]+)", text):
        target = (page.parent / link).resolve()
        assert target.is_file(), link
        if page.parent.name == "docs" and target.suffix == ".md":
            assert target.parent == page.parent, f"{link}: Sphinx does not see it"


PUBLIC = ("relprop", "relprop.rules", "relprop.operations", "relprop.metrics", "relprop.visual")
TAUGHT = [path for path in (*PAGES, *sorted((ROOT / "examples").glob("*.py"))) if path.name != "CHANGELOG.md"]


@pytest.mark.parametrize("path", TAUGHT, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_taught_is_private(path: Path) -> None:
    """Code imports from the public modules alone, and names nothing in another."""
    text = path.read_text(encoding="utf-8")
    code = text if path.suffix == ".py" else "\n".join(block.code for block in blocks(path))
    for module in re.findall(r"(?:from|import) (relprop[\w.]*)", code):
        assert module in PUBLIC, f"{module} is private"
    named = re.findall(r"`(relprop\.[\w.]+)", text)
    for name in named + re.findall(r"\b(relprop\.(?:propagation|attribution)\.\w+)", code):
        module = name.rpartition(".")[0]
        assert module in PUBLIC or name in PUBLIC, f"{name} is private"
