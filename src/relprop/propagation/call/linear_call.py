"""The place of one linear call: what its rule needs when the coefficient arrives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from relprop.errors import RuleError
from relprop.propagation.call.call import Call
from relprop.propagation.call.returned import (
    Where,
    check_absorbed,
    check_connected,
    check_finite,
    check_tensor,
    check_unwritten,
    versions,
)
from relprop.propagation.call.trace import Record, total
from relprop.propagation.call.way import Choice, Zeros
from relprop.propagation.facts.graph import Reach, nodes_until_linear
from relprop.propagation.facts.moves import Moves
from relprop.propagation.math.linear_map import Geometry, LinearMap
from relprop.propagation.math.numerics import safe

Watcher = Callable[[Tensor], None]
_TRANSPOSE = (
    "A coefficient is R_in / a, one number for every input: layer.transpose(...) makes one of what is shaped as z."
)


class LinearCall:
    """One linear call, with the rule chosen for it and what its input and its output are known to be.

    Attributes:
        geometry: how its weight acts on its input.
        a: the input (None once the forward is over: only what is folded into the call asks for it).
        given: the input as the model holds it (``a`` itself, but where a report taps it).
        parameters: its weight and its bias, and by what its output channels are scaled and shifted behind them.
        nonnegative: the input is known to hold nothing below zero.
        consumers: for every seen call that took the output, whether it was a ReLU.
        node: its autograd node, where a plan is made and until the forward is over.
        reaches_zeros: relevance may arrive at outputs of zero.
        superseded: what scales or shifts its output was folded into it: nothing else need take the plain output.
        watchers: told of the outputs of what is folded into this call, each where its entries had moved so.
        key: where the call stands, and how many linear calls came before it.
        where: the place, as errors name it.
    """

    def __init__(
        self,
        call: Call,
        choice: Choice,
        geometry: Geometry,
        a: Tensor,
        parameters: tuple[Tensor | None, ...],
        given: Tensor | None = None,
        operation: str = "linear",
    ) -> None:
        self.call = call
        self.choice = choice
        self.geometry = geometry
        self.a: Tensor | None = a
        self.given: Tensor | None = a if given is None else given
        self.version = self.given._version
        self.parameters = parameters
        self.key = (call.place[0], len(call.linear_calls))
        self.where = Where(operation, *call.place)
        self.nonnegative = call.known.origins.of(a).nonnegative
        self.consumers: list[bool] = []
        self.watchers: list[tuple[Moves, Watcher]] = []
        self.record: Record | None = None
        self.node: Any = None
        self.superseded = False
        self.reaches_zeros = call.way.zeros is Zeros.EVERYWHERE
        self.first = call.known.graph.reach(a) is Reach.ACTIVE
        call.linear_calls.append(self)
        check_precision(choice.rule, a.dtype)

    @property
    def plain(self) -> bool:
        """Say whether nothing is folded into it."""
        return len(self.parameters) == 2

    @property
    def unchanged(self) -> bool:
        """Say whether the input still is what it was when the call ran."""
        return self.given is not None and self.given._version == self.version

    def folded(self, parameters: tuple[Tensor | None, ...], by: Tensor | None) -> LinearCall:
        """Return what stands at this call and what scales or shifts its output, which are one linear map.

        Args:
            parameters: of that map.
            by: a constant by which it is scaled or shifted; it gives a map its name.
        """
        assert self.a is not None
        found = LinearCall(self.call, self.choice, self.geometry, self.a, parameters, self.given, self.where.operation)
        found.version, found.where, found.watchers = self.version, self.where, self.watchers
        return found

    def ran(self, z: Tensor) -> None:  # rules ask for the output when the coefficient arrives
        """Look at the output of the call."""

    def layer(self, a: Tensor, weight: Tensor, bias: Tensor | None) -> LinearMap:
        """Return the linear map as the rule sees it."""
        call, dtype = self.call, weight.dtype
        cache = None
        if call.options.cache is not None and not call.options.create_graph:
            keep, key = call.options.cache, self.key
            cache = lambda change, tensor: keep.get((key, change), tensor, change)  # noqa: E731
        # Under autocast the call computed in half precision with weights it cast itself.
        return LinearMap(
            self.geometry,
            a.detach(),
            weight if weight.dtype == a.dtype else weight.to(a.dtype),
            bias if bias is None or dtype == a.dtype else bias.to(a.dtype),
            self.nonnegative,
            bool(self.consumers) and all(self.consumers) and not self.reaches_zeros and not call.options.open_ended,
            self.reaches_zeros,
            cache,
        )

    def coefficient(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor, node: Any) -> Tensor:
        """Return the coefficient of the input by the rule that stands here."""
        call = self.call
        rule = self.rule_at(node)
        check_precision(rule, a.dtype)
        z = z.to(a.dtype)
        z = safe(z) if self.reaches_zeros else z
        c = c.to(a.dtype)
        if self.record is not None and call.options.measuring:
            with torch.no_grad():
                shares = check_absorbed(rule.absorbed(layer, a, z, c), z, rule.absorbed, self.where)
            self.record.absorb({name: total(share) for name, share in shares.items()})
        call.zeros_reach_input = call.zeros_reach_input or (self.first and rule.reaches_zeros)
        if call.above is not None and rule.by_sign:
            below = nodes_until_linear(node)
            call.above.update((each.above_mark, rule) for each in below if hasattr(each, "above_mark"))
        return self._asked(rule, layer, a, z, c)

    def _asked(self, rule: Any, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> Tensor:
        """Return the coefficient that a rule gives, checked."""
        given = {"a": a, "z": z, "c": c, "layer.weight": layer.weight, "layer.bias": layer.bias}
        before = versions(given.values())
        method, where = rule.coefficient, self.where
        found = check_tensor(method(layer, a, z, c), a, "the layer's input a", method, where, _TRANSPOSE)
        check_unwritten(given, before, method, where)
        if self.call.options.create_graph:
            check_connected(found, (c, layer.weight), method, where)  # of which it is a multiple
        if self.call.options.looking:
            check_finite(found, (a, z, c), method, where, c)
        return found

    def rule_at(self, node: Any) -> Any:
        """Return the rule, now that the graph shows whether this is the last linear layer."""
        last = self.call.way.last
        if last is not None and last.position > self.choice.position and node not in self.call.before_last:
            return last.rule
        return self.choice.rule

    def record_last(self, reached: set[Any]) -> None:
        """Show in the row of this call that the rule for the last layer stands here, once the graph is complete."""
        if self.record is not None and self.node in reached:
            rule = self.rule_at(self.node)
            if rule is not self.choice.rule:
                self.record.rule, self.record.default = repr(rule), False

    def effective_bias(self) -> Tensor | None:
        """Return the bias of the map, with all that is folded into it; None where that is another call's."""
        if self.superseded or not self.parameters:
            return None
        return self.geometry.folded(*self.parameters)[1]  # type: ignore[arg-type]  # there is a weight

    def release(self) -> None:
        """Let go of what only the forward needed."""
        self.a, self.given, self.node, self.parameters = None, None, None, ()
        self.watchers = []


def check_precision(rule: Any, dtype: torch.dtype) -> None:
    """Refuse rules that give relevance to zeros in a type that cannot hold ``R / tau``."""
    if dtype == torch.float16 and rule.reaches_zeros:
        raise RuleError(
            f"{rule!r} gives relevance to units whose activation is zero; its coefficient R / {1e-30:g} does not "
            "fit float16 (largest 65504). Use bfloat16 or float32."
        )
