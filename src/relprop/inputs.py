"""What a model is given: checked before anything runs."""

from __future__ import annotations

import itertools
import operator
import sys
from collections.abc import Callable, Iterator, KeysView, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from relprop.errors import (
    CompiledModelWarning,
    InputError,
    InputTypeError,
    ModelError,
    NumericalError,
    near,
    warn,
)
from relprop.trees import children, map_tensors, tensors_in


def as_model(model: Any) -> nn.Module:
    """Return the model, without the wrappers of data parallelism and of torch.compile around it.

    Raises:
        ModelError: where it is no ``nn.Module``, scripted, quantised, without weights as yet, or built under
            ``inference_mode``.

    Warns:
        CompiledModelWarning: where it, or a module of it, is compiled.
    """
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise ModelError(f"A model must be an instance of torch.nn.Module, got {what}.")
    compiled = next((name for name, module in model.named_modules() if _is_compiled(module)), None)
    if compiled is not None:
        warn(
            f"{f'Module {compiled!r}' if compiled else 'The model'} is compiled; relprop explains it through the "
            "original module, and runs that without compilation.",
            CompiledModelWarning,
        )
    found = unwrapped(model)
    if any(isinstance(module, torch.jit.ScriptModule) for module in found.modules()):
        raise ModelError(
            "A scripted or traced model hides its operations from relprop. Explain the model it was made from."
        )
    for name, module in found.named_modules():
        if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():  # type: ignore[misc]
            raise ModelError(
                f"Module {name!r} ({type(module).__name__}) has no weights yet. Run the model once on data first."
            )
        if type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.nn.quantized")):
            raise ModelError(
                f"Module {name!r} ({type(module).__name__}) is quantised, and integers have no derivative. "
                "Explain the model before it was quantised (or before convert, with its fake quantisation)."
            )
    if any(parameter.is_inference() for parameter in found.parameters()):
        raise ModelError(
            "The model was built under torch.inference_mode, so autograd cannot save its parameters. "
            "Build it, or copy it by copy.deepcopy, outside."
        )
    return found


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside the wrappers of data parallelism and of torch.compile."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.get_submodule("module")
        elif "_orig_mod" in model._modules:
            model = model.get_submodule("_orig_mod")
        else:
            return model


def _is_compiled(module: nn.Module) -> bool:
    """Say whether a module was wrapped by ``torch.compile``, or compiled in place by ``module.compile()``."""
    return "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None


class Keywords(dict[str, Any]):
    """Inputs that the model takes by keyword: ``attribute(Keywords(pixel_values=x, mask=m))`` explains ``x``.

    In a tuple they stand beside positional arguments: ``attribute((x, Keywords(mask=m)))``.

    >>> Keywords(x=1)
    {'x': 1}
    """


@dataclass(frozen=True)
class Given:
    """The inputs of one call, and the tensors in them that are explained.

    Attributes:
        structure: what the user gave.
        tensors: the explained ones, in order.
        samples: the size of their common batch; None where they were given in a structure, whose tensors need have
            none in common (nodes and edges of a graph).
        explained: of every tensor in the structure, in order, whether it is explained.
    """

    structure: Any
    tensors: tuple[Tensor, ...]
    samples: int | None
    explained: tuple[bool, ...] = ()

    @property
    def rows(self) -> int | None:
        """How many rows all tensors of the inputs have in common, if they do."""
        sizes = {tensor.shape[0] for tensor in tensors_in(self.structure) if tensor.dim()}
        return sizes.pop() if len(sizes) == 1 else None

    def arguments(self, replaced: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return what the model is called with, other tensors in the place of those explained."""
        if self.samples is not None:
            return tuple(replaced), {}
        found = self._with(replaced, lambda tensor: tensor)
        items = list(found) if _is_positional(found) else [found]
        named = [item for item in items if isinstance(item, Keywords)]
        return tuple(item for item in items if not isinstance(item, Keywords)), {
            k: v for item in named for k, v in item.items()
        }

    def packed(self, maps: Sequence[Tensor | None]) -> Any:
        """Return one map for every explained tensor in the structure of the inputs, None for what is not explained."""
        if self.samples is not None:
            return tuple(maps) if isinstance(self.structure, (tuple, list)) else maps[0]
        return self._with(maps, lambda _: None)

    def replaced(self, tensors: Sequence[Tensor]) -> Any:
        """Return the inputs as they were given, other tensors in the place of those explained."""
        return self.packed(tensors) if self.samples is not None else self._with(tensors, lambda tensor: tensor)

    def aligned(self, tree: Any, name: str) -> list[Any]:
        """Return what a tree of the structure of the inputs holds in the place of every explained tensor.

        Raises:
            InputError: where it has another structure.
        """
        if self.samples is None:
            return list(itertools.compress(_counterparts(self.structure, tree, name), self.explained))
        if not isinstance(self.structure, (tuple, list)):
            return [tree]
        if not isinstance(tree, (tuple, list)) or len(tree) != len(self.tensors):
            got = f"{len(tree)} entries" if isinstance(tree, (tuple, list)) else type(tree).__name__
            raise InputError(f"{name}: expected a tuple of {len(self.tensors)}, one for every input; got {got}.")
        return list(tree)

    def _with(self, values: Sequence[Any], other: Callable[[Tensor], Any]) -> Any:
        left, explained = iter(values), iter(self.explained)
        return map_tensors(lambda tensor: next(left) if next(explained) else other(tensor), self.structure)


def as_inputs(inputs: Any) -> Given:
    """Return the inputs, and the tensors in them that can be explained.

    A tensor, or a tuple of them, one for every positional argument. Anything else that holds tensors, be it a
    mapping, a dataclass, a named tuple or a tuple with a list in it, is a structure: all its tensors of finite floating
    point numbers are explained, and those of integers where an embedding consumes them; what else it holds (masks of
    bools or infinities, numbers, text) is given as it is.

    Raises:
        InputTypeError: for anything but tensors of floating point numbers, or of integers (token ids).
        InputError: for an empty batch, batches of different sizes, or a structure without a tensor to explain.
        NumericalError: for NaN, and for infinity in a tensor of its own.
    """
    if isinstance(inputs, Tensor) or (_is_positional(inputs) and not any(map(_holds_tensors, inputs))):
        return _plain(inputs)
    if not _holds_tensors(inputs):
        hint = " torch.from_numpy makes one of an array." if isinstance(inputs, np.ndarray) else ""
        raise InputTypeError(f"The input must be a tensor, got {type(inputs).__name__}.{hint}")
    structure = map_tensors(outside_inference, inputs)
    tensors = tensors_in(structure)
    explained = tuple(map(_can_be_explained, tensors))
    if not any(explained):
        raise InputError(
            f"{type(inputs).__name__} holds no tensor that can be explained: "
            "dense, of finite numbers, and not of an empty batch."
        )
    return Given(structure, tuple(itertools.compress(tensors, explained)), None, explained)


def _plain(inputs: Any) -> Given:
    """Return inputs that are a tensor, or several that share their batch."""
    tensors = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    if not tensors:
        raise InputError("No input was given; expected a tensor [N, ...] or a tuple of tensors.")
    for position, tensor in enumerate(tensors):
        name = f"Input {position}" if len(tensors) > 1 else "The input"
        if not isinstance(tensor, Tensor):
            raise InputTypeError(f"{name} must be a tensor, got {type(tensor).__name__}.")
        _check_tensor(name, tensor)
        if tensor.shape[0] != tensors[0].shape[0]:
            raise InputError(
                f"{name} has a batch of {tensor.shape[0]}, the first one of {tensors[0].shape[0]}. Where inputs "
                "have no batch in common, give them by keyword: relprop.Keywords(x=..., edges=...)."
            )
    copies = tuple(map(outside_inference, tensors))
    return Given(copies if isinstance(inputs, (tuple, list)) else copies[0], copies, copies[0].shape[0])


def _is_positional(inputs: Any) -> bool:
    """Say whether inputs are the positional arguments of a model; a named tuple is one argument."""
    return isinstance(inputs, (tuple, list)) and not hasattr(inputs, "_fields")


def _counterparts(structure: Any, tree: Any, name: str) -> list[Any]:
    """Return what another tree of the same structure holds in the place of every tensor of a structure."""
    if isinstance(structure, Tensor):
        return [tree]
    parts = children(structure)
    others = children(tree) if type(tree) is type(structure) else {}
    held = [key for key, part in parts.items() if tensors_in(part)]
    missing, unknown = [key for key in held if key not in others], [key for key in others if key not in parts]
    if held and (missing or unknown):
        what = f"{type(structure).__name__}, got {tree!r:.80}"
        if type(tree) is type(structure):
            lacks = f"{', '.join(map(repr, missing))} is missing" if missing else ""
            knows = f"the inputs have no {', '.join(map(repr, unknown))}" if unknown else ""
            what = ", and ".join(filter(None, (lacks, knows)))
        raise InputError(f"{name} must have the structure of the inputs: {what}.")
    return [
        found for key, part in parts.items() if tensors_in(part) for found in _counterparts(part, others[key], name)
    ]


def _holds_tensors(item: Any) -> bool:
    return not isinstance(item, Tensor) and bool(tensors_in(item))


def _can_be_explained(tensor: Tensor) -> bool:
    """Say whether something in a structure can be explained; infinity marks a mask.

    Raises:
        NumericalError: for NaN.
    """
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
        return False
    if tensor.dtype == torch.bool or tensor.is_complex() or tensor.dim() == 0 or tensor.numel() == 0:
        return False
    if is_tiny(tensor.dtype):
        return False
    if not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()):
        return True
    if bool(torch.isnan(tensor).any()):
        raise NumericalError(
            f"The input of shape {tuple(tensor.shape)} holds NaN; its relevance would be NaN everywhere."
        )
    return False


def _check_tensor(name: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        kind = (
            "a quantised tensor"
            if tensor.is_quantized
            else "nested"
            if tensor.is_nested
            else f"of layout {tensor.layout}"
        )
        raise InputTypeError(
            f"{name} is {kind}; relevance has one value per entry: give a dense tensor (x.to_dense(), or a padded one)."
        )
    if tensor.dtype == torch.bool or tensor.is_complex():
        raise InputTypeError(f"{name} has dtype {tensor.dtype}; give floating point numbers, or integer token ids.")
    if is_tiny(tensor.dtype):
        raise InputTypeError(
            f"{name} has dtype {tensor.dtype}, in which there is next to no arithmetic; give x.to(torch.bfloat16), or "
            "a wider dtype."
        )
    if tensor.is_meta:
        raise InputTypeError(f"{name} is on the meta device and holds no values; there is nothing to explain.")
    if tensor.dim() == 0 or tensor.shape[0] == 0 or tensor.numel() == 0:
        raise InputError(f"{name} has shape {tuple(tensor.shape)}: there is nothing to explain in an empty batch.")
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise NumericalError(f"{name} holds NaN or infinity; its relevance would be NaN everywhere.")


def is_tiny(dtype: torch.dtype) -> bool:
    """Say whether numbers of a type take a byte at most, as those of float8 do."""
    return dtype.is_floating_point and dtype.itemsize == 1


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


@contextmanager
def grad_mode() -> Iterator[None]:
    """Differentiate, whatever the caller's mode: ``no_grad`` and ``inference_mode`` end at this door."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def eager() -> Iterator[None]:
    """Run compiled modules and functions as they were written; what torch.compile makes of them hides their calls."""
    compiler = sys.modules.get("torch._dynamo")
    if compiler is None:  # nothing can have been compiled
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
