"""Handlers of the other products of matrices: against a parameter, a constant or a factor."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from relprop.operations import softmax_by_hand
from relprop.operations.folding import Constants, folded, is_weight
from relprop.operations.linear import apply_linear
from relprop.operations.products import joined, product
from relprop.operations.rows import SPACES, Rows, weighted
from relprop.operations.sums import averaged, combined
from relprop.propagation.call.operation_call import Here
from relprop.propagation.facts.inheritance import linear_terms, of_active
from relprop.propagation.facts.moves import Moves, Permuted, Reshaped, undone
from relprop.propagation.facts.operation import Difference, Handler, Holds, Image, Kind
from relprop.propagation.facts.origins import Origin
from relprop.propagation.math.linear_map import Contraction, Dense, Pairs
from relprop.propagation.run.taps import measured_input

Bilinear = Callable[[Tensor, Tensor], Tensor]
Dims = Callable[[bool, Tensor, Tensor], Pairs]
"""The dimensions of a product that only the weight has, each with that of the weight, from whether the input comes
first, and the two."""


def of_matrices(first: bool, a: Tensor, weight: Tensor) -> Pairs:
    """``a @ weight`` has them last, ``weight @ a`` before; of a vector as the weight there are none."""
    if weight.dim() == 1:
        return ()
    return ((-1, -1),) if first else ((-1 if a.dim() == 1 else -2, -2),)


def of_trailing(first: bool, a: Tensor, weight: Tensor) -> Pairs:
    """All dimensions of the weight but the one that is summed over, where it comes last (``inner``)."""
    return tuple((d + 1 - weight.dim() if first else d, d) for d in range(weight.dim() - 1))


def of_outer(first: bool, a: Tensor, weight: Tensor) -> Pairs:
    """All dimensions of the weight (``outer``)."""
    return ((-1, -1),) if first else ((-2, -1),)


def of_dots(first: bool, a: Tensor, weight: Tensor) -> Pairs:
    """Those in which the input has one entry, and the weight more, but the last, which is summed over."""
    given = [1] * (weight.dim() - a.dim()) + list(a.shape)[-weight.dim() :]
    return tuple((d + 1, d) for d in range(-weight.dim(), -1) if given[d] == 1 < weight.shape[d])


def of_entries(first: bool, a: Tensor, weight: Tensor) -> Pairs:
    """None that is known: entries of both are mixed (``kron``, ``cross``)."""
    return ()


def _of_batches(a: Tensor, weight: Tensor) -> Pairs:
    """The dimensions before those of the matrices, along which a product of matrices has its own weights."""
    return () if a.dim() == 1 else tuple((-d, -d) for d in range(3, weight.dim() + 1) if weight.shape[-d] > 1)


def contracted(here: Here, input: Tensor, other: Tensor, compute: Bilinear, dims: Dims = of_matrices) -> Tensor:
    """Run what is linear in each of two tensors: a product of factors, a linear map or a sum with constant weights."""
    left, right = here.active(input), here.active(other)
    found = softmax_by_hand.recognized(here, Image.CONTRACTS, input, other)
    if found is not None:
        return found
    if left and right:
        factors = product(here, (input, other), entrywise=_dots(here, input, other))
        return joined(here, compute(*factors), compute, factors)
    constant, a = (other, input) if left else (input, other)
    if not is_weight(here, constant):
        return _mixed(here, compute, input, other)
    if constant.layout != torch.strided:
        constant = constant.to_dense()
    if constant.dim() == 2 and compute is torch.matmul:
        found = _convolution(here, a, constant.mT if left else constant, left, lambda: compute(input, other))
        if found is not None:
            return found
    if left and other.dim() == 2 and compute is torch.matmul:
        return apply_linear(here, Dense(), a, constant.mT, None, lambda: compute(input, other))
    forward = compute if left else lambda x, weight: compute(weight, x)
    shared = _of_batches(a, constant) if dims is of_matrices else ()
    geometry = Contraction(forward, dims(left, a, constant), shared)
    return apply_linear(here, geometry, a, constant, None, lambda: compute(input, other))


def _convolution(
    here: Here, columns: Tensor, weight: Tensor, transposed: bool, compute: Callable[[], Tensor]
) -> Tensor | None:
    """Return the product of a matrix with the windows of an image as the convolution that it is, where it is one."""
    windows = here.call.known.origins.of(columns).windows
    if windows is None or windows.transposed is not transposed or windows.of._version != windows.version:
        return None
    call, geometry = here.call, windows.geometry
    x = measured_input(here, windows.of) if call.options.measuring and here.record is not None else windows.of
    with torch.set_grad_enabled(call.options.create_graph):
        native = compute()
    kernels = weight.reshape(len(weight), -1, *windows.kernel)
    image = geometry.forward(x.detach().to("meta"), kernels.detach().to("meta"), None)
    moves: Moves = (Reshaped(tuple(image.shape), tuple(image.flatten(2).shape)),)
    moves += (Permuted((0, 2, 1)),) if transposed else ()
    z = apply_linear(here, geometry, x, kernels, None, lambda: undone(moves, native.detach()))
    linear_call = call.known.origins.of(z).linear_call
    out = call.switch(native, reduce(lambda y, move: move(y), moves, z))
    call.known.origins.note(out, Origin(linear_call=linear_call, moves=moves))
    return out


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


def sparse_matmul(here: Here, *args: Tensor, **kwargs: Any) -> Tensor:
    """``torch.sparse.mm``, whose derivative is sparse too."""
    (first, second), _ = _operands(2, args, kwargs)
    return contracted(here, first, second, here.func)


def reversed_matmul(here: Here, other: Tensor, input: Tensor) -> Tensor:
    """``input @ other`` where only ``other`` is a tensor (``Tensor.__rmatmul__``)."""
    return contracted(here, input, other, torch.matmul)


def contraction(dims: Dims, here: Here, *args: Any, **kwargs: Any) -> Tensor:
    """Whatever else is linear in its first two arguments: ``inner``, ``outer``, ``kron``, ``cross``."""
    (first, second), rest = _operands(2, args, kwargs)
    if kwargs.get("dim", -1) != -1:
        dims = of_entries
    return contracted(here, first, second, lambda x, y: here.func(x, y, *rest, **kwargs), dims)


def tensordot(here: Here, a: Tensor, b: Tensor, dims: Any = 2, **kwargs: Any) -> Tensor:
    """``tensordot``, which has what is left of the second behind what is left of the first."""

    def of_what_is_left(first: bool, a: Tensor, weight: Tensor) -> Pairs:
        if isinstance(dims, (tuple, list)) and len(dims) == 2:
            its = dims[1 if first else 0]
            summed = [d % weight.dim() for d in (its if isinstance(its, (tuple, list)) else [its])]
        else:
            summed = list(range(int(dims))) if first else list(range(weight.dim() - int(dims), weight.dim()))
        left = [d for d in range(weight.dim()) if d not in summed]
        return tuple((place - len(left) if first else place, d) for place, d in enumerate(left))

    return contracted(here, a, b, lambda x, y: here.func(x, y, dims, **kwargs), of_what_is_left)


def added(compute: Bilinear, dims: Dims = of_matrices) -> Callable[..., Tensor]:
    """Return the handler of ``beta input + alpha compute(first, second)``."""

    def handler(here: Here, *args: Any, beta: Any = 1, alpha: Any = 1, **kwargs: Any) -> Tensor:
        (start, first, second), _ = _operands(3, args, kwargs)
        layer = here.active(first) and not here.active(second) and second.dim() == 2 and is_weight(here, second)
        bias = not here.active(start) and start.dim() == 1 and is_weight(here, start)
        if layer and bias and beta == 1 and alpha == 1 and compute is torch.matmul:
            return apply_linear(here, Dense(), first, second.mT, start, lambda: here.func(start, first, second))
        if not (here.active(first) or here.active(second)):
            z = compute(first, second)
        else:
            z = contracted(here, first, second, compute, dims)
        shift = torch.zeros((), dtype=z.dtype, device=z.device) if beta == 0 else beta * start  # NaN * 0 is none
        if alpha != 1:
            found = _behind(here, z, lambda y: alpha * y, (alpha, None), ())
            z = alpha * z if found is None else found
        found = _behind(here, z, lambda y: shift + y, (None, shift), (start,)) if here.active(z) else None
        if found is not None:
            return found
        if (
            here.factors is not None
            and here.active(shift)
            and here.factors != here.call.known.origins.of(start).factors
        ):
            here.factors = 1
        here.absorbs(*(part for part in (shift, z) if not here.active(part)))
        return combined(here, shift + z, [(part, 1.0) for part in (shift, z)])

    return handler


def _behind(
    here: Here, z: Tensor, compute: Callable[[Tensor], Tensor], constants: Constants, made_of: Sequence[Any]
) -> Tensor | None:
    """Return what scales or shifts ``z``, the output of a linear call that this very operation made, as part of it."""
    found = folded(here, z, compute, lambda: constants, made_of)
    here.folds = False  # what it takes is its input
    return found


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
    if len(tensors) == 1:
        return averaged(here, torch.einsum(equation, *tensors), partial(torch.einsum, equation), *tensors)
    active = [here.active(tensor) for tensor in tensors]
    found = softmax_by_hand.recognized(here, Image.CONTRACTS, equation, *tensors)
    if found is not None:
        return found
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
    pairs = [(_place(x, right), _place(x, names), x in own) for x in right if x.isalpha() and x in names]

    def contracting(x: Tensor, w: Tensor) -> Tensor:
        return torch.einsum(whole, x, w)

    alone, shared = (tuple((d, at) for d, at, both in pairs if both is wanted) for wanted in (False, True))
    geometry = Contraction(contracting, alone, shared)
    return apply_linear(here, geometry, a, weight, None, lambda: torch.einsum(equation, *tensors))


def _place(letter: str, names: str) -> int:
    """Return the dimension that a letter names, counted from the end that no dots lie before."""
    dots = "..." in names
    first = names.index(letter)
    return first if dots and first < names.index("...") else first - len(names)


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
    found = _behind(here, z, lambda y: y + bias, (None, bias), (bias,))
    if found is not None:
        return found
    here.absorbs(*(part for part in (z, bias) if not here.active(part)))
    return z + bias


def _by_sample(here: Here, a: Tensor, weight: Tensor, compute: Callable[[], Tensor]) -> Tensor:
    """Run a linear map whose weight differs from sample to sample."""

    def forward(x: Tensor, mixing: Tensor) -> Tensor:
        return (mixing @ x.unsqueeze(-1)).squeeze(-1)

    return apply_linear(here, Contraction(forward, ((-1, -2),)), a, weight, None, compute)


# The rows ----------------------------------------------------------------------------------------

_SPARSE = (torch._C._sparse,)  # type: ignore[attr-defined]


def _matrix_product(
    *names: str,
    handler: Handler,
    difference: Difference,
    image: Image = Image.CONTRACTS,
    label: str | None = None,
    spaces: Sequence[Any] = SPACES,
) -> Rows:
    """Products of matrices; against a parameter they are linear layers."""
    return weighted(
        *names, label=label, spaces=spaces, kind=Kind.PRODUCT, handler=handler, keeps=of_active(linear_terms),
        difference=difference, image=image, holds=Holds.LINEAR, updates=None,
    )  # fmt: skip


ROWS: Rows = [
    *_matrix_product("matmul", "mm", "bmm", "mv", "dot", "__matmul__", label="matmul", handler=matmul,
                     difference=Difference.MATMUL),
    *_matrix_product("_sparse_mm", label="matmul", spaces=_SPARSE, handler=sparse_matmul,
                     difference=Difference.UNCOVERED),
    *_matrix_product("__rmatmul__", label="matmul", handler=reversed_matmul, difference=Difference.MATMUL),
    *_matrix_product("addmm", "addmv", "baddbmm", handler=addmm, difference=Difference.ADDMM, image=Image.NOTHING),
    *_matrix_product("_sparse_addmm", label="addmm", spaces=_SPARSE, handler=addmm, difference=Difference.UNCOVERED,
                     image=Image.NOTHING),
    *_matrix_product("addbmm", handler=addbmm, difference=Difference.PRODUCT, image=Image.NOTHING),
    *_matrix_product("addr", handler=addr, difference=Difference.PRODUCT, image=Image.NOTHING),
    *_matrix_product("einsum", handler=einsum, difference=Difference.CONTRACTION),
    *_matrix_product("bilinear", handler=bilinear, difference=Difference.CONTRACTION),
    *_matrix_product("tensordot", handler=tensordot, difference=Difference.PRODUCT),
    *_matrix_product("inner", handler=partial(contraction, of_trailing), difference=Difference.PRODUCT),
    *_matrix_product("outer", "ger", handler=partial(contraction, of_outer), difference=Difference.PRODUCT),
    *_matrix_product("vecdot", handler=partial(contraction, of_dots), difference=Difference.PRODUCT),
    *_matrix_product("kron", "cross", "vdot", handler=partial(contraction, of_entries),
                     difference=Difference.PRODUCT),
]  # fmt: skip
