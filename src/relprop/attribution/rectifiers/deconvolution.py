"""Deconvolution: a gradient that passes every ReLU, on or off, where it is positive."""

from __future__ import annotations

from functools import partial
from typing import Any

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


def deconvolved(here: Here, h: Tensor) -> Tensor:
    """``c_in = (c_out)+``, whether or not the unit is on."""
    return apply(Rectify, here.call, h)


_TABLE = Derived(partial(variants, deconvolved))


class Deconvolution(Attribution, name="deconvolution"):
    """The gradient of a network whose ReLUs rectify what comes back, and not what went in.

    Definition: ``c_in = max(0, c_out)`` at every ReLU, whether or not the unit was on; elsewhere the gradient. Max
    pooling returns to where the maximum was. The output is the coefficient: no product with the input. Every ReLU
    counts, every time it is called: module, function, in place, the steps of ``nn.RNN``, and what equals it
    (``clamp(min=0)``, ``maximum`` with zeros, a leaky slope of 0, ``h * (h > 0)`` and other masks that come from a
    comparison of ``h`` with 0). Other activations are differentiated as they are, and so is a ReLU that is put
    together otherwise, as ``(h + h.abs()) / 2``, or from a mask of a detached copy.
    Conserves: nothing; it is a coefficient, no relevance, and there is no delta.

    Args:
        model: any ``nn.Module``; the method is defined for ReLU networks.
    Warns:
        NoEffectWarning: while explaining, where no ReLU lies between the input and the explained output.
    Source: Zeiler and Fergus 2014 (doi:10.1007/978-3-319-10590-1_53).

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.ReLU(), torch.nn.Linear(2, 1))
    >>> _ = model[0].weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
    >>> _ = model[2].weight.data.copy_(torch.tensor([[-1.0, 2.0]]))
    >>> Deconvolution(model).attribute(torch.tensor([[1.0, 1.0]]))
    tensor([[ 0., -2.]])
    """

    contract = Contract("1", "coefficient")

    def make_call(self, **options: Any) -> Call:
        return super().make_call(table=_TABLE(operations()), **options)

    def after_forward(self, passed: Forward) -> None:
        name_without_relu(passed, "Deconvolution")

    def result(self, call: Call, x: Tensor, c: Tensor) -> Tensor:
        return c
