"""What wraps another method: it explains the same model, and what it declares follows from what it wraps."""

from __future__ import annotations

from typing import Any

from relprop.attribution.contract import Contract, Method
from relprop.errors import MethodError


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
        # The maps of other inputs sum to the outputs for those, so no sum is claimed.
        self.contract = Contract(method.contract.seed, method.contract.output)


def as_method(method: Any, wrapper: str) -> Method:
    """Return a method that is to be wrapped.

    Raises:
        MethodError: where it is none.
    """
    if isinstance(method, Method):
        return method
    what = f"the class {method.__name__}" if isinstance(method, type) else type(method).__name__
    raise MethodError(f"{wrapper} wraps a method, got {what}. Write {wrapper}(Gradient(model)), or another method.")
