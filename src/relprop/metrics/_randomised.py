"""Copies of a model with other parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from relprop.errors import InputError, ModelError, near
from relprop.metrics._checked import copied
from relprop.metrics._explain import handed


def layers_in_order(model: nn.Module, x: Tensor) -> list[str]:
    """Return the names of the modules with parameters of their own, in the order in which the model uses them.

    Used is a module that is called, and one whose parameters are given to a function without a call of it, as
    ``nn.MultiheadAttention`` does with its ``out_proj``. Runs a copy of the model, with the global random numbers kept.
    Modules that are not used are left out.

    Raises:
        ModelError: no module with parameters is used, or a model that cannot be copied.
    """
    model = copied(model, "randomising parameters")
    order: list[str] = []
    owners: dict[int, str] = {}

    def use(name: str) -> None:
        if name not in order:
            order.append(name)

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any) -> None:
            use(name)

        return hook

    for name, module in model.named_modules():
        if has_parameters(module):
            module.register_forward_pre_hook(note(name))
            for parameter in module.parameters(recurse=False):
                owners.setdefault(id(parameter), name)
    with _Seen(lambda each: use(owners[id(each)]), owners):
        run(model, x)
    if not order:
        raise ModelError(f"{type(model).__name__} uses no module that has parameters; there is nothing to randomise")
    return order


class _Seen(TorchFunctionMode):
    """Tells which of the known tensors functions are given."""

    def __init__(self, tell: Callable[[Tensor], None], known: dict[int, str]) -> None:
        super().__init__()
        self.tell, self.known = tell, known

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for each in _tensors((*args, *kwargs.values())):
            if id(each) in self.known:
                self.tell(each)
        return func(*args, **kwargs)


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def kept_random_numbers(x: Tensor) -> AbstractContextManager[None]:
    """Keep the global random numbers of the CPU and of x's device as they are while a copy of the model runs."""
    return torch.random.fork_rng([x.device] if x.is_cuda else [])


@torch.no_grad()
def run(model: nn.Module, x: Tensor) -> Any:
    """Return what a copy of a model returns for a copy of x, which it may write; the global random numbers are kept.

    It has to be a copy: batch norm in training mode counts the call. Two copies draw the same numbers.

    Raises:
        InputError: the model refuses x by a ValueError, as batch norm in training mode does with one sample.
    """
    try:
        with kept_random_numbers(x):
            return model(handed(model, x))
    except ValueError as error:
        raise InputError(
            f"a copy of the model does not run on {tuple(x.shape)} ({error}); expected inputs that it takes; batch "
            "norm in training mode takes more samples than one: pass more, or call model.eval()"
        ) from error


def has_parameters(module: nn.Module) -> bool:
    """Say whether a module has parameters that no module within it has."""
    return any(True for _ in module.parameters(recurse=False))


def chosen(layers: Sequence[str] | None, known: list[str]) -> list[str]:
    """Return the layers the caller named, or all, in the order of the forward pass.

    Raises:
        ModelError: a name that is not among them.
    """
    if layers is None:
        return known
    for name in layers:
        if name not in known:
            raise ModelError(f"the model uses no module {name!r} with parameters.{near(name, known)}")
    return [name for name in known if name in layers]


@torch.no_grad()
def randomise(model: nn.Module, name: str, seed: int) -> tuple[str, ...]:
    """Give every parameter of a module other numbers, and return the names of those that are others now.

    ``reset_parameters``, where the module has it, draws what it would have been born with and resets the running
    statistics of normalization. What that leaves constant (weights of one, biases of zero) or as it was, and all
    parameters of a module without it, are drawn from a normal distribution of the parameter's mean and standard
    deviation; the standard deviation of a constant ``c`` is ``|c|``, and of zeros the root mean square of the module's
    parameters, or 1 where those are all zero. Drawn on the CPU, so that numbers are the same on every device; the
    global random numbers stay as they are.
    """
    module = model.get_submodule(name)
    before = {key: each.clone() for key, each in module.named_parameters()}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the devices, too
        if hasattr(module, "reset_parameters"):
            fresh: Any = copy.deepcopy(module).cpu()
            fresh.reset_parameters()
            module.load_state_dict(fresh.state_dict())
        own = dict(module.named_parameters(recurse=False))
        size = _root_mean_square(list(own.values()))
        for key, parameter in own.items():
            values = _numbers(parameter)
            if values.min() == values.max() or torch.equal(parameter, before[key]):
                mean = values.mean()
                spread = values.std() if values.min() < values.max() else mean.abs()
                drawn = mean + (spread if spread > 0 else size) * torch.randn(values.shape, dtype=torch.float64)
                parameter.copy_(torch.view_as_complex(drawn) if parameter.is_complex() else drawn)
    prefix = f"{name}." if name else ""
    return tuple(prefix + key for key, each in module.named_parameters() if not torch.equal(each, before[key]))


def _numbers(parameter: Tensor) -> Tensor:
    """Return the entries of a parameter, real, in float64, on the CPU."""
    values = parameter.detach().cpu()
    return (torch.view_as_real(values) if values.is_complex() else values).double()


def _root_mean_square(parameters: Sequence[Tensor]) -> float:
    flat = torch.cat([_numbers(each).flatten() for each in parameters]) if parameters else torch.zeros(1)
    return float(flat.square().mean().sqrt()) or 1.0
