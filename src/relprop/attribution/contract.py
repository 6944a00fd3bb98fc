"""What every method declares of itself, and what all methods have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from relprop.errors import InputError
from relprop.inputs import as_model


@dataclass(frozen=True)
class Contract:
    """What the numbers of a method are, and what they promise.

    Attributes:
        seed: what its backward begins with at the explained output: ``"1"``, or ``"f_t"``, the output itself.
        output: ``"coefficient"``, like a gradient, which says how the output changes; or ``"relevance"``, shares of
            the output.
        sums_to: what the relevance is meant to sum to, ``"f"`` or ``"f - f'"``; empty where no sum is claimed, so that
            there is no convergence delta.
        conditions: under what conditions it sums to that exactly.
    """

    seed: Literal["1", "f_t"]
    output: Literal["coefficient", "relevance"]
    sums_to: Literal["", "f", "f - f'"] = ""
    conditions: str = ""

    @property
    def complete(self) -> bool:
        """A sum is claimed, so that there is a convergence delta."""
        return bool(self.sums_to)


class Method(ABC):
    """Whatever explains the predictions of a model.

    Attributes:
        model: the model, which no method writes to.
        contract: what the method declares of itself.
    """

    contract: ClassVar[Contract]

    def __init__(self, model: nn.Module) -> None:
        self.model = as_model(model)

    @abstractmethod
    def attribute(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return a map for every input, in the structure and the shapes of ``inputs``."""

    def require_completeness(self) -> None:
        """Raise where no sum is claimed."""
        if not self.contract.complete:
            raise InputError(
                f"{type(self).__name__} does not claim to sum to the output, so it has no convergence delta and no "
                "report. Use GradientXInput or LRP."
            )
