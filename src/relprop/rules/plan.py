"""What will happen to an input: every call of a forward pass, with its module, shapes and rule."""

from __future__ import annotations

import html
from bisect import bisect_left
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from relprop.inputs import as_args, as_inputs, as_kwargs, grad_mode, unwrapped
from relprop.operations.table import operations
from relprop.propagation.call.call import Call
from relprop.propagation.call.options import Options
from relprop.propagation.call.trace import Record, merged
from relprop.propagation.facts.graph import nodes_before_last
from relprop.propagation.run.forward import forward
from relprop.rules.selection import Selection
from relprop.tables import html_table, shape_text, text_table
from relprop.targets import reading

_FOLDED = "folded into the layer above"


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
        notes: "a >= 0", "batch norm folded", "not folded", "50 times" (steps of a recurrent layer), ...
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
    def folded(self) -> bool:
        """The call is a linear map that something behind it was folded into, or is what was folded."""
        return any(note == _FOLDED or note.endswith(" folded") for note in self.notes)

    @property
    def nonnegative(self) -> bool:
        """The input of a linear map is known to hold nothing below zero, which saves evaluations."""
        return "a >= 0" in self.notes

    @property
    def shown_rule(self) -> str:
        """The rule as a table shows it."""
        if not self.covered:
            return "NO RULE"
        if not self.rule:
            return "autograd"
        return f"{self.rule} (default)" if self.default else self.rule


@dataclass(frozen=True)
class ModuleRow:
    """One module that ran.

    Attributes:
        name, module: its dotted name ("" for the model itself), and its type.
        position: how many calls of the plan had begun before it did.
        inputs, output: shapes of the tensors it was given, and of the first it returned.
    """

    name: str
    module: str
    position: int
    inputs: tuple[tuple[int, ...], ...]
    output: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """Every module and every call of one forward pass, in order, from :meth:`Rules.plan`. Prints as a table.

    Calls of which no argument depends on the explained input carry no relevance and are left out. In the table a
    module has a line of its own where it is not its own call that comes first.

    Attributes:
        rows: one for every call: its module, shapes and rule, and what is to be noted of it.
        modules: one for every module that ran: its shapes, and before which call it began.
    """

    rows: tuple[Row, ...]
    modules: tuple[ModuleRow, ...] = ()

    @property
    def uncovered(self) -> tuple[Row, ...]:
        """The calls for which no rule is known."""
        return tuple(row for row in self.rows if not row.covered)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, fit for JSON: ``{"rows": [...], "modules": [...]}``."""
        return asdict(self)

    def _table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        header = ("module", "call", "in", "out", "rule", "notes")
        lines: list[tuple[str, ...]] = []
        entered = list(self.modules)
        for position, row in enumerate(self.rows):
            while entered and entered[0].position <= position:
                module = entered.pop(0)
                if module.name != row.name or (entered and entered[0].position <= position):
                    lines.append(_module_line(module))
            lines.append(
                (
                    _title(row),
                    row.operation,
                    " ".join(shape_text(shape) for shape in row.inputs),
                    shape_text(row.output),
                    "=> " + row.shown_rule,
                    ", ".join(row.notes),
                )
            )
        return header, lines + [_module_line(module) for module in entered]

    def _summary(self) -> str:
        folded = sum(_FOLDED in row.notes for row in self.rows)
        fast = sum(row.nonnegative for row in self.rows)
        missing = ", ".join(sorted({row.operation for row in self.uncovered})) or "none"
        return (
            f"{len(self.rows)} calls; folded into layers: {folded}; linear maps of inputs known to be >= 0: {fast}; "
            f"without a rule: {missing}"
        )

    def __str__(self) -> str:
        return f"{text_table(*self._table())}\n{self._summary()}"

    def _repr_html_(self) -> str:
        return f"{html_table(*self._table())}<p>{html.escape(self._summary())}</p>"


def _title(row: Row | ModuleRow) -> str:
    return f"{row.name or '(model)'}: {row.module}"


def _module_line(row: ModuleRow) -> tuple[str, ...]:
    return _title(row), "", " ".join(map(shape_text, row.inputs)), shape_text(row.output), "", ""


def make_plan(
    selection: Selection,
    model: nn.Module,
    inputs: Any,
    target: Any = None,
    additional_forward_args: Any = None,
    forward_kwargs: dict[str, Any] | None = None,
) -> Plan:
    """Run one forward pass by the rules and return what ran.

    With a target, ``last`` is resolved and shown.
    """
    given = as_inputs(inputs)
    call = Call(unwrapped(model), selection, operations(), Options(recording=True))
    try:
        targets = [] if target is None else [reading(model, target, given.samples)]
        with grad_mode():
            passed = forward(call, given, as_args(additional_forward_args), as_kwargs(forward_kwargs), targets)
        selection.verify(call.trace.called, call.ended)
        if passed.selected:
            reached, call.before_last = nodes_before_last(passed.selected)
            for linear_call in call.linear_calls:
                linear_call.record_last(reached)
        records = merged(call.trace.records)
        begun = [position for position, _ in records]
        modules = (
            ModuleRow(e.name, e.module, bisect_left(begun, e.position), e.inputs, e.output) for e in call.trace.entered
        )
        return Plan(tuple(_row(record) for _, record in records), tuple(modules))
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
