"""What a rule explains with: constants, shares and surrogates, at one call of an operation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from relprop.errors import RuleError
from relprop.propagation.call.returned import broadcasts

if TYPE_CHECKING:
    from relprop.propagation.call.call import Call


@dataclass(frozen=True, eq=False)
class Flow:
    """The way of relevance through one call of an operation, as a rule may shape it.

    What its functions return has the values that it was given; they change how relevance passes, and nothing else. They
    know the two phases: while relevance is explained they act, and afterwards, in the derivative of a loss on the
    relevance, they are the identity. A report measures what a filter withholds; a rule need not say it.

    Attributes:
        operation: the name of the operation, as plans and reports show it.
        module: the dotted name of the innermost module that is running ("" for the model itself).

    >>> import torch; from relprop import LRP, Rules; from relprop.rules import FilterRule
    >>> class Half(FilterRule):
    ...     def output(self, flow, out, inputs):
    ...         return flow.scale(out, 0.5)
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False), torch.nn.Tanh())
    >>> x = torch.tensor([[1.0, 2.0]])
    >>> whole = LRP(model, Rules()).attribute(x)
    >>> torch.equal(LRP(model, Rules().set(torch.nn.Tanh, Half())).attribute(x), whole / 2)
    True
    """

    operation: str
    module: str
    _call: Call = field(repr=False)

    def constant(self, x: Tensor) -> Tensor:
        """Return ``x`` as a constant: no relevance passes, and a product with it is linear in its other factors."""
        return self._call.constant(x)

    def scale(self, x: Tensor, factor: float | Tensor) -> Tensor:
        """Return ``x``; the relevance that passes is multiplied by ``factor``, a number or what broadcasts to ``x``.

        Raises:
            RuleError: for any other factor.
        """
        given: Any = factor
        if isinstance(given, Tensor):
            if not broadcasts(given, x):
                raise RuleError(self._title("scale", f"a factor of shape {tuple(given.shape)} for {tuple(x.shape)}"))
            return self._call.scale(x, given if self._call.options.create_graph else given.detach())
        if not isinstance(given, (int, float)) or not math.isfinite(given):
            raise RuleError(self._title("scale", f"{given!r} as a factor"))
        return self._call.scale(x, float(given))

    def switch(self, native: Tensor, surrogate: Tensor) -> Tensor:
        """Return the value of ``native``, explained as if it had been ``surrogate``, of the same shape.

        Raises:
            RuleError: where it has another shape.
        """
        if surrogate.shape != native.shape:
            shapes = f"a surrogate of shape {tuple(surrogate.shape)} for a value of shape {tuple(native.shape)}"
            raise RuleError(self._title("switch", shapes))
        return self._call.switch(native, surrogate)

    def _title(self, function: str, came: str) -> str:
        """Say what a rule gave that cannot be."""
        takes = (
            "what has the shape of the value" if function == "switch" else "a finite number, or what broadcasts to it"
        )
        inside = f"module {self.module!r}" if self.module else "the model"
        return f"flow.{function} at {self.operation!r} in {inside} was given {came}; it takes {takes}."

    def safe(self, a: Tensor) -> Tensor:
        """Return ``a``, made safe to divide by where relevance reaches units of zero."""
        return self._call.safe(a)
