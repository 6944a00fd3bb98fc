"""What every method declares of itself, and what all methods have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, TypeVar, cast, get_args

import torch
from torch import Tensor, nn

from relprop.errors import InputError, MethodError
from relprop.inputs import Given, as_args, as_inputs, as_kwargs, as_model
from relprop.operations.table import operations
from relprop.propagation.call.call import Call
from relprop.propagation.call.way import Autograd
from relprop.propagation.run.forward import forward
from relprop.targets import Target, reading
from relprop.training import attribution_of, one_attribution

F = TypeVar("F", bound=Callable[..., Any])
Seed: TypeAlias = Literal["1", "f_t", ""]
Output: TypeAlias = Literal["coefficient", "relevance"]
SumsTo: TypeAlias = Literal["", "f", "f - f'", "1"]


@dataclass(frozen=True)
class Contract:
    """What the numbers of a method are, and what they promise.

    Args:
        seed: what arrives at the explained output: ``"1"``, or ``"f_t"``, the output itself as relevance; empty
            where the map does not come from a backward (some run one to find what the output depends on).
        output: ``"coefficient"``, like a gradient, which says how the output changes; or ``"relevance"``, shares of
            the output.
        sums_to: what the relevance is meant to sum to, ``"f"``, ``"f - f'"`` or ``"1"``; empty where no sum is claimed,
            so that there is no convergence delta.
        conditions: under what conditions it sums to that exactly.

    Raises:
        MethodError: for a value that is none of these.

    >>> Contract("1", "relevance", "f", "where no operation has a bias").complete, Contract("1", "coefficient").complete
    (True, False)
    """

    seed: Seed
    output: Output
    sums_to: SumsTo = ""
    conditions: str = ""

    def __post_init__(self) -> None:
        for field, literal in (("seed", Seed), ("output", Output), ("sums_to", SumsTo)):
            given, known = getattr(self, field), get_args(literal)
            if given not in known:
                raise MethodError(f"{field} of a Contract is one of {', '.join(map(repr, known))}; got {given!r}.")
        if not isinstance(self.conditions, str):
            raise MethodError(f"conditions of a Contract are words, got {self.conditions!r}.")

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

    Raises:
        ModelError: where the model is no ``nn.Module``, or is scripted, quantised, without weights as yet, or built
            under ``inference_mode``. So does every method that is made from a model, and does not say it again.

    >>> from relprop import Gradient
    >>> class Doubled(Method):
    ...     '''Twice the gradient.'''
    ...     contract = Contract("1", "coefficient")
    ...     def attribute(self, inputs, target=None):
    ...         return 2 * Gradient(self.model).attribute(inputs, target)
    >>> model = nn.Linear(2, 1)
    >>> _ = model.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    >>> Doubled(model).attribute(torch.tensor([[1.0, 2.0]]))
    tensor([[ 6., -2.]])
    """

    contract: Contract
    per_sample: tuple[str, ...] = ()
    takes_seed: bool = False
    named: ClassVar[dict[str, type[Method]]] = {}

    def __init_subclass__(cls, *, name: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "attribute" in cls.__dict__:
            cls.attribute = one_attribution(_of_its_contract(cls.attribute))  # type: ignore[method-assign]
        if name is None:
            return
        given: Any = name
        if not isinstance(given, str) or not given:
            raise MethodError(f"{cls.__name__}: the name of a method is a string and must not be empty, got {name!r}.")
        taken = Method.named.get(name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise MethodError(f"{name!r} is the name of {taken.__qualname__}; choose another name.")
        Method.named[name] = cls  # a class that is defined again, as in a notebook, takes its own place

    def __init__(self, model: nn.Module) -> None:
        self.model = as_model(model)

    if not TYPE_CHECKING:  # to which any attribute would exist

        def __getattr__(self, name: str) -> Any:
            if name in _MISSING:
                raise MethodError(f"{type(self).__name__} has no {name}: {_MISSING[name]}")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

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

        Nothing is differentiated, and nothing of the model is written.

        Args:
            inputs, target, additional_forward_args, forward_kwargs: see :meth:`Attribution.attribute`.

        Raises:
            RelpropError: see :mod:`relprop.errors`.
        """
        given = as_inputs(inputs)
        read = reading(self.model, target, given.samples)
        call = Call(self.model, Autograd(), operations())
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


_MISSING = {
    "model": "its constructor does not call super().__init__(model). Write that in its first line.",
    "contract": (
        'it does not say what its numbers are. Write contract = Contract("1", "relevance") in the class, or '
        "self.contract = ... in its constructor where that follows from what it wraps; see relprop.Contract."
    ),
}
"""What every method has, and what to write where one does not."""


def _of_its_contract(attribute: F) -> F:
    """Return the ``attribute`` of a method, which gives no convergence delta where no sum is claimed."""
    parameters = signature(attribute).parameters
    takes = any(p.name == _DELTA or p.kind is Parameter.VAR_KEYWORD for p in parameters.values())
    if not takes:
        return attribute

    @wraps(attribute)
    def claiming(self: Method, *args: Any, **options: Any) -> Any:
        if options.get(_DELTA):
            self.require_completeness()
        return attribute(self, *args, **options)

    return cast("F", claiming)


_DELTA = "return_convergence_delta"
