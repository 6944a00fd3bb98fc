"""What is known of a tensor: where it came from, and whether it depends on the explained input."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

if TYPE_CHECKING:
    from relprop.propagation.site import Site

INACTIVE, ACTIVE, BEYOND_LINEAR = 0, 1, 2


@dataclass(frozen=True)
class Origin:
    """What one tensor came from; true as long as the tensor's version is ``version``.

    Attributes:
        site: the linear call whose output it exactly is.
        nonnegative: it is known to hold nothing below zero.
        gate: it is a sigmoid, to act as a factor that is constant.
        factors: how many active factors its terms are products of.
        spread: the sum of the sizes of the differences it was added up from (for RevealCancel).
    """

    version: int = 0
    site: Site | None = None
    nonnegative: bool = False
    gate: bool = False
    factors: int = 1
    spread: Tensor | None = None


@dataclass(frozen=True)
class Mask:
    """Where a tensor, as it was in a version, is above zero, or below (whatever it is where the tensor is zero)."""

    of: Tensor
    version: int
    above: bool


class Origins:
    """The origins of the tensors of one call, held as long as the tensors live."""

    def __init__(self) -> None:
        self._known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._weights: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._masks: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def note_weight(self, tensor: Tensor) -> None:
        """Remember a constant that was made from parameters."""
        self._weights[tensor] = True

    def is_weight(self, tensor: Tensor) -> bool:
        """Say whether a constant was made from parameters."""
        return tensor in self._weights

    def note_mask(self, tensor: Tensor, mask: Mask) -> None:
        """Remember a mask."""
        self._masks[tensor] = (mask, tensor._version)

    def mask(self, tensor: Tensor) -> Mask | None:
        """Return of what a tensor is the mask, as both are now."""
        if not self.has_masks:
            return None
        mask, version = self._masks.get(tensor, (None, 0))
        return mask if mask is not None and (version, mask.version) == (tensor._version, mask.of._version) else None

    @property
    def has_masks(self) -> bool:
        return len(self._masks) > 0

    def of(self, tensor: Tensor) -> Origin:
        """Return what is known of the tensor as it is now."""
        origin: Origin | None = self._known.get(tensor)
        if origin is None and type(tensor.grad_fn).__name__ == "BackwardHookFunctionBackward":
            origin = self._known.get(_before_hook(tensor))
        return origin if origin is not None and origin.version == tensor._version else Origin()

    def note(self, tensor: Tensor, origin: Origin) -> None:
        """Remember the origin of the tensor as it is now."""
        known = origin.site is not None or origin.spread is not None or origin.factors != 1
        if known or origin.nonnegative or origin.gate:
            self._known[tensor] = replace(origin, version=tensor._version)
        else:
            self._known.pop(tensor, None)

    def clear(self) -> None:
        self._known, self._weights = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()
        self._masks = WeakTensorKeyDictionary()


def _before_hook(tensor: Tensor) -> Tensor:
    """Return the tensor on which a module's backward hook put a node: its base, where that is the same tensor."""
    with torch._C.DisableTorchFunction():
        base = tensor._base
        same = base is not None and tensor.shape == base.shape and tensor.stride() == base.stride()
        return base if same and base is not None and tensor.storage_offset() == base.storage_offset() else tensor


class Graph:
    """The autograd graph as it grows: which nodes depend on the explained input, and through what.

    A tensor is active when it depends on the input, not when it requires grad: parameters do that too.
    The walk is memoised, so it costs each node once.
    """

    def __init__(self, is_input: Callable[[Tensor], bool] | None = None) -> None:
        self._is_input = is_input
        self._state: dict[Any, int] = {}
        self._roots: set[Any] = set()

    def add_root(self, tensor: Tensor) -> None:
        """Make the node of this tensor a source of activity."""
        self._roots.add(tensor.grad_fn)
        self._state[tensor.grad_fn] = ACTIVE

    def overwrite(self, tensor: Tensor, value: Tensor) -> None:
        """Note that the whole tensor now holds a value: it depends on what the value does, and on nothing else."""
        if tensor.grad_fn is not None and not tensor._is_view():
            self._state[tensor.grad_fn] = self.reach(value)

    def touches_input(self, tensor: Tensor) -> bool:
        """Say whether a tensor was made from the input at all, were it by way of constants."""
        stack, visited = [tensor.grad_fn], set()
        while stack:
            node = stack.pop()
            if node is None or node in visited:
                continue
            if node in self._roots or self._leaf(node):
                return True
            visited.add(node)
            stack.extend(parent for parent, _ in node.next_functions)
        return False

    def knows(self, tensor: Tensor) -> bool:
        """Say whether a seen call made this tensor (or no node did)."""
        return tensor.grad_fn is None or tensor.grad_fn in self._state

    def reach(self, tensor: Tensor) -> int:
        """Return INACTIVE, ACTIVE, or BEYOND_LINEAR where a linear map lies between it and the input."""
        root = tensor.grad_fn
        if root is None:
            return ACTIVE if self._is_input is not None and self._is_input(tensor) else INACTIVE
        state = self._state
        found = state.get(root)
        if found is not None:
            return found
        stack = [root]
        while stack:
            node = stack[-1]
            if node in state:
                stack.pop()
                continue
            parents = [parent for parent, _ in node.next_functions if parent is not None]
            unknown = [parent for parent in parents if parent not in state]
            if unknown:
                stack.extend(unknown)
                continue
            stack.pop()
            level = max((state[parent] for parent in parents), default=self._leaf(node))
            if level == ACTIVE and getattr(node, "passes_linear", False):
                level = BEYOND_LINEAR
            state[node] = level
        return state[root]

    def _leaf(self, node: Any) -> int:
        """Return the state of a node without parents."""
        variable = getattr(node, "variable", None)
        return ACTIVE if self._is_input is not None and variable is not None and self._is_input(variable) else INACTIVE

    def clear(self) -> None:
        self._state, self._roots = {}, set()


def nodes_before_last(outputs: Iterable[Tensor]) -> tuple[set[Any], set[Any]]:
    """Return the nodes that reach an output, and those of them from which some path there passes a linear map.

    A linear map that is among the first but not among the second is the last.

    Consumers come before what they consume, so one pass over the graph in topological order decides.
    """
    roots = [tensor.grad_fn for tensor in outputs if tensor.grad_fn is not None]
    order: list[Any] = []
    visited: set[Any] = set()
    stack: list[tuple[Any, bool]] = [(root, False) for root in roots]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
            continue
        if node in visited:
            continue
        visited.add(node)
        stack.append((node, True))
        stack.extend((parent, False) for parent, _ in node.next_functions if parent is not None)
    before: set[Any] = set()
    for node in reversed(order):
        if node in before or getattr(node, "passes_linear", False):
            before.update(parent for parent, _ in node.next_functions if parent is not None)
    return visited, before
