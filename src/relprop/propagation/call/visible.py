"""Functions that are not torch's own, made such that the function mode of a call sees them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch.nn.modules._functions import BackwardHookFunction
from torch.overrides import handle_torch_function

from relprop.propagation.call.current import watched

Function = Callable[..., Any]


_visible: WeakSet[Function] = WeakSet()
_wrapped: WeakKeyDictionary[Function, Function] = WeakKeyDictionary()


def visible(function: Function) -> Function:
    """Return a function that does the same, and that a call of relprop sees; where none runs it does nothing more."""
    if function in _visible:
        return function
    if function in _wrapped:  # declared again: models that hold what was made of it go on to be seen
        return _wrapped[function]

    @wraps(function)
    def seen(*args: Any, **kwargs: Any) -> Any:
        if watched():
            return handle_torch_function(seen, args, *args, **kwargs)
        return function(*args, **kwargs)

    _visible.add(seen)
    _wrapped[function] = seen
    return seen


def make_apply_visible(declared: type[torch.autograd.Function]) -> Function:
    """Make ``declared.apply`` a function that a call of relprop sees, and return it."""
    if getattr(declared.__dict__.get("apply"), "__func__", None) not in _visible:
        inner: Any = declared.apply

        @wraps(inner.__func__)
        def apply(cls: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
            if cls is declared and watched():
                return handle_torch_function(declared.apply, args, *args, **kwargs)
            return inner.__func__(cls, *args, **kwargs)

        _visible.add(apply)
        declared.apply = classmethod(apply)  # type: ignore[assignment]
    return declared.apply


def once_differentiable(function: Any) -> bool:
    """Say whether the backward of an autograd function was declared to have no derivative itself."""
    code = getattr(getattr(function, "backward", None), "__code__", None)
    return code is not None and code.co_filename == torch.autograd.function.__file__


def made_by_user(node: Any) -> bool:
    """Say whether a node is that of an autograd function written in Python, but for the hooks of modules."""
    return getattr(node, "_forward_cls", BackwardHookFunction) is not BackwardHookFunction
