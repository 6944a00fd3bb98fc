"""Rules for any operation: let relevance pass, stop it, or let through chosen units only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from relprop.errors import RuleError
from relprop.propagation.call.flow import Flow
from relprop.rules.rule import ActivationRule, FilterRule


@dataclass(frozen=True)
class Pass(ActivationRule, FilterRule):
    """The identity: relevance passes an elementwise function unchanged.

    Definition: ``R_in = R_out``, that is ``c_in = c_out f(z) / z``; where ``f(0) != 0`` it is about zero,
    ``c_in = c_out (f(z) - f(0)) / z``, and ``f(0)`` absorbs like a bias. On any other operation that keeps the shape
    of its one active input, ``R_in = R_out``.
    Conserves: always, but for ``f(0)``.

    Raises:
        RuleError: while explaining, on an operation that changes the shape or has several active inputs.
    Source: Bach et al. 2015, section on nonlinear units (doi:10.1371/journal.pone.0130140); Ali et al. 2022
        (arXiv:2202.07304).

    >>> import torch; from relprop import LRP, Rules
    >>> model = torch.nn.Sequential(torch.nn.Tanh(), torch.nn.Flatten())
    >>> LRP(model, Rules().set(torch.nn.Tanh, Pass())).attribute(torch.tensor([[2.0]]))  # tanh(2), all of it
    tensor([[0.9640]])
    """

    by_output_alone = False
    hands_on_whole = True
    exact_by_autograd = True

    def surrogate(self, flow: Flow, z: Tensor, out: Tensor, quotient: Tensor) -> Tensor:
        return z * flow.constant(quotient)

    def filters(self, kind: str) -> bool:
        return kind != "activation"

    def output(self, flow: Flow, out: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        if len(inputs) != 1 or inputs[0].shape != out.shape:
            raise RuleError(
                f"Pass cannot stand at {flow.operation!r}: it needs one active input of the shape of the output, got "
                f"{[tuple(tensor.shape) for tensor in inputs]} for {tuple(out.shape)}."
            )
        (a,) = inputs
        divisor = flow.safe(a)
        zero = divisor == 0
        ratio = torch.where(zero, 1.0, flow.safe(out) / torch.where(zero, 1.0, divisor))
        return flow.switch(out, a * flow.constant(ratio))


@dataclass(frozen=True)
class Block(FilterRule):
    """Nothing passes: relevance ends here.

    Definition: ``R_in = 0``.
    Conserves: no; the report counts it as taken by the rule.
    Source: relprop's own.

    >>> import torch; from relprop import LRP, Rules
    >>> layers = torch.nn.Linear(2, 1), torch.nn.Tanh()
    >>> rules = Rules().set(torch.nn.Tanh, Block())
    >>> LRP(torch.nn.Sequential(*layers), rules).attribute(torch.tensor([[1.0, 2.0]]))
    tensor([[0., 0.]])
    """

    blocks = True

    def output(self, flow: Flow, out: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        return flow.scale(out, 0.0)


@dataclass(frozen=True)
class Detach(FilterRule):
    """The output is a constant: a weight, a mask or a probability that is not to be explained.

    Definition: the output counts as no function of the input; a product with it is linear in the other factor.
    Conserves: always, where the output is a factor.
    Source: relprop's own, after Ali et al. 2022 (arXiv:2202.07304), who hold probabilities and deviations constant.

    >>> import torch; from relprop import LRP, Rules
    >>> class Weighted(torch.nn.Module):
    ...     def forward(self, a, b):
    ...         return a * torch.tanh(b)
    >>> rules = Rules().set(torch.tanh, Detach())
    >>> LRP(Weighted(), rules).attribute((torch.tensor([[2.0]]), torch.tensor([[1.0]])))  # 2 tanh(1), all to a
    (tensor([[1.5232]]), tensor([[0.]]))
    """

    blocks = True

    def output(self, flow: Flow, out: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        return flow.constant(out)


@dataclass(frozen=True)
class Mask(FilterRule):
    """Only chosen units (dimension 1 of the output) pass relevance; what they pass follows the operation's own rule.

    Definition: ``c_k = 0`` for every unit ``k`` that is not among ``indices``.
    Conserves: no; the report counts what is left out as taken by the rule.

    Args:
        indices: the units, numbers from 0; negative ones count from the end.

    Raises:
        RuleError: where an index is no integer; while explaining, where it lies outside the output.
    Source: Achtibat et al. 2023, concept relevance propagation (doi:10.1038/s42256-023-00711-8).

    >>> import torch; from relprop import LRP, Rules
    >>> model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(3, 1, bias=False))
    >>> _ = model[1].weight.data.fill_(1.0)
    >>> LRP(model, Rules().set(torch.nn.ReLU, Mask((0, -1)))).attribute(torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[1., 0., 3.]])
    """

    indices: tuple[int, ...]

    def __post_init__(self) -> None:
        try:
            indices = tuple(int(index) for index in self.indices)
        except (TypeError, ValueError):
            raise RuleError(f"Mask: indices must be integers, got {self.indices!r}.") from None
        object.__setattr__(self, "indices", indices)

    def output(self, flow: Flow, out: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        return flow.scale(out, channel_mask(out, self.indices, f"Mask at {flow.operation!r}"))


def channel_mask(out: Tensor, indices: Sequence[int], where: str) -> Tensor:
    """Return 1 for the units ``indices`` of dimension 1 of ``out`` and 0 for the others, ready to broadcast."""
    if out.dim() < 2:
        raise RuleError(f"{where}: the output of shape {tuple(out.shape)} has no dimension 1 to choose units from.")
    units = out.shape[1]
    outside = [index for index in indices if not -units <= index < units]
    if outside:
        raise RuleError(f"{where}: {outside} lie outside the {units} units of dimension 1.")
    mask = torch.zeros(units, dtype=out.dtype, device=out.device)
    mask[list(indices)] = 1.0
    return mask.reshape(-1, *(1,) * (out.dim() - 2))
