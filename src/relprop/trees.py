"""Tensors in nested structures: tuples, lists, mappings and dataclasses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

_ATOMS = frozenset({type(None), bool, int, float, str, torch.dtype, torch.device, torch.layout})
"""What holds nothing, and what most arguments of a call are."""


def map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """Apply a function to every tensor in nested tuples, lists, mappings and dataclasses; all else stays.

    What holds nothing that changed is returned itself.
    """
    if isinstance(tree, Tensor):
        return function(tree)
    if type(tree) in _ATOMS:
        return tree
    parts = children(tree)
    mapped = {key: map_tensors(function, part) for key, part in parts.items()}
    if all(mapped[key] is part for key, part in parts.items()):
        return tree
    if isinstance(tree, (tuple, list)):
        return type(tree)(*mapped.values()) if hasattr(tree, "_fields") else type(tree)(mapped.values())
    if type(tree) is dict or (isinstance(tree, Mapping) and not isinstance(tree, MutableMapping)):
        return mapped
    changed = copy.copy(tree)
    for key, part in mapped.items():
        if isinstance(tree, MutableMapping):
            changed[key] = part
        else:
            object.__setattr__(changed, key, part)  # frozen or not
    return changed


def tensors_in(tree: Any, found: list[Tensor] | None = None) -> list[Tensor]:
    """Return every tensor in nested tuples, lists, mappings and dataclasses, in order."""
    found = [] if found is None else found
    if isinstance(tree, Tensor):
        found.append(tree)
    elif isinstance(tree, (tuple, list)):  # every call has one
        for item in tree:
            tensors_in(item, found)
    elif type(tree) not in _ATOMS:
        for item in children(tree).values():
            tensors_in(item, found)
    return found


def children(tree: Any) -> Mapping[Any, Any]:
    """Return what a tuple, list, mapping or dataclass holds, by its place there; nothing for anything else."""
    if isinstance(tree, (tuple, list)):
        return dict(enumerate(tree))
    if isinstance(tree, Mapping):
        return tree
    if hasattr(tree, "__dataclass_fields__") and not isinstance(tree, type):
        return {field.name: getattr(tree, field.name) for field in fields(tree) if hasattr(tree, field.name)}
    return {}
