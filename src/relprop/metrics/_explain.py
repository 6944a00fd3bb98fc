"""What every metric does with a model and an explainer: batches, targets, checks, random numbers, a progress bar."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from relprop.arguments import bar, whole_number
from relprop.errors import (
    InputError,
    InputTypeError,
    ModelError,
    NumericalError,
    TargetError,
    TargetIndexError,
    TargetTypeError,
)
from relprop.randomness import as_seed

Explain: TypeAlias = Callable[[nn.Module, Tensor, Any], Tensor]
Target: TypeAlias = int | Sequence[int] | Tensor | None
Output: TypeAlias = Literal["logit", "probability"] | Callable[[Any, Any], Tensor]
T = TypeVar("T")


def checked_input(x: Any, name: str = "x") -> Tensor:
    """Return the input, detached; at least one sample with at least one entry.

    Raises:
        InputError: no sample, no feature or no dimension of features.
        InputTypeError: no tensor.
    """
    if not isinstance(x, Tensor):
        raise InputTypeError(f"{name} is a {type(x).__name__}; expected a tensor, [N, ...]")
    if x.dim() < 2 or x.numel() == 0:
        raise InputError(
            f"{name} has shape {tuple(x.shape)}; expected at least one sample of at least one feature, [N, ...]"
        )
    return x.detach()


def checked_target(target: Any, samples: int) -> int | Tensor | None:
    """Return None, an int, or integers ``[N]``, a copy: an explainer may write it.

    Raises:
        TargetError, TargetTypeError: another number of targets than of samples, or no integers.
    """
    if target is None or (isinstance(target, int) and not isinstance(target, bool)):
        return target
    if isinstance(target, (Tensor, list, tuple)) or hasattr(target, "__array__"):
        found = torch.as_tensor(target)
        if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
            raise TargetTypeError(f"target has dtype {found.dtype}; expected integers, the indices of outputs")
        if found.dim() == 0:
            return int(found)
        if found.shape != (samples,):
            raise TargetError(
                f"target has shape {tuple(found.shape)}; expected None, an int, or one for each of {samples} samples"
            )
        return found.to(torch.long, copy=True)
    try:
        return operator.index(target)
    except TypeError as error:
        raise TargetTypeError(
            f"target is a {type(target).__name__}; expected None, an int, or a list or tensor with one for each sample"
        ) from error


def target_rows(target: int | Tensor | None, rows: slice | Tensor) -> int | Tensor | None:
    """Return the target of some of the samples."""
    return target[rows] if isinstance(target, Tensor) else target


def repeated(target: Target, times: int, samples: int) -> int | Tensor | None:
    """Return the target of ``times`` copies of a batch, one copy behind the other."""
    found = checked_target(target, samples)
    return found.repeat(times) if isinstance(found, Tensor) else found


def chunks(count: int, size: int | None) -> Iterator[slice]:
    """Yield slices of at most ``size`` that cover ``count`` things in order; one for ``size=None``."""
    step = count if size is None else whole_number("internal_batch_size", size)
    for start in range(0, count, max(step, 1)):
        yield slice(start, min(start + step, count))


def handed(model: Any, x: Tensor) -> Tensor:
    """Return a copy of x, which the model may write, on the device of its parameters."""
    held = chain(model.parameters(), model.buffers()) if isinstance(model, nn.Module) else iter(())
    first = next(held, x)
    return x.clone() if first.device == x.device else x.to(first.device)


def checked_explain(explain: Any, what: str = "explain", instead: str = ", or relevance, a tensor") -> Explain | Tensor:
    """Return an explainer, or relevance that is there already.

    Args:
        explain: what was given.
        what: names it.
        instead: what else than a callable is expected.

    Raises:
        InputTypeError: anything else, such as a method, which explains the one model that it was made from, or the name
            or the class of one.
    """
    if isinstance(explain, Tensor) or (callable(explain) and not isinstance(explain, type)):
        return explain
    given, hint = f"a {type(explain).__name__}", ""
    if isinstance(explain, str):
        given = repr(explain)
        hint = f"; write lambda model, x, target: relprop.explain(model, x, target, {explain!r})"
    elif hasattr(explain, "attribute"):
        title = (explain if isinstance(explain, type) else type(explain)).__name__
        given = f"the class {title}" if isinstance(explain, type) else f"{given}, which has a model of its own"
        hint = f"; write lambda model, x, target: {title}(model).attribute(x, target)"
    elif isinstance(explain, type):
        given = f"the class {explain.__name__}"
    raise InputTypeError(
        f"{what} is {given}; expected a callable explain(model, x, target) -> relevance{instead}{hint}"
    )


def explained(
    explain: Explain | Tensor,
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    internal_batch_size: int | None = None,
    progress: bool = False,
) -> Tensor:
    """Explain in batches and check what comes back: ``[N, ...] -> [N, ...]``, detached, on the device of x.

    The explainer gets copies of x, on the model's device, and of the target, so that it, or the model, may write into
    them.
    A tensor in the place of the explainer is relevance that is there already.

    Raises:
        InputError: an empty x, relevance of another shape, or NaN or infinity in it.
        InputTypeError: x or what the explainer returns is no tensor; no explainer.
        TargetError: another number of targets than of samples.
    """
    x = checked_input(x)
    found = checked_target(target, len(x))
    explain = checked_explain(explain)
    if isinstance(explain, Tensor):
        return checked_relevance(explain, x)
    parts = list(chunks(len(x), internal_batch_size))
    maps = [
        checked_relevance(
            explain(model, handed(model, x[rows]), target_rows(found, rows)),
            x[rows],
            f"{_name(explain)} returned relevance",
        )
        for rows in bar(parts, progress, "explain")
    ]
    return torch.cat(maps)


def checked_relevance(relevance: Any, x: Tensor, what: str = "relevance is") -> Tensor:
    """Return relevance, detached and on the device of x, where it is a finite tensor of the shape of x."""
    if not isinstance(relevance, Tensor):
        raise InputTypeError(f"{what}, a {type(relevance).__name__}; expected a tensor of shape {tuple(x.shape)}")
    if relevance.shape != x.shape:
        raise InputError(
            f"{what} of shape {tuple(relevance.shape)}; expected {tuple(x.shape)}, the shape of the input it explains"
        )
    return finite(relevance.detach().to(x.device), f"{what} that")


def finite(values: Tensor, what: str) -> Tensor:
    """Return values ``[N, ...]`` that are all finite.

    Raises:
        InputError: NaN or infinity, with the first sample that has it.
    """
    broken = ~values.isfinite().flatten(1).all(dim=1)
    if bool(broken.any()):
        raise InputError(
            f"{what} holds NaN or infinity in {int(broken.sum())} of {len(values)} samples, the first of them "
            f"sample {int(broken.nonzero()[0])}; expected finite numbers"
        )
    return values


def selected(outputs: Any, target: Target, output: Output = "logit") -> Tensor:
    """Return what is explained of the outputs ``[N, C]`` of a model, ``[N]``, differentiably.

    Definition: the target's entry (``"logit"``), that of the softmax over dimension 1 (``"probability"``), or
    ``output(outputs, target)``, where target is None, an int or integers ``[N]``.

    Raises:
        InputError: another ``output``, or a callable that does not return ``[N]``.
        ModelError: outputs that are no tensor ``[N, C]``, and no callable to read them.
        TargetError, TargetTypeError, TargetIndexError: a target that does not fit the outputs.
    """
    if callable(output):
        given: Any = output(outputs, target)
        if not isinstance(given, Tensor) or given.dim() != 1:
            shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise InputError(
                f"output(outputs, target) returned {shape}; expected a tensor [N], one number for each sample"
            )
        return given
    if output not in ("logit", "probability"):
        raise InputError(
            f"output is {output!r}; expected 'logit', 'probability' or a callable (outputs, target) -> [N]"
        )
    if not isinstance(outputs, Tensor) or outputs.dim() == 0:
        raise ModelError(
            f"the model returns a {type(outputs).__name__}; expected a tensor [N, C], or output=, a callable "
            "(outputs, target) -> [N] that reads it"
        )
    if target is None:
        if outputs.numel() != len(outputs):
            raise TargetError(
                f"the model returns {tuple(outputs.shape)}; expected a target, or one output for each sample"
            )
        if output == "probability":
            raise TargetError("output='probability' is the softmax over outputs [N, C]; expected a target")
        return outputs.reshape(len(outputs))
    if outputs.dim() != 2:
        raise ModelError(
            f"the model returns {tuple(outputs.shape)}; expected [N, C] for a target, or output=, a callable "
            "(outputs, target) -> [N] that reads it"
        )
    values = outputs.softmax(dim=1) if output == "probability" else outputs
    found = checked_target(target, len(outputs))
    column = torch.as_tensor(found, device=outputs.device).expand(len(outputs))
    wrong = (column < -outputs.shape[1]) | (column >= outputs.shape[1])
    if bool(wrong.any()):
        raise TargetIndexError(f"target {int(column[wrong][0])} is out of range for {outputs.shape[1]} outputs")
    return values.gather(1, (column % outputs.shape[1])[:, None])[:, 0]


@torch.no_grad()
def scores(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    output: Output = "logit",
    *,
    internal_batch_size: int | None = None,
) -> Tensor:
    """Return what is explained of every sample, ``[N]``, in batches; the model stays in the mode it is in.

    It gets copies of x on its device, and ``output`` of the target, so that they may write into them.

    Raises:
        InputTypeError: the model is nothing that can be called.
        NumericalError: the model returns NaN or infinity.
    """
    if not callable(model):
        raise InputTypeError(f"model is a {type(model).__name__}; expected an nn.Module, or a callable")
    found = checked_target(target, len(x))
    values = torch.cat(
        [
            selected(model(handed(model, x[rows])), target_rows(found, rows), output).to(x.device)
            for rows in chunks(len(x), internal_batch_size)
        ]
    )
    if values.shape != (len(x),):
        raise InputError(f"the model gave {tuple(values.shape)} scores for {len(x)} samples; expected one for each")
    if not bool(values.isfinite().all()):
        raise NumericalError(
            f"the model's output is NaN or infinite in {int((~values.isfinite()).sum())} of {len(values)} inputs, "
            "perturbed ones among them; expected finite outputs"
        )
    return values


def generator(seed: int) -> torch.Generator:
    """Return a generator on the CPU, so that the numbers are the same for every device.

    Raises:
        InputTypeError: a seed that is no integer.
        InputError: a seed out of range.
    """
    return torch.Generator().manual_seed(as_seed(seed))


def permutations(count: int, length: int, seed: int | torch.Generator) -> Tensor:
    """Return ``count`` random orders of ``range(length)``, ``[count, length]``, on the CPU."""
    source = seed if isinstance(seed, torch.Generator) else generator(seed)
    return torch.rand(count, length, generator=source, dtype=torch.float64).argsort(dim=1)


def ranking(values: Tensor, seed: int | torch.Generator, *, descending: bool = True) -> Tensor:
    """Return the order of values ``[N, D]``, the largest first, ``[N, D]``; equal values in random order.

    A fixed order of ties is no neutral choice: on digits the raster order begins with the empty border.
    """
    shuffle = permutations(values.shape[0], values.shape[1], seed).to(values.device)
    order = values.gather(1, shuffle).argsort(dim=1, descending=descending, stable=True)
    return shuffle.gather(1, order)


def _name(explain: Any) -> str:
    name = getattr(explain, "__name__", type(explain).__name__)
    return "the explainer" if name == "<lambda>" else f"the explainer {name}"
