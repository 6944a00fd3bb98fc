"""The patterns of a network: what was fitted, to which weights, and how it is kept in a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from relprop.attribution.patterns.estimators import REGIONS, Estimator
from relprop.errors import MissingExtraError, PatternError
from relprop.propagation.math.linear_map import Geometry
from relprop.tables import shape_text, text_table

FORMAT = "relprop patterns 1"


@dataclass(frozen=True)
class Pattern:
    """The patterns of the units of one parameter, as :meth:`PatternNet.fit` finds them.

    Attributes:
        weight: the weight of the filters, with its batch norm folded in.
        bias: the bias likewise, or None.
        directions: by region, ``"linear"``, ``"relu+"`` and ``"relu-"``, the patterns, shaped as the weight.
        missing: by region, the units without a pattern (it is zero), as bools ``[units]``.
        parameter: the name of the parameter; empty where the weight is computed or part of one.
        rectified: a ReLU took the output of some call in the data.
    """

    weight: Tensor
    bias: Tensor | None
    directions: Mapping[str, Tensor]
    missing: Mapping[str, Tensor]
    parameter: str = ""
    rectified: bool = False

    def fits(self, weight: Tensor, bias: Tensor | None) -> bool:
        """Say whether the weights are those that the patterns were fitted to, but for rounding."""
        if (bias is None) != (self.bias is None):
            return False
        return _close(self.weight, weight) and (bias is None or self.bias is None or _close(self.bias, bias))


def _close(kept: Tensor, now: Tensor) -> bool:
    if kept.dtype == now.dtype and kept.device == now.device and torch.equal(kept, now):
        return True  # as a rule, and without copies
    wide, now = kept.to(device=now.device, dtype=torch.float64), now.detach()
    most = float(wide.abs().max()) if wide.numel() else 0.0
    precision = max(torch.finfo(kept.dtype).eps, torch.finfo(now.dtype).eps)
    return bool(((wide - now.double()).abs() <= 16 * precision * most).all())


class Patterns(Mapping[str, Pattern]):
    """The patterns of a network by parameter, as :meth:`PatternNet.fit` finds them.

    Attributes:
        estimator: ``"linear"``, ``"relu+"`` or ``"relu+-"``.
        found: by parameter, what the mapping holds.
        samples: by parameter, the number of samples; every position of a convolution is one.
    """

    def __init__(self, estimator: Estimator, found: Mapping[str, Pattern], samples: Mapping[str, int]) -> None:
        self.estimator, self.samples = estimator, dict(samples)
        self._found = dict(found)

    def __getitem__(self, unit: str) -> Pattern:
        return self._found[unit]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    @property
    def degenerate(self) -> dict[str, dict[str, list[int]]]:
        """The units without a pattern: by parameter and region, where there are any."""
        found = {
            unit: {region: missing.nonzero().flatten().tolist() for region, missing in pattern.missing.items()}
            for unit, pattern in self.items()
        }
        return {
            unit: {region: units for region, units in regions.items() if units}
            for unit, regions in found.items()
            if any(regions.values())
        }

    def region(self, unit: str, rectified: bool) -> str:
        """Return which patterns the backward takes: those of ``z > 0`` before a ReLU, the linear ones elsewhere."""
        return "relu+" if rectified and self.estimator != "linear" else "linear"

    def __str__(self) -> str:
        lines = []
        for unit, pattern in self.items():
            without = [
                f"{int(missing.sum())} ({region})" for region, missing in pattern.missing.items() if bool(missing.any())
            ]
            used = self.region(unit, pattern.rectified)
            lines.append(
                (unit, shape_text(pattern.weight.shape), str(self.samples[unit]), used, ", ".join(without) or "-")
            )
        return text_table(("parameter", "shape", "samples", "backward", "units without"), lines, right=(2,))

    # Files ---------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the patterns, and the weights that they belong to, as a safetensors file."""
        tensors: dict[str, Tensor] = {}
        entries = []
        for unit, pattern in self.items():
            parts = {"weight": pattern.weight, "bias": pattern.bias}
            parts |= dict(pattern.directions)
            parts |= {f"missing {region}": missing for region, missing in pattern.missing.items()}
            tensors |= {
                f"{unit}/{part}": tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
                for part, tensor in parts.items()
                if tensor is not None
            }
            entries.append(
                {
                    "unit": unit,
                    "parameter": pattern.parameter,
                    "rectified": pattern.rectified,
                    "samples": self.samples[unit],
                    "parts": [part for part, tensor in parts.items() if tensor is not None],
                }
            )
        metadata = {"format": FORMAT, "estimator": self.estimator, "units": json.dumps(entries)}
        _safetensors().save_file(tensors, str(path), metadata=metadata)

    @classmethod
    def load(cls, path: str | Path, model: nn.Module) -> Patterns:
        """Read patterns from a file that :meth:`save` wrote.

        Raises:
            PatternError: where the file holds no patterns, or those of a network with other parameters.
        """
        safetensors = _safetensors()
        try:
            with safetensors.safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        except FileNotFoundError:
            raise
        except Exception as error:  # of a damaged header anything
            raise PatternError(f"{path} is no safetensors file; give one that `save` wrote. ({error})") from error
        if metadata.get("format") != FORMAT or metadata.get("estimator") not in get_args(Estimator):
            raise PatternError(f"{path} holds no patterns of relprop; give a file that `save` wrote.")
        estimator = cast("Estimator", metadata["estimator"])
        parameters: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        device = next(iter(parameters.values())).device if parameters else torch.device("cpu")
        found, samples = {}, {}
        try:
            for entry in _entries(metadata.get("units")):
                held = {part: _taken(tensors, entry.unit, part) for part in entry.parts}
                _check_parts(entry.unit, held, REGIONS[estimator])
                check_parameter(model, parameters, entry.parameter, held["weight"])
                held = {part: tensor.to(device) for part, tensor in held.items()}
                found[entry.unit] = Pattern(
                    held["weight"],
                    held.get("bias"),
                    {region: held[region] for region in REGIONS[estimator]},
                    {region: held[f"missing {region}"] for region in REGIONS[estimator]},
                    entry.parameter,
                    entry.rectified,
                )
                samples[entry.unit] = entry.samples
            if tensors:
                raise _DamagedError(f"no unit has the tensor {next(iter(tensors))!r}")
        except _DamagedError as error:
            raise PatternError(f"{path} is damaged: {error}. Fit and save the patterns again.") from error
        return cls(estimator, found, samples)


# What a file must hold -----------------------------------------------------------------------------


class _DamagedError(Exception):
    """A file does not hold what :meth:`Patterns.save` writes."""


@dataclass(frozen=True)
class _Entry:
    """What the metadata of a file says of one unit."""

    unit: str
    parameter: str
    rectified: bool
    samples: int
    parts: list[str]


def _entries(text: Any) -> list[_Entry]:
    """Return the entries that the metadata holds as JSON, each with values of the types that it has."""
    try:
        listed = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:  # missing; no JSON, or numbers too long; nested too deep
        raise _DamagedError(f"its list of units cannot be read ({type(error).__name__})") from error
    if not isinstance(listed, list):
        raise _DamagedError("its list of units is none")
    found = []
    for given in listed:
        if not isinstance(given, dict) or given.keys() != _TYPES.keys():
            raise _DamagedError(f"an entry of its list of units has not the keys {', '.join(_TYPES)}")
        for name, kind in _TYPES.items():
            if type(given[name]) is not kind:  # no bool for an int
                raise _DamagedError(f"{name!r} of a unit is {type(given[name]).__name__}, expected {kind.__name__}")
        if given["samples"] < 0 or not all(isinstance(part, str) for part in given["parts"]):
            raise _DamagedError(f"the samples or the parts of {given['unit']!r} are none")
        found.append(_Entry(**given))
    return found


_TYPES: dict[str, type] = {"unit": str, "parameter": str, "rectified": bool, "samples": int, "parts": list}


def _taken(tensors: dict[str, Tensor], unit: str, part: str) -> Tensor:
    """Take a tensor out of those of a file; a unit that is listed twice finds none."""
    name = f"{unit}/{part}"
    if name not in tensors:
        raise _DamagedError(f"it lacks the tensor {name!r}, or names it twice")
    return tensors.pop(name)


def _check_parts(unit: str, held: Mapping[str, Tensor], regions: Sequence[str]) -> None:
    """Look at the shapes, the types and the numbers of what is held for a unit."""
    expected = {"weight", *regions, *(f"missing {region}" for region in regions)}
    if held.keys() - {"bias"} != expected:
        raise _DamagedError(f"{unit!r} has the parts {', '.join(held)}, expected {', '.join(sorted(expected))}")
    weight, missing = held["weight"], held[f"missing {regions[0]}"]
    if weight.dtype not in _FLOATS:
        raise _DamagedError(f"the weight of {unit!r} has the type {weight.dtype}")
    for part, tensor in held.items():
        flags = part.startswith("missing ")
        shape = weight.shape if part in ("weight", *regions) else missing.shape
        dtype = torch.bool if flags else tensor.dtype if part == "bias" and tensor.dtype in _FLOATS else weight.dtype
        if tensor.shape != shape or tensor.dtype != dtype:
            raise _DamagedError(
                f"{part!r} of {unit!r} is {shape_text(tensor.shape)} of {tensor.dtype}, "
                f"expected {shape_text(shape)} of {dtype}"
            )
        if not flags and not bool(tensor.isfinite().all()):
            raise _DamagedError(f"{part!r} of {unit!r} holds NaN or infinity")
    units = missing.numel()
    if missing.dim() != 1 or not units or weight.numel() % units:
        raise _DamagedError(f"{unit!r} has flags of shape {tuple(missing.shape)} for a weight {tuple(weight.shape)}")


_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_parameter(model: nn.Module, parameters: Mapping[str, Tensor], name: str, weight: Tensor) -> None:
    """Raise where a model has no parameter of this name and shape."""
    if not name:
        return
    own = parameters.get(name)
    if own is None or own.shape != weight.shape:
        has = "no such parameter" if own is None else f"one of shape {tuple(own.shape)}"
        raise PatternError(
            f"These are the patterns of another network: they hold {name!r} of shape {tuple(weight.shape)}, and "
            f"{type(model).__name__} has {has}. Fit this model, or load into the one that was fitted."
        )


def make_pattern(
    geometry: Geometry,
    weight: Tensor,
    bias: Tensor | None,
    found: Mapping[str, tuple[Tensor, Tensor]],
    parameter: str,
    rectified: bool,
) -> Pattern:
    """Return the pattern of a weight from its patterns by unit, in the dtype of the weight."""
    directions = {region: geometry.from_rows(a, weight).to(weight.dtype) for region, (a, _) in found.items()}
    missing = {region: units for region, (_, units) in found.items()}
    return Pattern(
        weight.detach().clone(),
        None if bias is None else bias.detach().clone(),
        directions,
        missing,
        parameter,
        rectified,
    )


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise MissingExtraError(
            "Patterns are kept as safetensors files, and safetensors is not installed; pip install relprop[patterns]"
        ) from error
    return _Files(safetensors.SafetensorError, safetensors.safe_open, safetensors.torch.save_file)


@dataclass(frozen=True)
class _Files:
    SafetensorError: type[Exception]
    safe_open: Any
    save_file: Any
