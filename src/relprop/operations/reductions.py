"""Handlers of what takes many entries of one tensor together: products, powers, maxima, samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from relprop.operations.sums import averaged, extremum
from relprop.propagation.handler import Here
from relprop.propagation.storage import map_tensors


def _share(here: Here, x: Tensor, factors: int) -> float:
    """Return the share of each of so many factors that are made alike."""
    if here.call.selector is None:
        return 1.0
    count = here.call.origins.of(x).factors
    share: float = here.rule.shares((count,) * factors, (False,) * factors)[0]
    return share


def prod(here: Here, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``prod``: Uniform gives every one of ``n`` factors ``1/n``; exact where factors are zero."""
    out: Tensor = here.func(input, *args, **kwargs)
    factors = max(input.numel() // max(out.numel(), 1), 1)
    return _powered(here, input, out, factors)


def cumprod(here: Here, input: Tensor, dim: int, *args: Any, **kwargs: Any) -> Tensor:
    """``cumprod``: the k-th product has ``k`` factors."""
    out: Tensor = here.func(input, dim, *args, **kwargs)
    if input.dim() == 0 or here.call.selector is None:
        return out
    shares = out.new_tensor([_share(here, input, k + 1) for k in range(input.shape[dim])])
    here.absorbs_nothing()
    return here.call.scale(out, shares.reshape([-1 if d == dim % input.dim() else 1 for d in range(input.dim())]))


def _powered(here: Here, x: Tensor, out: Tensor, factors: int) -> Tensor:
    call = here.call
    if call.selector is None:
        return out
    here.absorbs_nothing()
    here.factors = factors * call.origins.of(x).factors
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
    here.absorbs(torch.where(input.isfinite(), 0.0, out))
    return out


def grid_sample(here: Here, input: Tensor, grid: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``grid_sample``: linear in what is sampled; where it is sampled is a constant, as a gate is."""
    if not here.active(input):
        here.uncovered("depends on the input by its grid alone")
    elif here.active(grid) and here.call.selector is not None:
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
