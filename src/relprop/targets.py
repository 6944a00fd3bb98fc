"""What is explained: from a model's output and a target to one number per sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from relprop.errors import ModelError, TargetError, TargetIndexError, TargetTypeError

Target: TypeAlias = (
    "int | np.integer[Any] | Tensor | Sequence[int] | tuple[int, ...] | Sequence[tuple[int, ...]] "
    "| Callable[[Any], Tensor] | None"
)

_FORMS = (
    "an int, a tensor with one or N integers, a list of N ints, a tuple that indexes an output of more dimensions, "
    "a list of N tuples, or a callable from the output to one number per sample"
)


def select(output: Any, target: Target, samples: int | None) -> Tensor:
    """Return what is explained, ``[N]``: the entry of the output that the target names, sample by sample.

    Args:
        output: what the model returned: a tensor, or a tuple, mapping or dataclass that holds one.
        target: None (where the output has one number per sample), an int, a tensor with one or N integers, a list of
            ints, a tuple (an index into outputs of more dimensions), a list of tuples, or a callable that receives
            what the model returned and gives ``[N]``.
        samples: N; None where the inputs have no batch in common: as many as the output has rows.

    Raises:
        TargetError, TargetTypeError, TargetIndexError: where the target does not fit the output.
        ModelError: where the model returned no tensor.

    >>> select(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), [0, 1], 2)
    tensor([1., 4.])
    """
    if callable(target) and not isinstance(target, Tensor):
        return _chosen(target(output), samples)
    tensor = output_tensor(output)
    if samples is None:
        tensor = tensor if tensor.dim() else tensor.reshape(1)
        samples = tensor.shape[0]
    if tensor.dim() == 0 or tensor.shape[0] != samples:
        if tensor.numel() == 1 and samples == 1 and target is None:
            return tensor.reshape(1)
        raise TargetError(
            f"The output has shape {tuple(tensor.shape)}, but {samples} samples went in: dimension 0 must be the "
            f"batch. Give a callable target that returns one number per sample."
        )
    if target is None:
        if tensor.numel() != samples:
            raise TargetError(
                f"The output has shape {tuple(tensor.shape)}, so a target must say which entry to explain: {_FORMS}."
            )
        return tensor.reshape(samples)
    rows = torch.arange(samples, device=tensor.device)
    index = (rows, *_indices(target, tensor, samples))
    return tensor[index]


def output_tensor(output: Any) -> Tensor:
    """Return the tensor of an output: itself, the first of a tuple, or the entry ``logits``.

    Raises:
        ModelError: where there is none.
    """
    if isinstance(output, Tensor):
        return output
    found: Any = None
    if isinstance(output, Mapping):
        found = output.get("logits", next((value for value in output.values() if isinstance(value, Tensor)), None))
    elif getattr(output, "logits", None) is not None:
        found = output.logits
    elif isinstance(output, (tuple, list)):
        found = next((value for value in output if isinstance(value, Tensor)), None)
    elif is_dataclass(output):
        values = (getattr(output, item.name) for item in fields(output))
        found = next((value for value in values if isinstance(value, Tensor)), None)
    if not isinstance(found, Tensor):
        raise ModelError(
            f"The model returned {type(output).__name__}, which holds no tensor to explain. "
            "Give a callable target that takes what the model returns and gives one number per sample."
        )
    return found


def _chosen(value: Any, samples: int | None) -> Tensor:
    if not isinstance(value, Tensor):
        raise TargetTypeError(f"A callable target must return a tensor [N], got {type(value).__name__}.")
    if samples is None:
        return value.reshape(-1)
    if value.numel() != samples or (value.dim() > 0 and value.shape[0] != samples):
        raise TargetError(
            f"A callable target must return one number per sample, [{samples}]; got shape {tuple(value.shape)}."
        )
    return value.reshape(samples)


def _indices(target: Any, output: Tensor, samples: int) -> tuple[Tensor, ...]:
    """Return one index tensor ``[N]`` for every dimension of the output behind the batch."""
    sizes = output.shape[1:]
    if isinstance(target, Tensor):
        rows = _rows_of_tensor(target, samples)
    elif isinstance(target, tuple):
        rows = [target] * samples
    elif isinstance(target, list) or (isinstance(target, np.ndarray) and target.ndim > 0):
        if len(target) != samples:
            raise TargetError(f"The target lists {len(target)} entries for {samples} samples.")
        rows = [item if isinstance(item, tuple) else (item,) for item in target]
    else:
        rows = [(target.item() if isinstance(target, np.ndarray) else target,)] * samples
    for row in rows:
        _check_row(row, sizes, output)
    table = torch.tensor(rows, dtype=torch.long, device=output.device).reshape(samples, len(sizes))
    return table.unbind(1)


def _rows_of_tensor(target: Tensor, samples: int) -> list[tuple[Any, ...]]:
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TargetTypeError(f"A target tensor must hold integers, got {target.dtype}.")
    if target.numel() == 1:
        return [(target.item(),)] * samples
    if target.dim() != 1 or target.shape[0] != samples:
        raise TargetError(
            f"A target tensor must have one entry or one per sample ([{samples}]), got shape {tuple(target.shape)}."
        )
    return [(index,) for index in target.tolist()]


def _check_row(row: tuple[Any, ...], sizes: torch.Size, output: Tensor) -> None:
    for index in row:
        if isinstance(index, (bool, np.bool_)) or not isinstance(index, (int, np.integer)):
            raise TargetTypeError(f"A target must be {_FORMS}; got {index!r} of type {type(index).__name__}.")
    if len(row) != len(sizes):
        raise TargetError(
            f"The target {row if len(row) != 1 else row[0]} has {len(row)} "
            f"{'index' if len(row) == 1 else 'indices'} for an output of shape {tuple(output.shape)}, which needs "
            f"{len(sizes)} behind the batch: use a tuple, or a callable."
        )
    for index, size in zip(row, sizes, strict=True):
        if not -size <= index < size:
            raise TargetIndexError(f"Target {index} is out of range for an output of shape {tuple(output.shape)}.")
