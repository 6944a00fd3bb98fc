"""Which call runs on this thread, and what it has set for that time."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import TYPE_CHECKING

import torch

from relprop.presence import Presence

if TYPE_CHECKING:
    from relprop.propagation.call.call import Call


class _Thread(threading.local):
    """The calls that run on a thread, the innermost last."""

    def __init__(self) -> None:
        self.calls: list[tuple[Presence, Call]] = []

    def remaining(self) -> list[tuple[Presence, Call]]:
        """Return the calls that are not over."""
        if self.calls and any(presence.over for presence, _ in self.calls):
            self.calls = [each for each in self.calls if not each[0].over]
        return self.calls


_this_thread = _Thread()


class foremost:  # used as a statement: with foremost(call)
    """Let only the modes and hooks of this call act on this thread, until it is done: one may run inside another's."""

    def __init__(self, call: Call, presence: Presence | None = None) -> None:
        self._call, self._presence = call, presence or Presence()

    def __enter__(self) -> None:
        _this_thread.remaining().append((self._presence, self._call))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        calls = _this_thread.calls
        for position in range(len(calls) - 1, -1, -1):
            if calls[position][1] is self._call:
                del calls[position]
                return


def current() -> Call | None:
    """Return the call whose modes and hooks act on this thread; None where none runs."""
    calls = _this_thread.calls
    if calls and calls[-1][0].over:
        calls = _this_thread.remaining()
    return calls[-1][1] if calls else None


def watched() -> bool:
    """Say whether a call of relprop runs on this thread, with a mode that is to see what is called."""
    return bool(_this_thread.calls) and torch._C._is_torch_function_mode_enabled()
