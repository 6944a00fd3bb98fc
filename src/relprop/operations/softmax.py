"""Handlers of softmax and of its logarithms; what the probabilities receive says :mod:`relprop.rules.softmax`.

One that is written by hand finds :mod:`.softmax_by_hand`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from relprop.operations import softmax_by_hand
from relprop.operations.rows import SPACES, Rows, affine, weighted
from relprop.propagation.call.operation_call import Here
from relprop.propagation.facts.inheritance import Keeps, Terms, keeps_nothing, of_active
from relprop.propagation.facts.operation import Difference, Excitation, Handler, Holds, Image, Kind
from relprop.propagation.facts.origins import Origin


def softmax(here: Here, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``softmax``: what the rule makes of the probabilities."""
    p: Tensor = here.func(input, *args, **kwargs)
    if not here.call.way.explains:
        return p
    dim = _dim(input, args, kwargs)
    found = softmax_by_hand.of_two(here, p, input, dim) if here.choice.default else None
    if found is not None:
        return found
    x = input.detach() if input.layout == torch.strided else input.detach().to_dense()

    call = here.call

    def declared(c: Tensor, value: Tensor) -> dict[str, Tensor]:
        # A probability of zero passes nothing on, though rules that reach zeros give it relevance.
        return {"softmax": torch.where(value == 0, call.relevance(value, c), c * offset(value, x, dim))}

    here.declared = declared
    return here.explained(here.rule.probabilities, "p", p=p)


def _dim(x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Return the dimension of a softmax; where none is given, that which ``torch.nn.functional`` takes."""
    dim: int | None = kwargs.get("dim", args[0] if args else None)
    return (0 if x.dim() in (0, 1, 3) else 1) if dim is None else dim


def offset(p: Tensor, x: Tensor, dim: int) -> Tensor:
    """Return ``p - J x`` with ``J = diag(p) - p p^T``: what the linear part of a softmax leaves over.

    Where a score is minus infinity the probability is zero, and contributes nothing.
    """
    product = torch.where(p == 0, 0.0, p * x)
    return p - (product - p * product.sum(dim, keepdim=True))


def log_softmax(here: Here, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``x - logsumexp(x)``: what normalises is a constant (Norm), so that the relevance is that of the logits."""
    call = here.call
    out: Tensor = here.func(input, *args, **kwargs)
    if not call.way.explains:
        return out
    dim = _dim(input, args, kwargs)
    logarithm = torch.logsumexp(input.to(out.dtype), dim, keepdim=True)
    divisor = here.explained(here.rule.denominator, "x", x=logarithm)
    offset = logarithm if not here.active(divisor) else logarithm - _tangent(input, dim)
    here.declared = lambda c, value: {"softmax": -c * offset.detach()}
    found = call.switch(out, input.to(out.dtype) - divisor)
    softmax_by_hand.note_logarithm(here, input, found, lambda z: here.func(z, *args, **kwargs), summed=True, degree=0)
    return found


def logsumexp(here: Here, input: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    """``logsumexp`` by its first-order expansion, which is autograd: its offset absorbs, as that of a softmax does."""
    here.by_autograd()
    out: Tensor = here.func(input, dim, keepdim)
    tangent = _tangent(input, dim)
    here.declared = lambda c, value: {"softmax": c * (value - tangent.reshape(value.shape))}
    softmax_by_hand.note_logarithm(here, input, out, lambda z: here.func(z, dim, keepdim), summed=True)
    return out


def _tangent(x: Tensor, dim: Any) -> Tensor:
    """Return ``<p, x>`` for ``p = softmax(x)``; a score of minus infinity contributes nothing."""
    x = x.detach()
    p = torch.exp(x - torch.logsumexp(x, dim, keepdim=True))
    return torch.where(p == 0, 0.0, p * x).sum(dim, keepdim=True)


def logcumsumexp(here: Here, input: Tensor, dim: int) -> Tensor:
    """``logcumsumexp``, likewise."""
    here.by_autograd()
    out: Tensor = here.func(input, dim)
    x = input.detach()
    # log sum exp(x) x, for either sign of x: nothing overflows.
    parts = [here.func(x + torch.log((sign * x).clamp(min=0)), dim) for sign in (1, -1)]
    tangent = torch.exp(parts[0] - out.detach()) - torch.exp(parts[1] - out.detach())
    here.declared = lambda c, value: {"softmax": c * (value - tangent)}
    softmax_by_hand.note_logarithm(here, input, out, lambda z: here.func(z, dim), summed=True)
    return out


# The rows ----------------------------------------------------------------------------------------


def _probabilities(terms: Terms) -> Origin:
    return Origin(low=0.0)


def _rule(
    name: str, *, kind: Kind, handler: Handler, keeps: Keeps, difference: Difference, label: str | None = None,
    spaces: Sequence[Any] = SPACES,
) -> Rows:  # fmt: skip
    return weighted(
        name, kind=kind, handler=handler, keeps=keeps, difference=difference, image=Image.NOTHING, holds=Holds.NOTHING,
        updates=None, label=label, spaces=spaces,
    )  # fmt: skip


def _logarithm(name: str, *, handler: Handler, difference: Difference) -> Rows:
    return affine(
        name,
        handler=handler,
        keeps=keeps_nothing,
        difference=difference,
        excitation=Excitation.AS_RULES,
        image=Image.NOTHING,  # their handlers say what they are
    )


ROWS: Rows = [
    *_rule(
        "softmax", kind=Kind.SOFTMAX, handler=softmax, keeps=of_active(_probabilities), difference=Difference.SOFTMAX
    ),
    *_rule(
        "_sparse_softmax",
        label="softmax",
        spaces=(torch._C._sparse,),  # type: ignore[attr-defined]
        kind=Kind.SOFTMAX,
        handler=softmax,
        keeps=of_active(_probabilities),
        difference=Difference.UNCOVERED,
    ),
    *_rule("log_softmax", kind=Kind.NORM, handler=log_softmax, keeps=keeps_nothing, difference=Difference.LOG_SOFTMAX),
    *_logarithm("logsumexp", handler=logsumexp, difference=Difference.LOGSUMEXP),
    *_logarithm("logcumsumexp", handler=logcumsumexp, difference=Difference.UNCOVERED),
]
