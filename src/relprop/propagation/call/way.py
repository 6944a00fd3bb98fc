"""The kinds of methods: how each passes through the operations of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from relprop.propagation.facts.operation import Operation, Table
from relprop.propagation.math.linear_map import Geometry

if TYPE_CHECKING:
    from relprop.propagation.call.linear_call import LinearCall
    from relprop.propagation.call.operation_call import Here


class Zeros(Enum):
    """Where rules give relevance to inputs of zero, so that ``R / a`` has to be ``R / safe(a)``."""

    NOWHERE = "nowhere"
    FIRST = "first layers"
    EVERYWHERE = "everywhere"


@dataclass(frozen=True)
class Choice:
    """The rule that was chosen for one call of an operation.

    Attributes:
        rule: the rule; None where autograd alone is right.
        position: where its entry stands in the registry, -1 for none.
        default: it is what the operation does without any entry.
        filter: a rule that acts on the output, whatever the operation (Block, Mask, ...).
    """

    rule: Any = None
    position: int = -1
    default: bool = True
    filter: Any = None


NO_RULE = Choice()
"""What stands at every call of a method without rules."""


class Way:
    """How a method passes through a model; each kind of method is a class of these.

    Attributes:
        explains: relevance passes by rules, and what no rule covers is named.
        zeros: where the rules give relevance to inputs of zero.
        by_sign: some rule shares positive and negative contributions out apart, the constants of functions among them.
        last: the rule for the last linear layers, if there is one.
        table: the rows that the method runs, where these are not those of the rules; what they miss is run as it is.
    """

    explains: bool = False
    zeros: Zeros = Zeros.NOWHERE
    by_sign: bool = False
    last: Choice | None = None
    table: Table | None = None

    @property
    def plain(self) -> bool:
        """Say whether nothing runs otherwise than autograd has it."""
        return not self.explains and self.table is None

    def row(self, row: Operation | None, function: Any) -> Operation | None:
        """Return what a function is to the method: by its own table, or as the row says."""
        return row if self.table is None else self.table.get(function)

    def choose(
        self,
        kind: str,
        operation: str,
        name: str,
        module: nn.Module | None,
        layer_type: type[nn.Module] | None = None,
        first: bool = False,
        earlier: Sequence[str] = (),
        parts_of: tuple[str, ...] = (),
    ) -> Choice:
        """Return the rule of one call of an operation, by the place where it runs."""
        return NO_RULE

    def linear_call(
        self, here: Here, geometry: Geometry, a: Tensor, parameters: tuple[Tensor | None, ...]
    ) -> LinearCall | None:
        """Return what stands at a linear call where there are no rules; None lets autograd differentiate it."""
        return None

    def close(self) -> None:
        """Let go of what refers to the call, so that nothing waits for the garbage collector."""


class Autograd(Way):
    """The model is differentiated as it is, but for the operations of a table."""

    def __init__(self, table: Table | None = None) -> None:
        self.table = table
