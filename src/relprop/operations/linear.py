"""Handlers of linear maps with parameters, and of batch norm; see ``folding`` for how the two are one map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from relprop.errors import InputError
from relprop.operations.normalization import normalized, over_batch
from relprop.operations.products import product
from relprop.operations.rows import Rows, weighted
from relprop.propagation.call.autograd_functions import Linear, apply
from relprop.propagation.call.linear_call import LinearCall
from relprop.propagation.call.operation_call import Here, declares_nothing
from relprop.propagation.facts.graph import Reach
from relprop.propagation.facts.inheritance import linear_terms, of_active
from relprop.propagation.facts.operation import Difference, Handler, Holds, Image, Kind, Updates
from relprop.propagation.facts.origins import Origin
from relprop.propagation.math.linear_map import Convolution, Dense, Geometry, same_padding
from relprop.propagation.math.numerics import per_channel, safe


def apply_linear(
    here: Here,
    geometry: Geometry,
    a: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    compute: Callable[[], Tensor],
) -> Tensor:
    """Run a linear map by the rule that stands here, and remember what its output came from."""
    call = here.call
    linear_call: LinearCall | None
    if not call.way.explains:
        linear_call = call.way.linear_call(here, geometry, a, (weight, bias))
        if linear_call is None:
            here.by_autograd()
            return compute()
    else:
        here.kind = Kind.LINEAR
        here.choose(geometry.layer_type, call.known.graph.reach(a) is Reach.ACTIVE)
        call.trace.linear.append(call.place[0])
        if a.is_complex() or weight.is_complex():
            return _complex(here, compute())
        linear_call = LinearCall(call, here.choice, geometry, a, (weight, bias), here.given.get(id(a)), here.operation)
        linear_call.record = here.record
    here.declared = declares_nothing  # the linear call declares what its rule absorbs
    if linear_call.nonnegative:
        here.note("a >= 0")
    z = apply(Linear, linear_call, compute, a, weight, bias)
    if call.trace.recording:
        linear_call.node = z.grad_fn
    call.known.origins.note(z, Origin(linear_call=linear_call))
    linear_call.ran(z)
    return z


def _complex(here: Here, z: Tensor) -> Tensor:
    """Explain a linear map of complex numbers by LRP-0, which is autograd; other rules ask for signs."""
    if here.rule.exact_by_autograd:
        here.by_autograd()
    else:
        here.uncovered(f"maps complex numbers, for which {here.rule!r} is not defined, only LRP-0")
    return z


def linear(here: Here, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``."""
    return _layer(here, Dense(), input, weight, bias, lambda b: here.func(input, weight, b))


def convolution(
    dimensions: int,
) -> Callable[..., Tensor]:
    """Return the handler of a convolution in so many dimensions."""

    def handler(
        here: Here,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Tensor:
        steps, spread = _each(stride, dimensions), _each(dilation, dimensions)
        extra: tuple[int, ...] = ()
        if padding == "same":
            width, extra = same_padding(tuple(weight.shape[2:]), spread)
        else:
            width = _each(0 if isinstance(padding, str) else padding, dimensions)
        geometry = Convolution(steps, width, spread, groups, False, _each(0, dimensions), extra)
        return _layer(
            here,
            geometry,
            input,
            weight,
            bias,
            lambda b: here.func(input, weight, b, stride, padding, dilation, groups),
        )

    return handler


def transposed_convolution(dimensions: int) -> Callable[..., Tensor]:
    """Return the handler of a transposed convolution in so many dimensions."""

    def handler(
        here: Here,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        groups: int = 1,
        dilation: int | Sequence[int] = 1,
    ) -> Tensor:
        geometry = Convolution(
            _each(stride, dimensions),
            _each(padding, dimensions),
            _each(dilation, dimensions),
            groups,
            True,
            _each(output_padding, dimensions),
        )
        return _layer(
            here,
            geometry,
            input,
            weight,
            bias,
            lambda b: here.func(input, weight, b, stride, padding, output_padding, groups, dilation),
        )

    return handler


def _layer(
    here: Here,
    geometry: Geometry,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    run: Callable[[Tensor | None], Tensor],
) -> Tensor:
    """Run a layer call; where its weight depends on the input too, it is a product."""
    if not geometry.has_batch(input) and any(input is start for start in here.call.starts):
        raise InputError(
            f"The input has shape {tuple(input.shape)}, which {here.operation} takes for one sample without a batch "
            "dimension. Give a batch [N, ...], such as x.unsqueeze(0)."
        )
    if here.active(weight):
        a, w = product(here, (input, weight))
        z = geometry.forward(a, w, None)
    elif here.active(input):
        if bias is None or not here.active(bias):
            return apply_linear(here, geometry, input, weight, bias, lambda: run(bias))
        z = apply_linear(here, geometry, input, weight, None, lambda: run(None))
    else:
        return run(bias)
    return z if bias is None else z + geometry.shift(bias, z)


# Batch norm ------------------------------------------------------------------------------------


def batch_norm(
    here: Here,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``F.batch_norm``."""

    def compute(x: Tensor) -> Tensor:
        return here.func(x, running_mean, running_var, weight, bias, training, momentum, eps)  # type: ignore[no-any-return]

    return _batch_norm(here, compute, input, running_mean, running_var, weight, bias, training, eps)


def torch_batch_norm(
    here: Here,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    """``torch.batch_norm``, which takes the same tensors in another order."""

    def compute(x: Tensor) -> Tensor:
        statistics = (running_mean, running_var, training, momentum, eps, cudnn_enabled)
        return here.func(x, weight, bias, *statistics)  # type: ignore[no-any-return]

    return _batch_norm(here, compute, input, running_mean, running_var, weight, bias, training, eps)


def _batch_norm(
    here: Here,
    compute: Callable[[Tensor], Tensor],
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    eps: float,
) -> Tensor:
    """Run a batch norm: folded into the linear map before it where the two are one linear map."""
    explains = here.call.way.explains
    if training or running_mean is None or running_var is None:
        here.note("not folded: batch statistics")
        native = compute(input)
        return over_batch(here, input, weight, bias, eps, native) if explains else native
    found = normalized(here, compute, input, running_mean, running_var, weight, bias, eps)
    if found is not None:
        return found
    if not explains:
        return compute(input)
    here.note("not folded")
    here.by_autograd()
    return _unfolded(here, input, compute(input), per_channel(torch.rsqrt(running_var + eps), input), weight)


def _unfolded(here: Here, x: Tensor, out: Tensor, scale: Tensor, weight: Tensor | None) -> Tensor:
    """Return ``out``, a batch norm by running statistics, explained as the linear map it is.

    By itself: PyTorch's backward is wrong for a single image whose gradient has the strides of a transposed one.
    """
    call = here.call
    if weight is not None:
        scale = scale * per_channel(weight, x)
    plain = call.switch(out, (x * call.constant(scale)).to(out.dtype))
    if not call.handles_zeros(x):
        return plain
    masked = scale.detach() == 0  # whole, and nothing to the shift
    mark, shift = object(), (out - x * scale).detach()
    found = call.even(plain, x * call.constant(torch.where(masked, 0.0, safe(out) / safe(x))), mark)

    def declared(c: Tensor, value: Tensor) -> dict[str, Tensor]:
        if call.zeros_above(mark):
            return {"mask": torch.where(masked, safe(value) * c, 0.0)}
        return {"bias": c * shift}

    here.declared = declared
    return found


def _each(value: int | Sequence[int], dimensions: int) -> tuple[int, ...]:
    """Return one number per dimension."""
    if isinstance(value, int):
        return (value,) * dimensions
    return tuple(value) * dimensions if len(value) == 1 else tuple(value)


# The rows ----------------------------------------------------------------------------------------


def _updates(
    input: Any, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None, training: bool = False,
    momentum: Any = 0.1, eps: float = 1e-5,
) -> list[Tensor | None]:  # fmt: skip
    return [running_mean, running_var] if training else []


def _torch_updates(
    input: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, training: bool, *rest: Any, **more: Any
) -> list[Tensor | None]:
    return [running_mean, running_var] if training else []


def _linear(*names: str, handler: Handler, image: Image = Image.NOTHING) -> Rows:
    """Layers with a weight and a bias."""
    return weighted(
        *names, kind=Kind.LINEAR, handler=handler, keeps=of_active(linear_terms), difference=Difference.LAYER,
        image=image, holds=Holds.LINEAR, updates=None,
    )  # fmt: skip


def _batch_norms(space: Any, *, handler: Handler, difference: Difference, updates: Updates) -> Rows:
    return weighted(
        "batch_norm", spaces=(space,), kind=Kind.BATCH_NORM, handler=handler, keeps=of_active(linear_terms),
        difference=difference, image=Image.NOTHING, holds=Holds.LINEAR, updates=updates,
    )  # fmt: skip


ROWS: Rows = [
    *_linear("linear", handler=linear, image=Image.CONTRACTS),
    *(row for d in (1, 2, 3) for row in _linear(f"conv{d}d", handler=convolution(d), image=Image.CONTRACTS)),
    *(row for d in (1, 2, 3) for row in _linear(f"conv_transpose{d}d", handler=transposed_convolution(d))),
    *_batch_norms(F, handler=batch_norm, difference=Difference.BATCH_NORM, updates=_updates),
    *_batch_norms(torch, handler=torch_batch_norm, difference=Difference.TORCH_BATCH_NORM, updates=_torch_updates),
]
