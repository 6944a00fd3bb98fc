"""The audit: where the relevance of a prediction went, added up and printed.

What is absorbed is measured elsewhere: for a linear rule by :func:`relprop.rules.relevance.absorbed`, for another
operation by its handler (``absorbs`` and ``declared`` of :class:`relprop.operations.Here`), and what arrives at a call
and leaves it by :mod:`relprop.propagation.run.taps`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from relprop.errors import ConservationError, StabilizerWarning, warn
from relprop.propagation.call.trace import Record, merged
from relprop.tables import html_table, text_table


@dataclass(frozen=True)
class Account:
    """What one call of a function did with the relevance that arrived, as :meth:`Attribution.report` measures it.

    Attributes:
        name: dotted name of the module in which it ran.
        operation: what ran.
        rule: by which rule; empty where autograd's own backward is the rule.
        relevance_out: relevance that arrived at the output, summed over the batch.
        relevance_in: relevance that left to the inputs.
        absorbed: by name ("bias", "stabilizer", "softmax", "rule", ...), the shares that the rule declares as gone.
        covered: False where no rule is known for the operation.
        unexplained: ``relevance_out - relevance_in - sum(absorbed)``, measured at this call alone.
        precision: the machine epsilon of its tensors, the coarsest: to 1 part in so many can it be told.
    """

    name: str
    operation: str
    rule: str
    relevance_out: float
    relevance_in: float
    absorbed: dict[str, float]
    unexplained: float
    covered: bool = True
    precision: float = 0.0

    @property
    def leak(self) -> float:
        """``relevance_out - relevance_in``."""
        return self.relevance_out - self.relevance_in


@dataclass(frozen=True)
class ConservationReport:
    """Where the relevance of a prediction went, call by call, in order of the forward pass.

    From :meth:`Attribution.report`. Prints as a table.

    Every leak is measured where it happens, as ``<c_out, out> - sum <c_in, in>``; the leaks add up to ``delta``, the
    difference between the explained output and the sum of the relevance.

    Attributes:
        entries: one account for every call that relevance passed.
        output: the explained output ``f``, summed over the batch.
        relevance: the sum of the relevance of the inputs.
        delta: ``f - sum R`` for every sample.
        unseen: the part of delta that leaked at no call relprop could see.
    """

    entries: tuple[Account, ...]
    output: float
    relevance: float
    delta: Tensor
    unseen: float

    @property
    def absorbed(self) -> dict[str, float]:
        """The declared shares, summed over all calls."""
        total: dict[str, float] = {}
        for entry in self.entries:
            for name, share in entry.absorbed.items():
                total[name] = total.get(name, 0.0) + share
        return total

    @property
    def unexplained(self) -> float:
        """The sum of what no rule declared, over all calls, and of what leaked unseen."""
        return sum(entry.unexplained for entry in self.entries) + self.unseen

    def check(self, tolerance: float | None = None) -> None:
        """Raise where relevance leaked without a rule that says why.

        What is computed in a coarse type leaks by rounding alone: under ``autocast(bfloat16)``, or in a model of that
        type, some thousandths of the relevance at one call. So a tolerance must follow the type of the numbers.

        Args:
            tolerance: the largest leak that passes, in units of the largest relevance that arrived at any call. By
                default the square root of the machine epsilon of the call's own tensors, and at least 1e-6: 1e-6 in
                float64, 3.5e-4 in float32, 0.031 in float16, 0.088 in bfloat16.

        Raises:
            ConservationError: names the first call (in order of the forward pass) at fault.
        """
        scale = max([abs(self.output), *(abs(entry.relevance_out) for entry in self.entries)])

        def allowed(precision: float) -> float:
            return max(1e-6, precision**0.5) if tolerance is None else tolerance

        for entry in self.entries:
            limit = allowed(entry.precision)
            if not abs(entry.unexplained) <= limit * scale:
                raise ConservationError(
                    f"Relevance leaked at {entry.operation} in module {entry.name!r}: "
                    f"{entry.relevance_out:.6g} arrived, {entry.relevance_in:.6g} left, "
                    f"{sum(entry.absorbed.values()):.6g} is accounted for, "
                    f"{entry.unexplained:.6g} is not (tolerance {limit:g} of {scale:.6g}).{_rounded(entry, limit)}"
                )
        limit = allowed(max((entry.precision for entry in self.entries), default=0.0))
        if not abs(self.unseen) <= limit * scale:
            raise ConservationError(
                f"{self.unseen:.6g} of the relevance leaked outside every call relprop could see "
                f"(tolerance {limit:g} of {scale:.6g})."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain numbers, strings, lists and dicts."""
        return {
            "output": self.output,
            "relevance": self.relevance,
            "delta": self.delta.tolist(),
            "absorbed": self.absorbed,
            "unexplained": self.unexplained,
            "unseen": self.unseen,
            "entries": [
                {
                    "name": entry.name,
                    "operation": entry.operation,
                    "rule": entry.rule,
                    "covered": entry.covered,
                    "relevance_out": entry.relevance_out,
                    "relevance_in": entry.relevance_in,
                    "absorbed": dict(entry.absorbed),
                    "unexplained": entry.unexplained,
                }
                for entry in self.entries
            ],
        }

    def _table(self) -> tuple[list[str], list[list[str]]]:
        names = list(self.absorbed)
        header = ["module", "call", "rule", "out", "in", *names, "unexplained"]
        lines = [
            [
                entry.name or "(model)",
                entry.operation,
                entry.rule or ("autograd" if entry.covered else "NO RULE"),
                _number(entry.relevance_out),
                _number(entry.relevance_in),
                *(_number(entry.absorbed.get(name, 0.0)) for name in names),
                _number(entry.unexplained),
            ]
            for entry in self.entries
        ]
        if self.unseen and abs(self.unseen) > 1e-9 * max(abs(self.output), 1e-300):
            lines.append(["(unseen)", "", "", "", "", *("" for _ in names), _number(self.unseen)])
        total = [_number(value) for value in self.absorbed.values()]
        lines.append(
            [
                "f - sum R",
                "",
                "",
                _number(self.output),
                _number(self.relevance),
                *total,
                _number(self.unexplained),
            ]
        )
        return header, lines

    def __str__(self) -> str:
        header, lines = self._table()
        return text_table(header, lines, right=range(3, len(header)))

    def _repr_html_(self) -> str:
        return html_table(*self._table())


def make_report(records: Sequence[Record], output: Tensor, relevance: Tensor) -> ConservationReport:
    """Return the report of a measured call.

    Args:
        records: its calls.
        output: the explained output, ``[N]``.
        relevance: the sum of the relevance of every sample, ``[N]``.
    """
    entries = tuple(
        _account(record)
        for _, record in merged(records)
        if record.out is not None or record.into is not None or not record.covered
    )
    delta = output.double() - relevance.double()
    leaked = sum(entry.leak for entry in entries)
    return ConservationReport(
        entries,
        float(output.double().sum()),
        float(relevance.double().sum()),
        delta,
        float(delta.sum()) - leaked,
    )


def name_stabilizers(report: ConservationReport, explained: float) -> None:
    """Warn where stabilizers took more than 1 % of the explained output.

    Args:
        explained: the size of the explained output, summed over the samples.
    """
    taken = [(abs(entry.absorbed.get("stabilizer", 0.0)), entry) for entry in report.entries]
    total = sum(share for share, _ in taken)
    if total > 0.01 * explained:
        share, most = max(taken, key=lambda pair: pair[0])
        warn(
            f"Stabilizers took {total / explained:.1%} of the explained output, of which {share / explained:.1%} at "
            f"{most.operation} in module {most.name!r} by {most.rule or 'autograd'}. Where that is not meant, set a "
            "smaller epsilon or stabilizer there, or the rule Gamma, whose sums cancel less.",
            StabilizerWarning,
        )


def _account(record: Record) -> Account:
    out = 0.0 if record.out is None else float(record.out)
    into = 0.0 if record.into is None else float(record.into)
    shares = {name: float(share) for name, share in record.absorbed.items()}
    unexplained = out - into - sum(shares.values())
    return Account(
        record.name, record.operation, record.rule, out, into, shares, unexplained, record.covered, record.precision
    )


def _rounded(entry: Account, tolerance: float) -> str:
    """Say that rounding may be what leaked, where the tolerance is finer than single or half precision is."""
    if entry.precision < torch.finfo(torch.float32).eps or tolerance >= entry.precision**0.5:
        return ""
    return (
        f" Its tensors have a machine epsilon of {entry.precision:.2g}, so that rounding alone may leak as much. The "
        "tolerance must follow the dtype, under autocast too: check() takes one that does. Or explain in float64."
    )


def _number(value: float) -> str:
    """Return a number as a table shows it; an exact zero as a dot.

    >>> _number(0.0), _number(12.345678)
    ('.', '12.3457')
    """
    return "." if value == 0.0 else f"{value:.6g}"
