"""Networks whose plain gradient is explained: modes that replace what a model calls by something of equal value.

Under :class:`GatesConstant` only gates are changed: they are constants. Under
:class:`benchmarks._zoo_surrogate.Surrogate` everything that has a rule of its own is. Nothing here comes from relprop.

A tensor takes part when it asks for a gradient, so the parameters of the model must be frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from benchmarks._zoo_operations import LINEAR, MAPS, OUT_OF_PLACE, VIEWS, spelling

Function = Callable[..., Any]


def active(x: Any) -> bool:
    """Say whether an argument depends on the explained input."""
    return isinstance(x, Tensor) and x.requires_grad


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in arguments or results."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors(part)


@dataclass(frozen=True)
class Known:
    """What is known of a tensor: whether it is a gate, and of how many factors its terms are products."""

    gate: bool = False
    factors: int = 1


class GatesConstant(TorchFunctionMode):
    """Runs a model as it is, but for gates: a sigmoid that multiplies something else is a constant."""

    def __init__(self) -> None:
        super().__init__()
        self._known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not any(map(active, tensors((args, kwargs)))):
            return func(*args, **kwargs)
        name, in_place = spelling(func)
        handler = self.view if name in VIEWS else self.handler(name)
        if handler is None:
            return self.noted(name, func(*args, **kwargs), args, kwargs)
        if not in_place:
            return handler(func, *args, **kwargs)
        target = args[0]
        value = handler(OUT_OF_PLACE[name], target.clone(), *args[1:], **kwargs)
        return self.note(target.copy_(value), self.known(value))

    def handler(self, name: str) -> Function | None:
        """Return what runs an operation in its place; None for the operation itself."""
        own: dict[str, Function] = {
            "sigmoid": self.do_sigmoid,
            "hardsigmoid": self.do_sigmoid,
            "mul": self.do_mul,
            "div": self.do_div,
            "batch_norm": self.do_batch_norm,
        }
        return own.get(name)

    def noted(self, name: str, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Remember what is known of the result of an operation that runs as it is: sums of products stay such."""
        counts = {self.known(x).factors for x in tensors((args, kwargs)) if active(x)}
        if not isinstance(out, Tensor):
            return out
        follows = len(counts) == 1 and (name in LINEAR or name == "relu")
        gate = name in LINEAR and name not in MAPS and self.only_gates(args, kwargs)
        return self.note(out, Known(gate, counts.pop() if follows else 1))

    def only_gates(self, *given: Any) -> bool:
        """Say whether all that depends on the input is made of gates."""
        return all(self.known(x).gate for x in tensors(given) if active(x))

    def known(self, x: Any) -> Known:
        """Return what is known of a tensor."""
        found: Known = self._known.get(x, Known()) if isinstance(x, Tensor) else Known()
        return found

    def note(self, out: Tensor, known: Known) -> Tensor:
        """Remember something of a tensor, and return it."""
        self._known[out] = known  # in place of what was known of it, where it was written into
        return out

    def view(self, func: Function, *args: Any, **kwargs: Any) -> Any:
        """What moves values keeps what is known of them."""
        out = func(*args, **kwargs)
        source = next(tensors((args, kwargs)))
        for part in tensors(out):
            self.note(part, self.known(source))
        return out

    def do_sigmoid(self, func: Function, z: Tensor, inplace: bool = False) -> Tensor:
        """A sigmoid, which may come to act as a gate."""
        return self.note(func(z), Known(gate=True))

    def do_mul(self, func: Function, a: Any, b: Any) -> Tensor:
        """A product, or something times a constant."""
        if active(a) and active(b):
            return self.note(func(*self.shared(a, b)), self.product(a, b))
        return self.note(func(a, b), self.known(a if active(a) else b))

    def do_div(self, func: Function, a: Any, b: Any, **kwargs: Any) -> Tensor:
        """A quotient."""
        out: Tensor = func(a, b, **kwargs)
        return self.note(out, Known(gate=self.only_gates(a, b)) if active(b) else self.known(a))

    def do_batch_norm(
        self, func: Function, x: Tensor, mean: Tensor, var: Tensor, weight: Any = None, bias: Any = None,
        training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
    ) -> Tensor:  # fmt: skip
        """Batch norm by running statistics: PyTorch's own derivative is wrong for some strides of a single image."""
        assert not training
        shape = (1, -1, *(1,) * (x.dim() - 2))
        scale = torch.rsqrt(var + eps) if weight is None else weight * torch.rsqrt(var + eps)
        shift = -mean * scale if bias is None else bias - mean * scale
        out = x * scale.reshape(shape) + shift.reshape(shape)
        return self.note(out, Known(factors=self.known(x).factors))

    def gates(self, *factors: Any) -> list[bool]:
        """Say of each factor of a product whether it is a gate: not where there are only gates."""
        found = [active(x) and self.known(x).gate for x in factors]
        return found if sum(found) < sum(map(active, factors)) else [False] * len(factors)

    def product(self, *factors: Any) -> Known:
        """Return what is known of a product."""
        gates = self.gates(*factors)
        counts = [self.known(x).factors for x, gate in zip(factors, gates, strict=True) if active(x) and not gate]
        return Known(self.only_gates(factors), sum(counts))

    def shared(self, *factors: Any) -> list[Any]:
        """Return the factors of a product as relevance is to pass to them."""
        return [x.detach() if gate else x for x, gate in zip(factors, self.gates(*factors), strict=True)]


def gradient_times_input(
    model: nn.Module, x: Tensor, score: Callable[[Any], Tensor], mode: TorchFunctionMode
) -> tuple[Tensor, Tensor]:
    """Return the explained output ``[N]`` and Gradient x Input under a mode.

    Args:
        model: its parameters are frozen for the time of the call.
        x: the input.
        score: what is explained, from what the model returned.
        mode: one of those here.
    """
    asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in asked:
            parameter.requires_grad_(False)
        leaf = x.detach().clone().requires_grad_()
        with mode:
            found = model(leaf * 1.0)
        output = score(found)
        (gradient,) = torch.autograd.grad(output.sum(), leaf)
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)
    return output.detach(), x * gradient
