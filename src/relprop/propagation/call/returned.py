"""What a rule or an own operation returned, checked where it comes in: nothing, the wrong thing, or another shape.

Shapes and types cost nothing to look at. Numbers do: they are read where the result of a whole attribution is not
finite, in a second look at it (see :mod:`relprop.attribution.base`), which names the first that made them so, be it a
rule or another operation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from relprop.errors import NumericalError, OperationError, RuleError
from relprop.trees import tensors_in


class Where(NamedTuple):
    """The place at which a rule was asked: the name of the operation, and the module in which it runs."""

    operation: str
    name: str
    module: nn.Module | None

    def __str__(self) -> str:
        inside = type(self.module).__name__
        return f"at {self.operation!r} in {f'module {self.name!r} ({inside})' if self.name else inside}"


def check_tensor(found: Any, like: Tensor, what: str, method: Callable[..., Any], where: Where, hint: str) -> Tensor:
    """Return what a rule returned, which must be a tensor of the shape, the type and the device of ``like``.

    Args:
        found: what came.
        like: what it must be like.
        what: names ``like``, as in "the input a".
        method: of the rule, which returned it.
        where: was asked for it.
        hint: says what to write, where the shape is wrong.

    Raises:
        RuleError: where it is anything else.
    """
    if isinstance(found, Tensor) and (found.shape, found.dtype, found.device) == (like.shape, like.dtype, like.device):
        return found
    expected = f"a tensor of shape {tuple(like.shape)} and {like.dtype}, as {what}"
    if not isinstance(found, Tensor):
        raise RuleError(f"{_title(method, where)} returned {_kind(found)}, expected {expected}. {_instead(found)}")
    if found.shape != like.shape:
        raise RuleError(
            f"{_title(method, where)} returned a tensor of shape {tuple(found.shape)}, expected {expected}. {hint}"
        )
    if found.device != like.device:
        raise RuleError(
            f"{_title(method, where)} returned a tensor on {found.device}, expected one on {like.device}. Make what "
            f"it computes with there: torch.zeros(..., device={what.split()[-1]}.device), tensor.to(...)."
        )
    if not torch.is_autocast_enabled(like.device.type):
        raise RuleError(
            f"{_title(method, where)} returned a tensor of {found.dtype}, expected {expected}. Write .to({like.dtype}) "
            "behind what it returns."
        )
    return found


def check_connected(found: Tensor, given: Sequence[Tensor], method: Callable[..., Any], where: Where) -> None:
    """Raise where gradients are recorded, for a loss on the relevance, and what a rule returned has none.

    Raises:
        RuleError: says so.
    """
    if not found.requires_grad and torch.is_grad_enabled() and any(x.requires_grad for x in given):
        raise RuleError(
            f"{_title(method, where)} returned a tensor without a gradient, but with create_graph=True the relevance "
            "is to be differentiated. Compute it from what it is given, without .detach(), .data, .item() or "
            "torch.no_grad(); to hold something constant while relevance is explained, write flow.constant(...)."
        )


def versions(given: Iterable[Any]) -> list[int]:
    """Return how often each tensor was written to."""
    return [x._version if isinstance(x, Tensor) else 0 for x in given]


def check_unwritten(given: Mapping[str, Any], before: list[int], method: Callable[..., Any], where: Where) -> None:
    """Raise where a rule wrote into what it was given.

    Raises:
        RuleError: names the tensor.
    """
    after = versions(given.values())
    if after != before:
        name = next(name for name, was, now in zip(given, before, after, strict=True) if was != now)
        raise RuleError(
            f"{_title(method, where)} writes into {name}, which others use. Use operations that return a new "
            f"tensor, such as x * y for x *= y and x.clamp(...) for x.clamp_(...), or write into {name}.clone()."
        )


def check_shares(found: Any, factors: int, method: Callable[..., Any], where: Where) -> tuple[float, ...]:
    """Return the shares of the factors of a product: one finite number for each.

    Raises:
        RuleError: where they are anything else.
    """
    good = isinstance(found, (tuple, list)) and len(found) == factors
    if not good or not all(map(_is_number, found)):
        expected = f"a tuple of {factors} finite numbers, one for every factor"
        raise RuleError(f"{_title(method, where)} returned {_kind(found)}, expected {expected}. {_instead(found)}")
    return tuple(map(float, found))


def check_absorbed(found: Any, z: Tensor, method: Callable[..., Any], where: Where) -> dict[str, Tensor]:
    """Return by name what a rule says it absorbs, each for every output.

    Raises:
        RuleError: where it is no dict of names and tensors that broadcast to the output.
    """
    expected = (
        f"a dict from names such as 'bias' to tensors that broadcast to the output z, of shape {tuple(z.shape)}: what "
        "every output keeps of its relevance"
    )
    if not isinstance(found, Mapping):
        raise RuleError(f"{_title(method, where)} returned {_kind(found)}, expected {expected}. {_instead(found)}")
    for name, share in found.items():
        came = f"{_kind(name)} as a name" if not isinstance(name, str) else None
        if came is None and not isinstance(share, Tensor):
            came = f"{_kind(share)} for {name!r}"
        if came is None and not broadcasts(share, z):
            came = f"a tensor of shape {tuple(share.shape)} for {name!r}"
        if came is not None:
            raise RuleError(f"{_title(method, where)} returned {came}, expected {expected}.")
    return {name: share.expand_as(z) for name, share in found.items()}


def check_finite(
    found: Tensor, given: Sequence[Tensor], method: Callable[..., Any], where: Where, c: Tensor | None = None
) -> None:
    """Raise where a rule made NaN or infinity of what is finite, the coefficient ``c`` that arrived among it.

    Raises:
        RuleError: says so.
    """
    if all(bool(x.isfinite().all()) for x in given) and not bool(found.isfinite().all()):
        bad, largest = found[~found.isfinite()], 0.0 if c is None else float(c.detach().abs().max())
        title = f"{_title(method, where)} returned NaN or infinity in {bad.numel()} of {found.numel()} entries"
        if largest > math.sqrt(torch.finfo(found.dtype).max):
            raise RuleError(
                f"{title}: relevance has grown from layer to layer, to {largest:.2g} times the activation here, and "
                f"more does not fit {found.dtype}. A rule that ignores the bias divides by z - b, which may be far "
                "smaller than z, and LRP-0 or a small epsilon by sums that cancel. Let the bias absorb (bias='absorb', "
                "the preset without _ignore_bias), set a larger epsilon or stabilizer, or gamma or z+ on "
                "convolutions."
            )
        raise RuleError(
            f"{title}, where all it was given is finite. Divide by quotient(numerator, denominator, stabilizer) of "
            "relprop.rules, in which 0 / 0 = 0, and give functions arguments for which they are finite."
        )


_INFINITE = (
    "The operation has an infinite slope at this input, such as a root or a norm of zero, or the numbers do not fit "
    "their type. Explain in float64 or float32, or set a rule (Block, Detach, Pass) at the operation."
)


def check_sent(c: Tensor, where: Where) -> None:
    """Raise where an operation made NaN or infinity of coefficients that are finite.

    Raises:
        NumericalError: names it.
    """
    if not bool(c.isfinite().all()):
        raise NumericalError(
            f"The relevance becomes NaN or infinite {where}: finite coefficients arrive there, and those that it sends "
            f"to an input are not, in {int((~c.isfinite()).sum())} of {c.numel()} entries; no rule made it so. "
            f"{_INFINITE}"
        )


def check_arrived(c: Tensor, value: Tensor, where: Where) -> None:
    """Raise where the coefficients that arrive at an output are not finite, or come to what is not.

    Raises:
        NumericalError: names the operation.
    """
    if not bool(c.isfinite().all()):
        raise NumericalError(
            f"The coefficients that arrive {where} are NaN or infinite, and no call that relprop sees made them so: a "
            "method's seed, a hook, or an autograd function that no call made. Look there."
        )
    bad = (c != 0) & ~value.isfinite()
    if bool(bad.any()):
        raise NumericalError(
            f"The relevance becomes NaN or infinite {where}: {int(bad.sum())} of {bad.numel()} entries of its output "
            f"are NaN or infinite, and count in what is explained. {_INFINITE}"
        )


def check_quotient(found: Any, out: Tensor, where: Where) -> Tensor:
    """Return the quotient of an activation, which must have the shape of the output: one for every entry.

    Raises:
        OperationError: where it is anything else.
    """
    if isinstance(found, Tensor) and found.shape == out.shape:
        return found
    raise OperationError(
        f"The quotient {where} returned {_kind(found)}, expected a tensor of shape {tuple(out.shape)}, as the output: "
        f"one number for every entry. {_instead(found) if not isinstance(found, Tensor) else ''}".rstrip()
    )


def check_finite_quotient(found: Tensor, z: Tensor, out: Tensor, where: Where) -> None:
    """Raise where the quotient of an activation is NaN or infinite, and the activation itself is not.

    Raises:
        NumericalError: says at which argument.
    """
    bad = ~found.isfinite() & out.isfinite() & z.isfinite()
    if bool(bad.any()):
        raise NumericalError(
            f"The quotient {where} is NaN or infinite in {int(bad.sum())} of {bad.numel()} entries, as at z = "
            f"{float(z.detach().expand_as(bad)[bad][0]):.6g}, where z and the output are finite. At 0, and wherever "
            "it would be 0 / 0, the quotient is the derivative; where the operation has an infinite slope there, as "
            "a root at 0, set a rule (Block, Detach) at it."
        )


def check_outputs(what: str, found: Any, value: Any, where: Where) -> list[Tensor]:
    """Return the tensors that a handler or a body returned, which must be those of the function that it stands for.

    Args:
        what: returned it.
        found: what came.
        value: what the function returns.
        where: it stands.

    Raises:
        OperationError: where they are of another number, shape, device or kind of numbers.
    """
    came, expected = tensors_in(found), tensors_in(value)
    if len(came) == len(expected) and all(map(_alike, came, expected)):
        return came
    shown = [
        ", ".join(f"a tensor of shape {tuple(x.shape)}, {x.dtype}, on {x.device}" for x in tensors)
        for tensors in (came, expected)
    ]
    raise OperationError(
        f"The {what} {where} returned {shown[0] or _kind(found)}, expected {shown[1] or _kind(value)}, as the function "
        f"returns. {'' if came else _instead(found)}".rstrip()
    )


def _alike(found: Tensor, value: Tensor) -> bool:
    """Say whether a tensor can explain a value; a number of another precision can."""
    numbers = [(x.is_floating_point(), x.is_complex()) for x in (found, value)]
    return (found.shape, found.device, numbers[0]) == (value.shape, value.device, numbers[1])


def _title(method: Callable[..., Any], where: Where) -> str:
    """Name a method of a rule and the place where it was asked."""
    return f"{getattr(method, '__self__', method)!r}.{getattr(method, '__name__', '')} {where}"


def _kind(found: Any) -> str:
    """Say what came."""
    if found is None:
        return "None"
    if isinstance(found, Tensor):
        return f"a tensor of shape {tuple(found.shape)}"
    if isinstance(found, (tuple, list)):
        return f"a {type(found).__name__} of {len(found)}: {', '.join(type(item).__name__ for item in found[:4])}"
    return f"{type(found).__name__} ({repr(found)[:40]})"


def _instead(found: Any) -> str:
    """Say what to write instead of what came."""
    if found is None:
        return "Write `return` before the result."
    if hasattr(found, "send"):
        return "Write `return` in the place of `yield`."
    if hasattr(found, "__array__") and not isinstance(found, Tensor):
        return "Compute with torch in the place of NumPy; torch.as_tensor(...) makes a tensor of an array."
    return "Return that alone."


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def broadcasts(share: Tensor, z: Tensor) -> bool:
    """Say whether one tensor broadcasts to the shape of another."""
    try:
        return bool(torch.broadcast_shapes(share.shape, z.shape) == z.shape)
    except RuntimeError:
        return False
