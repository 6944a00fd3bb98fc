"""Handlers of the other products of matrices: against a parameter, a constant or a factor."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from relprop.operations.linear import apply_linear, is_weight
from relprop.operations.products import joined, product
from relprop.operations.rows import SPACES, Rows, weighted
from relprop.operations.sums import combined
from relprop.propagation.call.operation_call import Here
from relprop.propagation.facts.inheritance import linear_terms, of_active
from relprop.propagation.facts.operation import Difference, Handler, Holds, Kind
from relprop.propagation.math.linear_map import Contraction, Dense

Bilinear = Callable[[Tensor, Tensor], Tensor]
Dims = Callable[[bool, Tensor, Tensor], tuple[int, ...]]
"""The dimensions of a product that only the weight has, from whether the input comes first, and the two."""


def of_matrices(first: bool, a: Tensor, weight: Tensor) -> tuple[int, ...]:
    """``a @ weight`` has them last, ``weight @ a`` before; of a vector as the weight there are none."""
    if weight.dim() == 1:
        return ()
    return (-1,) if first or a.dim() == 1 else (-2,)


def of_trailing(first: bool, a: Tensor, weight: Tensor) -> tuple[int, ...]:
    """All dimensions of the weight but the one that is summed over, where it comes last (``inner``)."""
    return tuple(range(1 - weight.dim(), 0)) if first else tuple(range(weight.dim() - 1))


def of_outer(first: bool, a: Tensor, weight: Tensor) -> tuple[int, ...]:
    """All dimensions of the weight (``outer``)."""
    return (-1,) if first else (-2,)


def of_entries(first: bool, a: Tensor, weight: Tensor) -> tuple[int, ...]:
    """None that is known: entries of both are mixed (``kron``, ``cross``)."""
    return ()


def contracted(here: Here, input: Tensor, other: Tensor, compute: Bilinear, dims: Dims = of_matrices) -> Tensor:
    """Run what is linear in each of two tensors: a product of factors, a linear map or a sum with constant weights."""
    left, right = here.active(input), here.active(other)
    if left and right:
        factors = product(here, (input, other), entrywise=_dots(here, input, other))
        return joined(here, compute(*factors), compute, factors)
    constant, a = (other, input) if left else (input, other)
    if not is_weight(here, constant):
        return _mixed(here, compute, input, other)
    if constant.layout != torch.strided:
        constant = constant.to_dense()
    if left and other.dim() == 2 and compute is torch.matmul:
        return apply_linear(here, Dense(), a, constant.mT, None, lambda: compute(input, other))
    forward = compute if left else lambda x, weight: compute(weight, x)
    geometry = Contraction(forward, dims(left, a, constant))
    return apply_linear(here, geometry, a, constant, None, lambda: compute(input, other))


def _dots(here: Here, input: Tensor, other: Tensor) -> bool:
    """Say whether a product of two tensors is the sum of the products of their entries."""
    vectors = input.dim() == other.dim() == 1
    return here.operation == "vecdot" or (vectors and here.operation in ("matmul", "inner", "vdot"))


def _mixed(here: Here, compute: Callable[..., Tensor], *factors: Tensor) -> Tensor:
    """Return a product of one active tensor with constants that are no weights."""
    here.by_autograd()
    return joined(here, compute(*factors), compute, factors)


_NAMES = (
    "input", "a", "x", "mat1", "mat", "batch1", "vec1", "other", "b", "y", "mat2", "vec", "vec2", "batch2", "tensor",
)  # fmt: skip


def _operands(number: int, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[list[Tensor], list[Any]]:
    """Return the first operands, taken out of ``kwargs`` where they come by keyword, and the other arguments."""
    named = [kwargs.pop(name) for name in _NAMES if name in kwargs]
    given = [*args[: number - len(named)], *named]
    return given, list(args[number - len(named) :])


def matmul(here: Here, *args: Tensor, **kwargs: Any) -> Tensor:
    """``matmul``, ``mm``, ``bmm``, ``mv``, ``dot`` and ``@``."""
    (first, second), _ = _operands(2, args, kwargs)
    return contracted(here, first, second, torch.matmul)


def reversed_matmul(here: Here, other: Tensor, input: Tensor) -> Tensor:
    """``input @ other`` where only ``other`` is a tensor (``Tensor.__rmatmul__``)."""
    return contracted(here, input, other, torch.matmul)


def contraction(dims: Dims, here: Here, *args: Any, **kwargs: Any) -> Tensor:
    """Whatever else is linear in its first two arguments: ``inner``, ``outer``, ``kron``, ``cross``."""
    (first, second), rest = _operands(2, args, kwargs)
    return contracted(here, first, second, lambda x, y: here.func(x, y, *rest, **kwargs), dims)


def tensordot(here: Here, a: Tensor, b: Tensor, dims: Any = 2, **kwargs: Any) -> Tensor:
    """``tensordot``, which has what is left of the second behind what is left of the first."""
    pair = isinstance(dims, (tuple, list)) and len(dims) == 2
    summed = len(dims[1]) if pair and isinstance(dims[1], (tuple, list)) else 1 if pair else int(dims)

    def of_what_is_left(first: bool, a: Tensor, weight: Tensor) -> tuple[int, ...]:
        left = weight.dim() - summed
        return tuple(range(-left, 0)) if first else tuple(range(left))

    return contracted(here, a, b, lambda x, y: here.func(x, y, dims, **kwargs), of_what_is_left)


def added(compute: Bilinear, dims: Dims = of_matrices) -> Callable[..., Tensor]:
    """Return the handler of ``beta input + alpha compute(first, second)``."""

    def handler(here: Here, *args: Any, beta: Any = 1, alpha: Any = 1, **kwargs: Any) -> Tensor:
        (start, first, second), _ = _operands(3, args, kwargs)
        layer = here.active(first) and not here.active(second) and second.dim() == 2 and is_weight(here, second)
        if layer and beta == 1 and alpha == 1 and not here.active(start) and compute is torch.matmul:
            return apply_linear(here, Dense(), first, second.mT, start, lambda: here.func(start, first, second))
        if not (here.active(first) or here.active(second)):
            z = compute(first, second)
        else:
            z = contracted(here, first, second, compute, dims)
        shift = torch.zeros((), dtype=z.dtype, device=z.device) if beta == 0 else beta * start  # NaN * 0 is none
        z = alpha * z
        if (
            here.factors is not None
            and here.active(shift)
            and here.factors != here.call.known.origins.of(start).factors
        ):
            here.factors = 1
        here.absorbs(*(part for part in (shift, z) if not here.active(part)))
        return combined(here, shift + z, [(part, 1.0) for part in (shift, z)])

    return handler


def _summed(first: Tensor, second: Tensor) -> Tensor:
    return torch.bmm(first, second).sum(0)


addmm = added(torch.matmul)
"""``addmm``, ``addmv``, ``baddbmm``."""

addbmm = added(_summed)
"""``addbmm``."""

addr = added(torch.outer, of_outer)
"""``addr``."""


def einsum(here: Here, equation: Any, *operands: Any) -> Tensor:
    """``einsum`` of any number of operands."""
    if not isinstance(equation, str):
        equation, operands = _equation(equation, *operands)
    tensors = list(operands[0] if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else operands)
    active = [here.active(tensor) for tensor in tensors]
    if sum(active) > 1:
        alike = len(set(equation.replace(" ", "").partition("->")[0].split(","))) == 1
        factors = product(here, tuple(tensors), entrywise=alike)
        return joined(here, torch.einsum(equation, *factors), partial(torch.einsum, equation), factors)
    a = tensors[active.index(True)]
    constants = [tensor for tensor in tensors if tensor is not a]
    if not all(is_weight(here, tensor) for tensor in constants):
        return _mixed(here, partial(torch.einsum, equation), *tensors)
    whole, weight = _one_weight(equation, tensors, active.index(True))
    operands_of, _, right = whole.partition("->")
    own, names = operands_of.split(",")
    before = right.partition("...")[0]  # what the dots stand for is counted from neither end
    dims = tuple(
        right.index(x) - (0 if x in before and "..." in right else len(right))
        for x in right
        if x.isalpha() and x in names and x not in own
    )

    def contracting(x: Tensor, w: Tensor) -> Tensor:
        return torch.einsum(whole, x, w)

    geometry = Contraction(contracting, dims)
    return apply_linear(here, geometry, a, weight, None, lambda: torch.einsum(equation, *tensors))


def _one_weight(equation: str, tensors: Sequence[Tensor], position: int) -> tuple[str, Tensor]:
    """Return the product of all operands but one, and the equation of that one with it."""
    left, _, right = equation.replace(" ", "").partition("->")
    inputs = left.split(",")
    letters = left.replace(",", "").replace(".", "")
    if "->" not in equation:  # every letter that occurs once, after what the dots stand for
        right = "..." * ("..." in left) + "".join(sorted(x for x in set(letters) if letters.count(x) == 1))
    own = inputs.pop(position)
    wanted = {x for x in own + right if x.isalpha()}
    kept = "..." * any("..." in names for names in inputs)
    kept += "".join(x for x in dict.fromkeys("".join(inputs)) if x in wanted)
    constants = [tensor for index, tensor in enumerate(tensors) if index != position]
    return f"{own},{kept}->{right}", torch.einsum(f"{','.join(inputs)}->{kept}", *constants)


def _equation(*given: Any) -> tuple[str, tuple[Tensor, ...]]:
    """Return the equation of ``einsum(x, [0, 1], y, [1, 2], [0, 2])``, and its operands."""
    *pairs, output = given if len(given) % 2 else (*given, None)

    def letters(sublist: Sequence[Any]) -> str:
        return "".join(
            "..." if item is Ellipsis else (string.ascii_uppercase + string.ascii_lowercase)[item] for item in sublist
        )

    inputs = ",".join(map(letters, pairs[1::2]))
    return inputs if output is None else f"{inputs}->{letters(output)}", tuple(pairs[0::2])


def bilinear(here: Here, input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``bilinear``: a product where both inputs are active, a linear map where the other is a constant."""
    factors = (input1, input2, weight)
    if sum(map(here.active, factors)) == 1 and not here.active(weight):
        first = here.active(input1)
        other = input2 if first else input1
        mixing = torch.einsum("oij,...j->...oi" if first else "oij,...i->...oj", weight, other)
        z = _by_sample(here, input1 if first else input2, mixing, lambda: here.func(input1, input2, weight, None))
    elif any(map(here.active, factors)):
        shared = product(here, factors)
        z = joined(here, here.func(*shared, None), here.func, shared)
        here.absorbs_nothing()
    else:
        z = here.func(*factors, None)
    if bias is None:
        return z
    here.absorbs(*(part for part in (z, bias) if not here.active(part)))
    return z + bias


def _by_sample(here: Here, a: Tensor, weight: Tensor, compute: Callable[[], Tensor]) -> Tensor:
    """Run a linear map whose weight differs from sample to sample."""

    def forward(x: Tensor, mixing: Tensor) -> Tensor:
        return (mixing @ x.unsqueeze(-1)).squeeze(-1)

    return apply_linear(here, Contraction(forward, (-1,)), a, weight, None, compute)


# The rows ----------------------------------------------------------------------------------------

_SPARSE = (torch._C._sparse,)  # type: ignore[attr-defined]


def _matrix_product(
    *names: str, handler: Handler, difference: Difference, label: str | None = None, spaces: Sequence[Any] = SPACES
) -> Rows:
    """Products of matrices; against a parameter they are linear layers."""
    return weighted(
        *names, label=label, spaces=spaces, kind=Kind.PRODUCT, handler=handler, keeps=of_active(linear_terms),
        difference=difference, holds=Holds.LINEAR, updates=None,
    )  # fmt: skip


ROWS: Rows = [
    *_matrix_product("matmul", "mm", "bmm", "mv", "dot", "__matmul__", label="matmul", handler=matmul,
                     difference=Difference.MATMUL),
    *_matrix_product("_sparse_mm", label="matmul", spaces=_SPARSE, handler=matmul, difference=Difference.UNCOVERED),
    *_matrix_product("__rmatmul__", label="matmul", handler=reversed_matmul, difference=Difference.MATMUL),
    *_matrix_product("addmm", "addmv", "baddbmm", handler=addmm, difference=Difference.ADDMM),
    *_matrix_product("_sparse_addmm", label="addmm", spaces=_SPARSE, handler=addmm, difference=Difference.UNCOVERED),
    *_matrix_product("addbmm", handler=addbmm, difference=Difference.PRODUCT),
    *_matrix_product("addr", handler=addr, difference=Difference.PRODUCT),
    *_matrix_product("einsum", handler=einsum, difference=Difference.CONTRACTION),
    *_matrix_product("bilinear", handler=bilinear, difference=Difference.CONTRACTION),
    *_matrix_product("tensordot", handler=tensordot, difference=Difference.PRODUCT),
    *_matrix_product("inner", handler=partial(contraction, of_trailing), difference=Difference.PRODUCT),
    *_matrix_product("outer", "ger", handler=partial(contraction, of_outer), difference=Difference.PRODUCT),
    *_matrix_product("kron", "cross", "vdot", "vecdot", handler=partial(contraction, of_entries),
                     difference=Difference.PRODUCT),
]  # fmt: skip
