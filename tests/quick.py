"""What `make quick` leaves out: tests marked `slow`, and of a test with many cases all but a few, evenly spread."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import gcd

import pytest

MOST = 3  # cases of one test
TRACED = 8  # with coverage, which asks for more


def left_out(items: Iterable[pytest.Item], most: int = MOST) -> Iterator[pytest.Item]:
    """The cases that `make quick` does without."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for each in cases.values():
        kept = range(0, len(each), stride(len(each), most))
        yield from (item for position, item in enumerate(each) if position not in kept)


def stride(count: int, most: int) -> int:
    """Every how many cases one is kept: at most `most` are.

    It shares no factor with their number, so that every value of a parameter has its turn: of 5 layers with 8 rules
    each, every fifth case would be of one rule only.
    """
    step = -(-count // most)
    while gcd(step, count) > 1:
        step += 1
    return step
