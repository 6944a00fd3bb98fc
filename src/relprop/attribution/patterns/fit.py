"""The passes over data that patterns are fitted and judged by."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from relprop.attribution.patterns.calls import Names, UnitCall, Visit
from relprop.attribution.patterns.estimators import REGIONS, Estimator, Sums
from relprop.attribution.patterns.store import Patterns, make_pattern
from relprop.errors import InputError, InputTypeError, PatternError, PatternWarning, UncoveredOperationWarning, warn
from relprop.inputs import as_inputs, grad_mode
from relprop.operations.table import operations
from relprop.propagation.call.call import Call
from relprop.propagation.call.current import foremost
from relprop.propagation.call.way import Autograd
from relprop.propagation.facts.saved import Unsaved
from relprop.propagation.run.forward import forward
from relprop.training import warn_of_training
from relprop.trees import map_tensors

Look = Callable[[UnitCall, Tensor, Tensor], None]
"""Is shown a linear call, its input and its output."""


def fit_patterns(model: nn.Module, loader: Iterable[Any], estimator: Estimator, progress: bool) -> Patterns:
    """Return the patterns of a model; see :meth:`relprop.PatternNet.fit`."""
    fit = _Fit(estimator)
    unknown = show_calls(model, loader, fit.add, progress, "fit patterns")
    if not fit.sums:
        raise PatternError(
            f"{type(model).__name__} made no linear call that depends on the input, so there is nothing to fit."
        )
    if unknown:
        warn(
            f"{', '.join(unknown)}: products with a parameter that have no units; they have no patterns, and are "
            "passed as the gradient passes them.",
            UncoveredOperationWarning,
        )
    patterns = fit.patterns()
    _warn_of_degenerate(patterns)
    return patterns


def show_calls(model: nn.Module, loader: Iterable[Any], look: Look, progress: bool, title: str) -> list[str]:
    """Run the model on every batch, and show ``look`` the linear calls; nothing of a batch is kept.

    Returns: the products with parameters that have no units.
    """
    if isinstance(loader, (Tensor, str, bytes)) or not isinstance(loader, Iterable):
        raise InputTypeError(
            f"A loader yields batches: a DataLoader, or a list of tensors [N, ...]; got {type(loader).__name__}. "
            "Give [x] for one batch x."
        )
    warn_of_training(model)
    names, unknown, batches = Names(model), dict[str, None](), 0
    device = next((parameter.device for parameter in model.parameters()), None)
    for batch in _shown(loader, progress, title):
        batches += 1
        inputs = _first(batch)
        given = as_inputs(inputs if device is None else map_tensors(lambda tensor: tensor.to(device), inputs))
        call = Call(model, Autograd(), operations())
        call.known.saving = Unsaved()
        visit = Visit(call, names, _no_backward, recording=True)
        with grad_mode(), foremost(call):
            try:
                forward(call, given)
                unknown |= dict.fromkeys(visit.unknown)
                with torch.no_grad():
                    for linear_call in visit.units():
                        assert linear_call.saw is not None
                        a, z = linear_call.saw
                        look(linear_call, a.tensor, z.tensor)
            finally:
                call.close()
    if not batches:
        raise InputError("The loader yielded no batch.")
    return list(unknown)


class _Fit:
    """The sums of every parameter, and what its patterns need besides."""

    def __init__(self, estimator: Estimator) -> None:
        self.estimator = estimator
        self.sums: dict[str, Sums] = {}
        self._first: dict[str, tuple[Any, Tensor, Tensor | None, str]] = {}
        self._rectified: set[str] = set()

    def add(self, linear_call: UnitCall, a: Tensor, z: Tensor) -> None:
        geometry = linear_call.geometry
        weight, bias = linear_call.effective()
        if linear_call.unit not in self.sums:
            self.sums[linear_call.unit] = Sums(geometry, weight, self.estimator)
            bias = None if bias is None else bias.detach().clone()
            self._first[linear_call.unit] = (geometry, weight.detach().clone(), bias, linear_call.weight_name)
        if linear_call.rectified:
            self._rectified.add(linear_call.unit)
        self.sums[linear_call.unit].add(geometry, a, z, weight)

    def patterns(self) -> Patterns:
        found = {}
        for unit, sums in self.sums.items():
            geometry, weight, bias, parameter = self._first[unit]
            rows = geometry.rows(weight)
            directions = {region: sums.pattern(region, rows) for region in REGIONS[self.estimator]}
            found[unit] = make_pattern(geometry, weight, bias, directions, parameter, unit in self._rectified)
        return Patterns(self.estimator, found, {unit: sums.samples for unit, sums in self.sums.items()})


def _warn_of_degenerate(patterns: Patterns) -> None:
    """Warn of the units that the backward will not pass, because they have no pattern."""
    without = {
        unit: int(pattern.missing[patterns.region(unit, pattern.rectified)].sum()) for unit, pattern in patterns.items()
    }
    without = {unit: count for unit, count in without.items() if count}
    if without:
        shown = ", ".join(f"{count} of {unit!r}" for unit, count in without.items())
        warn(
            "Units whose output never varied in the data, or never was above 0 before a ReLU, have no pattern, and "
            f"nothing passes them: {shown}. `patterns.degenerate` lists them.",
            PatternWarning,
        )


def _no_backward(linear_call: UnitCall, weight: Tensor) -> Tensor:
    raise RuntimeError("This forward pass has no backward.")


def _first(batch: Any) -> Any:
    """Return the input of a batch: the batch, or its first entry."""
    if not isinstance(batch, (tuple, list)):
        return batch
    if not batch:
        raise InputError("The loader yielded an empty tuple; its first entry should be the input.")
    return batch[0]


def _shown(loader: Iterable[Any], progress: bool, title: str) -> Iterator[Any]:
    """Yield the batches; with ``progress`` show how far it is, by tqdm where that is installed."""
    if not progress:
        yield from loader
        return
    try:
        tqdm = import_module("tqdm.auto").tqdm
    except ImportError:
        total = f"/{len(loader)}" if isinstance(loader, Sequence) else ""
        for number, batch in enumerate(loader, 1):
            sys.stderr.write(f"\r{title}: batch {number}{total}")
            yield batch
        sys.stderr.write("\n")
        return
    yield from tqdm(loader, desc=title, unit="batch")
