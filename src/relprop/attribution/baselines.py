"""What an input is compared with: baselines, checked and brought to the shape of the inputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relprop.attribution.contract import Method
from relprop.attribution.passes import Passes
from relprop.errors import InputError, InputTypeError, NumericalError
from relprop.inputs import Given, as_inputs, outside_inference


def as_baselines(given: Given, baselines: Any) -> list[Tensor]:
    """Return one baseline of its shape for every explained tensor.

    Args:
        given: the inputs.
        baselines: None (zero); a number, which stands for every entry of every input; a tensor of the shape of the
            input, ``[N, ...]``, or one that all samples share, ``[1, ...]``; for several inputs, a tuple with one of
            these for every input, or a structure like theirs.

    Raises:
        InputTypeError: where one is neither a number nor a tensor.
        InputError: where one has another shape, or there are fewer or more than inputs.
        NumericalError: for NaN and infinity.
    """
    if baselines is None or _is_number(baselines):
        entries = [baselines] * len(given.tensors)
    else:
        entries = given.aligned(_unpacked(given, baselines), "baselines")
    several = len(entries) > 1
    with torch.inference_mode(False):  # autograd is to save what is made of them
        return [
            _baseline(x, entry, f"The baseline of input {position}" if several else "The baseline")
            for position, (x, entry) in enumerate(zip(given.tensors, entries, strict=True))
        ]


def _baseline(x: Tensor, entry: Any, name: str) -> Tensor:
    if entry is None:
        return torch.zeros_like(x)
    if not _is_number(entry) and not isinstance(entry, Tensor):
        raise InputTypeError(f"{name} must be None, a number or a tensor, got {type(entry).__name__}.")
    value = torch.as_tensor(entry, dtype=torch.float64 if isinstance(entry, (float, np.floating)) else None)
    if value.dtype == torch.bool or value.is_complex():
        raise InputTypeError(f"{name} has dtype {value.dtype}; give numbers of the kind of the input, {x.dtype}.")
    if value.is_floating_point() and not x.is_floating_point():
        raise InputTypeError(f"{name} has dtype {value.dtype}, but the input holds integers ({x.dtype}).")
    if not bool(torch.isfinite(value).all()):
        raise NumericalError(f"{name} holds NaN or infinity.")
    if value.dim() and value.shape != x.shape and value.shape != (1, *x.shape[1:]):
        raise InputError(
            f"{name} has shape {tuple(value.shape)}, the input {tuple(x.shape)}: give a number, a tensor of that "
            f"shape, or one that all samples share, {(1, *x.shape[1:])}."
        )
    return outside_inference(value).detach().to(device=x.device, dtype=x.dtype).expand(x.shape)


def _unpacked(given: Given, baselines: Any) -> Any:
    """Return the one entry of a tuple, where one input was given without a tuple."""
    alone = given.samples is not None and isinstance(given.structure, Tensor)
    return baselines[0] if alone and isinstance(baselines, (tuple, list)) and len(baselines) == 1 else baselines


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, (bool, np.bool_))


def batched(inputs: Any, name: str) -> Given:
    """Return inputs that have a batch in common, for the method of a name.

    Raises:
        InputError: where they are given in a structure.
        RelpropError: as :func:`relprop.inputs.as_inputs`.
    """
    given = as_inputs(inputs)
    if given.samples is None:
        raise InputError(f"{name} takes tensors [N, ...] or a tuple of them, and no inputs in a structure.")
    return given


def check_movable(given: Given, name: str) -> None:
    """Raise where an input that a method moves on a path holds integers; of a structure, those are not moved."""
    if given.samples is not None and not all(x.is_floating_point() for x in given.tensors):
        raise InputTypeError(
            f"{name} moves the inputs, and integers lie on no path. Explain the embedded tokens in their place."
        )


def change(method: Method, passes: Passes, ends: list[Tensor]) -> Tensor:
    """Return ``f(x) - f(x')``, ``[N]``.

    Raises:
        NumericalError: where the output at a baseline is NaN or infinite.
    """
    quiet = replace(passes, options={"forward_kwargs": passes.options["forward_kwargs"]}, progress=False)
    at_input, at_baseline = quiet.over(method.explained, [passes.given.tensors, ends], 2)
    if not bool(torch.isfinite(at_baseline).all()):
        raise NumericalError("The output at the baseline is NaN or infinite; there is no difference to explain.")
    difference: Tensor = at_input - at_baseline
    return difference


def as_distribution(given: Given, baselines: Any) -> list[Tensor]:
    """Return the baselines ``[M, ...]`` to draw from, for every input.

    Args:
        given: the inputs, with a common batch.
        baselines: a number; a tensor ``[M, ...]``; for several inputs a number, or a tuple with one of these for each,
            where tensors have the same M.

    Raises:
        InputTypeError, InputError, NumericalError: as :func:`as_baselines`.
    """
    if baselines is None:
        raise InputError("No baselines were given to draw from; expected a tensor [M, ...], or a number.")
    if _is_number(baselines):
        listed = [baselines] * len(given.tensors)
    else:
        listed = given.aligned(_unpacked(given, baselines), "baselines")
    pool = []
    for position, (x, entry) in enumerate(zip(given.tensors, listed, strict=True)):
        name = f"The baselines of input {position}" if len(listed) > 1 else "The baselines"
        if isinstance(entry, Tensor) and entry.dim() and (entry.shape[1:] != x.shape[1:] or not len(entry)):
            raise InputError(
                f"{name} have shape {tuple(entry.shape)}, the input {tuple(x.shape)}: give a tensor "
                f"[M, {', '.join(map(str, x.shape[1:]))}] of M baselines."
            )
        many = x[:1].expand(len(entry) if isinstance(entry, Tensor) and entry.dim() else 1, *x.shape[1:])
        pool.append(_baseline(many, entry, name))
    longest = max(map(len, pool))
    if any(len(base) not in (1, longest) for base in pool):
        raise InputError(f"There must be as many baselines for every input, got {[len(base) for base in pool]}.")
    return [base.expand(longest, *base.shape[1:]) for base in pool]
