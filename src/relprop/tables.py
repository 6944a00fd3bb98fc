"""Text and HTML tables, for plans and reports."""

from __future__ import annotations

import html
from collections.abc import Sequence


def text_table(header: Sequence[str], lines: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Return text in columns; those in ``right`` stand flush right.

    >>> print(text_table(("layer", "R"), [("conv", "1.25"), ("head", "10.5")], right=(1,)))
    layer     R
    -----  ----
    conv   1.25
    head   10.5
    """
    widths = [max(len(row[column]) for row in (header, *lines)) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, lines)])


def html_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return the same as an HTML table, its cells escaped."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def shape_text(shape: Sequence[int]) -> str:
    """Return a shape as ``2x3x8x8``.

    >>> shape_text((2, 3))
    '2x3'
    """
    return "x".join(map(str, shape)) or "()"
