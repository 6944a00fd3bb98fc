"""What wraps another method: it explains the same model, and what it declares follows from what it wraps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from inspect import Parameter, signature
from typing import Any

from relprop.attribution.contract import Contract, Method
from relprop.errors import InputTypeError, MethodError, near
from relprop.randomness import Draws


class Wrapper(Method):
    """A method that runs another one several times, and makes one map of the maps.

    Args:
        method: any method, made from a model.

    Raises:
        MethodError: for anything else, such as a model.
    """

    def __init__(self, method: Method) -> None:
        self.method = as_method(method, type(self).__name__)
        super().__init__(method.model)
        self.per_sample = method.per_sample
        self.takes_seed = self.takes_seed or method.takes_seed
        # The maps of other inputs sum to the outputs for those, so no sum is claimed.
        self.contract = Contract(method.contract.seed, method.contract.output)

    def runs(self, source: Draws) -> Callable[..., Any]:
        """Return the method's ``attribute``; where it draws numbers of its own, with another seed for every run."""
        if not self.method.takes_seed:
            return self.method.attribute
        seeds = source.branch()

        def attribute(*args: Any, **options: Any) -> Any:
            return self.method.attribute(*args, seed=seeds.seed(), **options)

        return attribute


def as_method(method: Any, wrapper: str) -> Method:
    """Return a method that is to be wrapped.

    Raises:
        MethodError: where it is none.
    """
    if isinstance(method, Method):
        return method
    what = f"the class {method.__name__}" if isinstance(method, type) else type(method).__name__
    raise MethodError(f"{wrapper} wraps a method, got {what}. Write {wrapper}(Gradient(model)), or another method.")


def check_options(methods: Sequence[Method], options: Iterable[str], wrapper: str) -> None:
    """Raise where options are meant for the ``attribute`` of methods that do not take them.

    Raises:
        InputTypeError: for such an option.
    """
    for method in methods:
        takes = signature(method.attribute).parameters
        if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in takes.values()):
            continue  # a wrapper, which asks what it wraps
        for option in options:
            if option not in takes:
                raise InputTypeError(
                    f"{wrapper} hands {option!r} over to {type(method).__name__}, whose attribute does not take it."
                    f"{near(option, takes)} It takes {', '.join(takes)}."
                )
