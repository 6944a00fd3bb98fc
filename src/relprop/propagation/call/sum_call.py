"""The place of one sum without weights: a linear map whose weights are 1, which a rule for such maps serves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from relprop.propagation.call.returned import (
    Where,
    check_absorbed,
    check_connected,
    check_finite,
    check_tensor,
    check_unwritten,
    versions,
)
from relprop.propagation.math.linear_map import Addition, Geometry, LinearMap
from relprop.propagation.math.numerics import safe

if TYPE_CHECKING:
    from relprop.propagation.call.call import Call

_TRANSPOSE = "A coefficient is R_in / a, one number for every term, stacked in dimension 0."


_STACKED = Addition()


@dataclass(frozen=True, eq=False)
class SumCall:
    """One sum, as rules for linear maps see it.

    Attributes:
        call: the attribution it is part of.
        where: the place, as errors name it.
        rule: what shares among the terms; None where that is not known before relevance arrives.
        geometry: how terms are added up: stacked in dimension 0, or as a function of one tensor does it.
        reaches_zeros: relevance may arrive at sums of zero.
        first: a term is an input, or was made from one without linear maps.
    """

    call: Call
    where: Where
    rule: Any = None
    geometry: Geometry = _STACKED
    reaches_zeros: bool = False
    first: bool = False

    def rule_at(self, node: Any) -> Any:
        """Return the rule, as that of a linear call."""
        return self.rule

    def coefficient(self, rule: Any, a: Tensor, bias: Tensor | None, z: Tensor, c: Tensor) -> Tensor:
        """Return the coefficients of the terms ``a`` of the sum ``z``, beside a constant, by a rule for linear maps."""
        call, layer = self.call, self._layer(a, bias)
        z, c = self._safe(z.to(a.dtype)), c.to(a.dtype)
        call.zeros_reach_input = call.zeros_reach_input or (self.first and rule.reaches_zeros)
        given = {"a": a, "z": z, "c": c, "layer.weight": layer.weight, "layer.bias": layer.bias}
        before, method = versions(given.values()), rule.coefficient
        found = check_tensor(method(layer, a, z, c), a, "the terms a", method, self.where, _TRANSPOSE)
        check_unwritten(given, before, method, self.where)
        if call.options.create_graph:
            check_connected(found, (c,), method, self.where)
        if call.options.looking:
            check_finite(found, (a, z, c), method, self.where, c)
        return found

    def absorbed(self, rule: Any, a: Tensor, bias: Tensor | None, z: Tensor, c: Tensor) -> dict[str, Tensor]:
        """Return, by name, what reaches no term."""
        a, bias = a.to(z.dtype), None if bias is None else bias.to(z.dtype)
        with torch.no_grad():
            found = rule.absorbed(self._layer(a, bias), a, self._safe(z), c)
            return check_absorbed(found, z, rule.absorbed, self.where)

    def _layer(self, a: Tensor, bias: Tensor | None) -> LinearMap:
        return LinearMap(self.geometry, a.detach(), a.new_ones(()), bias, zeros_receive=self.reaches_zeros)

    def _safe(self, z: Tensor) -> Tensor:
        return safe(z) if self.reaches_zeros else z
