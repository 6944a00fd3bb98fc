"""What every method declares of itself, and what all methods have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from relprop.errors import InputError, MethodError
from relprop.inputs import Given, as_args, as_inputs, as_kwargs, as_model
from relprop.operations.table import operations
from relprop.propagation.call import Call
from relprop.propagation.run import forward
from relprop.targets import Target, reading
from relprop.training import attribution_of, one_attribution


@dataclass(frozen=True)
class Contract:
    """What the numbers of a method are, and what they promise.

    Attributes:
        seed: what its backward begins with at the explained output: ``"1"``, or ``"f_t"``, the output itself; empty
            where the map does not come from a backward (some run one to find what the output depends on).
        output: ``"coefficient"``, like a gradient, which says how the output changes; or ``"relevance"``, shares of
            the output.
        sums_to: what the relevance is meant to sum to, ``"f"``, ``"f - f'"`` or ``"1"``; empty where no sum is claimed,
            so that there is no convergence delta.
        conditions: under what conditions it sums to that exactly.
    """

    seed: Literal["1", "f_t", ""]
    output: Literal["coefficient", "relevance"]
    sums_to: Literal["", "f", "f - f'", "1"] = ""
    conditions: str = ""

    @property
    def complete(self) -> bool:
        """A sum is claimed, so that there is a convergence delta."""
        return bool(self.sums_to)


class Method(ABC):
    """Whatever explains the predictions of a model.

    ``class MyMethod(Method, name="my_method")`` makes a method known by a name: to :func:`relprop.explain` and to
    :func:`relprop.methods`. A class without a name is a method all the same.

    Attributes:
        model: the model, which no method writes to.
        contract: what the method declares of itself.
        named: the methods that have a name.
        per_sample: the options of ``attribute`` that hold one entry for every sample, as baselines may: what runs the
            method on a part of the batch hands over that part of them.
        takes_seed: ``attribute`` draws numbers from a ``seed``: what averages the method gives every run of it another.
    """

    contract: Contract
    per_sample: tuple[str, ...] = ()
    takes_seed: bool = False
    named: ClassVar[dict[str, type[Method]]] = {}

    def __init_subclass__(cls, *, name: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "attribute" in cls.__dict__:
            cls.attribute = one_attribution(cls.attribute)  # type: ignore[method-assign]
        if name is None:
            return
        if not name:
            raise MethodError(f"{cls.__name__}: the name of a method must not be empty.")
        taken = Method.named.get(name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise MethodError(f"{name!r} is the name of {taken.__qualname__}; choose another name.")
        Method.named[name] = cls  # a class that is defined again, as in a notebook, takes its own place

    def __init__(self, model: nn.Module) -> None:
        self.model = as_model(model)

    @abstractmethod
    def attribute(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return a map for every input, in the structure and the shapes of ``inputs``."""

    def explained(
        self,
        inputs: Any,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        forward_kwargs: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Return the value that is explained, ``[N]``: the output, or the hidden unit, that the target names.

        The arguments are those of :meth:`Attribution.attribute`. Nothing is differentiated, and nothing of the model is
        written.
        """
        given = as_inputs(inputs)
        read = reading(self.model, target, given.samples)
        call = Call(self.model, None, operations())
        with attribution_of(self.model), torch.inference_mode(False), torch.no_grad():
            try:
                first, named = given.arguments([tensor.clone() for tensor in given.tensors])
                args = (*first, *as_args(additional_forward_args))
                kwargs = {**named, **as_kwargs(forward_kwargs)}
                return forward(call, Given((), (), None), args, kwargs, [read]).selected[0]
            finally:
                call.close()

    def _no_claim(self) -> str:
        """Return why no sum is claimed, in brackets, where it is not the method but what it was made from."""
        return ""

    def require_completeness(self) -> None:
        """Raise where no sum is claimed."""
        if not self.contract.complete:
            raise InputError(
                f"{type(self).__name__} does not claim to sum to the output{self._no_claim()}, so it has no "
                "convergence delta and no report. Use GradientXInput or LRP."
            )
