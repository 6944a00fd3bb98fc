"""The only module hooks: they keep the names by which rules are selected, and leave with the last call."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.modules import module as hooked

from relprop.presence import Presence
from relprop.propagation.call.call import Call
from relprop.propagation.call.current import current
from relprop.propagation.call.trace import Entered
from relprop.propagation.run.explained_output import Readings
from relprop.trees import map_tensors, tensors_in

_GLOBAL_HOOKS = hooked._global_backward_hooks, hooked._global_backward_pre_hooks

Observer = Callable[[str, Any], None]


class ModuleHooks:
    """A forward-pre and a forward hook on every module, for the time of a call.

    They act on the thread of the call alone: they keep the stack of modules that are running, and show the outputs
    of the modules in ``observed`` to ``observe(name, output)``, those in ``readings.layers`` to ``readings.take``. They
    never replace an input or an output, but for one: where what is observed of an output is the module's very input,
    what leaves it is a view, so that it has relevance of its own.

    Calls at the same time share the hooks of a module: the first to begin sets them, the last to end removes them.
    (A module whose forward raised walks its hooks in a way that does not bear others coming and going.)
    """

    _lock: ClassVar[threading.RLock] = threading.RLock()
    _users: ClassVar[weakref.WeakKeyDictionary[nn.Module, set[Presence]]] = weakref.WeakKeyDictionary()

    def __init__(
        self,
        model: nn.Module,
        call: Call,
        presence: Presence,
        observed: Iterable[str] = (),
        observe: Observer | None = None,
        readings: Readings | None = None,
    ) -> None:
        self._presence = presence
        self._names = {module: name for name, module in model.named_modules()}
        self._observed = frozenset(observed)
        self._observe = observe
        self._readings = readings
        self._open: list[tuple[nn.Module, Entered]] = []
        self.call = call

    def __enter__(self) -> ModuleHooks:
        with self._lock:
            for module in [module for module, users in self._users.items() if any(each.over for each in users)]:
                self._leave(module, {each for each in self._users[module] if each.over})
            for module in self._names:
                users = self._users.setdefault(module, set())
                if not users:
                    users.add(self._presence)
                    _remove(module)  # what an interrupt left
                    # First before, last after: what the user's own hooks compute belongs to the module.
                    module.register_forward_pre_hook(_enter, prepend=True, with_kwargs=True)
                    module.register_forward_hook(_leave, with_kwargs=True, always_call=True)
                users.add(self._presence)
        self.call.hooks = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.call.hooks = None
        with self._lock:
            for module in self._names:
                self._leave(module, {self._presence})

    @classmethod
    def _leave(cls, module: nn.Module, gone: set[Presence]) -> None:
        """Take the hooks off a module, where nobody else uses them."""
        if not cls._users.get(module, set()) - gone:
            _remove(module)
            cls._users.pop(module, None)
        else:
            cls._users[module] -= gone

    def entering(self, module: nn.Module, given: Any) -> None:
        """Note that a module begins to run."""
        name = self._names.get(module)
        if name is not None:
            call = self.call
            if not call.trace.stack:
                with torch._C.DisableTorchFunction():
                    call.give(given)
            if not call.ended:
                call.trace.called.add(name)
            call.trace.stack.append((name, module))
            if _GLOBAL_HOOKS[0] or _GLOBAL_HOOKS[1]:
                call.coverage.backward_hooks("Every module")
            elif module._backward_hooks or module._backward_pre_hooks:
                call.coverage.backward_hooks(f"Module {name!r} ({type(module).__name__})")
            if call.trace.recording:
                entered = Entered(name, type(module).__name__, len(call.trace.records))
                call.trace.entered.append(entered)
                self._open.append((module, entered))

    def leaving(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """Note that a module has run; return what stands for its output, if something has to."""
        call, replaced, name = self.call, None, self._names.get(module)
        if name is None:
            return None
        with torch._C.DisableTorchFunction():  # what is computed here is no part of the model
            tensors = tensors_in(output)
            for tensor in tensors:
                if tensor.grad_fn is not None and not call.ended:
                    call.active_seen(tensor)
            if self._observe is not None and name in self._observed and output is not None:
                if tensors and any(tensors[0] is tensor for tensor in tensors_in(inputs)):
                    own = call.view(tensors[0])
                    replaced = output = map_tensors(lambda leaf: own if leaf is tensors[0] else leaf, output)
                self._observe(name, output)
            if self._open and self._open[-1][0] is module:
                _, entered = self._open.pop()
                entered.inputs = tuple(tuple(tensor.shape) for tensor in tensors_in(inputs))
                entered.output = tuple(tensors[0].shape) if tensors else ()
        if self._readings is not None and name in self._readings.layers and output is not None:
            self._readings.take(name, output)  # this is: a target may compute
        if call.trace.stack and call.trace.stack[-1][1] is module:
            call.trace.stack.pop()
        return replaced


def _remove(module: nn.Module) -> None:
    """Take the hooks off a module, also where only one of the two was set."""
    for hooks, ours, marks in (
        (module._forward_pre_hooks, _enter, (module._forward_pre_hooks_with_kwargs,)),
        (module._forward_hooks, _leave, (module._forward_hooks_with_kwargs, module._forward_hooks_always_called)),
    ):
        for key in [key for key, hook in hooks.items() if hook is ours]:
            for marked in marks:
                marked.pop(key, None)
            del hooks[key]


def _enter(module: nn.Module, args: Any, kwargs: Any) -> None:
    call = current()
    if call is not None and call.hooks is not None:
        call.hooks.entering(module, (args, kwargs))


def _leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    call = current()
    return None if call is None or call.hooks is None else call.hooks.leaving(module, (args, kwargs), output)
