"""Layer-wise relevance propagation."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from relprop.arguments import Registered
from relprop.attribution.base import Attribution
from relprop.attribution.contract import Contract
from relprop.propagation.call.call import Call
from relprop.propagation.call.weight_cache import WeightCache
from relprop.propagation.facts.operation import Table
from relprop.propagation.run.forward import Forward
from relprop.rules.presets import as_rules
from relprop.rules.registry import PresetName, Rules
from relprop.rules.rule import Rule
from relprop.rules.selection import Selection


class LRP(Attribution, name="lrp"):
    """Layer-wise relevance propagation, by the rules of a registry.

    Definition: the output is the relevance at the top; each rule shares the relevance of a layer's outputs among its
    inputs (see :mod:`relprop.rules`), down to ``R`` at the input.
    Conserves: as far as the rules do; :meth:`report` says where the rest went.

    Args:
        model: any ``nn.Module``, as it is.
        rules: the name of a preset, a :class:`Rules`, or one rule for every linear layer, itself or by the name that
            it is registered by (where a preset has the same name, that). The default
            ``"epsilon_gamma"`` is epsilon 1e-6 on dense layers, gamma 0.25 on convolutions, AttnLRP for attention.
        strict: an operation without a rule is an error instead of a warning.
        cache_weights: keep modified weights between calls; they are compared by value at every use, and cost memory.

    Raises:
        RuleError: for a name that is not known, and for what is none of these; while explaining, where a rule cannot
            serve where it was set.
        UncoveredOperationError: while explaining, with ``strict``.
    Source: Bach et al. 2015 (doi:10.1371/journal.pone.0130140); Montavon et al. 2019
        (doi:10.1007/978-3-030-28954-6_10).

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> x = torch.randn(5, 3)
    >>> relevance, delta = LRP(model).attribute(x, target=1, return_convergence_delta=True)
    >>> relevance.shape, delta.shape
    (torch.Size([5, 3]), torch.Size([5]))
    """

    contract = Contract("f_t", "relevance", "f", "where rules and operations absorb nothing; report() says what did")

    def __init__(
        self,
        model: nn.Module,
        rules: PresetName | Registered | Rules | Rule = "epsilon_gamma",
        *,
        strict: bool = False,
        cache_weights: bool = False,
    ) -> None:
        super().__init__(model)
        self.rules = as_rules(rules)
        self.strict = strict
        self._cache = WeightCache() if cache_weights else None

    def way(self, table: Table | None = None) -> Selection:
        return self.rules.bind(self.model, table)

    def make_call(self, **options: Any) -> Call:
        return super().make_call(strict=self.strict, cache=self._cache, **options)

    def after_forward(self, passed: Forward) -> None:
        selection = passed.call.way
        assert isinstance(selection, Selection)
        selection.verify(passed.call.trace.called, passed.call.ended)

    def result(self, call: Call, x: Tensor, c: Tensor) -> Tensor:
        return call.relevance(x, c)
