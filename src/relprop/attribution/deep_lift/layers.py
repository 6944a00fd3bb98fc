"""Handlers of DeepLIFT: softmax, attention, normalisations and norms, each step by its exact secant."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from relprop.attribution.deep_lift import secants
from relprop.attribution.deep_lift.handlers import actives, call_of, pairs, uncovered
from relprop.attribution.deep_lift.secants import SMOOTH, Pair
from relprop.propagation.call.operation_call import Here
from relprop.propagation.math.numerics import AVERAGES, per_channel

# Softmax and attention ---------------------------------------------------------------------------


def softmax(here: Here, input: Tensor, dim: int | None = None, *args: Any, **kwargs: Any) -> Tensor:
    """``softmax``: an exponential, a sum and a quotient."""
    dim = _over(input, dim)
    found = pairs(here, input)
    if found is None:
        return here.func(input, dim, *args, **kwargs)  # type: ignore[no-any-return]
    call = call_of(here)
    return secants.softmax(call, _cast(here, found[0], args, kwargs), dim).value


def log_softmax(here: Here, input: Tensor, dim: int | None = None, *args: Any, **kwargs: Any) -> Tensor:
    """``log_softmax``: the input less a ``logsumexp``."""
    dim = _over(input, dim)
    found = pairs(here, input)
    if found is None:
        return here.func(input, dim, *args, **kwargs)  # type: ignore[no-any-return]
    call = call_of(here)
    return secants.log_softmax(call, _cast(here, found[0], args, kwargs), dim).value


def _over(input: Tensor, dim: int | None) -> int:
    """Return the dimension of the probabilities; without one, as torch guesses."""
    return dim if dim is not None else 0 if input.dim() in (0, 1, 3) else 1


def _cast(here: Here, x: Pair, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Pair:
    """Return the scores in the type that was asked for."""
    asked = next((extra for extra in (*args, kwargs.get("dtype")) if isinstance(extra, torch.dtype)), x.value.dtype)
    return secants.linear(call_of(here), lambda value: value.to(asked), x)


def logsumexp(here: Here, input: Tensor, dim: int | Sequence[int], keepdim: bool = False) -> Tensor:
    """``logsumexp``."""
    native: Tensor = here.func(input, dim, keepdim)
    found = pairs(here, input)
    if found is None:
        return native
    dims = (dim,) if isinstance(dim, int) else tuple(dim)
    return secants.logsumexp(call_of(here), found[0], dims).value.reshape(native.shape)


def glu(here: Here, input: Tensor, dim: int = -1) -> Tensor:
    """``a sigmoid(b)`` for the halves ``a`` and ``b``."""
    found = pairs(here, input)
    if found is None:
        return here.func(input, dim)  # type: ignore[no-any-return]
    call = call_of(here)
    signal = secants.linear(call, lambda x: x.chunk(2, dim)[0], found[0])
    gate = secants.linear(call, lambda x: x.chunk(2, dim)[1], found[0])
    return secants.quadratic(call, torch.mul, signal, secants.elementwise(call, torch.sigmoid, gate, SMOOTH)).value


def scaled_dot_product_attention(
    here: Here,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``softmax(q k^T / sqrt(d) + mask) v``, as two products and a softmax between them."""
    call = call_of(here)
    more: dict[str, Any] = {"enable_gqa": True} if enable_gqa else {}
    if dropout_p > 0:
        return uncovered(here, query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **more)  # type: ignore[no-any-return]
    given = [x for x in (query, key, value, attn_mask) if x is not None]
    found = pairs(here, *(x for x in given if here.active(x)))
    if found is None:
        return here.func(query, key, value, attn_mask, 0.0, is_causal, scale=scale, **more)  # type: ignore[no-any-return]
    left = iter(found)
    q, k, v, *mask = (next(left) if here.active(x) else Pair(x, x) for x in given)
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        k, v = (secants.linear(call, lambda x: x.repeat_interleave(repeats, -3), x) for x in (k, v))
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = secants.quadratic(call, lambda a, b: a @ b.mT * factor, q, k)
    if is_causal:
        seen = torch.ones(scores.value.shape[-2:], dtype=torch.bool, device=query.device).tril()
        scores = secants.linear(call, lambda x: x.masked_fill(~seen, -math.inf), scores)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = secants.linear(call, lambda x: x.masked_fill(~attn_mask, -math.inf), scores)
    elif mask:
        scores = secants.linear(call, torch.add, scores, mask[0])
    return secants.quadratic(call, torch.matmul, secants.softmax(call, scores, -1), v).value


# Normalisations and norms ------------------------------------------------------------------------


def _normalized(
    here: Here,
    input: Tensor,
    parameters: tuple[Tensor | None, Tensor | None],
    native: Callable[[], Tensor],
    standardize: Callable[[Pair], Pair],
) -> Tensor:
    """Return a normalisation by statistics of the input itself, each step by its exact secant."""
    call = call_of(here)
    if actives(here, parameters, {}):
        here.func = native
        return uncovered(here)  # type: ignore[no-any-return]
    found = pairs(here, input)
    if found is None:
        return native()
    out = standardize(found[0]).value.reshape(input.shape)
    weight, bias = parameters
    out = out if weight is None else out * weight
    out = out if bias is None else out + bias
    with torch.set_grad_enabled(call.options.create_graph):
        value = native()
    return call.switch(value, out.to(value.dtype))


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
    dims = range(-len(normalized_shape), 0)
    return _normalized(
        here,
        input,
        (weight, bias),
        lambda: here.func(input, normalized_shape, weight, bias, eps),
        lambda x: secants.standardized(here.call, x, dims, eps),
    )


def rms_norm(
    here: Here,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """``rms_norm``."""
    dims, tiny = range(-len(normalized_shape), 0), torch.finfo(input.dtype).eps if eps is None else eps
    return _normalized(
        here,
        input,
        (weight, None),
        lambda: here.func(input, normalized_shape, weight, eps),
        lambda x: secants.standardized(here.call, x, dims, tiny, centered=False),
    )


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

    def standardize(x: Pair) -> Pair:
        grouped = secants.linear(here.call, lambda value: value.reshape(input.shape[0], num_groups, -1), x)
        return secants.standardized(here.call, grouped, (2,), eps)

    return _normalized(
        here,
        input,
        _per_channel(input, weight, bias),
        lambda: here.func(input, num_groups, weight, bias, eps),
        standardize,
    )


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
    """``F.instance_norm``; by running statistics it is affine."""

    def native() -> Tensor:
        out: Tensor = here.func(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
        return out

    if not use_input_stats:
        return native()
    dims = range(2, input.dim())
    return _normalized(
        here,
        input,
        _per_channel(input, weight, bias),
        native,
        lambda x: secants.standardized(here.call, x, dims, eps),
    )


def statistics_of_batch(
    here: Here, input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, native: Callable[[], Tensor]
) -> Tensor:
    """Batch norm by the statistics of the batch, for each of the two passes its own."""
    dims = (0, *range(2, input.dim()))
    return _normalized(
        here,
        input,
        _per_channel(input, weight, bias),
        native,
        lambda x: secants.standardized(here.call, x, dims, eps),
    )


def _per_channel(input: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    one, two = (None if x is None else per_channel(x, input) for x in (weight, bias))
    return one, two


def norm(here: Here, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``norm`` and ``vector_norm``: a sum of powers and a root; norms of matrices have no rule."""
    order, dim = (next((kwargs[name] for name in names if name in kwargs), args[i] if len(args) > i else None)
                  for i, names in enumerate((("ord", "p"), ("dim",))))  # fmt: skip
    several = input.dim() if dim is None else len(dim) if isinstance(dim, (tuple, list)) else 1
    of_matrices = here.func is torch.linalg.norm and order is not None and several == 2
    order = 2.0 if order in (None, "fro") else order
    if of_matrices or isinstance(order, str) or not 0 < order < math.inf:
        return uncovered(here, input, *args, **kwargs)  # type: ignore[no-any-return]
    native: Tensor = here.func(input, *args, **kwargs)
    found = pairs(here, input)
    if found is None:
        return native
    dims = range(input.dim()) if dim is None else (dim,) if isinstance(dim, int) else dim or range(input.dim())
    return secants.norm(call_of(here), found[0], float(order), dims).value.reshape(native.shape).to(native.dtype)


def power_average_pool(dimensions: int) -> Callable[..., Tensor]:
    """Return the handler of power-average pooling: a power, a mean, a root."""

    def handler(
        here: Here, input: Tensor, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False
    ) -> Tensor:
        found = pairs(here, input)
        if found is None:
            return here.func(input, norm_type, kernel_size, stride, ceil_mode)  # type: ignore[no-any-return]
        call = call_of(here)
        size = kernel_size**dimensions if isinstance(kernel_size, int) else prod(kernel_size)
        terms = secants.power(call, found[0], norm_type)
        step = stride or kernel_size
        total = secants.linear(call, lambda x: AVERAGES[dimensions](x, kernel_size, step, 0, ceil_mode) * size, terms)
        return secants.power(call, total, 1 / norm_type).value

    return handler
