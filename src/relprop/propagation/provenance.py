"""What is known of a tensor: where it came from, and whether it depends on the explained input."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

if TYPE_CHECKING:
    from relprop.propagation.site import Site

INACTIVE, ACTIVE, BEYOND_LINEAR = 0, 1, 2


Powers: TypeAlias = "tuple[tuple[tuple[object, int], int], ...]"
_ANCESTORS = 32
"""Of how many tensors before it a tensor is remembered to be a function."""


class Origin(NamedTuple):
    """What is known of one tensor; true as long as the tensor's version is ``version``.

    What an operation keeps of it says :mod:`relprop.propagation.inherit`.

    Attributes:
        site: the linear call whose output it exactly is.
        low, high: no entry lies outside.
        gate: it opens and shuts what it multiplies, and is constant as a factor of that.
        held: it is a gate times a constant of its shape, which is no scale but a signal that is let through.
        shifted: a number was added to it.
        factors: how many active factors its terms are products of.
        powers: the tensors of which it is a function, entry by entry, by their autograd nodes; each with the power
            of it that it is a constant multiple of, 0 for any other function.
        spread: the sum of the sizes of the differences it was added up from (for RevealCancel).
    """

    version: int = 0
    site: Site | None = None
    low: float = -math.inf
    high: float = math.inf
    gate: bool = False
    held: bool = False
    shifted: bool = False
    factors: int = 1
    powers: Powers = ()
    spread: Tensor | None = None

    @property
    def nonnegative(self) -> bool:
        """Say whether it is known to hold nothing below zero."""
        return self.low >= 0

    @property
    def elsewhere(self) -> Origin:
        """Return what stays true of a part of it."""
        return self._replace(site=None, held=False, shifted=False, powers=())


NOTHING = Origin()
"""What is known of a tensor of which nothing is known."""


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
        """Remember a constant that was made from what the model owns."""
        self._weights[tensor] = True

    def note_data(self, tensor: Tensor) -> None:
        """Remember a constant that was given to the model, or made from what was."""
        self._weights[tensor] = False

    def is_weight(self, tensor: Tensor) -> bool:
        """Say whether a constant was made from what the model owns, and from nothing that was given to it."""
        return bool(self._weights.get(tensor, False))

    def is_data(self, tensor: Tensor) -> bool:
        """Say whether a constant was given to the model, or made from what was."""
        return self._weights.get(tensor, True) is False

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
        return origin if origin is not None and origin.version == tensor._version else NOTHING

    def site_of(self, tensor: Tensor) -> Site | None:
        """Return the linear call that has just made the tensor."""
        origin: Origin | None = self._known.get(tensor)
        return origin.site if origin is not None and origin.version == tensor._version else None

    def with_itself(self, tensor: Tensor) -> Origin:
        """Return what is known of the tensor, among whose powers is its own first."""
        origin, node = self.of(tensor), tensor.grad_fn
        itself = (id(tensor), tensor._version) if node is None else (node, tensor.output_nr)
        return origin._replace(powers=(*origin.powers[-_ANCESTORS:], (itself, 1)))

    def note(self, tensor: Tensor, origin: Origin) -> None:
        """Remember the origin of the tensor as it is now."""
        if origin is NOTHING:
            self._known.pop(tensor, None)
        else:
            version = tensor._version
            self._known[tensor] = origin if origin.version == version else origin._replace(version=version)

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
        self._held: list[Any] = []

    def hold(self, tensor: Tensor) -> None:
        """Note that a tensor which depends on the input goes on as a constant."""
        if self._roots and self.reach(tensor):  # in the forward pass
            self._held.append(tensor.grad_fn)

    @property
    def holds(self) -> bool:
        """Say whether anything goes on as a constant."""
        return bool(self._held)

    def held_roots(self) -> set[Any]:
        """Return the nodes of the inputs on which constants depend."""
        seen: set[Any] = set()
        stack = list(self._held)
        while stack:
            node = stack.pop()
            if node is not None and node not in seen and self._state.get(node):
                seen.add(node)
                stack.extend(parent for parent, _ in node.next_functions)
        return seen & self._roots

    def add_root(self, tensor: Tensor) -> None:
        """Make the node of this tensor a source of activity."""
        self._roots.add(tensor.grad_fn)
        self._state[tensor.grad_fn] = ACTIVE

    def overwrite(self, tensor: Tensor, value: Tensor) -> None:
        """Note that the whole tensor now holds a value: it depends on what the value does, and on nothing else."""
        if tensor.grad_fn is not None and not tensor._is_view():
            self._state[tensor.grad_fn] = self.reach(value)

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
        self._state, self._roots, self._held = {}, set(), []


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
