"""What a model may do in its forward pass that differentiates, maps or hooks: followed, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from relprop.errors import ModelError
from relprop.propagation.call.call import Call
from relprop.trees import tensors_in

_DIFFERENTIATES = frozenset({torch.autograd.grad, torch.Tensor.backward})
_innermost: Callable[[], Any] = torch._C._functorch.peek_interpreter_stack


def transforming() -> bool:
    """Say whether a transform of ``torch.func`` (vmap, grad, ...) is running on this thread."""
    return _innermost() is not None


def run_transformed(call: Call, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a function inside a transform of ``torch.func``; only constants may pass one.

    Raises:
        ModelError: where an argument depends on the explained input.
    """
    if call.way.explains and any(call.known.graph.active(_beneath(x)) for x in tensors_in((args, kwargs))):
        name, module = call.place
        raise ModelError(
            f"Module {name!r} ({type(module).__name__}) applies a torch.func transform (vmap, grad, jvp, ...) to what "
            "depends on the input, and no rule can be applied inside one. Write the mapped dimension out "
            "(batched operations, or a loop); torch.func.functional_call needs no change."
        )
    return func(*args, **kwargs)


def _beneath(tensor: Tensor) -> Tensor:
    """Return the plain tensor inside the wrappers of transforms."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def refuse_gradient(call: Call, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise where a model differentiates what the rules have changed the derivative of.

    Inside an ``attach`` block the user may differentiate, but the model may not.
    """
    if func not in _DIFFERENTIATES or not call.way.explains or call.outside_model:
        return
    outputs = args[0] if args else kwargs.get("outputs", kwargs.get("self"))
    if any(call.known.graph.active(tensor) for tensor in tensors_in(outputs)):
        name, module = call.place
        raise ModelError(
            f"Module {name!r} ({type(module).__name__}) takes a gradient (torch.autograd.grad or backward) of what "
            "depends on the input, inside the forward pass. While relevance is explained gradients are coefficients, "
            "so the model would compute something else. Explain the part of the model that is differentiated."
        )


def hook_afterwards(call: Call, tensor: Tensor, hook: Callable[[Tensor], Any]) -> Any:
    """Register a hook on an active tensor: a hook of gradients has no say while relevance is explained."""
    call.coverage.uncovered(
        "register_hook",
        "sets a hook on a tensor that depends on the input. It is called with gradients only, and has no say where "
        "relevance is explained, whatever it returns; methods that are gradients obey it. Write what it does into the "
        "forward pass, or set it where the model is trained.",
    )

    def afterwards(gradient: Tensor) -> Any:
        return None if call.explaining else hook(gradient)

    return tensor.register_hook(afterwards)
