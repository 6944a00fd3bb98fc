"""What a model is given: checked before anything runs."""

from __future__ import annotations

import operator
from collections.abc import Iterator, KeysView, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from relprop.errors import InputError, InputTypeError, ModelError, NumericalError, TrainingModeWarning, near, warn
from relprop.propagation.storage import map_tensors


def as_model(model: Any) -> nn.Module:
    """Return the model.

    Raises:
        ModelError: where it is no ``nn.Module``, or one built under ``inference_mode``.
    """
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise ModelError(f"A model must be an instance of torch.nn.Module, got {what}.")
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise ModelError(
            "A scripted or traced model hides its operations from relprop. Explain the model it was made from."
        )
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise ModelError(
            "The model was built under torch.inference_mode, so autograd cannot save its parameters. "
            "Build it, or copy it by copy.deepcopy, outside."
        )
    return model


def as_inputs(inputs: Any) -> tuple[Tensor, ...]:
    """Return the inputs as a tuple of tensors that can be explained.

    Raises:
        InputTypeError: for anything but tensors of floating point numbers, or of integers (token ids).
        InputError: for an empty batch, or batches of different sizes.
        NumericalError: for NaN and infinity.
    """
    tensors = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    if not tensors:
        raise InputError("No input was given; expected a tensor [N, ...] or a tuple of tensors.")
    for position, tensor in enumerate(tensors):
        name = f"Input {position}" if len(tensors) > 1 else "The input"
        if not isinstance(tensor, Tensor):
            raise InputTypeError(f"{name} must be a tensor, got {type(tensor).__name__}.")
        if tensor.dtype == torch.bool or tensor.is_complex():
            raise InputTypeError(f"{name} has dtype {tensor.dtype}; give floating point numbers, or integer token ids.")
        if tensor.dim() == 0 or tensor.shape[0] == 0 or tensor.numel() == 0:
            raise InputError(f"{name} has shape {tuple(tensor.shape)}: there is nothing to explain in an empty batch.")
        if tensor.shape[0] != tensors[0].shape[0]:
            raise InputError(f"{name} has a batch of {tensor.shape[0]}, the first one of {tensors[0].shape[0]}.")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NumericalError(f"{name} holds NaN or infinity; its relevance would be NaN everywhere.")
    return tuple(map(outside_inference, tensors))


def outside_inference(tensor: Tensor) -> Tensor:
    """Return a tensor that autograd can save: a copy, where it was made under ``inference_mode``."""
    if not tensor.is_inference():
        return tensor
    with torch.inference_mode(False):
        return tensor.clone()


def as_args(additional: Any) -> tuple[Any, ...]:
    """Return further arguments of the model as a tuple."""
    if additional is None:
        return ()
    given: tuple[Any, ...] = additional if isinstance(additional, tuple) else (additional,)
    return tuple(map_tensors(outside_inference, item) for item in given)


def as_kwargs(kwargs: Any) -> dict[str, Any]:
    """Return keyword arguments of the model as a dict.

    Raises:
        InputTypeError: where they are no mapping.
    """
    if kwargs is None:
        return {}
    if not isinstance(kwargs, Mapping):
        raise InputTypeError(f"forward_kwargs must be a mapping of names to values, got {type(kwargs).__name__}.")
    return {name: map_tensors(outside_inference, value) for name, value in kwargs.items()}


def as_layers(model: nn.Module, layers: Any) -> tuple[str, ...]:
    """Return the names of layers.

    Raises:
        InputError: for a name that the model does not have.
    """
    if not isinstance(layers, (str, list, tuple, set, frozenset, KeysView)):
        raise InputTypeError(f"Layers are given by their names, got {type(layers).__name__}.")
    names = (layers,) if isinstance(layers, str) else tuple(layers)
    known = dict(model.named_modules())
    for name in names:
        if not isinstance(name, str):
            raise InputTypeError(f"Layers are given by their names, got {type(name).__name__}.")
        if name not in known:
            raise InputError(f"{type(model).__name__} has no module {name!r}.{near(name, filter(None, known))}")
    return names


def as_condition(model: nn.Module, condition: Any) -> dict[str, Sequence[int]]:
    """Return a condition as a mapping from layer names to channels."""
    if condition is None:
        return {}
    if not isinstance(condition, Mapping):
        raise InputTypeError(
            f"condition must map names of layers to lists of channels, got {type(condition).__name__}."
        )
    as_layers(model, tuple(condition))
    return {name: _units(name, units) for name, units in condition.items()}


def _units(name: str, units: Any) -> tuple[int, ...]:
    listed = [units] if isinstance(units, int) or getattr(units, "ndim", 1) == 0 else units
    try:
        if isinstance(listed, str) or any(isinstance(unit, (bool, np.bool_)) for unit in listed):
            raise TypeError
        return tuple(operator.index(unit) for unit in listed)
    except TypeError:
        raise InputTypeError(
            f"condition at {name!r} must be a channel or a list of channels, integers; got {units!r}."
        ) from None


def warn_of_training(model: nn.Module) -> None:
    """Warn where dropout or batch norm in training mode would change the answer; change nothing."""
    changing = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm, nn.RReLU, nn.RNNBase)
    for name, module in model.named_modules():
        rate = getattr(module, "p", getattr(module, "dropout", 1))
        if isinstance(module, changing) and module.training and rate != 0:
            warn(
                f"Module {name!r} ({type(module).__name__}) is in training mode, so the explanation is that of a "
                "random or batch-dependent network. Call model.eval() first if that is not meant.",
                TrainingModeWarning,
            )
            return


@contextmanager
def grad_mode() -> Iterator[None]:
    """Differentiate, whatever the caller's mode: ``no_grad`` and ``inference_mode`` end at this door."""
    with torch.inference_mode(False), torch.enable_grad():
        yield
