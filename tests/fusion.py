"""Copies of networks with every batch norm fused into the linear layer that feeds it, without relprop."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.utils._pytree import tree_leaves

Linear = (nn.Linear, _ConvNd)


def pairs(model: nn.Module, x: Tensor) -> list[tuple[str, str]]:
    """Names of each linear layer and the batch norm that alone receives its very output tensor, unchanged.

    Not where another batch norm receives what comes out: without the first, it would be the second's pair.
    """
    made: list[tuple[Tensor, int, str]] = []  # holds the outputs, so that identity means something
    found: list[tuple[Tensor, str, str]] = []
    handles = []

    def remember(name: str) -> Any:
        return lambda module, args, output: made.append((output, output._version, name))

    def look_up(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            found.extend(
                (output, layer, name)
                for output, version, layer in made
                if args[0] is output and version == output._version
            )

        return hook

    for name, module in model.named_modules():
        if isinstance(module, (*Linear, _BatchNorm)):
            handles.append(module.register_forward_hook(remember(name)))
        if isinstance(module, _BatchNorm):
            handles.append(module.register_forward_pre_hook(look_up(name)))
    try:
        with torch.enable_grad():
            result = model(x.detach().clone().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    consumers = _consumers(result)
    return [
        (layer, norm)
        for output, layer, norm in found
        if consumers[output.grad_fn] == 1
        and isinstance(model.get_submodule(layer), Linear)
        and not any(norm == earlier for _, earlier, _ in found)
    ]


def _consumers(result: Any) -> Counter[Any]:
    """How many arguments of the graph of a result each of its nodes is."""
    stack = [output.grad_fn for output in tree_leaves(result) if isinstance(output, Tensor)]
    counts: Counter[Any] = Counter()
    visited = set()
    while stack:
        node = stack.pop()
        if node is not None and node not in visited:
            visited.add(node)
            parents = [parent for parent, _ in node.next_functions]
            counts.update(parents)
            stack.extend(parents)
    return counts


def fuse(model: nn.Module, x: Tensor, *, expected: int | None = None) -> nn.Module:
    """A copy that computes the same function with `expected` batch norms (default: all) fused away.

    Parameters that no fusion changes are shared with `model`.
    """
    found = pairs(model, x)
    count = sum(isinstance(module, _BatchNorm) for module in model.modules()) if expected is None else expected
    assert len(found) == count, f"{len(found)} pairs found, {count} expected"
    assert len({layer for layer, _ in found}) == len({norm for _, norm in found}) == count
    fused = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    for layer_name, norm_name in found:
        layer, norm = fused.get_submodule(layer_name), fused.get_submodule(norm_name)
        assert isinstance(norm, _BatchNorm)
        _replace(fused, layer_name, fuse_pair(layer, norm))
        _replace(fused, norm_name, after(norm))
    with torch.no_grad():
        outputs = zip(tree_leaves(model(x)), tree_leaves(fused(x)), strict=True)
    for reference, result in outputs:
        scale = reference.abs().max()
        assert torch.isfinite(scale) and (reference - result).abs().max() <= 1e-10 * scale
    return fused


def fuse_pair(layer: nn.Module, norm: _BatchNorm) -> nn.Module:
    """One linear layer that does what `norm(layer(x))` does."""
    if isinstance(layer, _ConvTransposeNd):
        return _fuse_transposed(layer, norm)
    if isinstance(layer, nn.Linear):
        return fuse_linear_bn_eval(layer, _affine(norm))
    assert isinstance(layer, _ConvNd)
    # `fuse_conv_bn_eval` serves every number of dimensions, its annotation names fewer.
    return fuse_conv_bn_eval(layer, _affine(norm))


def _fuse_transposed(layer: _ConvTransposeNd, norm: _BatchNorm) -> nn.Module:
    # PyTorch's own fusion scales a transposed kernel's channels as if there were one group.
    scale, shift = scale_and_shift(norm)
    fused = copy.deepcopy(layer)
    inputs, outputs = layer.weight.shape[:2]
    grouped = layer.weight.detach().reshape(layer.groups, inputs // layer.groups, outputs, -1)
    weight = grouped * scale.reshape(layer.groups, 1, outputs, 1)
    bias = torch.zeros_like(shift) if layer.bias is None else layer.bias.detach()
    fused.weight = nn.Parameter(weight.reshape(layer.weight.shape))
    fused.bias = nn.Parameter(bias * scale + shift)
    return fused


def scale_and_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Batch norm with running statistics as `y = scale * x + shift`, per channel."""
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    scale = torch.rsqrt(variance + norm.eps)
    if not norm.affine:
        return scale, -mean * scale
    scale = scale * norm.weight.detach()
    return scale, norm.bias.detach() - mean * scale


def _affine(norm: _BatchNorm) -> _BatchNorm:
    """The same batch norm with explicit weight and bias."""
    if norm.affine:
        return norm
    norm = copy.deepcopy(norm)
    norm.weight = nn.Parameter(torch.ones_like(norm.get_buffer("running_mean")))
    norm.bias = nn.Parameter(torch.zeros_like(norm.get_buffer("running_mean")))
    return norm


def after(norm: nn.Module) -> nn.Module:
    """What is left of a normalisation layer once fused: timm's hold a dropout and an activation."""
    rest = [getattr(norm, name) for name in ("drop", "act") if isinstance(getattr(norm, name, None), nn.Module)]
    return nn.Sequential(*rest) if rest else nn.Identity()


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module)
