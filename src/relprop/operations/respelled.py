"""Linear layers spelled as a product and a sum: ``(h[:, None] * weight).sum(-1)``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from relprop.operations.folding import is_weight
from relprop.operations.linear import apply_linear
from relprop.operations.rows import Rows, affine
from relprop.operations.sums import total
from relprop.propagation.call.operation_call import Here
from relprop.propagation.facts.inheritance import averaged_terms, of_all
from relprop.propagation.facts.operation import Difference, Excitation, Image, Kind
from relprop.propagation.math.linear_map import Contraction
from relprop.propagation.run.taps import measured_input


def summed(here: Here, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``sum`` and ``mean``; of products with a weight along the dimensions that it has, a linear layer."""
    found = here.call.known.products.of(here.original(input))
    if found is None or not here.call.way.explains or not is_weight(here, found[1]):
        return total(here, input, *args, **kwargs)
    a, weight = found
    dims, keepdim = _dims(input, *args, **kwargs)
    sizes = [1] * (input.dim() - weight.dim()) + list(weight.shape)
    given = [1] * (input.dim() - a.dim()) + [
        size if stride else 1 for size, stride in zip(a.shape, a.stride(), strict=True)
    ]
    if not dims or any(size > 1 and sizes[d] == 1 for d, size in enumerate(input.shape) if d in dims):
        return total(here, input, *args, **kwargs)
    left = [d for d in range(input.dim()) if keepdim or d not in dims]
    places = [(left.index(d) - len(left), d - input.dim(), given[d] > 1) for d in left if sizes[d] > 1]
    own, shared = (tuple((place, d) for place, d, both in places if both is wanted) for wanted in (False, True))
    here.operation = "linear"
    if here.record is not None:
        here.record.operation, here.record.kind = here.operation, Kind.LINEAR
        here.note("a product and a sum")
        a = measured_input(here, a) if here.call.options.measuring else a
    geometry = Contraction(lambda x, w: here.func(x * w, *args, **kwargs), own, shared)
    return apply_linear(here, geometry, a, weight, None, lambda: here.func(input, *args, **kwargs))


def _dims(x: Tensor, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> tuple[Sequence[int], bool]:
    """Return over which dimensions a call sums, and whether it keeps them."""
    if isinstance(dim, (str, bool)) or "axis" in kwargs:
        return (), keepdim
    dims = range(x.dim()) if dim is None or dim == () else (dim,) if isinstance(dim, int) else dim
    return [d % x.dim() for d in dims], keepdim


# The rows ----------------------------------------------------------------------------------------

ROWS: Rows = affine(
    "sum", "mean", "nansum", kind=Kind.SUM, handler=summed, keeps=of_all(averaged_terms),
    difference=Difference.AVERAGES, excitation=Excitation.AVERAGES, image=Image.SUMS,
)  # fmt: skip
