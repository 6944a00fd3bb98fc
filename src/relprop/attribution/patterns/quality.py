"""How much of a unit's output its estimated signal holds, measured on data that nothing was fitted to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from relprop.attribution.patterns.calls import UnitCall
from relprop.attribution.patterns.fit import show_calls
from relprop.attribution.patterns.store import Pattern, Patterns
from relprop.errors import InputError, PatternError
from relprop.inputs import as_layers
from relprop.propagation.math.linear_map import Convolution, Geometry
from relprop.propagation.math.patches import patches
from relprop.tables import html_table, text_table

CUT = 1e-10
"""Directions in which the residual varies by less than this part of the variance of the input take no part in ``v``."""

STILL = 1e-9
"""Below this part of the deviation of the output, a projection of the residual does not vary."""


@dataclass(frozen=True)
class SignalQuality:
    """The quality ``rho`` of the signal estimators of a network, held out, from :meth:`PatternNet.signal_quality`.

    Attributes:
        values: by layer and estimator, ``rho`` of every unit that was measured; units whose output does not vary in
            the data are left out.
        units: by layer, the indices of those units.
        samples: by layer, how many samples ``v`` was fitted to, and on how many the correlation was measured.
    """

    values: Mapping[str, Mapping[str, Tensor]]
    units: Mapping[str, Tensor]
    samples: Mapping[str, tuple[int, int]]

    def means(self) -> dict[str, dict[str, float]]:
        """Return the mean ``rho`` of the units, by layer and estimator."""
        return {
            layer: {estimator: float(rho.mean()) for estimator, rho in found.items()}
            for layer, found in self.values.items()
        }

    def _table(self) -> tuple[list[str], list[list[str]]]:
        estimators = list(next(iter(self.values.values())))
        lines = [
            [layer, str(len(self.units[layer])), *(f"{found[estimator]:.3f}" for estimator in estimators)]
            for layer, found in self.means().items()
        ]
        return ["layer", "units", *estimators], lines

    def __str__(self) -> str:
        header, lines = self._table()
        return text_table(header, lines, right=range(1, len(header)))

    def _repr_html_(self) -> str:
        return html_table(*self._table())


def measure(
    model: nn.Module,
    fitted: Patterns,
    loader: Iterable[Any],
    test: Iterable[Any],
    layers: Iterable[str] | None,
    units: int,
    most: int,
    seed: int,
    progress: bool,
) -> SignalQuality:
    """Return the signal quality; see :meth:`relprop.PatternNet.signal_quality`."""
    if units < 1 or most < 2:
        raise InputError(f"units must be at least 1 and patches at least 2, got {units} and {most}.")
    wanted = _wanted(model, fitted, layers)
    chosen = {unit: _choose(fitted[unit], units, seed) for unit in wanted}
    first, second = (_Samples(fitted, chosen, most, seed + split) for split in (0, 1))
    show_calls(model, loader, first.add, progress, "fit residuals")
    show_calls(model, test, second.add, progress, "signal quality")
    values, measured, samples = {}, {}, {}
    for unit in wanted:
        if unit not in first.kept or unit not in second.kept:
            raise InputError(f"The layer {unit!r} was not called in this data, so it has no signal to measure.")
        pattern, (geometry, x, group), (_, held_out, _) = fitted[unit], first.kept[unit], second.kept[unit]
        for split, part in (("first", x), ("second", held_out)):
            if len(part) <= part.shape[2]:
                raise InputError(
                    f"A unit of {unit!r} has {part.shape[2]} inputs, and the {split} loader gave {len(part)} samples "
                    f"(patches={most} at most): give more samples than inputs, or leave the layer out of `layers`."
                )
        found: dict[str, list[float]] = {}
        varying = []
        for index in chosen[unit].tolist():
            at = group[index]
            rho = _unit_quality(geometry, pattern, index, x[:, at].double(), held_out[:, at].double())
            if rho:
                varying.append(index)
            for estimator, value in rho.items():
                found.setdefault(estimator, []).append(value)
        if varying:
            values[unit] = {estimator: torch.tensor(rhos, dtype=torch.float64) for estimator, rhos in found.items()}
            measured[unit], samples[unit] = torch.tensor(varying), (len(x), len(held_out))
    if not values:
        raise InputError("No unit's output varies in this data, so there is no signal to measure.")
    return SignalQuality(values, measured, samples)


def _wanted(model: nn.Module, fitted: Patterns, layers: Iterable[str] | None) -> list[str]:
    """Return the parameters of the layers that were asked for."""
    if layers is None:
        return list(fitted)
    found = []
    for name in as_layers(model, layers):
        own = [unit for unit in fitted if name == "" or unit.startswith((f"{name}.", f"{name}#", f"{name} "))]
        if not own:
            raise InputError(f"The module {name!r} has no patterns; those that have: {', '.join(fitted)}.")
        found += own
    return list(dict.fromkeys(found))


def _units_of(pattern: Pattern) -> int:
    return len(pattern.missing["linear"])


def _choose(pattern: Pattern, units: int, seed: int) -> Tensor:
    """Return at most so many units of a layer, at random, in order."""
    order = torch.randperm(_units_of(pattern), generator=torch.Generator().manual_seed(seed))
    return order[:units].sort().values


class _Samples:
    """Samples of what the chosen units see, at most so many a layer, each as likely as any other.

    Every sample draws a number, and those with the smallest are kept.

    Attributes:
        kept: by parameter, its geometry, the samples ``[samples, groups, inputs]`` of the groups of the chosen units,
            and the place of the group of every chosen unit.
    """

    def __init__(self, fitted: Patterns, chosen: Mapping[str, Tensor], most: int, seed: int) -> None:
        self.kept: dict[str, tuple[Geometry, Tensor, dict[int, int]]] = {}
        self._drawn: dict[str, Tensor] = {}
        self._fitted, self._chosen, self._most = fitted, chosen, most
        self._random = torch.Generator().manual_seed(seed)

    def add(self, linear_call: UnitCall, a: Tensor, z: Tensor) -> None:
        if linear_call.unit not in self._chosen:
            return
        geometry = linear_call.geometry
        weight, bias = linear_call.effective()
        if not self._fitted[linear_call.unit].fits(weight, bias):
            raise PatternError(
                f"The weights of {linear_call.unit!r} have changed since the patterns were fitted. Fit them again."
            )
        count = geometry.by_unit(z)[:, 0].numel()
        drawn = torch.rand(count, dtype=torch.float64, generator=self._random)
        before = self._drawn.get(linear_call.unit, drawn[:0])
        together = torch.cat([before, drawn])
        order = together.argsort()[: self._most]
        old, new = order[order < len(before)], order[order >= len(before)] - len(before)
        groups = geometry.groups if isinstance(geometry, Convolution) else 1
        group = {
            int(unit): int(unit) * groups // _units_of(self._fitted[linear_call.unit])
            for unit in self._chosen[linear_call.unit]
        }
        used = sorted(set(group.values()))
        seen = patches(geometry, a, z, weight, new.to(a.device))[:, used]
        if linear_call.unit in self.kept:
            seen = torch.cat([self.kept[linear_call.unit][1][old.to(a.device)], seen])
        self._drawn[linear_call.unit] = together[torch.cat([old, new + len(before)])]
        self.kept[linear_call.unit] = geometry, seen, {unit: used.index(at) for unit, at in group.items()}


def _unit_quality(geometry: Geometry, pattern: Pattern, unit: int, x: Tensor, held_out: Tensor) -> dict[str, float]:
    """Return ``rho`` of one unit by estimator; nothing where its output does not vary."""
    w = geometry.rows(pattern.weight)[unit].double()
    bias = 0.0 if pattern.bias is None else float(pattern.bias[unit])
    y, y_held_out = x @ w, held_out @ w
    if _still(y, x, w) or _still(y_held_out, held_out, w):
        return {}
    floor = CUT * float((x - x.mean(0)).square().sum())
    found = {}
    for estimator, (on, off) in _directions(geometry, pattern, unit, w).items():
        residual, d = (
            part - out[:, None] * torch.where((out + bias > 0)[:, None], on, off)
            for part, out in ((x, y), (held_out, y_held_out))
        )
        found[estimator] = 1 - _correlation(y_held_out, d @ least_squares(residual, y, floor))
    return found


def _still(y: Tensor, x: Tensor, w: Tensor) -> bool:
    """Say whether an output does not vary but for rounding."""
    return bool(y.std() <= 1e-12 * (x.abs() @ w.abs()).max())


def _directions(geometry: Geometry, pattern: Pattern, unit: int, w: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Return, by estimator, what the signal goes along where ``z > 0`` and where not."""
    a = {region: geometry.rows(direction)[unit].double() for region, direction in pattern.directions.items()}
    along = w / w.square().sum()
    found = {"filter": (along, along), "linear": (a["linear"], a["linear"])}
    if "relu-" in a:
        found["relu+-"] = a["relu+"], a["relu-"]
    return found


def least_squares(d: Tensor, y: Tensor, floor: float) -> Tensor:
    """Return the ``v`` for which ``v'd`` follows ``y`` best, without the directions in which ``d`` hardly varies.

    Args:
        d: ``[samples, inputs]``.
        y: ``[samples]``.
        floor: the sum of squares, over the samples, that a direction must exceed.
    """
    d, y = d - d.mean(0), y - y.mean()
    variance, basis = torch.linalg.eigh(d.mT @ d)
    kept = variance > floor
    basis, variance = basis[:, kept], variance[kept]
    v: Tensor = basis @ ((basis.mT @ (d.mT @ y)) / variance)
    return v


def _correlation(y: Tensor, projected: Tensor) -> float:
    """Return ``|corr|``; 0 where the projection of the residual does not vary beside the output."""
    if bool(projected.std() < STILL * y.std()):
        return 0.0
    y, projected = y - y.mean(), projected - projected.mean()
    return float((y @ projected).abs() / (y.norm() * projected.norm()))
