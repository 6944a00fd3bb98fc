"""Copies of a model with other parameters."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from relprop.errors import ModelError, near


def layers_in_order(model: nn.Module, x: Tensor) -> list[str]:
    """Return the names of the modules with parameters of their own, in the order in which the model calls them.

    Runs a copy of the model. Modules that are not called are left out.

    Raises:
        ModelError: no module with parameters is called.
    """
    model = copy.deepcopy(model)
    order: list[str] = []

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any) -> None:
            if name not in order:
                order.append(name)

        return hook

    for name, module in model.named_modules():
        if has_parameters(module):
            module.register_forward_pre_hook(note(name))
    with torch.no_grad():
        model(x)
    if not order:
        raise ModelError(f"{type(model).__name__} calls no module that has parameters; there is nothing to randomise")
    return order


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
            raise ModelError(f"the model calls no module {name!r} with parameters.{near(name, known)}")
    return [name for name in known if name in layers]


@torch.no_grad()
def randomise(module: nn.Module, seed: int) -> None:
    """Give a module new parameters: those it would have been born with, or normal ones.

    A module with ``reset_parameters`` is made anew by that, running statistics of normalization among it. Without, each
    parameter is drawn from a normal distribution of its mean and standard deviation. Drawn on the CPU, so that numbers
    are the same on every device; the global random numbers stay as they are.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if hasattr(module, "reset_parameters"):
            fresh: Any = copy.deepcopy(module).cpu()
            fresh.reset_parameters()
            module.load_state_dict(fresh.state_dict())
            return
        for parameter in module.parameters(recurse=False):
            values = parameter.detach().cpu().double()
            spread = values.std() if values.numel() > 1 else values.abs().mean()
            parameter.copy_((values.mean() + spread * torch.randn(values.shape, dtype=torch.float64)).to(parameter))
