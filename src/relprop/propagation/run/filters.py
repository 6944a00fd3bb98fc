"""Filters: rules that stand behind an operation, whatever it is, and look at its output."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from relprop.propagation.call.operation_call import Here
from relprop.propagation.run.taps import measured_around, measured_behind, measured_output, new_record
from relprop.trees import map_tensors, tensors_in

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


def finished(here: Here, out: Any, args: Args, kwargs: Kwargs, given: tuple[Args, Kwargs], known: bool) -> Any:
    """Return what an operation returned, behind the filters that stand there, and measured for a report.

    Args:
        args, kwargs: its arguments, tapped for a report.
        given: what the model gave.
        known: what it gives for other arguments may be asked.
    """
    rules = [rule for rule in (here.choice.filter, *here.filters) if rule is not None]
    if here.record is not None:
        out = measured_output(here, out, *given, known, behind=bool(rules))
    if rules:
        inputs = [tensor for tensor in tensors_in((args, kwargs)) if here.active(tensor)]
        if here.record is not None:
            inputs = measured_around(here, inputs)
        for rule in rules:
            out = map_tensors(partial(_behind, here, rule, inputs), out)
        if here.record is not None:
            out = measured_behind(here, out)
        if here.folds and here.choice.filter is not None:
            here.call.known.origins.forget_linear_call(out)
    return out


def finished_as_one(here: Here, out: Any, args: Args, kwargs: Kwargs) -> Any:
    """Return what an operation made of others returned, behind the filter that stands at it as one."""
    if here.choice.filter is None:
        return out
    if here.call.trace.recording:
        here.record = here.account = new_record(here, [x for x in tensors_in((args, kwargs)) if here.active(x)])
        here.show_rule()
        here.absorbs_nothing()
        here.sends = True
    return finished(here, out, args, kwargs, (args, kwargs), known=False)


def _behind(here: Here, rule: Any, inputs: list[Tensor], out: Tensor) -> Tensor:
    """Return one output behind a filter; what is known of it stays known where the filter looks at nothing else."""
    call = here.call
    if not here.active(out):
        return out  # an index, or what depends on nothing that is explained
    call.blocked = call.blocked or rule.blocks
    call.passed_whole = call.passed_whole or rule.hands_on_whole
    call.known.graph.hold(out)
    filtered = here.explained(rule.output, "out", out=out, inputs=inputs)
    if rule.by_output_alone and filtered is not out:
        call.known.origins.note(filtered, call.known.origins.of(out))
    call.known.graph.reach(filtered)
    return filtered
