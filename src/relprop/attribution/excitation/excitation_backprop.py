"""Excitation backprop: the probability that attention, coming from the top, wins at each unit."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from relprop.attribution.contract import Contract
from relprop.attribution.excitation import positive_sums
from relprop.attribution.lrp import LRP
from relprop.errors import NoEffectWarning, NumericalError, warn
from relprop.operations.table import operations
from relprop.propagation.call.call import Call
from relprop.propagation.facts.graph import any_node
from relprop.propagation.facts.operation import Derived
from relprop.propagation.run.forward import Forward
from relprop.rules.presets import everywhere
from relprop.rules.registry import Rules
from relprop.rules.signed import Contrast, ZPlus

_TABLE = Derived(positive_sums.table)


class ExcitationBackprop(LRP, name="excitation_backprop"):
    """Marginal winning probabilities: from the explained unit, attention descends by what excites.

    Definition: ``P_j = sum_k a_j (w_jk)+ / sum_i a_i (w_ik)+ P_k``, beginning with ``P = 1`` at the explained output;
    biases take no part. It is the z+ rule with the bias ignored, on every linear layer, with another seed. Where an
    input is negative its contribution counts as positive if the product ``a w`` is. Sums and means, in places and of
    neighbours too, are layers of positive weight: their positive terms share, so that ``P >= 0`` where a residual
    branch is negative too. (Products with matrices that are no parameters share as under LRP.) Without negative terms
    it is ``LRP(model, "alpha1_beta0_ignore_bias")`` over ``f``.
    Conserves: where every unit that is reached has a positive contribution, ``sum P = 1``; delta is ``1 - sum P``.

    Args:
        model: any ``nn.Module``; the theory is that of non-negative activations.
        stabilizer: without unit, see :class:`relprop.rules.Relative`; 1e-6 by default.

    Raises:
        RuleError: where ``stabilizer`` is no number >= 0.
        NumericalError: while explaining, where the output is exactly zero, so that no share of it is defined.
    Warns:
        NoEffectWarning: while explaining, where nothing shares between the input and the explained output.
    Source: Zhang et al. 2016 (arXiv:1608.00507); Zhang et al. 2018 (doi:10.1007/s11263-017-1059-x).

    >>> import torch
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    >>> ExcitationBackprop(model, stabilizer=0).attribute(torch.tensor([[1.0, 2.0]]))
    tensor([[1., 0.]])
    """

    contract = Contract("1", "relevance", "1", "where every unit that is reached has a positive contribution")

    def __init__(self, model: nn.Module, *, stabilizer: float = 1e-6) -> None:
        super().__init__(model, self._rules(stabilizer))

    def _rules(self, stabilizer: float) -> Rules:
        return everywhere(ZPlus(bias="ignore", stabilizer=stabilizer))

    def make_call(self, **options: Any) -> Call:
        return super().make_call(table=_TABLE(operations()), **options)

    def after_forward(self, passed: Forward) -> None:
        super().after_forward(passed)
        if not any_node(passed.selected, _shares_what_excites):
            warn(
                f"{type(self).__name__} met no linear layer and no sum between the input and the explained output: "
                "nothing shares by what excites, and the map is the gradient times the input over the output. Explain "
                "a target above the layers.",
                NoEffectWarning,
            )

    def seed(self, output: Tensor) -> Tensor:
        if bool((output == 0).any()):
            raise NumericalError(
                "The explained output is exactly 0 for a sample, so that a probability of 1 cannot be expressed as a "
                "multiple of it. Explain another output, or a unit that is on."
            )
        return 1 / output


def _shares_what_excites(node: Any) -> bool:
    return hasattr(node, "passes_linear") or hasattr(node, "excites")


class ContrastiveExcitationBackprop(ExcitationBackprop, name="contrastive_excitation_backprop"):
    """Excitation backprop less that of a dual unit: what excites the explained unit alone.

    Definition: the dual of the explained unit has the weights of the last linear layer with their sign reversed, so
    that it is excited by what inhibits the unit. The result is the excitation backprop of the unit less that of its
    dual: at the last linear layer ``P_j = a_j (w_jk)+ / sum_i a_i (w_ik)+ - a_j (w_jk)- / sum_i a_i (w_ik)-``.
    Conserves: the two cancel: ``sum P = 0`` where both have something to share. There is no delta.

    Args:
        model: any ``nn.Module``; the theory is that of non-negative activations.
        stabilizer: without unit, see :class:`relprop.rules.Relative`; 1e-6 by default.

    Raises:
        NumericalError, RuleError: as :class:`ExcitationBackprop`.
    Source: Zhang et al. 2016 (arXiv:1608.00507), section 3.3.

    >>> import torch
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    >>> ContrastiveExcitationBackprop(model, stabilizer=0).attribute(torch.tensor([[1.0, 2.0]]))
    tensor([[ 1., -1.]])
    """

    contract = Contract("1", "relevance")

    def _rules(self, stabilizer: float) -> Rules:
        return super()._rules(stabilizer).last(Contrast(stabilizer))
