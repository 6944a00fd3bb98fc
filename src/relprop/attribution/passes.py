"""One function of the inputs, run on many variants of them: in what batches, with which targets and arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from operator import itemgetter
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from relprop.arguments import bar, whole_number
from relprop.errors import InputError, TargetError
from relprop.inputs import Given
from relprop.targets import Target, Unit
from relprop.training import SameDraws
from relprop.trees import map_tensors, tensors_in

Variant: TypeAlias = Sequence[Tensor]
"""Other tensors in the place of those that are explained."""


@dataclass(frozen=True)
class Passes:
    """The passes over the variants of one batch.

    Attributes:
        given: the inputs; each variant has tensors of their shapes.
        target, arguments: the target and the ``additional_forward_args`` of the batch.
        options: keyword arguments of every pass.
        per_sample: the options that hold one entry for every sample.
        internal_batch_size: the most samples that one pass may hold; None: one variant a pass, with the batch as it was
            given. A smaller number divides the batch, a larger one takes several variants into a pass. The targets, the
            further arguments of the model and the options in ``per_sample`` follow: of a list, and of tensors whose
            dimension 0 is the batch, each sample gets its entry; all else is given to every pass as it is.
        progress: show a progress bar, by tqdm.
        draws: where passes are compared with each other, what makes the model draw the same numbers in all of them.
    """

    given: Given
    target: Target = None
    arguments: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)
    per_sample: Sequence[str] = ()
    internal_batch_size: int | None = None
    progress: bool = False
    draws: SameDraws | None = None

    def __post_init__(self) -> None:
        if self.internal_batch_size is None:
            return
        whole_number("internal_batch_size", self.internal_batch_size)
        if self.given.samples is None:
            raise InputError(
                "internal_batch_size counts samples, and inputs that are given in a structure need have no batch in "
                "common. Leave it out: every pass then holds the inputs as they were given."
            )

    def over(self, function: Callable[..., Any], variants: Iterable[Variant], total: int) -> Iterator[Any]:
        """Yield what the function returns for every variant, in order.

        Args:
            function: takes the inputs, ``target``, ``additional_forward_args`` and the options by keyword; returns
                a tensor, or tensors in a structure.
            variants: taken one after the other, as they are needed.
            total: how many there are, for the progress bar.
        """
        shown = bar(variants, self.progress, total=total)
        samples, limit = self.given.samples, self.internal_batch_size
        if samples is None or limit is None or samples <= limit < 2 * samples:
            for variant in shown:
                yield self.run(function, variant, None)
        elif limit < samples:
            for variant in shown:
                parts = [range(start, min(start + limit, samples)) for start in range(0, samples, limit)]
                found = [self.run(function, [x[p.start : p.stop] for x in variant], p) for p in parts]
                yield zipped(lambda *pieces: torch.cat(pieces), *found)
        else:
            waiting = iter(shown)
            while group := list(islice(waiting, limit // samples)):
                rows = [*range(samples)] * len(group)
                found = self.run(function, [torch.cat(column) for column in zip(*group, strict=True)], rows)
                for start in range(0, len(rows), samples):
                    yield map_tensors(itemgetter(slice(start, start + samples)), found)

    def run(self, function: Callable[..., Any], variant: Variant, rows: Sequence[int] | None) -> Any:
        """Run one pass; ``rows`` says of which sample each row is, None that the batch is as it was given."""
        keywords, target, arguments = dict(self.options), self.target, self.arguments
        if rows is not None:
            assert self.given.samples is not None
            target = _target(target, rows, self.given.samples)
            arguments = _entries(arguments, rows, self.given.samples)
            for name in ("forward_kwargs", *self.per_sample):
                if name in keywords:
                    keywords[name] = _entries(keywords[name], rows, self.given.samples)
        if arguments is not None:  # a method of the user's own need not know of them
            keywords["additional_forward_args"] = arguments
        with nullcontext() if self.draws is None else self.draws.again():
            found = function(self.given.replaced(variant), target=target, **keywords)
        if rows is not None:
            _check_rows(found, len(rows))
        return found


def compared(
    model: nn.Module,
    given: Given,
    target: Target,
    arguments: Any,
    *,
    internal_batch_size: int | None,
    progress: bool = False,
    **options: Any,
) -> Passes:
    """Return the passes of one network, random or not: what one of them draws, all draw."""
    draws = SameDraws(model, given.tensors)
    return Passes(
        given, target, arguments, options, internal_batch_size=internal_batch_size, progress=progress, draws=draws
    )


def zipped(function: Callable[..., Tensor], *trees: Any) -> Any:
    """Apply a function to the tensors in the same place of several structures."""
    columns = iter([function(*column) for column in zip(*map(tensors_in, trees), strict=True)])
    return map_tensors(lambda _: next(columns), trees[0])


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in a dtype in which many can be added: half precision in float32."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def weighted_sum(found: Iterable[Any], weights: Sequence[float]) -> Any:
    """Return the sum of maps, each times its weight, in their dtype."""
    total: Any = None
    kinds: list[torch.dtype] = []
    for maps, weight in zip(found, weights, strict=True):
        scaled = map_tensors(partial(_scaled, weight=weight), maps)
        kinds = [tensor.dtype for tensor in tensors_in(maps)]
        total = scaled if total is None else zipped(torch.add, total, scaled)
    left = iter(kinds)
    return map_tensors(lambda tensor: tensor.to(next(left)), total)


def _scaled(tensor: Tensor, weight: float) -> Tensor:
    return wide(tensor) * weight


def _target(target: Any, rows: Sequence[int], samples: int) -> Any:
    """Return the target of the rows: their entries, where it names one for every sample."""
    if isinstance(target, Unit):
        return replace(target, index=_target(target.index, rows, samples))
    if isinstance(target, Tensor):
        return target if target.numel() == 1 else _entries(target, rows, samples)
    if isinstance(target, list) or (isinstance(target, np.ndarray) and target.ndim > 0):
        if len(target) != samples:
            raise TargetError(f"The target lists {len(target)} entries for {samples} samples.")
        return [target[row] for row in rows]
    return target


def _entries(tree: Any, rows: Sequence[int], samples: int) -> Any:
    """Return the entries of the rows, of all tensors whose dimension 0 is the batch."""

    def pick(tensor: Tensor) -> Tensor:
        if tensor.dim() == 0 or tensor.shape[0] != samples:
            return tensor
        return tensor[torch.tensor(rows, device=tensor.device)]

    return map_tensors(pick, tree)


def _check_rows(found: Any, rows: int) -> None:
    for tensor in tensors_in(found):
        if tensor.dim() == 0 or tensor.shape[0] != rows:
            raise InputError(
                f"A pass over {rows} samples returned a tensor of shape {tuple(tensor.shape)}, so internal_batch_size "
                "cannot be used here. Leave it out: every pass then holds the inputs as they were given."
            )
