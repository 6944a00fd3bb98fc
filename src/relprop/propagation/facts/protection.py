"""What a model owns: it is put back as it was, and whoever writes to it writes to a copy."""

from __future__ import annotations

import threading
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from types import TracebackType
from typing import Any, ClassVar, TypeAlias

from torch import Tensor, nn

from relprop.presence import Presence
from relprop.propagation.facts.saved import has_storage, storage_key
from relprop.trees import tensors_in

Contents: TypeAlias = "tuple[dict[str, Any], list[tuple[Any, Any]]]"


_REGISTRIES = frozenset(nn.Module().__dict__)
"""What every module has: its registries of parameters, buffers, modules and hooks."""


_HOOKS = frozenset(name for name in _REGISTRIES if "hook" in name)


_CONTAINERS = frozenset({list, dict, set, deque, OrderedDict, defaultdict, Counter})


class Attributes:
    """What the modules of a model hold, put back as it was when the last call on a module ends.

    Some models assign to themselves in their forward: weights made by a hook, statistics, counters, a memory. Their
    attributes are put back, and the contents of those that are lists, dicts, sets and deques, but not what these
    contain in turn, nor what objects of other classes hold. Hooks are left alone. While several threads explain one
    model, the state from before the first of them is kept.
    """

    _lock = threading.RLock()
    _open: ClassVar[weakref.WeakKeyDictionary[nn.Module, tuple[set[Presence], Contents]]] = weakref.WeakKeyDictionary()

    def __init__(self, model: nn.Module, presence: Presence) -> None:
        self._modules, self._presence = list(model.modules()), presence

    def __enter__(self) -> Attributes:
        with self._lock:
            for module in [module for module, (users, _) in self._open.items() if any(each.over for each in users)]:
                self._leave(module, {each for each in self._open[module][0] if each.over})
            for module in self._modules:
                if module not in self._open:
                    self._open[module] = {self._presence}, _contents(module)
                self._open[module][0].add(self._presence)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            for module in self._modules:
                self._leave(module, {self._presence})

    @classmethod
    def _leave(cls, module: nn.Module, gone: set[Presence]) -> None:
        """Put a module back, where nobody else runs it; only then forget how it was."""
        users, contents = cls._open.get(module, (set(), None))
        if contents is None or users - gone:
            users -= gone
        else:
            _put_back(module, contents)
            cls._open.pop(module, None)


def _contents(module: nn.Module) -> Contents:
    """Return the attributes of a module but its hooks, and the containers among them with what they hold."""
    attributes = {name: value for name, value in module.__dict__.items() if name not in _HOOKS}
    containers = [value for value in attributes.values() if type(value) in _CONTAINERS]
    return attributes, [
        (container, dict(container) if isinstance(container, dict) else list(container)) for container in containers
    ]


def _put_back(module: nn.Module, contents: Contents) -> None:
    attributes, containers = contents
    now = module.__dict__
    for name in [name for name in now if name not in attributes and name not in _HOOKS]:
        del now[name]
    for name, value in attributes.items():
        if name not in now or now[name] is not value:
            now[name] = value
    for container, held in containers:
        if not _same(container, held):
            container.clear()
            if isinstance(container, (dict, set)):
                container.update(held)
            else:
                container.extend(held)


def _same(container: Any, held: Any) -> bool:
    """Say whether a container holds the very objects that it held."""
    if len(container) != len(held):
        return False
    if isinstance(container, dict):
        return all(key in container and container[key] is value for key, value in held.items())
    if isinstance(container, set):
        return {id(item) for item in container} == {id(item) for item in held}
    return all(item is before for item, before in zip(container, held, strict=True))


class Protected:
    """What a model owns: parameters, buffers, and tensors that its modules hold as attributes.

    Whoever writes to one writes to a copy for this call.
    """

    def __init__(self, model: nn.Module) -> None:
        self._registered = {storage_key(tensor) for tensor in (*model.parameters(), *model.buffers())} - {0}
        self._attributes = {
            storage_key(tensor)
            for module in model.modules()
            for name, value in module.__dict__.items()
            if name not in _REGISTRIES
            for tensor in tensors_in(value)
        } - {0}
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def untouched(self) -> bool:
        """Say whether nothing has been written so far."""
        return not self._copies

    def give(self, tensor: Tensor) -> None:
        """Note that a tensor was given to the model: even where a module kept it, it is the user's."""
        self._attributes.discard(storage_key(tensor))

    def registers(self, tensor: Tensor) -> bool:
        """Say whether the tensor lies in a parameter's or buffer's storage."""
        return bool(self._registered) and storage_key(tensor) in self._registered

    def owns(self, tensor: Tensor) -> bool:
        """Say whether the tensor lies in the storage of something that the model owns."""
        return self.registers(tensor) or (bool(self._attributes) and storage_key(tensor) in self._attributes)

    def holds(self, tensor: Tensor) -> bool:
        """Say whether the tensor lies in the storage of something that the model owns, or of this call's copy."""
        return self.owns(tensor) or any(
            storage_key(copied) == storage_key(tensor) for _, copied in self._copies.values()
        )

    def copy_for_writing(self, tensor: Tensor) -> Tensor:
        """Return the same view of this call's copy of the storage, which it makes at the first write."""
        key = storage_key(tensor)
        if key not in self._copies:
            whole = tensor.detach().as_strided((tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0)
            self._copies[key] = (tensor, whole.clone())
        return self.current(tensor)

    def current(self, tensor: Tensor) -> Tensor:
        """Return what stands for the tensor in this call: its copy where it has been written."""
        if not has_storage(tensor):
            return tensor
        entry = self._copies.get(storage_key(tensor))
        if entry is None:
            return tensor
        return entry[1].as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())

    def clear(self) -> None:
        self._copies = {}
