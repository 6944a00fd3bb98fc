"""Handlers of softmax and of attention."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from relprop.operations import softmax_by_hand
from relprop.operations.products import joined, product, shared
from relprop.operations.rows import Rows, affine, weighted
from relprop.propagation.call.autograd_functions import Tap, apply
from relprop.propagation.call.here import Here
from relprop.propagation.call.returned import check_shares
from relprop.propagation.call.trace import total
from relprop.propagation.facts.exponentials import Form
from relprop.propagation.facts.inheritance import Keeps, Terms, keeps_nothing, of_active
from relprop.propagation.facts.operation import Difference, Excitation, Handler, Holds, Image, Kind
from relprop.propagation.facts.origins import Origin


def softmax(here: Here, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``softmax``: what the rule makes of the probabilities."""
    p: Tensor = here.func(input, *args, **kwargs)
    if not here.call.way.explains:
        return p
    dim = _dim(input, args, kwargs)
    x = input.detach()

    here.declared = lambda c, value: {"softmax": c * _offset(value, x, dim)}
    return here.explained(here.rule.probabilities, "p", p=p)


def _dim(x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Return the dimension of a softmax; where none is given, that which ``torch.nn.functional`` takes."""
    dim: int | None = kwargs.get("dim", args[0] if args else None)
    return (0 if x.dim() in (0, 1, 3) else 1) if dim is None else dim


def _offset(p: Tensor, x: Tensor, dim: int) -> Tensor:
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
    softmax_by_hand.note_logarithm(here, Form.LOG_PROBABILITY, input, found, lambda z: here.func(z, *args, **kwargs))
    return found


def logsumexp(here: Here, input: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    """``logsumexp`` by its first-order expansion, which is autograd: its offset absorbs, as that of a softmax does."""
    here.by_autograd()
    out: Tensor = here.func(input, dim, keepdim)
    tangent = _tangent(input, dim)
    here.declared = lambda c, value: {"softmax": c * (value - tangent.reshape(value.shape))}
    if here.call.way.explains:
        softmax_by_hand.note_logarithm(here, Form.LOGARITHM, input, out, lambda z: here.func(z, dim, keepdim))
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
    return out


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
    call = here.call
    more: dict[str, Any] = {"enable_gqa": True} if enable_gqa else {}
    native: Tensor = here.func(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **more)
    if not call.way.explains:
        return native
    attention = here.rule
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = (x.repeat_interleave(repeats, -3) for x in (key, value))
    factors = replace(here, record=None)  # the row of this call shows the rule for attention
    given, count = (query, key, value, attn_mask), _factors(here, value)
    shares = attention.shares(*map(here.active, given))
    if shares is not None:
        shares = check_shares(shares, len(given), attention.shares, here.where)
    if shares is None:
        q, k = product(factors, (query, key))
    else:
        q, k, value, attn_mask = (shared(here, x, share) for x, share in zip(given, shares, strict=True))
    scores = joined(factors, q @ k.mT, torch.matmul, (q, k.mT))
    scores = raw = scores * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~mask, -math.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
        if here.active(attn_mask):  # a bias that depends on the input has a share of its own
            raw = scores if here.active(raw) else attn_mask
    p = here.explained(attention.probabilities, "p", p=torch.softmax(scores, -1))
    if here.record is not None and call.options.measuring:
        p = _tell_softmax(here, p, raw.detach(), 1.0 if shares is None else shares[3])
    p = torch.dropout(p, dropout_p, dropout_p > 0)
    here.factors = count + here.active(p)
    if shares is None:
        p, value = product(factors, (p, value))
        here.factors = factors.factors
    out = joined(factors, p @ value, torch.matmul, (p, value))
    return out if dropout_p > 0 else call.switch(native, out)


def _factors(here: Here, x: Tensor) -> int:
    """Return of how many active factors a tensor is a product, 0 for a constant."""
    return here.call.known.origins.of(here.original(x)).factors if here.active(x) else 0


def _tell_softmax(here: Here, p: Tensor, scores: Tensor, reaching: float) -> Tensor:
    """Return the probabilities with a tap that declares what the softmax between the two products absorbs.

    That is of the share ``reaching`` it, where the factors of the scores carry that below the softmax.
    """
    record = here.record
    assert record is not None

    def measure(c: Tensor, value: Tensor) -> None:
        share = reaching * c.double() * _offset(value.double(), scores.double(), -1)
        record.absorb({"softmax": total(share)})

    here.absorbs_nothing()
    return apply(Tap, here.call, p, measure)


# The rows ----------------------------------------------------------------------------------------


def _probabilities(terms: Terms) -> Origin:
    return Origin(low=0.0)


def _rule(name: str, *, kind: Kind, handler: Handler, keeps: Keeps, difference: Difference) -> Rows:
    return weighted(
        name, kind=kind, handler=handler, keeps=keeps, difference=difference, holds=Holds.NOTHING, updates=None
    )


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
    *_rule("log_softmax", kind=Kind.NORM, handler=log_softmax, keeps=keeps_nothing, difference=Difference.LOG_SOFTMAX),
    *_logarithm("logsumexp", handler=logsumexp, difference=Difference.LOGSUMEXP),
    *_logarithm("logcumsumexp", handler=logcumsumexp, difference=Difference.UNCOVERED),
    *_rule(
        "scaled_dot_product_attention",
        kind=Kind.ATTENTION,
        handler=scaled_dot_product_attention,
        keeps=keeps_nothing,
        difference=Difference.ATTENTION,
    ),
]
