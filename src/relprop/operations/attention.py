"""The handler of attention: two products, and a softmax between them (:mod:`relprop.operations.softmax`)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from relprop.operations.products import joined, product, shared
from relprop.operations.rows import Rows, weighted
from relprop.operations.softmax import offset
from relprop.propagation.call.autograd_functions import Tap, apply
from relprop.propagation.call.operation_call import Here
from relprop.propagation.call.returned import check_shares
from relprop.propagation.call.trace import total
from relprop.propagation.facts.inheritance import keeps_nothing
from relprop.propagation.facts.operation import Difference, Holds, Image, Kind


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
    """``softmax(q k^T / sqrt(d) + mask) v``, as two products and a softmax between them.

    Where the rule gives each of the four a share and leaves the softmax to autograd, the kernel of the model does all
    of it, and no probabilities are kept. A row that is masked throughout is zero, as in the kernel.
    """
    call, attention = here.call, here.rule
    more: dict[str, Any] = {"enable_gqa": True} if enable_gqa else {}

    def kernel(*given: Tensor | None) -> Tensor:
        return here.func(*given, dropout_p, is_causal, scale=scale, **more)  # type: ignore[no-any-return]

    given = query, key, value, attn_mask
    if not call.way.explains:
        return kernel(*given)
    count = _factors(here, value)
    shares = attention.shares(*map(here.active, given))
    if shares is not None:
        shares = check_shares(shares, len(given), attention.shares, here.where)
        if attention.exact_by_autograd and not _needs_probabilities(here, given):
            parts = [shared(here, x, share) for x, share in zip(given, shares, strict=True)]
            here.factors = count + any(here.active(x) for x in (parts[0], parts[1], parts[3]))
            return kernel(*parts)
    native = kernel(*given)
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = (x.repeat_interleave(repeats, -3) for x in (key, value))
        given = query, key, value, attn_mask
    factors = replace(here, record=None)  # the row of this call shows the rule for attention
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
    p = here.explained(attention.probabilities, "p", p=_softmax(scores, attn_mask is not None))
    if here.record is not None and call.options.measuring:
        p = _tell_softmax(here, p, raw.detach(), 1.0 if shares is None else shares[3])
    p = torch.dropout(p, dropout_p, dropout_p > 0)
    here.factors = count + here.active(p)
    if shares is None:
        p, value = product(factors, (p, value))
        here.factors = factors.factors
    out = joined(factors, p @ value, torch.matmul, (p, value))
    return out if dropout_p > 0 else call.switch(native, out)


def _needs_probabilities(here: Here, given: tuple[Tensor | None, ...]) -> bool:
    """Say whether more is asked of an attention than its kernel can tell.

    That is a report, a second look, relevance that reaches zeros, and a second derivative, which no fused kernel has;
    and double precision: a kernel's backward computes ``exp(s - logsumexp(s))`` anew, of which large scores leave few
    digits (of 1e10, six).
    """
    call, options = here.call, here.call.options
    asked = options.measuring or options.looking or options.create_graph
    asked = asked or any(x is not None and x.dtype == torch.float64 for x in given[:3])
    return asked or any(here.active(x) and call.handles_zeros(x) for x in given if x is not None)


def _softmax(scores: Tensor, masked: bool) -> Tensor:
    """Return the probabilities; a row of scores that are minus infinity throughout has none."""
    if not masked:
        return torch.softmax(scores, -1)
    nothing = (scores == -math.inf).all(-1, keepdim=True)
    return torch.softmax(scores.masked_fill(nothing, 0.0), -1).masked_fill(nothing, 0.0)


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
        share = reaching * c.double() * offset(value.double(), scores.double(), -1)
        record.absorb({"softmax": total(share)})

    here.absorbs_nothing()
    return apply(Tap, here.call, p, measure)


ROWS: Rows = weighted(
    "scaled_dot_product_attention",
    kind=Kind.ATTENTION,
    handler=scaled_dot_product_attention,
    keeps=keeps_nothing,
    difference=Difference.ATTENTION,
    image=Image.NOTHING,
    holds=Holds.NOTHING,
    updates=None,
)
