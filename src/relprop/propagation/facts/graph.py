"""The autograd graph as it grows: what depends on the explained input, and through what."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor


class Reach(IntEnum):
    """How far a tensor is from the explained input."""

    INACTIVE = 0
    """It does not depend on it."""
    ACTIVE = 1
    """It does."""
    BEYOND_LINEAR = 2
    """It does, and a linear map with parameters lies between them on some path."""


class Graph:
    """The autograd graph as it grows: which nodes depend on the explained input, and through what.

    A tensor is active when it depends on the input, not when it requires grad: parameters do that too.
    The walk is memoised, so it costs each node once.
    """

    def __init__(self, is_input: Callable[[Tensor], bool] | None = None) -> None:
        self._is_input = is_input
        self._state: dict[Any, Reach] = {}
        self._roots: set[Any] = set()
        self._held: list[Tensor] = []

    def hold(self, tensor: Tensor) -> None:
        """Note that a tensor which depends on the input goes on as a constant."""
        if self._roots and self.active(tensor):  # in the forward pass
            self._held.append(tensor)  # which alone keeps a node of relprop's own alive, before torch 2.7

    @property
    def holds(self) -> bool:
        """Say whether anything goes on as a constant."""
        return bool(self._held)

    def held_roots(self) -> set[Any]:
        """Return the nodes of the inputs on which constants depend."""
        seen: set[Any] = set()
        stack: list[Any] = [tensor.grad_fn for tensor in self._held]
        while stack:
            node = stack.pop()
            if node is not None and node not in seen and self._state.get(node):
                seen.add(node)
                stack.extend(parent for parent, _ in node.next_functions)
        return seen & self._roots

    def add_root(self, tensor: Tensor) -> None:
        """Make the node of this tensor a source of activity."""
        self._roots.add(tensor.grad_fn)
        self._state[tensor.grad_fn] = Reach.ACTIVE

    def overwrite(self, tensor: Tensor, value: Tensor) -> None:
        """Note that the whole tensor now holds a value: it depends on what the value does, and on nothing else."""
        if tensor.grad_fn is not None and not tensor._is_view():
            self._state[tensor.grad_fn] = self.reach(value)

    def knows(self, tensor: Tensor) -> bool:
        """Say whether a seen call made this tensor (or no node did)."""
        return tensor.grad_fn is None or tensor.grad_fn in self._state

    def active(self, tensor: Tensor) -> bool:
        """Say whether a tensor depends on the input."""
        return self.reach(tensor) is not Reach.INACTIVE

    def depends(self, node: Any) -> bool:
        """Say whether a node that was reached depends on the input."""
        return bool(self._state.get(node))

    def reach(self, tensor: Tensor) -> Reach:
        """Return how far a tensor is from the input."""
        root = tensor.grad_fn
        if root is None:
            return Reach.ACTIVE if self._is_input is not None and self._is_input(tensor) else Reach.INACTIVE
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
            level: Reach = max((state[parent] for parent in parents), default=self._leaf(node))
            if level == Reach.ACTIVE and getattr(node, "passes_linear", False):
                level = Reach.BEYOND_LINEAR
            state[node] = level
        return state[root]

    def _leaf(self, node: Any) -> Reach:
        """Return the state of a node without parents."""
        variable = getattr(node, "variable", None)
        return (
            Reach.ACTIVE
            if self._is_input is not None and variable is not None and self._is_input(variable)
            else Reach.INACTIVE
        )

    def clear(self) -> None:
        self._state, self._roots, self._held = {}, set(), []


def nodes_until_linear(above: Any) -> set[Any]:
    """Return the nodes below one of a linear map, as far as there is no other on the way."""
    stack = [parent for parent, _ in above.next_functions if parent is not None]
    found: set[Any] = set()
    while stack:
        node = stack.pop()
        if node not in found and not getattr(node, "passes_linear", False):
            found.add(node)
            stack.extend(parent for parent, _ in node.next_functions if parent is not None)
    return found


_MOVES = frozenset({
    "Cat", "Stack", "ConstantPadNd", "CopySlice", "AsStrided", "View", "UnsafeView", "Reshape", "Unsqueeze", "Squeeze",
    "Select", "Slice", "Transpose", "T", "Permute", "Expand", "Clone", "Alias", "Copy",
})  # fmt: skip
_SHIFTS = frozenset({"Add", "Sub"})


def constant_entry(graph: Graph, x: Tensor, dim: int) -> int | None:
    """Return which of two entries along a dimension depends on no input, where one of them was joined to the other.

    What both of them were shifted by does not count.
    """
    node: Any = x.grad_fn
    seeds: list[Any] = list(_entries(x, dim))
    while node is not None:
        kind = node.name().removeprefix("torch::autograd::").rstrip("0123456789s").removesuffix("Backward")
        if kind == "Tap":  # of a report, which would tell what passes
            node = next(parent for parent, _ in node.next_functions if parent is not None)
            continue
        if kind not in _MOVES | _SHIFTS:
            return None
        found = [_passed(node, seed) for seed in seeds]
        depending = [position for position, (parent, _) in enumerate(node.next_functions) if graph.depends(parent)]
        if kind in _SHIFTS:
            shapes = [_shape(parent, output) for parent, output in node.next_functions]
            depending = [position for position in depending if shapes[position] == seeds[0].shape]
        reached = [any(_any(each[position]) for position in depending) for each in found]
        if False in reached:
            return reached.index(False) if True in reached else None
        if len(depending) != 1:
            return None
        (position,) = depending
        node, seeds = node.next_functions[position][0], [each[position] for each in found]
    return None


def _passed(node: Any, seed: Tensor) -> tuple[Tensor | None, ...]:
    """Return what passes one node on its way back."""
    found = node(seed)
    return found if isinstance(found, tuple) else (found,)


def _shape(node: Any, output: int) -> torch.Size | None:
    """Return the shape of one output of a node."""
    outputs = getattr(node, "_input_metadata", ())
    return torch.Size(outputs[output].shape) if output < len(outputs) else None


def _any(c: Tensor | None) -> bool:
    return c is not None and bool(c.any())


def _entries(x: Tensor, dim: int) -> Iterator[Tensor]:
    """Yield for each of two entries along a dimension a tensor that is 1 there."""
    for entry in range(2):
        seed = torch.zeros_like(x)
        seed.select(dim, entry).fill_(1)
        yield seed


def any_node(outputs: Iterable[Tensor], chosen: Callable[[Any], bool]) -> bool:
    """Say whether one of the nodes that outputs are made by is chosen."""
    stack = [tensor.grad_fn for tensor in outputs]
    seen: set[Any] = set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        if chosen(node):
            return True
        seen.add(node)
        stack.extend(parent for parent, _ in node.next_functions)
    return False


def nodes_below(outputs: Iterable[Tensor], chosen: Callable[[Any], bool]) -> set[Any]:
    """Return the nodes from which some path to an output passes one of the chosen nodes."""
    found: set[Any] = set()
    stack: list[tuple[Any, bool]] = [(tensor.grad_fn, False) for tensor in outputs if tensor.grad_fn is not None]
    seen = set(stack)
    while stack:
        node, below = stack.pop()
        if below:
            found.add(node)
        below = below or chosen(node)
        for parent, _ in node.next_functions:
            if parent is not None and (parent, below) not in seen and (parent, True) not in seen:
                seen.add((parent, below))
                stack.append((parent, below))
    return found


def nodes_above(output: Tensor) -> set[Any]:
    """Return the nodes that run in the backward of an output."""
    found: set[Any] = set()
    stack = [output.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in found:
            found.add(node)
            stack.extend(parent for parent, _ in node.next_functions)
    return found


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
