"""That a call runs: the mark that what it sets on modules and threads bears."""

from __future__ import annotations


class Presence:
    """That a call runs: what it sets on modules and threads bears this mark, and goes when it is over.

    An interrupt (Ctrl-C) may come between any two steps, also while something is set or taken back. So whoever makes a
    presence declares it over in a ``finally``, and whoever begins a call takes back first what others have left.
    """

    __slots__ = ("over",)

    def __init__(self) -> None:
        self.over = False
