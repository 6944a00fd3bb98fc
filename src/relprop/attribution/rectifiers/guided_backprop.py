"""Guided backprop: a gradient that passes the ReLUs that are on, where it is positive."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from relprop.attribution.base import Attribution
from relprop.attribution.contract import Contract
from relprop.attribution.rectifiers.table import name_without_relu, variants
from relprop.operations.table import operations
from relprop.propagation.call.autograd_functions import Rectify, apply
from relprop.propagation.call.call import Call
from relprop.propagation.call.operation_call import Here
from relprop.propagation.facts.operation import Derived
from relprop.propagation.run.forward import Forward


def guided(here: Here, h: Tensor) -> Tensor:
    """``c_in = (c_out)+ [z > 0]``."""
    return torch.relu(apply(Rectify, here.call, h))


_TABLE = Derived(partial(variants, guided))


class GuidedBackprop(Attribution, name="guided_backprop"):
    """The gradient of a network whose ReLUs pass back what is positive, through units that were on.

    Definition: ``c_in = max(0, c_out) [z > 0]`` at every ReLU; elsewhere the gradient. The output is the coefficient:
    no product with the input. What counts as a ReLU is what does for :class:`Deconvolution`; other activations are
    differentiated as they are.
    Conserves: nothing; it is a coefficient, no relevance, and there is no delta.

    Args:
        model: any ``nn.Module``; the method is defined for ReLU networks.
    Warns:
        NoEffectWarning: while explaining, where no ReLU lies between the input and the explained output.
    Source: Springenberg et al. 2015 (arXiv:1412.6806).

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.ReLU(), torch.nn.Linear(2, 1))
    >>> _ = model[0].weight.data.copy_(torch.tensor([[1.0, 1.0], [1.0, -2.0]]))
    >>> _ = model[2].weight.data.copy_(torch.tensor([[3.0, 2.0]]))
    >>> GuidedBackprop(model).attribute(torch.tensor([[1.0, 1.0]]))
    tensor([[3., 3.]])
    """

    contract = Contract("1", "coefficient")

    def make_call(self, **options: Any) -> Call:
        return super().make_call(table=_TABLE(operations()), **options)

    def after_forward(self, passed: Forward) -> None:
        name_without_relu(passed, "GuidedBackprop")

    def result(self, call: Call, x: Tensor, c: Tensor) -> Tensor:
        return c
