"""Which call runs on this thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from relprop.propagation.call.call import Call


class _Thread(threading.local):
    """The calls that run on a thread, the innermost last."""

    def __init__(self) -> None:
        self.calls: list[Call] = []


_this_thread = _Thread()


@contextmanager
def foremost(call: Call) -> Iterator[None]:
    """Let only the modes and hooks of this call act on this thread, until it is done: one may run inside another's."""
    calls = _this_thread.calls
    calls.append(call)
    try:
        yield
    finally:
        calls.pop()


def current() -> Call | None:
    """Return the call whose modes and hooks act on this thread; None where none runs."""
    return _this_thread.calls[-1] if _this_thread.calls else None


def watched() -> bool:
    """Say whether a call of relprop runs on this thread, with a mode that is to see what is called."""
    return bool(_this_thread.calls) and torch._C._is_torch_function_mode_enabled()
