"""How Sphinx builds these pages (`make docs`); they are Markdown and read as well where they lie."""

from __future__ import annotations

import re
from typing import Any

project = "relprop"
author = "The relprop developers"
copyright = "2026, The relprop developers"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4  # links to headings, as `theory.md#batch-norm`, are checked

autodoc_typehints = "none"  # the signatures have them, and what they mean is under Args
autodoc_member_order = "bysource"

html_theme = "alabaster"
html_theme_options = {"description": "Relevance propagation for PyTorch", "page_width": "1100px"}

_LABEL = re.compile(r"^(Definition|Bias|Conserves|Range|Shapes|Source|Returns|Raises|What to do): (?=\S)")


def _paragraphs(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Make a paragraph of each labelled line of a docstring (`Definition: ...`)."""
    spaced: list[str] = []
    for line in lines:
        label = _LABEL.match(line)
        spaced += ["", _LABEL.sub(rf"**{label[1]}:** ", line)] if label else [line]
    lines[:] = spaced


def setup(app: Any) -> None:
    """Register the hook, before napoleon's own."""
    app.connect("autodoc-process-docstring", _paragraphs, priority=100)
