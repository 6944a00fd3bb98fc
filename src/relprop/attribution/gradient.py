"""The gradient, and the gradient times the input."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn

from relprop.attribution.base import Attribution
from relprop.attribution.contract import Contract
from relprop.errors import InputError
from relprop.propagation.call.call import Call

Form = Literal["raw", "absolute", "squared"]


class Gradient(Attribution, name="gradient"):
    """The gradient of the output by the input: what a small change would do.

    Definition: ``df/dx``; ``|df/dx|`` with ``form="absolute"``; ``(df/dx)^2`` (sensitivity) with ``form="squared"``.
    Conserves: nothing; it is a coefficient, no relevance, and there is no delta.

    Args:
        model: any ``nn.Module``.
        form: ``"raw"``, ``"absolute"`` or ``"squared"``.

    Raises:
        InputError: for another ``form``.
    Source: Simonyan et al. 2014 (arXiv:1312.6034); squared: Montavon et al. 2018, section 3.1
        (doi:10.1016/j.dsp.2017.10.011).

    >>> import torch
    >>> model = torch.nn.Linear(2, 1)
    >>> _ = model.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    >>> Gradient(model, form="squared").attribute(torch.tensor([[1.0, 2.0]]))
    tensor([[9., 1.]])
    """

    contract = Contract("1", "coefficient")

    def __init__(self, model: nn.Module, form: Form = "raw") -> None:
        super().__init__(model)
        if form not in get_args(Form):
            raise InputError(f"form must be one of {get_args(Form)}, got {form!r}.")
        self.form = form

    def result(self, call: Call, x: Tensor, c: Tensor) -> Tensor:
        if self.form == "absolute":
            return c.abs()
        return c.square() if self.form == "squared" else c


class Sensitivity(Gradient, name="sensitivity"):
    """The squared gradient: which inputs would change the output most, whatever the direction.

    Definition: ``(df/dx)^2``, :class:`Gradient` with ``form="squared"``.
    Conserves: nothing; it sums to the squared norm of the gradient, which explains how steep the output is, not the
    output.

    Args:
        model: any ``nn.Module``.
    Source: Montavon et al. 2018, section 3.1 (doi:10.1016/j.dsp.2017.10.011).

    >>> import torch
    >>> model = torch.nn.Linear(2, 1)
    >>> _ = model.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    >>> Sensitivity(model).attribute(torch.tensor([[1.0, 2.0]]))
    tensor([[9., 1.]])
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, "squared")


class GradientXInput(Attribution, name="gradient_x_input"):
    """The gradient times the input.

    Definition: ``R_i = x_i df/dx_i``.
    Conserves: on networks of linear maps, ReLU, LeakyReLU and max pooling without biases, where it is LRP-0.

    Args:
        model: any ``nn.Module``.
    Source: Shrikumar et al. 2016 (arXiv:1605.01713).

    >>> import torch
    >>> model = torch.nn.Linear(2, 1)
    >>> _ = model.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    >>> GradientXInput(model).attribute(torch.tensor([[1.0, 2.0]]))
    tensor([[ 3., -2.]])
    """

    contract = Contract("1", "relevance", "f", "linear maps, ReLU, LeakyReLU and max pooling, without biases")

    def result(self, call: Call, x: Tensor, c: Tensor) -> Tensor:
        return x * c
