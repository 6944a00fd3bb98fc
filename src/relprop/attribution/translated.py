"""Maps of shifted inputs, shifted back and averaged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, Literal, TypeVar, get_args, overload

import torch
from torch import Tensor

from relprop.arguments import whole_number
from relprop.attribution.baselines import batched
from relprop.attribution.contract import Method
from relprop.attribution.passes import Passes, Variant, weighted_sum
from relprop.attribution.wrapper import Wrapper, check_options
from relprop.errors import InputError
from relprop.inputs import Given
from relprop.randomness import draws
from relprop.targets import Target

Border = Literal["circular", "zero", "reflect"]
Shift = tuple[int, ...]
T = TypeVar("T", bound="Tensor | tuple[Tensor, ...]")


class Translated(Wrapper, name="translated"):
    """The maps of shifted inputs, shifted back and averaged, over any method.

    Definition: ``1/n sum_s T_-s R(T_s x)`` over the shifts ``s``, where ``(T_s x)[i] = x[i - s]`` and the border is
    filled by what leaves on the other side (``"circular"``), by zeros, or by the mirror image of what stands there
    (``"reflect"``). It averages what the method returns, coefficients or relevance. What the map of a shifted input has
    on its filled-in border lies outside the image when it is shifted back; it is left out, and what was left out can be
    had by ``return_lost=True``.
    Conserves: the sum of the maps and what was lost is the mean sum of the maps of the shifted inputs; there is no
    delta.

    Args:
        method: any method, made from a model, whose map has the shape of the input.
        shifts: in entries (pixels) along the last dimensions of every input: a list of tuples ``(down, right)``, or of
            ints for the last dimension alone; an int k is all the shifts in ``[-k, k]^2`` along the last two.
        border: ``"circular"``, ``"zero"`` or ``"reflect"``.

    Raises:
        InputError: where there is no shift, they differ in length, or ``border`` is another.
        MethodError: where ``method`` is none.
    Source: Montavon et al. 2018 (doi:10.1016/j.dsp.2017.10.011).

    >>> from relprop import Gradient
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 1, bias=False))
    >>> _ = model[1].weight.data.copy_(torch.tensor([[3.0, 0.0, 0.0]]))
    >>> x = torch.ones(1, 3)
    >>> Translated(Gradient(model), [0, 1]).attribute(x)
    tensor([[1.5000, 0.0000, 1.5000]])
    >>> Translated(Gradient(model), [0, 1], border="zero").attribute(x, return_lost=True)
    (tensor([[1.5000, 0.0000, 0.0000]]), tensor([1.5000]))
    """

    def __init__(
        self, method: Method, shifts: int | Sequence[int | Sequence[int]] = 1, border: Border = "circular"
    ) -> None:
        super().__init__(method)
        if border not in get_args(Border):
            raise InputError(f"border must be one of {get_args(Border)}, got {border!r}.")
        self.shifts, self.border = _as_shifts(shifts), border

    @overload
    def attribute(
        self,
        inputs: T,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        return_lost: Literal[False] = False,
        internal_batch_size: int | None = None,
        progress: bool = False,
        **options: Any,
    ) -> T: ...
    @overload
    def attribute(
        self,
        inputs: T,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        return_lost: Literal[True],
        **options: Any,
    ) -> tuple[T, Tensor]: ...
    def attribute(
        self,
        inputs: Any,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        return_lost: bool = False,
        internal_batch_size: int | None = None,
        progress: bool = False,
        return_convergence_delta: bool = False,
        **options: Any,
    ) -> Any:
        """Return the mean of the maps, shifted back.

        Args:
            inputs: a tensor ``[N, ...]``, or a tuple of them, which are all shifted.
            target, additional_forward_args: as those of the method.
            return_lost: also return what was left out of the maps, summed and averaged, ``[N]``.
            internal_batch_size: the most samples in one pass; None: one shift of the batch a pass.
            progress: show a progress bar, by tqdm.
            return_convergence_delta: refused, for there is none.
            options: further arguments of the method's ``attribute``. Of a method that draws numbers, every shift gets
                another seed, that follows from ``seed`` (None is 0).

        Returns:
            a map for every input, in the structure and the shapes of ``inputs``; with ``return_lost`` a pair of that
            and what was lost, which is 0 for circular borders.

        Raises:
            InputError: where a shift is as large as the input or larger, an input has too few dimensions, or the map of
                the method has another shape than the input.
            InputTypeError: for an option that the method does not take.
            MissingExtraError: ``progress=True`` without tqdm.
            RelpropError: what the method raises.
        """
        if return_convergence_delta:
            self.require_completeness()
        check_options([self.method], options, "Translated")
        given = batched(inputs, "Translated")
        self._check(given)
        count, run = len(self.shifts), self.method.attribute
        if self.takes_seed and options.get("generator") is None:
            run = self.runs(draws(options.pop("seed", None), None))
        passes = Passes(
            given, target, additional_forward_args, options, self.method.per_sample, internal_batch_size, progress
        )
        variants: Iterator[Variant] = ([shifted(x, s, self.border) for x in given.tensors] for s in self.shifts)
        found = passes.over(run, variants, count)
        back = (self._back(given, maps, s) for maps, s in zip(found, self.shifts, strict=True))
        maps, lost = weighted_sum(back, [1 / count] * count)
        packed = given.packed(maps)
        return (packed, lost) if return_lost else packed

    def _back(self, given: Given, packed: Any, shift: Shift) -> tuple[list[Tensor], Tensor]:
        """Return the maps shifted back, and the sum of what is left out."""
        maps, lost = [], []
        for x, found in zip(given.tensors, given.aligned(packed, "The map"), strict=True):
            if not isinstance(found, Tensor) or found.shape != x.shape:
                shape = tuple(found.shape) if isinstance(found, Tensor) else None
                raise InputError(
                    f"{type(self.method).__name__} returned a map of shape {shape} for an input of shape "
                    f"{tuple(x.shape)}; only a map of the shape of the input can be shifted back."
                )
            kept = found if self.border == "circular" else found * inside(found, shift)
            maps.append(torch.roll(kept, tuple(-step for step in shift), _dims(shift)))
            lost.append((found - kept).flatten(1).sum(1))
        return maps, torch.stack(lost).sum(0)

    def _check(self, given: Given) -> None:
        length = len(self.shifts[0])
        for x in given.tensors:
            if x.dim() <= length:
                raise InputError(
                    f"The input has shape {tuple(x.shape)}, which has not {length} dimensions behind the batch to "
                    f"shift along. Give shifts of fewer steps, such as [-1, 0, 1] along the last dimension."
                )
            for shift in self.shifts:
                for step, size in zip(shift, x.shape[-length:], strict=True):
                    if abs(step) >= size:
                        raise InputError(
                            f"The shift {shift} is too large for an input of shape {tuple(x.shape)}: a step of {step} "
                            f"along a dimension of {size} leaves nothing of it; at most {size - 1} is possible."
                        )


def shifted(x: Tensor, shift: Shift, border: Border) -> Tensor:
    """Return ``x[i - shift]``, along the last dimensions, with the border filled."""
    if border == "circular":
        return torch.roll(x, shift, _dims(shift))
    if border == "zero":
        return torch.roll(x, shift, _dims(shift)) * inside(x, shift)
    for dim, step in zip(_dims(shift), shift, strict=True):
        source = (torch.arange(x.shape[dim], device=x.device) - step).abs()
        source = torch.where(source < x.shape[dim], source, 2 * (x.shape[dim] - 1) - source)
        x = x.index_select(dim, source)
    return x


def inside(x: Tensor, shift: Shift) -> Tensor:
    """Return 1 where a shifted tensor holds what the plain one held, 0 on the border that was filled."""
    kept = torch.ones(x.shape[-len(shift) :], dtype=x.dtype, device=x.device)
    for dim, step in zip(_dims(shift), shift, strict=True):
        source = torch.arange(x.shape[dim], device=x.device) - step
        row = (source >= 0) & (source < x.shape[dim])
        kept = kept * row.reshape(-1, *(1,) * (-dim - 1))
    return kept


def _dims(shift: Shift) -> tuple[int, ...]:
    return tuple(range(-len(shift), 0))


def _as_shifts(shifts: Any) -> tuple[Shift, ...]:
    if isinstance(shifts, int):
        steps = range(-whole_number("shifts", shifts), shifts + 1)
        return tuple(product(steps, steps))
    if not isinstance(shifts, (tuple, list)) or not shifts:
        raise InputError(
            f"shifts must be an int, or a list of ints or tuples of ints, with one at least; got {shifts!r}."
        )
    rows = [tuple(shift) if isinstance(shift, (tuple, list)) else (shift,) for shift in shifts]
    for row in rows:
        if not row or any(isinstance(step, bool) or not isinstance(step, int) for step in row):
            raise InputError(f"A shift must be an int or a tuple of ints, got {row if len(row) != 1 else row[0]!r}.")
        if len(row) != len(rows[0]):
            raise InputError(f"Shifts must all have as many steps: {rows[0]} and {row} differ.")
    return tuple(rows)
