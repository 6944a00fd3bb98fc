"""Handlers of the normalisations that divide by a statistic of their own input.

The mean is linear and needs nothing; the standard deviation is what the Norm rule speaks of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from relprop.operations.folding import folded
from relprop.operations.products import passed_on, whole
from relprop.operations.rows import SPACES, Rows, weighted
from relprop.operations.sums import combined
from relprop.propagation.call.operation_call import Here
from relprop.propagation.facts.inheritance import linear_terms, of_active
from relprop.propagation.facts.operation import Difference, Handler, Holds, Image, Kind, Updates
from relprop.propagation.math.numerics import per_channel, safe


def standardized(here: Here, x: Tensor, dims: Sequence[int], eps: float, centered: bool = True) -> Tensor:
    """Return ``(x - mean) / sqrt(var + eps)`` over ``dims``, with the divisor as the rule passes relevance to it."""
    here.kind = Kind.NORM
    here.choose()
    if centered:
        x = whole(here, x, x - x.mean(tuple(dims), keepdim=True))
    inverse = torch.rsqrt(x.square().mean(tuple(dims), keepdim=True) + eps)
    scale = here.explained(here.rule.denominator, "x", x=inverse)
    return x * scale if here.active(scale) else passed_on(here, x, x * scale)


def with_channels(here: Here, native: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return the native value, explained as ``weight x + bias`` with parameters of the channels."""
    weight = None if weight is None else per_channel(weight, x)
    return with_affine(here, native, x, weight, None if bias is None else per_channel(bias, x))


def with_affine(here: Here, native: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return the native value, explained as ``weight x + bias``."""
    zeros = here.call.handles_zeros(x)
    masked, mark = weight == 0 if zeros and weight is not None else None, object()
    if weight is not None:
        x = passed_on(here, x, x * weight, masked)
    if bias is not None:
        x = combined(here, x + bias, [(x, 1.0), (bias, 1.0)], mark)
    elif zeros:  # the native value may be rounded otherwise, to zero or away from it
        x = passed_on(here, x, native, masked)
    if masked is not None:
        call, shift = here.call, 0.0 if bias is None else bias.detach()

        def declared(c: Tensor, value: Tensor) -> dict[str, Tensor]:  # without ``here``, which would hold itself
            if bias is not None and call.zeros_above(mark):
                return {"mask": torch.where(masked, safe(value) * c, 0.0)}
            return {"bias": c * shift, "mask": torch.where(masked & (value == 0), safe(value) * c, 0.0)}

        here.declared = declared
    return here.call.switch(native, x.to(native.dtype))


def over_batch(
    here: Here, input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, native: Tensor
) -> Tensor:
    """Batch norm by the statistics of the batch."""
    if not here.call.way.explains:
        return native
    x = standardized(here, input, [0, *range(2, input.dim())], eps)
    return with_channels(here, native, x, weight, bias)


def normalized(
    here: Here,
    compute: Callable[[Tensor], Tensor],
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Tensor | None:
    """Return ``x`` normalised by running statistics, as part of the linear map before it; None where it is not.

    ``s = weight / sqrt(variance + eps)`` scales it, and ``bias - s mean`` shifts it.
    """

    def scale_and_shift() -> tuple[Tensor, Tensor]:
        scale = torch.rsqrt(variance + eps)
        scale = scale if weight is None else weight * scale
        shift = -mean * scale if bias is None else torch.addcmul(bias, mean, scale, value=-1)
        return per_channel(scale, x), per_channel(shift, x)

    return folded(here, x, compute, scale_and_shift, made_of=(mean, variance, weight, bias))


def layer_norm(
    here: Here,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """``layer_norm``."""
    native: Tensor = here.func(input, normalized_shape, weight, bias, eps)
    if not here.call.way.explains:
        return native
    x = standardized(here, input, range(-len(normalized_shape), 0), eps)
    return with_affine(here, native, x, weight, bias)


def rms_norm(
    here: Here,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """``rms_norm``."""
    native: Tensor = here.func(input, normalized_shape, weight, eps)
    if not here.call.way.explains:
        return native
    tiny = torch.finfo(input.dtype).eps if eps is None else eps
    x = standardized(here, input, range(-len(normalized_shape), 0), tiny, centered=False)
    return with_affine(here, native, x, weight, None)


def group_norm(
    here: Here,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """``group_norm``."""
    native: Tensor = here.func(input, num_groups, weight, bias, eps)
    if not here.call.way.explains:
        return native
    grouped = input.reshape(input.shape[0], num_groups, -1)
    x = standardized(here, grouped, [2], eps).reshape(input.shape)
    return with_channels(here, native, x, weight, bias)


def instance_norm(
    here: Here,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``F.instance_norm``."""

    def compute(x: Tensor) -> Tensor:
        return here.func(x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)  # type: ignore[no-any-return]

    return _instance_norm(here, compute, input, running_mean, running_var, weight, bias, use_input_stats, eps)


def torch_instance_norm(
    here: Here,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    """``torch.instance_norm``, which takes the same tensors in another order."""

    def compute(x: Tensor) -> Tensor:
        statistics = (running_mean, running_var, use_input_stats, momentum, eps, cudnn_enabled)
        return here.func(x, weight, bias, *statistics)  # type: ignore[no-any-return]

    return _instance_norm(here, compute, input, running_mean, running_var, weight, bias, use_input_stats, eps)


def _instance_norm(
    here: Here,
    compute: Callable[[Tensor], Tensor],
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    use_input_stats: bool,
    eps: float,
) -> Tensor:
    """Return the native value of instance norm, as it is explained; by running statistics it is affine."""
    if not here.call.way.explains:
        return compute(input)
    if not use_input_stats:
        assert running_mean is not None
        assert running_var is not None
        found = normalized(here, compute, input, running_mean, running_var, weight, bias, eps)
        if found is None:
            here.by_autograd()
            found = compute(input)
        return found
    native = compute(input)
    x = standardized(here, input, range(2, input.dim()), eps)
    return with_channels(here, native, x, weight, bias)


# The rows ----------------------------------------------------------------------------------------


def _updates(
    input: Any, running_mean: Any = None, running_var: Any = None, weight: Any = None, bias: Any = None,
    use_input_stats: bool = True, momentum: Any = 0.1, eps: float = 1e-5,
) -> list[Tensor | None]:  # fmt: skip
    return [running_mean, running_var] if use_input_stats else []


def _norm(
    name: str, *, handler: Handler, difference: Difference, updates: Updates | None, spaces: Sequence[Any] = SPACES
) -> Rows:
    return weighted(
        name,
        spaces=spaces,
        kind=Kind.NORM,
        handler=handler,
        keeps=of_active(linear_terms),
        difference=difference,
        image=Image.NOTHING,
        holds=Holds.NOTHING,
        updates=updates,
    )


ROWS: Rows = [
    *_norm("layer_norm", handler=layer_norm, difference=Difference.LAYER_NORM, updates=None),
    *_norm("rms_norm", handler=rms_norm, difference=Difference.RMS_NORM, updates=None),
    *_norm("group_norm", handler=group_norm, difference=Difference.GROUP_NORM, updates=None),
    *_norm("instance_norm", spaces=(F,), handler=instance_norm, difference=Difference.INSTANCE_NORM, updates=_updates),
    *_norm(
        "instance_norm", spaces=(torch,), handler=torch_instance_norm, difference=Difference.UNCOVERED, updates=None
    ),
]
