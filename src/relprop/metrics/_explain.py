"""What every metric does with a model and an explainer: batches, targets, checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from relprop.errors import InputError

Explain: TypeAlias = Callable[[nn.Module, Tensor, Any], Tensor]
Target: TypeAlias = int | Sequence[int] | Tensor | None
Output: TypeAlias = Literal["logit", "probability"] | Callable[[Tensor], Tensor]


def repeated(target: Target, times: int, samples: int) -> Target:
    """Return the target of ``times`` copies of a batch, one copy behind the other."""
    if target is None or isinstance(target, int):
        return target
    return _indices(target, samples).repeat(times)


def explained(
    explain: Explain,
    model: nn.Module,
    x: Tensor,
    target: Target,
    *,
    internal_batch_size: int | None = None,
    progress: bool = False,
) -> Tensor:
    """Explain in batches and check what comes back: ``[N, ...] -> [N, ...]``, detached.

    Raises:
        InputError: an empty x, relevance of another shape, or NaN or infinity in it.
    """
    if x.dim() == 0 or len(x) == 0:
        raise InputError(f"x has shape {tuple(x.shape)}; expected at least one sample, [N, ...]")
    if target is not None and not isinstance(target, int):
        target = _indices(target, len(x))
    maps = []
    for rows in _chunks(len(x), internal_batch_size):
        part = x[rows].detach()
        found = explain(model, part, target if target is None or isinstance(target, int) else target[rows])
        shape = getattr(found, "shape", type(found).__name__)
        if shape != part.shape:
            raise InputError(
                f"the explainer returned {shape} for inputs of shape {tuple(part.shape)}; expected the same"
            )
        if not bool(found.isfinite().all()):
            raise InputError("the explainer returned NaN or infinity; expected finite relevance")
        maps.append(found.detach())
    return torch.cat(maps)


def selected(logits: Tensor, target: Target, output: Output = "logit") -> Tensor:
    """Return the explained output of every sample, ``[N]``, differentiably."""
    if callable(output):
        values = output(logits)
        if values.shape != (len(logits),):
            raise InputError(
                f"output returned shape {tuple(values.shape)}; expected [{len(logits)}], one for each sample"
            )
        return values
    if output not in ("logit", "probability"):
        raise InputError(f"output is {output!r}; expected 'logit', 'probability' or a callable")
    if output == "probability":
        logits = logits.softmax(dim=1)
    if target is None:
        if logits.numel() != len(logits):
            raise InputError(
                f"the model returns {tuple(logits.shape)}; expected a target, or one output for each sample"
            )
        return logits.reshape(len(logits))
    if isinstance(target, int):
        return logits[:, target]
    return logits.gather(1, _indices(target, len(logits)).to(logits.device)[:, None])[:, 0]


@torch.no_grad()
def scores(
    model: nn.Module,
    x: Tensor,
    target: Target,
    output: Output = "logit",
    *,
    internal_batch_size: int | None = None,
) -> Tensor:
    """Return the explained output of every sample, ``[N]``, in batches."""
    whole = target is None or isinstance(target, int)
    indices = None if whole else _indices(target, len(x))  # type: ignore[arg-type]
    return torch.cat(
        [
            selected(model(x[rows]), target if indices is None else indices[rows], output)
            for rows in _chunks(len(x), internal_batch_size)
        ]
    )


def _chunks(samples: int, size: int | None) -> tuple[Tensor, ...]:
    return tuple(torch.arange(samples).split(size or samples))


def _indices(target: Sequence[int] | Tensor, samples: int) -> Tensor:
    indices = torch.as_tensor(target)
    if indices.shape != (samples,):
        raise InputError(
            f"target has shape {tuple(indices.shape)}; expected None, an int, or one for each of {samples} samples"
        )
    return indices
