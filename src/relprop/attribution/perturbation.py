"""What the output loses when a part of the input is replaced by a baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from relprop.attribution.baselines import as_baselines, batched
from relprop.attribution.contract import Contract, Method
from relprop.attribution.options import PerturbationOptions, maps
from relprop.attribution.passes import Passes, compared, wide
from relprop.errors import InputError, InputTypeError
from relprop.inputs import Given
from relprop.targets import Target

if TYPE_CHECKING:
    from typing_extensions import Unpack

Masks = list["Tensor | None"]
"""For every input, which of its entries are replaced, as a bool tensor that broadcasts to it; None for none."""


class FeatureAblation(Method, name="feature_ablation"):
    """What the output loses when a feature is replaced by its baseline.

    Definition: ``R_i = f(x) - f(x with the feature of i at its baseline)``, the same for all entries i of one feature.
    No gradient is taken.
    Conserves: nothing, but for functions that are sums over features; there is no delta.

    Args:
        model: any ``nn.Module``, differentiable or not.
    Source: Zeiler and Fergus 2014 (doi:10.1007/978-3-319-10590-1_53), for patches of images.

    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    >>> FeatureAblation(model).attribute(torch.tensor([[1.0, 2.0]]))
    tensor([[ 3., -2.]])
    """

    contract = Contract("", "relevance")
    per_sample = ("baselines", "feature_mask")

    @maps
    def attribute(
        self,
        inputs: Any,
        baselines: Any = None,
        target: Target = None,
        additional_forward_args: Any = None,
        feature_mask: Any = None,
        *,
        return_convergence_delta: bool = False,
        **options: Unpack[PerturbationOptions],
    ) -> Any:
        """Return what the output loses by every feature.

        Args:
            inputs: a tensor ``[N, ...]`` or a tuple of them; of integers (token ids) too.
            baselines: None (zero), a number, a tensor ``[N, ...]`` or ``[1, ...]``; for several inputs a tuple with
                one of these for each.
            target, additional_forward_args: see :meth:`Attribution.attribute`.
            feature_mask: integers that say to which feature every entry belongs, in a tensor that broadcasts to the
                input, ``[1, ...]`` or ``[N, ...]``; for several inputs a tuple. Entries of the same number, of whatever
                input, are replaced together. None: every entry is a feature of its own.
            return_convergence_delta: refused, for there is none.
            options: see :class:`relprop.attribution.options.PerturbationOptions`.

        Returns:
            a map for every input, in the structure and the shapes of ``inputs``.

        Raises:
            InputError: for baselines or masks of another shape.
            InputTypeError: for a mask that holds no integers.
            MissingExtraError: ``progress=True`` without tqdm.
            RelpropError: what every method raises.
        """
        if return_convergence_delta:
            self.require_completeness()
        given = batched(inputs, "FeatureAblation")
        ends = as_baselines(given, baselines)
        labels, numbers = feature_labels(given, feature_mask)
        passes = compared(self.model, given, target, additional_forward_args, **options)

        def masks(index: int) -> Masks:
            return [label == numbers[index] for label in labels]

        return given.packed(_losses(self, passes, ends, masks, len(numbers)))


class Occlusion(Method, name="occlusion"):
    """What the output loses when a window that slides over the input is replaced by a baseline.

    Definition: ``R_i`` is the mean of ``f(x) - f(x with the window at its baseline)`` over the windows that cover i.
    Windows stand ``strides`` apart, from the first entry on; the last in each dimension is cut off at the border. No
    gradient is taken.
    Conserves: nothing; there is no delta.

    Args:
        model: any ``nn.Module``, differentiable or not.
    Source: Zeiler and Fergus 2014 (doi:10.1007/978-3-319-10590-1_53).

    >>> model = torch.nn.Linear(3, 1, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[3.0, -1.0, 1.0]]))
    >>> Occlusion(model).attribute(torch.tensor([[1.0, 2.0, 3.0]]), (2,))
    tensor([[1., 1., 1.]])
    """

    contract = Contract("", "relevance")
    per_sample = ("baselines",)

    @maps
    def attribute(
        self,
        inputs: Any,
        sliding_window_shapes: Sequence[Any],
        strides: int | Sequence[Any] | None = None,
        baselines: Any = None,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        return_convergence_delta: bool = False,
        **options: Unpack[PerturbationOptions],
    ) -> Any:
        """Return what the output loses by the windows that cover each entry.

        Args:
            inputs: a tensor ``[N, ...]`` or a tuple of them; of integers (token ids) too.
            sliding_window_shapes: the size of the window in every dimension behind the batch, ``(3, 15, 15)`` for all
                channels of images; for several inputs a tuple with one of these for each. A window covers entries of
                one input.
            strides: how far apart windows are: an int, or one for every dimension; for several inputs one of these for
                all, or a tuple with one for each. None is 1.
            baselines: None (zero), a number, a tensor ``[N, ...]`` or ``[1, ...]``; for several inputs a tuple with
                one of these for each.
            target, additional_forward_args: see :meth:`Attribution.attribute`.
            return_convergence_delta: refused, for there is none.
            options: see :class:`relprop.attribution.options.PerturbationOptions`.

        Returns:
            a map for every input, in the structure and the shapes of ``inputs``.

        Raises:
            InputError: for a window larger than the input, strides that leave entries out, or baselines of another
                shape.
            MissingExtraError: ``progress=True`` without tqdm.
            RelpropError: what every method raises.
        """
        if return_convergence_delta:
            self.require_completeness()
        given = batched(inputs, "Occlusion")
        ends = as_baselines(given, baselines)
        windows = _windows(given, sliding_window_shapes, strides)
        passes = compared(self.model, given, target, additional_forward_args, **options)

        def masks(index: int) -> Masks:
            position, place = windows[index]
            found: Masks = [None] * len(given.tensors)
            x = given.tensors[position]
            mask = torch.zeros((1, *x.shape[1:]), dtype=torch.bool, device=x.device)
            where: tuple[int | slice, ...] = (0, *place)
            mask[where] = True
            found[position] = mask
            return found

        return given.packed(_losses(self, passes, ends, masks, len(windows)))


def _losses(
    method: Method, passes: Passes, ends: Sequence[Tensor], masks: Callable[[int], Masks], count: int
) -> list[Tensor]:
    """Return for every entry the mean loss by the masks that cover it."""
    inputs = [x.detach() for x in passes.given.tensors]
    (value,) = replace(passes, progress=False).over(method.explained, [inputs], 1)
    variants = (
        [x if mask is None else torch.where(mask, end, x) for x, end, mask in zip(inputs, ends, masks(k), strict=True)]
        for k in range(count)
    )
    kind = wide(value).dtype
    totals = [torch.zeros(x.shape, dtype=kind, device=x.device) for x in inputs]
    covered = [torch.zeros((1,) * x.dim(), dtype=kind, device=x.device) for x in inputs]
    for k, changed in enumerate(passes.over(method.explained, variants, count)):
        loss = value.to(kind) - changed.to(kind)
        for i, mask in enumerate(masks(k)):
            if mask is not None:
                totals[i] += mask * loss.to(mask.device).reshape(-1, *(1,) * (mask.dim() - 1))
                covered[i] = covered[i] + mask
    return [
        (total / count.clamp(min=1)).to(x.dtype if x.is_floating_point() else value.dtype)
        for x, total, count in zip(inputs, totals, covered, strict=True)
    ]


def feature_labels(given: Given, feature_mask: Any) -> tuple[list[Tensor], list[int]]:
    """Return the number of the feature to which every entry belongs, and all numbers there are.

    Raises:
        InputTypeError: for a mask that holds no integers.
        InputError: for a mask of another shape.
    """
    if feature_mask is None:
        sizes = [prod(x.shape[1:]) for x in given.tensors]
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        labels = [
            torch.arange(start, start + size, device=x.device).reshape(1, *x.shape[1:])
            for x, start, size in zip(given.tensors, starts, sizes, strict=True)
        ]
        return labels, list(range(sum(sizes)))
    labels = []
    for x, mask in zip(given.tensors, given.aligned(feature_mask, "feature_mask"), strict=True):
        if not isinstance(mask, Tensor) or mask.is_floating_point() or mask.is_complex() or mask.dtype == torch.bool:
            what = f"a tensor of {mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
            raise InputTypeError(f"feature_mask must be a tensor of integers, got {what}.")
        if mask.dim() != x.dim() or any(m not in (1, s) for m, s in zip(mask.shape, x.shape, strict=True)):
            raise InputError(
                f"feature_mask has shape {tuple(mask.shape)}, which does not broadcast to the input's "
                f"{tuple(x.shape)}; expected {(1, *x.shape[1:])} or {tuple(x.shape)}."
            )
        labels.append(mask.to(x.device))
    return labels, torch.cat([label.flatten().cpu() for label in labels]).unique().tolist()


def _windows(given: Given, shapes: Any, strides: Any) -> list[tuple[int, tuple[slice, ...]]]:
    """Return every place of the window: the input, and the slices behind the batch."""
    alone = not isinstance(given.structure, (tuple, list))
    listed = [shapes] if alone else shapes
    apart = [strides] * len(given.tensors) if alone or strides is None or isinstance(strides, int) else strides
    for name, entries in (("sliding_window_shapes", listed), ("strides", apart)):
        if not isinstance(entries, (tuple, list)) or len(entries) != len(given.tensors):
            raise InputError(f"{name} must be a tuple with one entry for every input, got {entries!r}.")
    found: list[tuple[int, tuple[slice, ...]]] = []
    for position, (x, shape, stride) in enumerate(zip(given.tensors, listed, apart, strict=True)):
        sizes = tuple(x.shape[1:])
        window = _sizes("sliding_window_shapes", shape, sizes)
        steps = _sizes("strides", 1 if stride is None else stride, sizes)
        for size, width, step in zip(sizes, window, steps, strict=True):
            if width > size:
                raise InputError(f"The window {window} is larger than the input, {sizes} behind the batch.")
            if step > width and size > width:
                raise InputError(f"Strides {steps} are larger than the window {window}: entries would be left out.")
        counts = [-(-(size - width) // step) + 1 for size, width, step in zip(sizes, window, steps, strict=True)]
        for place in product(*map(range, counts)):
            spots = zip(place, steps, window, strict=True)
            found.append((position, tuple(slice(i * step, i * step + width) for i, step, width in spots)))
    return found


def _sizes(name: str, value: Any, sizes: tuple[int, ...]) -> tuple[int, ...]:
    listed = (value,) * len(sizes) if isinstance(value, int) and name == "strides" else value
    good = isinstance(listed, (tuple, list)) and len(listed) == len(sizes)
    if not good or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in listed):
        raise InputError(
            f"{name} must have a whole number of at least 1 for each of the {len(sizes)} dimensions behind the batch, "
            f"{sizes}; got {value!r}."
        )
    return tuple(listed)
