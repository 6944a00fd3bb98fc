"""Operations that are made of others, each with a handler of its own.

Functions of torch that are written in Python run their own body. Those that are not are written here once more; their
value stays that of the original, and the relevance takes the way through what is written here.
"""

from __future__ import annotations

import math
import string
import types
from collections.abc import Callable, Sequence
from functools import cache, reduce, wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from relprop.errors import UncoveredOperationError
from relprop.operations.rows import SPACES, Rows, composite, rows
from relprop.propagation.call.operation_call import Here
from relprop.propagation.facts.inheritance import keeps_nothing
from relprop.propagation.facts.operation import Difference, Excitation, Holds, Ids, Image, Kind
from relprop.trees import map_tensors, tensors_in


def opened(here: Here, *args: Any, **kwargs: Any) -> Any:
    """Run the body of a Python function, so that what it calls meets the mode."""
    return decomposed(here.func)(*args, **kwargs)


@cache
def decomposed(func: Callable[..., Any]) -> Callable[..., Any]:
    """Return a Python function of torch that runs its body, where the original would call the mode once more.

    The same code with the same globals, but for the question whether anybody overrides it.
    """
    assert isinstance(func, types.FunctionType)
    never = {name: _no for name in func.__globals__ if name.startswith("has_torch_function")}
    copy = types.FunctionType(
        func.__code__, {**func.__globals__, **never}, func.__name__, func.__defaults__, func.__closure__
    )
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy


def _no(*args: Any) -> bool:
    return False


def rewritten(body: Callable[..., Any]) -> Callable[..., Any]:
    """Return the handler of a function that is explained as ``body``, which computes the same."""

    @wraps(body)
    def handler(here: Here, *args: Any, **kwargs: Any) -> Any:
        made = tensors_in(body(*args, **kwargs))
        call = here.call
        with torch._C.DisableTorchFunction(), torch.set_grad_enabled(call.options.create_graph):
            native = here.func(*args, **kwargs)
            found = dict(zip(map(id, tensors_in(native)), made, strict=True))
            return map_tensors(lambda value: with_value(here, value, found[id(value)]), native)

    return handler


def with_value(here: Here, value: Tensor, surrogate: Tensor) -> Tensor:
    """Return a value of the original function, explained as what was made of the input in its place."""
    call = here.call
    if not here.active(surrogate):
        return call.constant(value)
    if surrogate.shape != value.shape:
        raise UncoveredOperationError(
            f"{here.operation} returned a tensor of shape {tuple(value.shape)}, where relprop expected "
            f"{tuple(surrogate.shape)}; this version of torch computes something else."
        )
    with torch.enable_grad():
        out = call.switch(value, surrogate.to(value.dtype))
    call.known.origins.note(out, call.known.origins.of(surrogate))
    call.known.graph.reach(out)
    return out


def each(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the handler of a ``torch._foreach`` function: ``function`` on every tensor of a list."""

    def handler(here: Here, tensors: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        def at(index: int, value: Any) -> Any:
            return value[index] if isinstance(value, (list, tuple)) else value

        return tuple(
            function(x, *(at(i, value) for value in args), **{name: at(i, value) for name, value in kwargs.items()})
            for i, x in enumerate(tensors)
        )

    return handler


# Products ----------------------------------------------------------------------------------------


def glu(input: Tensor, dim: int = -1) -> Tensor:
    """``a sigmoid(b)`` for the halves ``a`` and ``b``: the gate is a constant."""
    signal, gate = input.chunk(2, dim)
    return signal * torch.sigmoid(gate)


def addcmul(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: Any = 1) -> Tensor:
    """``input + value tensor1 tensor2``."""
    return torch.add(input, torch.mul(tensor1, tensor2), alpha=value)


def addcdiv(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: Any = 1) -> Tensor:
    """``input + value tensor1 / tensor2``."""
    return torch.add(input, torch.div(tensor1, tensor2), alpha=value)


def foreach_addcmul(input: Tensor, tensor1: Tensor, tensor2: Tensor, value: Any = 1) -> Tensor:
    """``addcmul`` as ``torch._foreach_addcmul`` spells it."""
    return torch.add(input, torch.mul(tensor1, tensor2) * value)


def foreach_addcdiv(input: Tensor, tensor1: Tensor, tensor2: Tensor, value: Any = 1) -> Tensor:
    """``addcdiv`` as ``torch._foreach_addcdiv`` spells it."""
    return torch.add(input, torch.div(tensor1, tensor2) * value)


def lerp(input: Tensor, end: Tensor, weight: Any) -> Tensor:
    """``input + weight (end - input)``."""
    return input + weight * (end - input)  # type: ignore[no-any-return]


def ldexp(input: Tensor, other: Tensor) -> Tensor:
    """``input 2^other``."""
    return input * torch.exp2(other)


def xlogy(input: Any, other: Any) -> Tensor:
    """``input log(other)``, 0 where ``input`` is."""
    factor, inner = _pair(input, other)
    zero = factor == 0
    return torch.where(zero, 0.0, factor * torch.log(torch.where(zero, 1.0, inner)))


def xlog1py(input: Any, other: Any) -> Tensor:
    """``input log1p(other)``, 0 where ``input`` is."""
    factor, inner = _pair(input, other)
    zero = factor == 0
    return torch.where(zero, 0.0, factor * torch.log1p(torch.where(zero, 0.0, inner)))


def _pair(input: Any, other: Any) -> tuple[Tensor, Tensor]:
    like = input if isinstance(input, Tensor) else other
    first, second = (torch.as_tensor(x, dtype=like.dtype, device=like.device) for x in (input, other))
    return first, second


def conv_tbc(input: Tensor, weight: Tensor, bias: Tensor | None, pad: int = 0) -> Tensor:
    """A convolution over ``[time, batch, channel]``."""
    return torch.conv1d(input.permute(1, 2, 0), weight.permute(2, 1, 0), bias, padding=pad).permute(2, 0, 1)


def convolution(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int,
) -> Tensor:  # fmt: skip
    """A convolution in as many dimensions as its weight has."""
    d = weight.dim() - 2
    if transposed:
        function = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)[d - 1]
        return function(input, weight, bias, stride, padding, output_padding, groups, dilation)
    return (torch.conv1d, torch.conv2d, torch.conv3d)[d - 1](input, weight, bias, stride, padding, dilation, groups)


def multi_dot(here: Here, *tensors: Any) -> Tensor:
    """``multi_dot``, and ``chain_matmul``, which is given the matrices one by one: see :func:`_chain`."""

    def body(*given: Any) -> Tensor:
        return _chain(here, given[0] if isinstance(given[0], (list, tuple)) else given)

    return rewritten(body)(here, *tensors)  # type: ignore[no-any-return]


def _chain(here: Here, matrices: Sequence[Tensor]) -> Tensor:
    """Return the product of a chain of matrices: one product of all that depend on the input, as it is one call.

    A constant among them is a linear map of its neighbour.
    """
    factors = [matrices[0]]
    for matrix in matrices[1:]:
        if here.active(factors[-1]) and here.active(matrix):
            factors.append(matrix)
        else:
            factors[-1] = factors[-1] @ matrix
    if here.call.way.explains and 2 < len(factors) < len(string.ascii_letters):
        return torch.einsum(_equation(factors), *factors)
    return reduce(torch.matmul, factors)


def _equation(factors: Sequence[Tensor]) -> str:
    """Return the equation of a chain of matrices, of which the first and the last may be vectors."""
    names = [string.ascii_letters[index : index + 2] for index in range(len(factors))]
    if factors[0].dim() == 1:
        names[0] = names[0][1]
    if factors[-1].dim() == 1:
        names[-1] = names[-1][0]
    return ",".join(names)


# Distances, norms and angles ----------------------------------------------------------------------


def hypot(input: Tensor, other: Tensor) -> Tensor:
    """``sqrt(input^2 + other^2)``."""
    return torch.linalg.vector_norm(torch.stack(torch.broadcast_tensors(input, other)), dim=0)  # type: ignore[no-any-return]


def dist(input: Tensor, other: Tensor, p: float = 2) -> Tensor:
    """``||input - other||_p``."""
    return torch.linalg.vector_norm(input - other, p)  # type: ignore[no-any-return]


def cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: Any = None) -> Tensor:
    """``||x1_i - x2_j||_p`` for all pairs of rows."""
    return torch.linalg.vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p, dim=-1)  # type: ignore[no-any-return]


def pdist(input: Tensor, p: float = 2) -> Tensor:
    """``||x_i - x_j||_p`` for all pairs ``i < j`` of rows."""
    first, second = torch.triu_indices(len(input), len(input), 1, device=input.device)
    return torch.linalg.vector_norm(input[first] - input[second], p, dim=-1)  # type: ignore[no-any-return]


def pairwise_distance(x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Tensor:
    """``||x1 - x2 + eps||_p`` over the last dimension."""
    return torch.linalg.vector_norm(x1 - x2 + eps, p, dim=-1, keepdim=keepdim)  # type: ignore[no-any-return]


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """``<x1, x2> / (||x1|| ||x2||)``: what divides is a constant."""
    first, second = torch.broadcast_tensors(x1, x2)
    norms = [torch.linalg.vector_norm(x, dim=dim).clamp_min(eps) for x in (first, second)]
    return (first * second).sum(dim) / (norms[0] * norms[1])  # type: ignore[no-any-return]


def renorm(input: Tensor, p: float, dim: int, maxnorm: float) -> Tensor:
    """Slices along ``dim`` whose norm is too large, divided by a constant."""
    others = [d for d in range(input.dim()) if d != dim % input.dim()]
    norms = torch.linalg.vector_norm(input, p, dim=others, keepdim=True)
    return input * torch.where(norms > maxnorm, maxnorm / (norms + 1e-7), torch.ones_like(norms))


def corrcoef(input: Tensor) -> Tensor:
    """The covariances over the standard deviations, which are constants."""
    covariances = torch.cov(input)
    if covariances.dim() == 0:
        return covariances / covariances
    deviations = covariances.diagonal().sqrt()
    return (covariances / deviations[:, None] / deviations).clip(-1, 1)


# Sums ----------------------------------------------------------------------------------------------


def logaddexp(input: Tensor, other: Tensor) -> Tensor:
    """``logsumexp`` of two."""
    return torch.logsumexp(torch.stack(torch.broadcast_tensors(input, other)), 0)


def logaddexp2(input: Tensor, other: Tensor) -> Tensor:
    """``logaddexp`` to base 2."""
    return torch.logaddexp(input * math.log(2), other * math.log(2)) / math.log(2)


def trapezoid(y: Tensor, x: Tensor | None = None, *, dx: Any = 1, dim: int = -1) -> Tensor:
    """The integral of ``y`` by trapezia: linear in ``y``, a product with the steps of ``x``."""
    return _trapezia(y, x, dx, dim).sum(dim)


def cumulative_trapezoid(y: Tensor, x: Tensor | None = None, *, dx: Any = 1, dim: int = -1) -> Tensor:
    """The running integral of ``y``."""
    return _trapezia(y, x, dx, dim).cumsum(dim)


def _trapezia(y: Tensor, x: Tensor | None, dx: Any, dim: int) -> Tensor:
    steps = y.shape[dim] - 1
    heights = (y.narrow(dim, 0, steps) + y.narrow(dim, 1, steps)) / 2
    if x is None:
        return heights * dx  # type: ignore[no-any-return]
    widths = torch.diff(x, dim=dim if x.dim() > 1 else 0)
    if widths.dim() < y.dim():
        widths = widths.reshape([-1 if d == dim % y.dim() else 1 for d in range(y.dim())])
    return heights * widths


def diff(
    input: Tensor, n: int = 1, dim: int = -1, prepend: Tensor | None = None, append: Tensor | None = None
) -> Tensor:
    """The differences of neighbours, ``n`` times."""
    ends = [None if end is None else _end(input, end, dim) for end in (prepend, append)]
    x = torch.cat([part for part in (ends[0], input, ends[1]) if part is not None], dim)
    for _ in range(min(n, x.shape[dim])):
        steps = x.shape[dim] - 1
        x = x.narrow(dim, 1, steps) - x.narrow(dim, 0, steps)
    return x


def _end(input: Tensor, end: Tensor, dim: int) -> Tensor:
    """Return what ``diff`` puts before or behind its input, in the shape of one entry where it is a number."""
    if end.dim():
        return end
    return end.expand([1 if d == dim % input.dim() else size for d, size in enumerate(input.shape)])


def vander(x: Tensor, N: int | None = None, increasing: bool = False) -> Tensor:
    """The powers of ``x``."""
    exponents = list(range(len(x) if N is None else N))
    return torch.stack([x**k for k in (exponents if increasing else exponents[::-1])], -1)


def linalg_vander(x: Tensor, *, N: int | None = None) -> Tensor:
    """The powers of ``x``, beginning with ``x^0``."""
    return torch.stack([x**k for k in range(x.shape[-1] if N is None else N)], -1)


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Sums, means or maxima over bags of embeddings."""
    vectors = torch.nn.functional.embedding(input, weight, padding_idx, max_norm, norm_type)
    if per_sample_weights is not None:
        vectors = vectors * per_sample_weights.unsqueeze(-1)
    if input.dim() == 2:
        bags = torch.arange(len(input), device=input.device).repeat_interleave(input.shape[1])
        number = len(input)
    else:
        assert offsets is not None
        starts = offsets[:-1] if include_last_offset else offsets
        number = len(starts)
        bags = torch.bucketize(torch.arange(len(input), device=input.device), starts, right=True) - 1
    vectors = vectors.flatten(0, -2)
    if padding_idx is not None:
        kept = (input.flatten() != padding_idx % len(weight)).nonzero()[:, 0]
        vectors, bags = vectors[kept], bags[kept]
    empty = torch.zeros(number, vectors.shape[-1], dtype=vectors.dtype, device=vectors.device)
    if mode == "max":
        index = bags.unsqueeze(-1).expand_as(vectors)
        return torch.scatter_reduce(empty, 0, index, vectors, "amax", include_self=False)
    total = torch.index_add(empty, 0, bags, vectors)
    if mode == "sum":
        return total
    return total / torch.bincount(bags, minlength=number).clamp(min=1).unsqueeze(-1)


# The rows ----------------------------------------------------------------------------------------

_FOREACH: dict[str, Callable[..., Any]] = {
    "addcmul": foreach_addcmul,
    "addcdiv": foreach_addcdiv,
    "clamp_max": lambda x, bound: torch.clamp(x, max=bound),
    "clamp_min": lambda x, bound: torch.clamp(x, min=bound),
    "norm": torch.linalg.vector_norm,
} | {
    name: getattr(torch, name)
    for name in (
        "abs", "acos", "add", "asin", "atan", "ceil", "clone", "cos", "cosh", "div", "erf", "erfc", "exp", "expm1",
        "floor", "frac", "lerp", "log", "log10", "log1p", "log2", "max", "maximum", "minimum", "mul", "neg", "pow",
        "reciprocal", "round", "rsqrt", "sigmoid", "sign", "sin", "sinh", "sqrt", "sub", "tan", "tanh", "trunc",
    )
}  # fmt: skip
"""Functions on lists of tensors, by what they are for one."""


def _written(
    body: Callable[..., Any],
    name: str | None = None,
    *,
    difference: Difference,
    holds: Holds,
    spaces: Sequence[Any] = SPACES,
) -> Rows:
    """A function of torch that is written here once more, under its own name."""
    return composite(name or body.__name__, handler=rewritten(body), difference=difference, holds=holds, spaces=spaces)


ROWS: Rows = [
    *_written(glu, difference=Difference.GLU, spaces=(torch._C._nn,), holds=Holds.NOTHING),
    *composite("glu", handler=opened, difference=Difference.GLU, holds=Holds.NOTHING, spaces=(F,)),
    *_written(addcmul, difference=Difference.PRODUCT, holds=Holds.NOTHING),
    *(
        row
        for body in (
            addcdiv, lerp, ldexp, xlogy, xlog1py, hypot, dist, cdist, pdist, pairwise_distance, cosine_similarity,
            renorm, corrcoef, logaddexp, logaddexp2, trapezoid, cumulative_trapezoid,
        )
        for row in _written(body, difference=Difference.AS_RULES, holds=Holds.NOTHING)
    ),
    *_written(trapezoid, "trapz", difference=Difference.AS_RULES, holds=Holds.NOTHING),
    *_written(diff, difference=Difference.LINEAR, holds=Holds.NOTHING),
    *_written(vander, spaces=(torch,), difference=Difference.AS_RULES, holds=Holds.NOTHING),
    *_written(linalg_vander, "vander", spaces=(torch.linalg,), difference=Difference.AS_RULES, holds=Holds.NOTHING),
    *composite("multi_dot", handler=multi_dot, holds=Holds.LINEAR, difference=Difference.AS_RULES),
    *composite("chain_matmul", handler=multi_dot, holds=Holds.LINEAR, difference=Difference.AS_RULES),
    *_written(conv_tbc, difference=Difference.LINEAR, holds=Holds.LINEAR),
    *_written(convolution, difference=Difference.LAYER, holds=Holds.LINEAR),
    *rows(
        "embedding_bag", spaces=(F,), kind=Kind.COMPOSITE, handler=rewritten(embedding_bag), keeps=keeps_nothing,
        difference=Difference.AS_RULES, excitation=Excitation.AS_RULES, rectifies=None, ids=Ids.LOOKS_UP, entering=(0,),
        image=Image.NOTHING, holds=Holds.NOTHING, updates=None, composite=True, deterministic=True,
    ),
    *(
        row
        for name, one in _FOREACH.items()
        for row in composite(
            f"_foreach_{name}", spaces=(torch,), handler=each(one), difference=Difference.AS_RULES, holds=Holds.NOTHING
        )
    ),
    *composite("multi_head_attention_forward", spaces=(F,), handler=opened, difference=Difference.AS_RULES,
               holds=Holds.LINEAR),
    *composite("normalize", "local_response_norm", "softmin", "gumbel_softmax", spaces=(F,), handler=opened,
               difference=Difference.AS_RULES, holds=Holds.NOTHING),
]  # fmt: skip
