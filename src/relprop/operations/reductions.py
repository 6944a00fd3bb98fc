"""Handlers of what takes many entries of one tensor together: products, powers, maxima, samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from relprop.operations.rows import SPACES, Rows, affine, by_entry_of_ids, rows, weighted
from relprop.operations.sums import averaged, extremum
from relprop.propagation.call import relus
from relprop.propagation.call.operation_call import Here, native
from relprop.propagation.facts.inheritance import (
    Keeps,
    Values,
    averaged_terms,
    function,
    keeps_nothing,
    linear_terms,
    moved,
    of,
    of_active,
    of_all,
    powered,
)
from relprop.propagation.facts.operation import Difference, Excitation, Handler, Holds, Ids, Image, Kind
from relprop.trees import map_tensors


def _share(here: Here, x: Tensor, factors: int) -> float:
    """Return the share of each of so many factors that are made alike."""
    if not here.call.way.explains:
        return 1.0
    count = here.call.known.origins.of(x).factors
    return here.shares((count,) * factors, (False,) * factors)[0]


def prod(here: Here, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``prod``: Uniform gives every one of ``n`` factors ``1/n``; exact where factors are zero."""
    out: Tensor = here.func(input, *args, **kwargs)
    factors = max(input.numel() // max(out.numel(), 1), 1)
    return _powered(here, input, out, factors)


def cumprod(here: Here, input: Tensor, dim: int, *args: Any, **kwargs: Any) -> Tensor:
    """``cumprod``: the k-th product has ``k`` factors."""
    out: Tensor = here.func(input, dim, *args, **kwargs)
    if input.dim() == 0 or not here.call.way.explains:
        return out
    shares = out.new_tensor([_share(here, input, k + 1) for k in range(input.shape[dim])])
    here.absorbs_nothing()
    return here.call.scale(out, shares.reshape([-1 if d == dim % input.dim() else 1 for d in range(input.dim())]))


def _powered(here: Here, x: Tensor, out: Tensor, factors: int) -> Tensor:
    call = here.call
    if not call.way.explains:
        return out
    here.absorbs_nothing()
    here.factors = factors * call.known.origins.of(x).factors
    return call.scale(out, _share(here, x, factors))


def of_degree(degree: int | Callable[..., int]) -> Callable[..., Any]:
    """Return the handler of a polynomial whose terms are all products of so many entries of the input.

    ``det``, ``matrix_power``, ``var``, ``cov``: each entry receives the share of a factor, ``1 / degree`` by Uniform.
    """

    def handler(here: Here, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        out = here.func(input, *args, **kwargs)
        factors = degree if isinstance(degree, int) else degree(input, *args, **kwargs)
        if factors < 0:
            here.uncovered("inverts an active matrix")
        if factors <= 0 or factors == 1:
            return out
        if isinstance(out, tuple):  # var_mean: the mean is linear
            return type(out)((_powered(here, input, out[0], factors), *out[1:]))
        return _powered(here, input, out, factors)

    return handler


def norm(here: Here, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Norms: homogeneous, so autograd is right; but ``p = 0`` counts the entries that are not zero."""
    p = args[0] if args else next((kwargs[name] for name in ("p", "ord") if name in kwargs), None)
    if isinstance(p, (int, float)) and p == 0:
        here.uncovered("counts the entries that are not zero")
    else:
        here.by_autograd()
        here.absorbs_nothing()
    return here.func(input, *args, **kwargs)  # type: ignore[no-any-return]


def largest(here: Here, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    """``max`` and ``min``, of the entries of one tensor or of two tensors."""
    other = kwargs.get("other", args[0] if args else None)
    if isinstance(other, Tensor):
        return extremum(here, input, other)
    here.by_autograd()
    return here.func(input, *args, **kwargs)


def summed(here: Here, *args: Any, **kwargs: Any) -> Tensor:
    """Sums into places (``index_add``, ``scatter_add``, ``scatter_reduce``, ``index_put``): linear, or the winner."""
    reduce = kwargs.get("reduce")
    reduce = next((value for value in (*args, reduce) if isinstance(value, str)), "sum")
    if reduce in ("prod", "multiply"):
        here.uncovered("multiplies what it scatters")
    elif reduce in ("sum", "add", "mean"):
        return averaged(here, here.func(*args, **kwargs), _unweighted(here.func), *args, **kwargs)
    here.by_autograd()
    out: Tensor = here.func(*args, **kwargs)
    if reduce in ("amax", "amin"):
        last = -torch.inf if reduce == "amax" else torch.inf
        constants = map_tensors(lambda x: torch.full_like(x, last) if here.active(x) else x, (args, kwargs))
        with torch.no_grad():
            best = here.func(*constants[0], **constants[1])
        here.absorbs(torch.where(best == out, out, 0.0))
    return out


def _unweighted(func: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a sum in which all terms count alike, whatever the ``alpha`` that they are multiplied by; 0 leaves out."""

    def mean(*args: Any, alpha: Any = 1, **kwargs: Any) -> Tensor:
        return func(*args, **kwargs) if alpha else func(*args, alpha=0, **kwargs)

    return mean


def nan_to_num(here: Here, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``nan_to_num``: what replaces an entry absorbs like a bias."""
    here.by_autograd()
    out: Tensor = here.func(input, *args, **kwargs)
    call, filled = here.call, ~input.isfinite()
    here.declared = lambda c, value: {"bias": torch.where(filled, call.relevance(value, c), 0.0)}
    return out


def grid_sample(here: Here, input: Tensor, grid: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``grid_sample``: linear in what is sampled; where it is sampled is a constant, as a gate is."""
    if not here.active(input):
        here.uncovered("depends on the input by its grid alone")
    elif here.active(grid) and here.call.way.explains:
        here.note("the grid is a constant")
        grid = here.call.constant(grid)
    here.by_autograd()
    return here.func(input, grid, *args, **kwargs)  # type: ignore[no-any-return]


def linear_in(position: int, name: str) -> Callable[..., Any]:
    """Return the handler of a function that is linear in one of its arguments."""

    def handler(here: Here, *args: Any, **kwargs: Any) -> Any:
        rest = [*args[:position], *args[position + 1 :], *(x for key, x in kwargs.items() if key != name)]
        if any(map(here.active, rest)):
            here.uncovered("depends on the input by an argument in which it is not linear")
        here.by_autograd()
        return here.func(*args, **kwargs)

    return handler


def random_affine(here: Here, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``alpha_dropout``: ``m x + b`` for random ``m`` and ``b``, of which ``b`` absorbs."""
    here.by_autograd()
    with torch.enable_grad():
        x = input.detach().requires_grad_()
        out: Tensor = here.func(x, *args, **kwargs)
        (slope,) = torch.autograd.grad(out.sum(), x)
    shift = (out - slope * x).detach()
    here.absorbs(shift)
    return slope * input + shift


# The rows ----------------------------------------------------------------------------------------


def _scattered(input: Any, dim: Any, index: Any, src: Any = None, *, value: Any = None, reduce: Any = None) -> Values:
    return (input, 1), (src, 1), (value, 1)


def _added_at(input: Any, dim: Any, index: Any, source: Any, *, alpha: float = 1) -> Values:
    return (input, 1), (source, alpha)


def _segments(data: Any, reduce: Any, *, initial: Any = None, **rest: Any) -> Values:
    return (data, 1), (initial, 1)


def _sampled(input: Any, *rest: Any, **more: Any) -> Values:
    return ((input, math.nan),)


def _polynomial(*names: str, handler: Handler, keeps: Keeps, difference: Difference) -> Rows:
    """Products of entries of one tensor."""
    return weighted(
        *names,
        kind=Kind.PRODUCT,
        handler=handler,
        keeps=keeps,
        difference=difference,
        image=Image.NOTHING,
        holds=Holds.NOTHING,
        updates=None,
    )


def _into_places(
    *names: str,
    keeps: Keeps,
    difference: Difference,
    excitation: Excitation,
    image: Image,
    entering: tuple[int, ...],
) -> Rows:
    """Sums into places."""
    return rows(
        *names, kind=Kind.AFFINE, handler=summed, keeps=keeps, difference=difference, excitation=excitation,
        rectifies=None, ids=Ids.MOVES if entering else Ids.COMPUTES, entering=entering, image=image,
        holds=Holds.NOTHING, updates=None, composite=False, deterministic=True,
    )  # fmt: skip


def _taken(
    *names: str,
    handler: Handler,
    keeps: Keeps,
    difference: Difference,
    image: Image = Image.NOTHING,
    spaces: Sequence[Any] = SPACES,
) -> Rows:
    """What is linear, homogeneous or picks entries, and adds up no terms that would share as sums do."""
    return affine(
        *names, handler=handler, keeps=keeps, difference=difference, excitation=Excitation.AS_RULES,
        image=image, spaces=spaces,
    )  # fmt: skip


_picked = of_all(moved, indices=False)
_transformed = of_active(linear_terms)

ROWS: Rows = [
    *_polynomial("prod", handler=prod, keeps=of_active(powered), difference=Difference.UNCOVERED),
    *_polynomial("cumprod", handler=cumprod, keeps=of_active(powered), difference=Difference.UNCOVERED),
    *_polynomial("var", "cov", handler=of_degree(2), keeps=keeps_nothing, difference=Difference.DEGREE_TWO),
    *_polynomial("var_mean", handler=of_degree(2), keeps=keeps_nothing, difference=Difference.UNCOVERED),
    *_polynomial("det", handler=of_degree(lambda x, *_, **__: x.shape[-1]), keeps=keeps_nothing,
                 difference=Difference.UNCOVERED),
    *_polynomial("matrix_power", handler=of_degree(lambda x, n: n), keeps=keeps_nothing,
                 difference=Difference.UNCOVERED),
    # Sums into places.
    *_into_places("index_add", keeps=of(averaged_terms, _added_at), difference=Difference.LINEAR,
                  excitation=Excitation.INDEX_ADD, image=Image.SUMS, entering=()),
    *_into_places("scatter", keeps=of(averaged_terms, _scattered), difference=Difference.LINEAR,
                  excitation=Excitation.SCATTERS, image=Image.SUMS, entering=(0, 3)),
    *_into_places("scatter_add", keeps=of_all(averaged_terms), difference=Difference.LINEAR,
                  excitation=Excitation.AVERAGES, image=Image.SUMS, entering=()),
    *_into_places("scatter_reduce", keeps=of_all(averaged_terms), difference=Difference.UNCOVERED,
                  excitation=Excitation.SCATTERS, image=Image.SUMS, entering=()),
    *_into_places("index_put", keeps=of_all(averaged_terms), difference=Difference.LINEAR,
                  excitation=Excitation.SCATTERS, image=Image.SUMS, entering=()),
    *_into_places("index_reduce", "put", keeps=of_all(averaged_terms), difference=Difference.UNCOVERED,
                  excitation=Excitation.SCATTERS, image=Image.NOTHING, entering=()),
    *_into_places("segment_reduce", keeps=of(averaged_terms, _segments), difference=Difference.UNCOVERED,
                  excitation=Excitation.SCATTERS, image=Image.SUMS, entering=()),
    # The largest, norms, and what picks entries by their size.
    *rows(
        "max", kind=Kind.AFFINE, handler=largest, keeps=_picked, difference=Difference.LARGEST,
        excitation=Excitation.AS_RULES, rectifies=relus.of_maximum, ids=Ids.COMPUTES, entering=(),
        image=Image.NOTHING, holds=Holds.NOTHING, updates=None, composite=False, deterministic=True,
    ),
    *_taken("min", handler=largest, keeps=_picked, difference=Difference.SMALLEST),
    *_taken("amax", handler=native, keeps=_picked, difference=Difference.LARGEST),
    *_taken("amin", handler=native, keeps=_picked, difference=Difference.SMALLEST),
    *_taken("aminmax", "cummax", "cummin", "median", "nanmedian", "quantile", "nanquantile", "kthvalue", "mode",
            handler=native, keeps=_picked, difference=Difference.UNCOVERED),
    *_taken("norm", "vector_norm", handler=norm, keeps=keeps_nothing, difference=Difference.NORM, image=Image.NORM),
    *_taken("matrix_norm", handler=norm, keeps=keeps_nothing, difference=Difference.UNCOVERED),
    *_taken("std", handler=native, keeps=keeps_nothing, difference=Difference.DEVIATION),
    *_taken("std_mean", "nuclear_norm", "frobenius_norm", "norm_except_dim", "svdvals", "eigvalsh", "nll_loss",
            "nll_loss_nd", "frexp", handler=native, keeps=keeps_nothing, difference=Difference.UNCOVERED),
    *by_entry_of_ids(
        _taken("nan_to_num", handler=nan_to_num, keeps=function(-math.inf, math.inf, gate=False, homogeneous=False),
               difference=Difference.KINKED)
    ),
    # Samples, systems of equations, transforms.
    *_taken("grid_sample", "grid_sampler", "grid_sampler_2d", "grid_sampler_3d", handler=grid_sample,
            keeps=of(averaged_terms, _sampled), difference=Difference.LINEAR),
    *_taken("affine_grid", handler=native, keeps=keeps_nothing, difference=Difference.LINEAR),
    *_taken("affine_grid_generator", handler=native, keeps=keeps_nothing, difference=Difference.UNCOVERED),
    *_taken("polar", handler=linear_in(0, "abs"), keeps=keeps_nothing, difference=Difference.UNCOVERED),
    *_taken("copysign", "cholesky_solve", "triangular_solve", spaces=(torch, torch.Tensor),
            handler=linear_in(0, "input"), keeps=keeps_nothing, difference=Difference.UNCOVERED),
    *_taken("lu_solve", spaces=(torch, torch.Tensor), handler=linear_in(0, "b"), keeps=keeps_nothing,
            difference=Difference.UNCOVERED),
    *_taken("solve", "solve_ex", "solve_triangular", "lstsq", "tensorsolve", spaces=(torch.linalg,),
            handler=linear_in(1, "B"), keeps=keeps_nothing, difference=Difference.UNCOVERED),
    *_taken("lu_solve", spaces=(torch.linalg,), handler=linear_in(2, "B"), keeps=keeps_nothing,
            difference=Difference.UNCOVERED),
    *_taken("ormqr", handler=linear_in(2, "other"), keeps=keeps_nothing, difference=Difference.UNCOVERED),
    *_taken("fft", "ifft", "rfft", "irfft", "fft2", "ifft2", "rfft2", "irfft2", "fftn", "ifftn", "rfftn", "irfftn",
            "stft", "istft", "gradient", handler=native, keeps=_transformed, difference=Difference.LINEAR),
    *_taken("hfft", "ihfft", "hfft2", "ihfft2", "hfftn", "ihfftn", handler=native, keeps=_transformed,
            difference=Difference.UNCOVERED),
    *_taken("complex", handler=native, keeps=keeps_nothing, difference=Difference.LINEAR),
    *rows(
        "alpha_dropout", "feature_alpha_dropout", kind=Kind.AFFINE, handler=random_affine, keeps=_transformed,
        difference=Difference.LINEAR, excitation=Excitation.AS_RULES, rectifies=None, ids=Ids.COMPUTES, entering=(),
        image=Image.NOTHING, holds=Holds.NOTHING, updates=None, composite=False, deterministic=False,
    ),
]  # fmt: skip
