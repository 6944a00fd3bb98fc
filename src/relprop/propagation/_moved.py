"""Names that the documentation taught from modules that are gone: they warn once, for one release."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from relprop.errors import MovedWarning, warn


def moved(module: str, **names: str) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a module that is gone.

    Args:
        module: its name.
        names: what stood there, each with the module in which it stands now.
    """

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}", name=name, obj=sys.modules[module])
        found = getattr(importlib.import_module(names[name]), name)
        warn(f"{module}.{name} has moved: write from {names[name]} import {name}.", MovedWarning)
        setattr(sys.modules[module], name, found)  # once
        return found

    return find
