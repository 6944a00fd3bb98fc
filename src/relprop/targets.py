"""What is explained: from a model's output and a target to one number per sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor, nn

from relprop.errors import ModelError, RelpropError, TargetError, TargetIndexError, TargetTypeError, near
from relprop.propagation.run.explained_output import Reading, ReadLayer

Reduce = Literal["sum", "mean", "max"]

Target: TypeAlias = (
    "int | np.integer[Any] | Tensor | Sequence[int] | tuple[int, ...] | Sequence[tuple[int, ...]] "
    "| Callable[[Any], Tensor] | Unit | None"
)


@dataclass(frozen=True)
class Unit:
    """A hidden unit as a target: what did this neuron detect?

    The output of the module ``layer`` is read as the module returns it, and the explanation begins there: nothing above
    takes part, ``last`` is the last linear layer below it, and relevance sums to the value of the unit.

    Args:
        layer: the dotted name of a module of the model, such as ``"layer4.0.conv1"``.
        index: which entry of its output, in all forms that a target of the model's output has: an int for ``[N, C]``, a
            tuple for more dimensions (``(3, 4, 5)`` is channel 3 at row 4, column 5 of ``[N, C, H, W]``), a list with
            one of them per sample, a callable from the output to ``[N]``, or None where it has one number per sample.
        reduce: None, or how to make one number of the dimensions that ``index`` leaves open: ``Unit("conv", 3,
            reduce="sum")`` is the sum of channel 3 over all positions; ``"mean"`` and ``"max"`` likewise. Without it
            ``index`` must name one entry.
        call: which call of the module is meant, from 0, where the model calls it more than once.

    Raises:
        TargetTypeError, TargetError: for a layer that is no name, another ``reduce``, or a negative ``call``; while
            explaining, where the model has no such module, or does not call it, or calls it more than once and no
            ``call`` is given, or ``index`` does not fit its output.
        TargetIndexError: where ``index`` or ``call`` is out of range.

    >>> from relprop import LRP
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> LRP(model).attribute(torch.randn(5, 3), Unit("0", 2)).shape
    torch.Size([5, 3])
    """

    layer: str
    index: Any = None
    reduce: Reduce | None = None
    call: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.layer, str):
            raise TargetTypeError(f"Unit: a layer is given by its name, got {type(self.layer).__name__}.")
        if self.reduce not in (None, *get_args(Reduce)):
            raise TargetError(f"Unit: reduce must be None or one of {get_args(Reduce)}, got {self.reduce!r}.")
        if self.reduce is not None and callable(self.index):
            raise TargetError("Unit: a callable index makes one number per sample itself; it takes no reduce.")
        if self.call is not None and (isinstance(self.call, bool) or not isinstance(self.call, (int, np.integer))):
            raise TargetTypeError(f"Unit: call must be an int, got {self.call!r}.")
        if self.call is not None and self.call < 0:
            raise TargetError(f"Unit: calls count from 0, got call={self.call}.")

    def pick(self, output: Any, samples: int | None) -> Tensor:
        """Return the value of the unit, ``[N]``, from the output of its module."""
        try:
            if self.reduce is not None:
                return _reduced(_with_batch(output, samples), self.index, self.reduce)
            self._check_channel(output)
            return select(output, self.index, samples)
        except RelpropError as error:
            raise type(error)(f"Unit of module {self.layer!r}: {error}") from error

    def _check_channel(self, output: Any) -> None:
        """Raise where the index names a channel of many positions, and nothing says what to make of them."""
        if callable(self.index) or not isinstance(self.index, (int, np.integer)) or isinstance(self.index, bool):
            return
        tensor = output_tensor(output)
        if tensor.dim() > 2:
            one = (int(self.index), *(0,) * (tensor.dim() - 2))
            raise TargetError(
                f"index {self.index} is a channel of an output of shape {tuple(tensor.shape)}. Name one position, such "
                f"as {one}, or say how to reduce them: Unit({self.layer!r}, {self.index}, reduce='sum')."
            )


def reading(model: nn.Module, target: Target, samples: int | None) -> Reading:
    """Return how to read what is explained off a forward pass of the model; ``samples`` as for :func:`select`.

    Raises:
        TargetError: for a unit of a module that the model does not have.
    """
    if not isinstance(target, Unit):
        return partial(select, target=target, samples=samples)
    names = [name for name, _ in model.named_modules()]
    if target.layer not in names:
        raise TargetError(
            f"{type(model).__name__} has no module {target.layer!r} to explain a unit of."
            f"{near(target.layer, filter(None, names))}"
        )
    return ReadLayer(target.layer, partial(target.pick, samples=samples), target.call)


_FORMS = (
    "an int, a tensor with one or N integers, a list of N ints, a tuple that indexes an output of more dimensions, "
    "a list of N tuples, a callable from the output to one number per sample, or a Unit of a hidden layer"
)


def select(output: Any, target: Target, samples: int | None) -> Tensor:
    """Return what is explained, ``[N]``: the entry of the output that the target names, sample by sample.

    Args:
        output: what the model returned: a tensor, or a tuple, mapping or dataclass that holds one.
        target: None (where the output has one number per sample), an int, a tensor with one or N integers, a list of
            ints, a tuple (an index into outputs of more dimensions), a list of tuples, or a callable that receives
            what the model returned and gives ``[N]``. (A :class:`Unit` needs more than the output: see ``reading``.)
        samples: N; None where the inputs have no batch in common: as many as the output has rows.

    Raises:
        TargetError, TargetTypeError, TargetIndexError: where the target does not fit the output.
        ModelError: where the model returned no tensor.

    >>> select(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), [0, 1], 2)
    tensor([1., 4.])
    """
    if callable(target) and not isinstance(target, Tensor):
        return _chosen(target(output), samples)
    if target is None and samples == 1 and output_tensor(output).numel() == 1:
        return output_tensor(output).reshape(1)
    tensor = _with_batch(output, samples)
    samples = tensor.shape[0]
    if target is None:
        if tensor.numel() != samples:
            raise TargetError(
                f"The output has shape {tuple(tensor.shape)}, so a target must say which entry to explain: {_FORMS}."
            )
        return tensor.reshape(samples)
    return tensor[_indices(target, tensor, samples, tensor.dim() - 1)]


def _with_batch(output: Any, samples: int | None) -> Tensor:
    """Return the tensor of an output, whose dimension 0 is the batch."""
    tensor = output_tensor(output)
    if samples is None:
        return tensor if tensor.dim() else tensor.reshape(1)
    if tensor.dim() == 0 or tensor.shape[0] != samples:
        raise TargetError(
            f"The output has shape {tuple(tensor.shape)}, but {samples} samples went in: dimension 0 must be the "
            f"batch. Give a callable target that returns one number per sample."
        )
    return tensor


def _reduced(tensor: Tensor, index: Any, reduce: Reduce) -> Tensor:
    """Return one number per sample: the dimensions that the index leaves open are reduced."""
    samples = tensor.shape[0]
    chosen = tensor if index is None else tensor[_indices(index, tensor, samples, None)]
    flat = chosen.reshape(samples, -1)
    return flat.sum(1) if reduce == "sum" else flat.mean(1) if reduce == "mean" else flat.amax(1)


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


def _indices(target: Any, output: Tensor, samples: int, needed: int | None) -> tuple[Tensor, ...]:
    """Return one index tensor ``[N]`` for the batch, and for each dimension behind it that the target names.

    ``needed`` is the number of those; None takes as many as there are, the same for every sample.
    """
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
    if needed is None:
        needed = min(len(rows[0]), output.dim() - 1)
    for row in rows:
        _check_row(row, needed, output)
    table = torch.tensor(rows, dtype=torch.long, device=output.device).reshape(samples, needed)
    return torch.arange(samples, device=output.device), *table.unbind(1)


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


def _check_row(row: tuple[Any, ...], needed: int, output: Tensor) -> None:
    for index in row:
        if isinstance(index, (bool, np.bool_)) or not isinstance(index, (int, np.integer)):
            raise TargetTypeError(f"A target must be {_FORMS}; got {index!r} of type {type(index).__name__}.")
    if len(row) != needed:
        raise TargetError(
            f"The target {row if len(row) != 1 else row[0]} has {len(row)} "
            f"{'index' if len(row) == 1 else 'indices'} for an output of shape {tuple(output.shape)}, which needs "
            f"{needed} behind the batch: use a tuple, or a callable."
        )
    for index, size in zip(row, output.shape[1:], strict=False):
        if not -size <= index < size:
            raise TargetIndexError(f"Target {index} is out of range for an output of shape {tuple(output.shape)}.")
