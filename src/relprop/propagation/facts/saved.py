"""Who may write where: saved tensors are copied before a write, and the model is never written to."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from relprop.errors import ModelError


class Saved:
    """One tensor that the backward will need."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class CopyOnWrite:
    """Keeps what autograd saves, and clones it before somebody writes into its storage.

    The hooks also stand above those of non-reentrant checkpointing, whose recomputation would run
    outside the function mode: with them nothing is recomputed.
    """

    def __init__(self) -> None:
        self._by_storage: dict[int, weakref.WeakSet[Saved]] = {}
        # Without this object, which holds the hooks: nothing waits for the garbage collector.
        self.pack: Callable[..., Any] = partial(_pack, self._by_storage)
        self.unpack: Callable[..., Any] = _unpack

    def save(self, tensor: Tensor) -> Saved:
        """Keep a tensor as it is now, whatever is written into its storage later."""
        return _save(self._by_storage, tensor)

    def before_write(self, tensor: Tensor) -> None:
        """Clone everything saved from the tensor's storage."""
        for saved in self._by_storage.pop(storage_key(tensor), ()):
            saved.tensor = saved.tensor.clone()

    def clear(self) -> None:
        self._by_storage.clear()


class Unsaved(CopyOnWrite):
    """Keeps nothing of what autograd would save, for a forward pass that has no backward."""

    def __init__(self) -> None:
        super().__init__()
        self.pack, self.unpack = _drop, _dropped


def _drop(tensor: Tensor) -> None:
    """Keep nothing."""


def _dropped(nothing: None) -> Tensor:
    raise ModelError(
        "The model takes a gradient (torch.autograd.grad or backward) in its forward pass, for which fitting keeps "
        "nothing. Fit the part of the model that is differentiated."
    )


def _save(by_storage: dict[int, weakref.WeakSet[Saved]], tensor: Tensor) -> Saved:
    saved = Saved(tensor)
    key = storage_key(tensor)
    slots = by_storage.get(key)
    if slots is None:
        slots = by_storage[key] = weakref.WeakSet()
    slots.add(saved)
    return saved


def _pack(by_storage: dict[int, weakref.WeakSet[Saved]], tensor: Tensor) -> Saved:
    # Autograd connects what it unpacks by itself; an output saved with its node would keep the node alive.
    return _save(by_storage, tensor.detach())


def _unpack(saved: Saved) -> Tensor:
    return saved.tensor


def has_storage(tensor: Tensor) -> bool:
    """Say whether a tensor has memory of its own kind: dense, and on a device."""
    return tensor.layout == torch.strided and not tensor.is_meta


def storage_key(tensor: Tensor) -> int:
    """Return a number that tensors have in common where they share their memory."""
    return tensor.untyped_storage().data_ptr() if has_storage(tensor) else id(tensor)
