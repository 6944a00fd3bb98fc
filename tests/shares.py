"""Where a linear layer's relevance goes, computed from its matrix: in, bias, stabilizer, and what a rule drops.

Independent of the package; the formulas are those of `tests/reference.py`, summed up instead of shared out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from relprop import ConservationReport
from tests import reference_steps
from tests.reference import BATCH_NORMS, LINEAR, STABILIZER, Dense, affine, dense, fold, negative, positive, quotient

Named = tuple[str, dict[str, Any]]


@dataclass
class Row:
    """The sums over a batch."""

    out: float
    into: float
    bias: float = 0.0
    stabilizer: float = 0.0
    rule: float = 0.0


def row(layer: Dense, a: Tensor, relevance: Tensor, rule: str, options: dict[str, Any]) -> Row:
    """The shares of one layer, `a` and `relevance` as [N, J] and [N, K]."""
    how = options.get("bias", "absorb")
    epsilon: Any = options.get("stabilizer", STABILIZER)
    parts, b = layer.products(a), layer.offset(how)
    out = relevance.sum()
    relative = options.get("relative", False) is True if rule == "epsilon" else rule not in ("lrp0", "rho")

    def split(whole: Tensor, part_of_bias: Tensor | float, amount: Tensor, eps: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Bias, stabilizer and dropped share of `amount` that is divided by `whole`, stabilised by `eps`."""
        empty = whole == 0
        if relative:
            amount, eps = amount.expand_as(whole), eps * layer.size(whole)
            q = quotient(torch.where(empty, 0.0, amount), whole, eps)
        else:
            q = quotient(amount, whole, eps)
        lost = amount - q * whole
        return (q * part_of_bias).sum(), lost[~empty].sum(), lost[empty].sum()

    if rule in ("lrp0", "epsilon"):
        z = parts.sum(2) + layer.offset("absorb")
        eps: Any = 0.0 if rule == "lrp0" else options.get("epsilon", STABILIZER)
        if options.get("relative") == "layer":
            eps = eps * z.square().mean(1, keepdim=True).sqrt()
        found = split(parts.sum(2) + b, b, relevance, eps)
    elif rule == "gamma":
        g = options.get("gamma", 0.25)
        z = parts.sum(2) + b
        up = parts.sum(2) + g * positive(parts).sum(2) + b + g * positive(b)
        down = parts.sum(2) + g * negative(parts).sum(2) + b + g * negative(b)
        above = split(up, b + g * positive(b), torch.where(z >= 0, relevance, 0.0), epsilon)
        below = split(down, b + g * negative(b), torch.where(z < 0, relevance, 0.0), epsilon)
        found = tuple(x + y for x, y in zip(above, below, strict=True))  # type: ignore[assignment]
    elif rule in ("alpha_beta", "zplus"):
        alpha, beta = (1.0, 0.0) if rule == "zplus" else (options.get("alpha", 2.0), options.get("beta", 1.0))
        above = split(positive(parts).sum(2) + positive(b), positive(b), alpha * relevance, epsilon)
        below = split(negative(parts).sum(2) + negative(b), negative(b), -beta * relevance, epsilon)
        found = tuple(x + y for x, y in zip(above, below, strict=True))  # type: ignore[assignment]
    elif rule == "absolute_value":
        found = split(parts.abs().sum(2) + b.abs(), b.abs(), relevance, epsilon)
    elif rule == "contrast":
        unit = split(positive(parts).sum(2), 0.0, relevance, epsilon)
        dual = split(negative(parts).sum(2), 0.0, -relevance, epsilon)
        found = torch.zeros(()), unit[1] + dual[1], unit[2] + dual[2] + out  # what both share out cancels
    elif rule == "rescaled_excitation":
        whole = positive(parts).sum(2) + options.get("gamma", 0.0) * negative(parts).sum(2)
        found = split(whole, 0.0, relevance, epsilon)
    elif rule == "zbox":
        low, high = (torch.zeros_like(a) + options[name] for name in ("low", "high"))
        w = layer.weight
        found = split(parts.sum(2) - low @ positive(w).T - high @ negative(w).T, 0.0, relevance, epsilon)
    elif rule in ("wsquare", "flat"):
        shares = layer.weight.square() if rule == "wsquare" else layer.reach
        found = split(shares.sum(1).expand_as(relevance), 0.0, relevance, options.get("stabilizer", 0.0))
    elif rule == "rho":
        z = a @ (layer.reach * options["rho"](layer.weight)).T
        offset = 0.0 if layer.bias is None else options["rho"](layer.bias)
        q = quotient(relevance, options["incr"](z + offset))
        found = ((q * offset).sum(), (relevance - q * (z + offset)).sum(), torch.zeros(()))
    else:
        raise ValueError(rule)
    bias, stabilizer, dropped = (float(value) for value in found)
    return Row(float(out), float(out) - bias - stabilizer - dropped, bias, stabilizer, dropped)


def rows(modules: Sequence[nn.Module], x: Tensor, seed: Tensor, rule: Named) -> dict[str, Row]:
    """A row for every module of a sequence that relevance passes, by its position; a folded pair has one."""
    with torch.no_grad():
        return _rows(modules, x, seed, rule)


def _rows(modules: Sequence[nn.Module], x: Tensor, seed: Tensor, rule: Named) -> dict[str, Row]:
    inputs = [x]
    for module in modules:
        inputs.append(module(inputs[-1]))
    relevance = reference_steps.explain(modules, x, seed, rule)
    found: dict[str, Row] = {}
    for i, module in enumerate(modules):
        arrived, left = relevance[i + 1], relevance[i]
        name, options = rule
        if isinstance(module, LINEAR):
            matrix = dense(module, inputs[i].shape[1:])
            after = modules[i + 1] if i + 1 < len(modules) else None
            if isinstance(after, BATCH_NORMS):
                matrix, arrived = fold(matrix, after, inputs[i + 1].shape[1:]), relevance[i + 2]
            found[str(i)] = row(matrix, inputs[i].flatten(1), arrived.flatten(1), name, options)
            assert abs(found[str(i)].into - float(left.sum())) < 1e-9 * (1 + float(left.abs().sum()))
        elif isinstance(module, BATCH_NORMS):
            if not isinstance(modules[i - 1], LINEAR) or i == 0:
                shift = affine(module)[1].reshape(-1, *[1] * (arrived.dim() - 2))
                below = rule[0] in reference_steps.REACHES_ZEROS and any(isinstance(m, LINEAR) for m in modules[i:])
                bias = float((arrived * quotient(shift.expand_as(arrived), inputs[i + 1])).sum()) * (not below)
                found[str(i)] = Row(float(arrived.sum()), float(left.sum()), bias)
        else:
            at_zero = module(torch.zeros_like(inputs[i]))
            by_sign = rule[0] in reference_steps.BY_SIGN and not options.get("gamma")
            if by_sign and bool((at_zero != 0).any()) and at_zero.shape == arrived.shape:
                found[str(i)] = _by_sign(inputs[i + 1] - at_zero, at_zero, arrived, left, rule)
                continue
            bias = float(arrived.sum() - left.sum())  # f(0), or nothing
            found[str(i)] = Row(float(arrived.sum()), float(left.sum()), bias)
    return found


def _by_sign(signal: Tensor, constant: Tensor, arrived: Tensor, left: Tensor, rule: Named) -> Row:
    """The shares of a signal beside a constant, below a rule that shares by sign."""
    options = {"bias": "absorb", "stabilizer": STABILIZER, **reference_steps.BY_SIGN[rule[0]], **rule[1]}
    found = Row(float(arrived.sum()), float(left.sum()))
    beside = constant if options["bias"] == "absorb" else torch.zeros_like(constant)
    for part, share in ((positive, options["alpha"]), (negative, -options["beta"])):
        whole = part(signal) + part(beside)
        amount = share * arrived
        q = quotient(amount, whole, options["stabilizer"] * whole.abs())
        lost = amount - q * whole
        found.bias += float((q * part(beside)).sum())
        found.stabilizer += float(lost[whole != 0].sum())
        found.rule += float(lost[whole == 0].sum())
    return found


def adds_up(report: ConservationReport, tolerance: float = 1e-9) -> None:
    """What leaks at the calls is the delta, and is absorbed or unexplained."""
    delta = float(report.delta.sum())
    scale = max(1.0, max((abs(entry.relevance_out) for entry in report.entries), default=0.0))
    assert abs(sum(entry.leak for entry in report.entries) - delta) <= tolerance * scale
    assert abs(report.unseen) <= tolerance * scale
    assert abs(sum(report.absorbed.values()) + report.unexplained - delta) <= tolerance * scale
    assert abs(report.output - report.relevance - delta) <= tolerance * scale
    for entry in report.entries:
        rest = entry.leak - sum(entry.absorbed.values())
        assert abs(rest - entry.unexplained) <= tolerance * scale
