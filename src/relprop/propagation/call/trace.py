"""What ran, in order: the rows of a plan, and of a report once relevance was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from torch import Tensor, nn


class Trace:
    """Where the forward pass of one call is, and what it has met.

    Attributes:
        stack: the modules that are running, the innermost last, by name.
        recording: a row is kept of every call of a function.
        records, entered: the rows of functions and of modules.
        called: the names of the modules that ran.
        linear: the names of the modules of the linear calls that ran, in order.
        loop: the loop whose steps are running, if any: their records are shown together.
        parts_of: the operations that are running, of which what runs is a part, the innermost last.
    """

    def __init__(self, model: nn.Module, recording: bool) -> None:
        self.model, self.recording = model, recording
        self.stack: list[tuple[str, nn.Module]] = []
        self.records: list[Record] = []
        self.entered: list[Entered] = []
        self.called: set[str] = set()
        self.linear: list[str] = []
        self.loop: object = None
        self.parts_of: tuple[str, ...] = ()

    @property
    def place(self) -> tuple[str, nn.Module | None]:
        """The name and the innermost module that is running."""
        return self.stack[-1] if self.stack else ("", self.model)

    @contextmanager
    def repeating(self) -> Iterator[None]:
        """Show what is alike in the steps that run inside as one row of a plan or report."""
        outer, self.loop = self.loop, object()
        try:
            yield
        finally:
            self.loop = outer

    def end(self) -> None:
        """Record nothing of what is still to come; in the modules that are running something may have been."""
        self.recording = False
        self.called.difference_update(name for name, _ in self.stack)


@dataclass
class Entered:
    """One run of a module.

    Attributes:
        name: its dotted name ("" for the model itself).
        module: its type.
        position: how many calls of functions were recorded before it began.
        inputs, output: shapes of the tensors it was given, and of the first it returned.
    """

    name: str
    module: str
    position: int
    inputs: tuple[tuple[int, ...], ...] = ()
    output: tuple[int, ...] = ()


@dataclass
class Record:
    """One call of a function on the way from the input to the output.

    Attributes:
        name: dotted name of the module in which the function ran ("" for the model itself).
        module: type of that module.
        operation: name of the operation.
        kind: what rules serve it.
        rule: the rule, as it prints; empty where autograd alone is right.
        default: no entry of the registry chose the rule.
        covered: False where no rule is known for the operation.
        inputs, output: shapes.
        notes: what else is worth knowing ("folded", "not folded", "a >= 0", ...).
        out, into: relevance that arrived at the output and was sent to the inputs, summed over the batch.
        absorbed: by name, the shares that rules declare as gone.
        precision: the coarsest machine epsilon of the tensors whose relevance was measured.
        loop: the loop of which this call is part of one step.
    """

    name: str
    module: str
    operation: str
    kind: str
    rule: str = ""
    default: bool = False
    covered: bool = True
    inputs: tuple[tuple[int, ...], ...] = ()
    output: tuple[int, ...] = ()
    notes: list[str] = field(default_factory=list)
    out: Tensor | None = None
    into: Tensor | None = None
    absorbed: dict[str, Tensor] = field(default_factory=dict)
    precision: float = 0.0
    loop: object = None

    def receive(self, relevance: Tensor) -> None:
        """Add relevance that arrived at the output."""
        self.out = relevance if self.out is None else self.out + relevance

    def send(self, relevance: Tensor) -> None:
        """Add relevance that was sent to an input."""
        self.into = relevance if self.into is None else self.into + relevance

    def absorb(self, shares: Mapping[str, Tensor]) -> None:
        """Add shares that were declared as gone."""
        for name, share in shares.items():
            self.absorbed[name] = self.absorbed.get(name, 0.0) + share


def merged(records: Sequence[Record]) -> list[tuple[int, Record]]:
    """Return the records, each with its position; of one loop, those alike as one, at the position of the first."""
    found: dict[object, tuple[int, Record]] = {}
    times: dict[object, int] = {}
    for position, record in enumerate(records):
        alike = (record.operation, record.kind, record.rule, record.default, record.covered, *record.notes)
        key: object = position if record.loop is None else (id(record.loop), *alike)
        times[key] = times.get(key, 0) + 1
        if key not in found:
            found[key] = position, replace(record, notes=list(record.notes), absorbed=dict(record.absorbed))
            continue
        row = found[key][1]
        if record.out is not None:
            row.receive(record.out)
        if record.into is not None:
            row.send(record.into)
        row.absorb(record.absorbed)
        row.precision = max(row.precision, record.precision)
    for key, (_, row) in found.items():
        if times[key] > 1:
            row.notes.append(f"{times[key]} times")
    return list(found.values())


def total(relevance: Tensor) -> Tensor:
    """Sum relevance over everything, in double precision."""
    return relevance.double().sum()
