"""Operations of users: a kernel of their own, an autograd function or any Python function gets its row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn
from torch._library.custom_ops import CustomOpDef
from torch._ops import OpOverload, OpOverloadPacket

from relprop.errors import OperationError, UncoveredOperationError, near
from relprop.operations.activations import about, elementwise
from relprop.operations.composites import with_value
from relprop.operations.products import joined, product
from relprop.operations.rows import functions_named
from relprop.operations.table import TORCH, declare, operations
from relprop.propagation.call.operation_call import Here, native
from relprop.propagation.call.returned import check_outputs
from relprop.propagation.call.visible import make_apply_visible, once_differentiable, visible
from relprop.propagation.facts.inheritance import ANYWHERE, keeps_nothing, moved, of_all
from relprop.propagation.facts.inheritance import function as function_of_one
from relprop.propagation.facts.operation import (
    Difference,
    Excitation,
    Handler,
    Holds,
    Ids,
    Image,
    Kind,
    Operation,
    Truth,
    Writes,
)
from relprop.propagation.run.in_place import writes_first
from relprop.trees import map_tensors, tensors_in

Declared = TypeVar("Declared", bound=Callable[..., Any])

_STATED = (
    Kind.ACTIVATION, Kind.AFFINE, Kind.VIEW, Kind.PRODUCT, Kind.COMPOSITE, Kind.LINEAR, Kind.POOLING, Kind.NORM,
    Kind.SOFTMAX, Kind.ATTENTION,
)  # fmt: skip
"""The kinds that can be stated; the others are what operations come to be when they run."""

_BY_ITSELF = (Kind.AFFINE, Kind.VIEW, Kind.PRODUCT)
"""The kinds that say all: what stands in for autograd's own backward follows from them."""


@overload
def operation(
    function: Declared,
    *,
    kind: Kind | str,
    name: str | None = ...,
    quotient: Callable[..., Tensor] | None = ...,
    root: float | None = ...,
    bounds: tuple[float, float] | None = ...,
    gate: bool = ...,
    body: Callable[..., Any] | None = ...,
    handler: Handler | None = ...,
    difference: Difference | str | None = ...,
    deterministic: bool = ...,
) -> Declared: ...


@overload
def operation(
    *,
    kind: Kind | str,
    name: str | None = ...,
    quotient: Callable[..., Tensor] | None = ...,
    root: float | None = ...,
    bounds: tuple[float, float] | None = ...,
    gate: bool = ...,
    body: Callable[..., Any] | None = ...,
    handler: Handler | None = ...,
    difference: Difference | str | None = ...,
    deterministic: bool = ...,
) -> Callable[[Declared], Declared]: ...


def operation(
    function: Any = None,
    *,
    kind: Kind | str,
    name: str | None = None,
    quotient: Callable[..., Tensor] | None = None,
    root: float | None = None,
    bounds: tuple[float, float] | None = None,
    gate: bool = False,
    body: Callable[..., Any] | None = None,
    handler: Handler | None = None,
    difference: Difference | str | None = None,
    deterministic: bool = True,
) -> Any:
    """Declare what a function of your own is, so that every method explains it as its kind.

    Definition: by kind, ``f`` is

    - ``"activation"``: a function of its first argument, entry by entry; Pass gives it ``c q(z)`` with
      ``quotient`` ``q(z) = (f(z) - f(0)) / z``;
    - ``"affine"``: ``A x + b`` in all arguments that depend on the input together: autograd's backward is right;
    - ``"view"``: it moves values of its first argument, or drops some;
    - ``"product"``: a sum of products, with one entry of every tensor argument each: active factors share as in
      ``a * b``;
    - ``"composite"``: what ``body`` computes, which calls functions that have rows: the value is that of ``f``, the
      explanation that of ``body``;
    - any other kind of rule (``"linear"``, ``"norm"``, ``"pooling"``, ``"softmax"``, ``"attention"``), and each of
      these too, by a ``handler`` of your own.

    A function that is declared again replaces what was declared. Nothing changes where no call of relprop runs.

    Args:
        function: an operator of ``torch.library`` (one overload or all), a subclass of ``torch.autograd.Function``,
            any Python function, or a function of torch that relprop knows no row of. Left out: returns a decorator.
        kind: see above; a :class:`relprop.operations.Kind` or its name.
        name: as plans and reports show it; by default that of the function, with the namespace of an operator.
        quotient: takes the arguments of ``f`` and returns a number for every entry of its output. At 0 it is the
            derivative, and finite; written so that nothing cancels near it.
        root: for a function without a value at 0, one of its zeros: then ``q(z) = f(z) / (z - root)``, and what belongs
            to ``-root`` absorbs like a bias. None: it has a value at 0.
        bounds: between which the values of an activation lie, whatever its argument; None: anywhere.
        gate: an activation that switches what it multiplies, as a sigmoid does: it receives nothing of a product.
        body: takes the arguments of ``f`` and computes the same. It must not call ``f``.
        handler: runs one call, ``handler(here, *args, **kwargs)``, by a rule; see :class:`relprop.operations.Here`.
            What it returns explains the call; the value stays that of ``f``.
        difference: how DeepLIFT takes it, a :class:`relprop.operations.Difference` or its name; by default
            ``"kinked"`` for activations (``"smooth"`` is more exact where they are smooth everywhere), ``"poles"`` for
            those with a root, what the kind says for the others, ``"uncovered"`` for a handler of your own.
        deterministic: running it twice gives the same; False for what draws numbers, which a report then runs once.

    Returns:
        The function to call: a Python function made visible to relprop, everything else itself.

    Raises:
        OperationError: for arguments that contradict each other, and for a function of torch that has a row; while
            explaining, for a quotient, body or handler that returns None, or another shape than ``f``.

    >>> import torch
    >>> from relprop import LRP, operation
    >>> @operation(kind="activation", quotient=torch.sigmoid)
    ... def swish(z):
    ...     return z * torch.sigmoid(z)
    >>> class Swish(torch.nn.Module):
    ...     def forward(self, x):
    ...         return swish(x)
    >>> LRP(Swish()).attribute(torch.tensor([[2.0]]))
    tensor([[1.7616]])
    """
    stated = _Stated(
        _kind(kind), name, quotient, root, bounds, gate, body, handler, _difference(difference), deterministic
    )
    stated.check()
    return stated.declare if function is None else stated.declare(function)


@dataclass(frozen=True)
class _Stated:
    """What is said of an operation."""

    kind: Kind
    name: str | None
    quotient: Callable[..., Tensor] | None
    root: float | None
    bounds: tuple[float, float] | None
    gate: bool
    body: Callable[..., Any] | None
    handler: Handler | None
    difference: Difference | None
    deterministic: bool

    def check(self) -> None:
        """Raise where the arguments contradict each other."""
        kind, activation = self.kind, self.kind is Kind.ACTIVATION
        given = {"quotient": self.quotient, "body": self.body, "handler": self.handler}
        ways = [way for way, value in given.items() if value is not None]
        for way in ways:
            if not callable(given[way]):
                raise OperationError(f"{way} is a function, got {given[way]!r}.")
        if len(ways) > 1:
            raise OperationError(f"{' and '.join(ways)} say twice what runs the operation; give one of them.")
        if not activation:
            of_activations = {"quotient": self.quotient, "root": self.root, "bounds": self.bounds}
            stated = [word for word, value in of_activations.items() if value is not None] + ["gate"] * self.gate
            if stated:
                raise OperationError(f'{stated[0]} is said of activations; write kind="activation", or leave it out.')
        if self.root is not None and self.quotient is None:
            raise OperationError("root needs a quotient, f(z) / (z - root).")
        if self.body is not None and kind is not Kind.COMPOSITE:
            raise OperationError('body is what a composite computes; write kind="composite", or leave it out.')
        if activation and not ways:
            raise OperationError(
                "An activation needs its quotient, (f(z) - f(0)) / z with the derivative at 0, such as "
                "quotient=torch.sigmoid for z * sigmoid(z); or a handler."
            )
        if kind is Kind.COMPOSITE and self.body is None:
            raise OperationError(
                "A composite needs its body: a function that computes the same from operations that have rows."
            )
        if not ways and kind not in _BY_ITSELF:
            raise OperationError(f'kind="{kind}" does not say how relevance passes; give a handler.')
        if self.bounds is not None and not _are_bounds(self.bounds):
            raise OperationError(f"bounds are (low, high) with low <= high, got {self.bounds!r}.")

    def declare(self, function: Any) -> Any:
        """Make the row known, and return the function to call."""
        called, keys = _called(function)
        if self.name is not None and any(row.name == self.name for row in TORCH.values()):
            raise OperationError(
                f"{self.name!r} is the name of an operation of PyTorch, on which rules are set; give another, such as "
                f"name='my.{self.name}'."
            )
        row = self._row(self.name or _name(function), function)
        declare(dict.fromkeys((function, called, *keys), row))
        return called

    def _row(self, name: str, function: Any) -> Operation:
        view, composite = self.kind is Kind.VIEW, self.kind is Kind.COMPOSITE
        return Operation(
            name,
            self.kind,
            handler=self._handler(function),
            keeps=self._keeps(),
            difference=self._difference(),
            excitation=Excitation.AS_RULES,
            rectifies=None,
            ids=Ids.MOVES if view else Ids.CHANGES if self.kind is Kind.ACTIVATION else Ids.COMPUTES,
            entering=(0,) if view else (),
            image=Image.MOVES if view else Image.NOTHING,
            holds=Holds.NOTHING,
            updates=None,
            writes=Writes.VALUES if writes_first(function) else Writes.NOTHING,
            pure=None,
            truth=Truth.NOTHING,
            composite=composite,
            deterministic=self.deterministic,
        )

    def _keeps(self) -> Any:
        if self.kind is Kind.ACTIVATION:
            return function_of_one(*(self.bounds or ANYWHERE), gate=self.gate, homogeneous=False)
        return of_all(moved) if self.kind is Kind.VIEW else keeps_nothing

    def _difference(self) -> Difference:
        if self.difference is not None:
            return self.difference
        if self.handler is not None:
            return Difference.UNCOVERED
        if self.kind is Kind.ACTIVATION:
            return Difference.KINKED if self.root is None else Difference.POLES
        return _DIFFERENCES[self.kind]

    def _handler(self, function: Any) -> Handler:
        if self.body is not None:
            return partial(_by_body, self.body)
        handler: Handler | None = None if self.handler is None else partial(_by_handler, self.handler)
        if handler is None and self.quotient is not None:
            quotient = self.quotient
            handler = partial(elementwise, quotient) if self.root is None else partial(about, self.root, quotient)
            handler = partial(_of_first, handler)
        if handler is None:
            handler = _product if self.kind is Kind.PRODUCT else native
        once = isinstance(function, type) and once_differentiable(function)
        return partial(_once, handler, self.kind in _BY_ITSELF) if once else handler


_DIFFERENCES = {
    Kind.AFFINE: Difference.LINEAR,
    Kind.VIEW: Difference.MOVES,
    Kind.PRODUCT: Difference.CONTRACTION,
    Kind.COMPOSITE: Difference.AS_RULES,
}


# Handlers ----------------------------------------------------------------------------------------


def _of_first(handler: Handler, here: Here, input: Any, *args: Any, **kwargs: Any) -> Any:
    """An activation, where it depends on the input by its first argument alone."""
    if here.active(input) and not any(map(here.active, (*args, *kwargs.values()))):
        return handler(here, input, *args, **kwargs)
    here.uncovered("depends on the input by an argument that is not its first")
    return here.func(input, *args, **kwargs)


def _by_body(body: Callable[..., Any], here: Here, *args: Any, **kwargs: Any) -> Any:
    """What is explained as its body; the value stays that of the function."""
    try:
        found = body(*args, **kwargs)
    except RecursionError:
        raise OperationError(
            f"The body {here.where} calls {here.operation} itself, without end; write it in operations that have rows."
        ) from None
    return _valued(here, "body", _value(here, args, kwargs), found)


def _by_handler(handler: Handler, here: Here, *args: Any, **kwargs: Any) -> Any:
    """What a handler explains; the value stays that of the function, which runs once where the handler runs it."""
    func = here.func
    if not here.call.way.explains:  # no rule explains anything
        return func(*args, **kwargs)
    made: list[Any] = []

    def kept(*given: Any, **named: Any) -> Any:
        out = func(*given, **named)
        if _same((given, named), (args, kwargs)):
            made.append(out)
        return out

    here.func = kept
    try:
        found = handler(here, *args, **kwargs)
    finally:
        here.func = func
    value = made[0] if made else _value(here, args, kwargs)
    return _valued(here, "handler", value, found)


def _value(here: Here, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what the function gives, by which nothing is explained."""
    with torch._C.DisableTorchFunction(), torch.set_grad_enabled(here.call.options.create_graph):
        return here.func(*args, **kwargs)


def _valued(here: Here, what: str, value: Any, found: Any) -> Any:
    """Return the value of a function, explained as what its body or handler made in its place, checked."""
    with torch._C.DisableTorchFunction():  # the mode runs what a body is made of, and that alone
        made = check_outputs(what, found, value, here.where)
        surrogates = dict(zip(map(id, tensors_in(value)), made, strict=True))

        def explained(native: Tensor) -> Tensor:
            surrogate = surrogates[id(native)]
            return native if surrogate is native else with_value(here, native, surrogate)

        return map_tensors(explained, value)


def _same(given: Any, others: Any) -> bool:
    """Say whether arguments hold the same numbers, in a graph or not."""

    def where(x: Tensor) -> tuple[Any, ...]:
        return (x.data_ptr(), x.shape, x.stride()) if x.layout is torch.strided else (id(x),)

    return [*map(where, tensors_in(given))] == [*map(where, tensors_in(others))]


def _product(here: Here, *args: Any, **kwargs: Any) -> Any:
    """A sum of products with one entry of every tensor."""
    given = tensors_in((args, kwargs))  # a tensor that is given twice is two factors
    if sum(map(here.active, given)) < 2:
        return native(here, *args, **kwargs)
    shared = product(here, tuple(given))

    def compute(*factors: Tensor) -> Tensor:
        left = iter(factors)
        placed: tuple[Any, Any] = map_tensors(lambda _: next(left), (args, kwargs))
        return here.func(*placed[0], **placed[1])  # type: ignore[no-any-return]

    return joined(here, compute(*shared), compute, shared)


def _once(handler: Handler, by_itself: bool, here: Here, *args: Any, **kwargs: Any) -> Any:
    """An autograd function whose backward has no derivative: no gradient may come to explain by it twice."""
    if here.call.options.create_graph and (by_itself or not here.call.way.explains):
        raise UncoveredOperationError(
            f"{here.operation} is once_differentiable; create_graph needs its second derivative."
        )
    return handler(here, *args, **kwargs)


# Functions ---------------------------------------------------------------------------------------


def _called(function: Any) -> tuple[Any, Iterable[Any]]:
    """Return what is to be called for a function, and all that a model may call besides."""
    if isinstance(function, CustomOpDef):
        packet, overloads = _called(function._opoverload.overloadpacket)
        return function, (packet, *overloads)
    if isinstance(function, OpOverloadPacket):
        return function, (getattr(function, overload) for overload in function.overloads())
    if isinstance(function, OpOverload):
        return function, (function.overloadpacket,)
    if isinstance(function, type) and issubclass(function, torch.autograd.Function):
        make_apply_visible(function)
        return function, (function.apply,)
    if isinstance(function, torch.autograd.Function):
        raise OperationError(f"Declare the class {type(function).__name__} itself, not an instance of it.")
    if isinstance(function, (type, nn.Module)) or not callable(function):
        raise OperationError(
            f"{function!r} is no function: declare the operator, the autograd function or the Python function that a "
            "module calls, not the module."
        )
    if getattr(function, "__self__", None) is not None and isinstance(function.__self__, type):
        owner = function.__self__
        if issubclass(owner, torch.autograd.Function):
            raise OperationError(f"Declare {owner.__name__} itself, not its apply.")
    named = list(_of_torch(function))
    if not named:
        return visible(function), ()
    if _covered(function):
        raise OperationError(
            f"relprop has a row for {named[0].__name__}, of kind {TORCH[function].kind}, which is not replaced. "
            "Set a rule on it (Rules().set), or call a function of your own."
        )
    return function, (other for other in named if not _covered(other))


def _covered(function: Any) -> bool:
    """Say whether relprop has a rule for a function of torch."""
    return function in TORCH and TORCH[function].kind not in (Kind.CONSTANT, Kind.UNKNOWN)


def _of_torch(function: Any) -> Iterator[Any]:
    """Yield a function of torch in all its spellings; nothing for a function that is none."""
    name = getattr(function, "__name__", "")
    for prefix in ("", "special_", "linalg_", "fft_"):
        found = list(functions_named(name.removeprefix(prefix)))
        if function in found:
            yield from found
            return
    if function in TORCH:
        yield function


def _name(function: Any) -> str:
    """Return the name of an operation: with its namespace, or its module where another operation has the name.

    Rules are set on operations, and rows of a plan told apart, by it.
    """
    if isinstance(function, CustomOpDef):
        function = function._opoverload
    if isinstance(function, (OpOverload, OpOverloadPacket)):
        packet = function.overloadpacket if isinstance(function, OpOverload) else function
        return packet._qualified_op_name.replace("::", ".")
    name: str = getattr(function, "__name__", type(function).__name__)
    taken = {row.name for other, row in operations().items() if _origin(other) != _origin(function)}
    qualified = f"{getattr(function, '__module__', 'own')}.{name}"
    return next((free for free in (name, qualified) if free not in taken), _origin(function))


def _origin(function: Any) -> str:
    """Return where a function is defined, by which it is known when it is declared again."""
    if isinstance(function, (CustomOpDef, OpOverload, OpOverloadPacket)):
        return _name(function)
    inner = getattr(function, "__self__", None) if getattr(function, "__name__", "") == "apply" else None
    found = inner if isinstance(inner, type) else function
    return f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', repr(found))}"


def _kind(kind: Any) -> Kind:
    names = [str(stated) for stated in _STATED]
    if kind not in names:
        raise OperationError(f"kind is one of {', '.join(names)}; got {kind!r}.{near(str(kind), names)}")
    return Kind(kind)


def _are_bounds(bounds: Any) -> bool:
    """Say whether these are two numbers, the lower one first."""
    pair = isinstance(bounds, (tuple, list)) and len(bounds) == 2
    return pair and all(isinstance(end, Real) for end in bounds) and bounds[0] <= bounds[1]


def _difference(difference: Any) -> Difference | None:
    if difference is None or isinstance(difference, Difference):
        return difference
    names = [way.value for way in Difference]
    if difference not in names:
        raise OperationError(f"DeepLIFT takes an operation as {', '.join(names)}; got {difference!r}.")
    return Difference(difference)
