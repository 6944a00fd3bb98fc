"""What will happen to an input: every call of a forward pass, with its module, shapes and rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from relprop.inputs import as_args, as_inputs, as_kwargs, grad_mode
from relprop.propagation.call import Call
from relprop.propagation.provenance import nodes_before_last
from relprop.propagation.record import Record
from relprop.propagation.run import forward
from relprop.targets import select

if TYPE_CHECKING:
    from relprop.rules.registry import Rules


@dataclass(frozen=True)
class Row:
    """One call of a function in a plan.

    Attributes:
        name, module: the module in which it runs, and its type.
        operation, kind: what runs.
        inputs, output: shapes of what depends on the explained input.
        rule: as it prints; empty where autograd's own backward is the rule.
        default: no entry of the registry chose it.
        covered: False where no rule is known for the operation.
        notes: "a >= 0", "batch norm folded", "not folded", ...
    """

    name: str
    module: str
    operation: str
    kind: str
    inputs: tuple[tuple[int, ...], ...]
    output: tuple[int, ...]
    rule: str
    default: bool
    covered: bool
    notes: tuple[str, ...]

    @property
    def shown_rule(self) -> str:
        """The rule as a table shows it."""
        if not self.covered:
            return "NO RULE"
        if not self.rule:
            return "autograd"
        return f"{self.rule} (default)" if self.default else self.rule


@dataclass(frozen=True)
class Plan:
    """Every call of one forward pass, in order. Prints as a table."""

    rows: tuple[Row, ...]

    @property
    def uncovered(self) -> tuple[Row, ...]:
        """The calls for which no rule is known."""
        return tuple(row for row in self.rows if not row.covered)

    def __str__(self) -> str:
        header = ("module", "call", "in", "out", "rule", "notes")
        lines = [
            (
                f"{row.name or '(model)'}: {row.module}",
                row.operation,
                " ".join(shape_text(shape) for shape in row.inputs),
                shape_text(row.output),
                "=> " + row.shown_rule,
                ", ".join(row.notes),
            )
            for row in self.rows
        ]
        return table(header, lines)


def shape_text(shape: Sequence[int]) -> str:
    """Return a shape as ``2x3x8x8``.

    >>> shape_text((2, 3))
    '2x3'
    """
    return "x".join(map(str, shape)) or "()"


def table(header: Sequence[str], lines: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Return text in columns; those in ``right`` stand flush right."""
    widths = [max(len(row[column]) for row in (header, *lines)) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, lines)])


def make_plan(
    rules: Rules,
    model: nn.Module,
    inputs: Tensor | tuple[Tensor, ...],
    target: Any = None,
    additional_forward_args: Any = None,
    forward_kwargs: dict[str, Any] | None = None,
) -> Plan:
    """Run one forward pass by the rules and return what ran.

    With a target, ``last`` is resolved and shown.
    """
    given = as_inputs(inputs)
    selection = rules.bind(model)
    call = Call(model, selection, recording=True)
    try:
        targets = [] if target is None else [lambda output: select(output, target, given[0].shape[0])]
        with grad_mode():
            passed = forward(call, given, as_args(additional_forward_args), as_kwargs(forward_kwargs), targets)
        selection.verify(call.called)
        if passed.selected:
            reached, call.before_last = nodes_before_last(passed.selected)
            for site in call.sites:
                site.record_last(reached)
        return Plan(tuple(_row(record) for record in call.records))
    finally:
        call.close()


def _row(record: Record) -> Row:
    return Row(
        record.name,
        record.module,
        record.operation,
        record.kind,
        record.inputs,
        record.output,
        record.rule,
        record.default,
        record.covered,
        tuple(record.notes),
    )
