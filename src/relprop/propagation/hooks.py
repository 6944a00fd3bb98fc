"""The only module hooks: they keep the names by which rules are selected, and leave with the last call."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from relprop.propagation.call import Call
from relprop.propagation.storage import tensors_in

Observer = Callable[[str, Any], None]


class ModuleHooks:
    """A forward-pre and a forward hook on every module, for the time of a call.

    They act on the thread of the call alone: they keep the stack of modules that are running, and show the outputs
    of the modules in ``observed`` to ``observe(name, output)``. They never replace an input or an output, but for
    one: where an observed module returns its very input, what leaves it is a view, so that it has relevance of its
    own.

    Calls on one model at the same time share their hooks: the first to begin sets them, the last to end removes
    them. (A module whose forward raised walks its hooks in a way that does not bear others coming and going.)
    """

    _lock: ClassVar[threading.RLock] = threading.RLock()
    _shared: ClassVar[weakref.WeakKeyDictionary[nn.Module, _Hooks]] = weakref.WeakKeyDictionary()

    def __init__(self, model: nn.Module, call: Call, observed: Iterable[str] = (), observe: Observer | None = None):
        self._model = model
        self._observed = frozenset(observed)
        self._observe = observe
        self.call = call

    def __enter__(self) -> ModuleHooks:
        with self._lock:
            if self._model not in self._shared:
                self._shared[self._model] = _Hooks(self._model)
            self._shared[self._model].calls.setdefault(threading.get_ident(), []).append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            hooks = self._shared[self._model]
            running = hooks.calls[threading.get_ident()]
            running.remove(self)
            if not running:
                del hooks.calls[threading.get_ident()]
            if not hooks.calls:
                hooks.remove()
                del self._shared[self._model]

    def entering(self, name: str, module: nn.Module) -> None:
        """Note that a module begins to run."""
        self.call.called.add(name)
        self.call.stack.append((name, module))

    def leaving(self, name: str, module: nn.Module, args: Any, output: Any) -> Tensor | None:
        """Note that a module has run; return what stands for its output, if something has to."""
        call, replaced = self.call, None
        with torch._C.DisableTorchFunction():  # what is computed here is no part of the model
            for tensor in tensors_in(output):
                if tensor.grad_fn is not None:
                    call.reach_seen(tensor)
            if self._observe is not None and name in self._observed and output is not None:
                if any(output is tensor for tensor in tensors_in(args)):
                    replaced = output = call.view(output)
                self._observe(name, output)
        if call.stack and call.stack[-1][1] is module:
            call.stack.pop()
        return replaced


class _Hooks:
    """The hooks on the modules of one model, and for every thread the calls that run there, the innermost last."""

    def __init__(self, model: nn.Module) -> None:
        self.calls: dict[int, list[ModuleHooks]] = {}
        self._handles: list[RemovableHandle] = []
        try:
            for name, module in model.named_modules():
                # First before, last after: what the user's own hooks compute belongs to the module.
                self._handles.append(module.register_forward_pre_hook(self._entering(name), prepend=True))
                self._handles.append(module.register_forward_hook(self._leaving(name), always_call=True))
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _entering(self, name: str) -> Callable[[nn.Module, Any], None]:
        calls = self.calls

        def enter(module: nn.Module, args: Any) -> None:
            running = calls.get(threading.get_ident())
            if running:
                running[-1].entering(name, module)

        return enter

    def _leaving(self, name: str) -> Callable[[nn.Module, Any, Any], Tensor | None]:
        calls = self.calls

        def leave(module: nn.Module, args: Any, output: Any) -> Tensor | None:
            running = calls.get(threading.get_ident())
            return running[-1].leaving(name, module, args, output) if running else None

        return leave
