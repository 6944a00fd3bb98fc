"""How an entry of a registry says where its rule goes."""

from __future__ import annotations

import fnmatch
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Place:
    """One call of an operation, as selectors see it.

    Attributes:
        kind, operation: kind and name of the operation.
        name, module: the innermost module that is running.
        layer_type: for a linear call, the module type it would be.
        first: no path from the input to this linear call passes another.
        earlier: for a linear call, the modules of the linear calls before it, in order.
        parts_of: the operations that it is part of, such as a recurrent layer, the innermost last.
    """

    kind: str
    operation: str
    name: str
    module: nn.Module | None
    layer_type: type[nn.Module] | None = None
    first: bool = False
    earlier: tuple[str, ...] = ()
    parts_of: tuple[str, ...] = ()


class Selector(ABC):
    """A condition on the place of a call."""

    @abstractmethod
    def matches(self, place: Place) -> bool:
        """Say whether the entry applies to a call."""

    def means_activations(self) -> bool:
        """Say whether it can be seen beforehand that only elementwise functions match."""
        return False


@dataclass(frozen=True)
class ByType(Selector):
    """Calls in modules of a type, and linear calls that are such a layer in all but name."""

    types: tuple[type[nn.Module], ...]

    def means_activations(self) -> bool:
        others = (nn.Softmax, nn.Softmax2d, nn.Softmin, nn.LogSoftmax, nn.MultiheadAttention)
        return all(item.__module__ == nn.ReLU.__module__ and not issubclass(item, others) for item in self.types)

    def means(self, name: str, module: nn.Module) -> bool:
        """Say whether a module is of the type."""
        return isinstance(module, self.types)

    def matches(self, place: Place) -> bool:
        if isinstance(place.module, self.types):
            return True
        return place.layer_type is not None and issubclass(place.layer_type, self.types)

    def __str__(self) -> str:
        return " | ".join(item.__name__ for item in self.types)


@dataclass(frozen=True)
class ByName(Selector):
    """Calls in modules whose dotted name matches a glob."""

    pattern: str

    def means(self, name: str, module: nn.Module) -> bool:
        """Say whether a module has such a name."""
        return self.matches_name(name)

    def matches_name(self, name: str) -> bool:
        """Say whether a module of this name is meant."""
        return fnmatch.fnmatchcase(name, self.pattern)

    def matches(self, place: Place) -> bool:
        return self.matches_name(place.name)

    def __str__(self) -> str:
        return repr(self.pattern)


@dataclass(frozen=True)
class ByPredicate(Selector):
    """Calls in modules of which a function of name and module is true."""

    predicate: Callable[[str, nn.Module], bool]

    def matches(self, place: Place) -> bool:
        return place.module is not None and bool(self.predicate(place.name, place.module))

    def __str__(self) -> str:
        return getattr(self.predicate, "__name__", repr(self.predicate))


@dataclass(frozen=True)
class ByOperation(Selector):
    """Calls of an operation, whatever it is called by."""

    operation: str
    kind: str

    def means_activations(self) -> bool:
        return self.kind == "activation"

    def matches(self, place: Place) -> bool:
        return place.operation == self.operation

    def __str__(self) -> str:
        return self.operation


@dataclass(frozen=True)
class PartsOf(Selector):
    """Calls of which certain operations are made, whatever module or function calls these."""

    operations: tuple[str, ...]

    def matches(self, place: Place) -> bool:
        return any(operation in self.operations for operation in place.parts_of)

    def __str__(self) -> str:
        return f"parts of {' | '.join(self.operations)}"


@dataclass(frozen=True)
class Joins(Selector):
    """Additions and subtractions of branches, such as where a skip connection ends; what centres is none."""

    def matches(self, place: Place) -> bool:
        return place.kind == "sum" and place.operation in ("add", "sub")

    def __str__(self) -> str:
        return "joined branches"


@dataclass(frozen=True)
class First(Selector):
    """Linear calls to which no path from the input passes another."""

    def matches(self, place: Place) -> bool:
        return place.kind == "linear" and place.first

    def __str__(self) -> str:
        return "first"


@dataclass(frozen=True)
class Until(Selector):
    """Linear calls from the first of a forward pass to a given one, in the order in which they run.

    Attributes:
        end: the index of the last of them, from 0; or the name of the module in which they end, the first time.
    """

    end: int | str

    def matches(self, place: Place) -> bool:
        if place.kind != "linear":
            return False
        if isinstance(self.end, int):
            return len(place.earlier) <= self.end
        met = [self.contains(name) for name in (*place.earlier, place.name)]
        return True not in met or all(met[met.index(True) :])

    def contains(self, name: str) -> bool:
        """Say whether the module at which the calls end has this name, or holds the module that has it."""
        return name == self.end or name.startswith(f"{self.end}.")

    def reached(self, place: Place) -> bool:
        """Say whether a call is one with which they end."""
        if place.kind != "linear":
            return False
        return self.contains(place.name) if isinstance(self.end, str) else len(place.earlier) == self.end

    def __str__(self) -> str:
        return f"until {self.end!r}"


@dataclass(frozen=True)
class Last(Selector):
    """Linear calls from which no path to the target passes another; resolved in the backward."""

    def matches(self, place: Place) -> bool:
        return False

    def __str__(self) -> str:
        return "last"
