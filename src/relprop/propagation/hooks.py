"""The only module hooks: they keep the names by which rules are selected, and leave with the call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from relprop.propagation.call import Call
from relprop.propagation.storage import tensors_in

Observer = Callable[[str, Any], None]


class ModuleHooks:
    """A forward-pre and a forward hook on every module, for the time of one call and on its thread alone.

    They keep the stack of modules that are running, and show the outputs of the modules in ``observed`` to
    ``observe(name, output)``. They never replace an input or an output, but for one: where an observed module returns
    its very input, what leaves it is a view, so that it has relevance of its own.
    """

    def __init__(self, model: nn.Module, call: Call, observed: Iterable[str] = (), observe: Observer | None = None):
        self._model = model
        self._call = call
        self._observed = frozenset(observed)
        self._observe = observe
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> ModuleHooks:
        try:
            for name, module in self._model.named_modules():
                # First before, last after: what the user's own hooks compute belongs to the module.
                self._handles.append(module.register_forward_pre_hook(self._entering(name), prepend=True))
                self._handles.append(module.register_forward_hook(self._leaving(name), always_call=True))
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _entering(self, name: str) -> Callable[[nn.Module, Any], None]:
        call = self._call

        def enter(module: nn.Module, args: Any) -> None:
            if threading.get_ident() == call.thread:
                call.called.add(name)
                call.stack.append((name, module))

        return enter

    def _leaving(self, name: str) -> Callable[[nn.Module, Any, Any], Tensor | None]:
        call, observe = self._call, self._observe if name in self._observed else None

        def leave(module: nn.Module, args: Any, output: Any) -> Tensor | None:
            if threading.get_ident() != call.thread:
                return None
            replaced = None
            with torch._C.DisableTorchFunction():  # what is computed here is no part of the model
                for tensor in tensors_in(output):
                    if tensor.grad_fn is not None:
                        call.reach_seen(tensor)
                if observe is not None and output is not None:
                    if any(output is tensor for tensor in tensors_in(args)):
                        replaced = output = call.view(output)
                    observe(name, output)
            if call.stack and call.stack[-1][1] is module:
                call.stack.pop()
            return replaced

        return leave
