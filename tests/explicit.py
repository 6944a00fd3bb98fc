"""Networks whose plain gradient is relevance: for references too large for dense matrices.

Each linear layer returns its output with the derivative `(z / D).detach() * dD/da`, where `D` is the rule's
denominator, so ordinary autograd sends the coefficient through the shares that the rule gives, and
Gradient x Input of the whole is LRP. Nothing here comes from relprop.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

Operation = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]
Rule = Callable[[Operation, Tensor, Tensor, "Tensor | None"], Tensor]

STABILIZER = 1e-6


def zero(operation: Operation, a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return operation(a, weight, bias)


def epsilon(operation: Operation, a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    z = operation(a, weight, bias)
    return _share(z, z, STABILIZER * size(z, weight))


def gamma(operation: Operation, a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """With gamma 0.25: favours what has the sign of z."""
    z = operation(a, weight, bias)
    up, down = weight + 0.25 * weight.clamp(min=0), weight + 0.25 * weight.clamp(max=0)
    bias_up = None if bias is None else bias + 0.25 * bias.clamp(min=0)
    bias_down = None if bias is None else bias + 0.25 * bias.clamp(max=0)
    favoured = _by_sign(operation, a, up, down, bias_up)
    mirrored = _by_sign(operation, a, down, up, bias_down)
    sizes = torch.where(z >= 0, size(favoured, weight), size(mirrored, weight))
    return _share(z, torch.where(z >= 0, favoured, mirrored), STABILIZER * sizes)


def zplus(operation: Operation, a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    positive = None if bias is None else bias.clamp(min=0)
    raising = _by_sign(operation, a, weight.clamp(min=0), weight.clamp(max=0), positive)
    return _share(operation(a, weight, bias), raising, STABILIZER * size(raising, weight))


def _by_sign(operation: Operation, a: Tensor, above: Tensor, below: Tensor, bias: Tensor | None) -> Tensor:
    """One weight for positive, another for negative inputs."""
    output = operation(a.clamp(min=0), above, bias)
    return output + operation(a.clamp(max=0), below, None) if bool((a < 0).any()) else output


def size(whole: Tensor, weight: Tensor) -> Tensor:
    """The root mean square over the channels: dimension 1 of a convolution's output, the last of a dense layer's."""
    return whole.detach().square().mean(1 if weight.dim() > 2 else -1, keepdim=True).sqrt()


def _share(z: Tensor, denominator: Tensor, stabilizer: Tensor) -> Tensor:
    """What shares the relevance of z as the terms of the denominator; nothing where there is nothing to share."""
    stabilized = denominator + torch.where(denominator >= 0, stabilizer, -stabilizer)
    ratio = torch.where(denominator == 0, 0.0, z / torch.where(denominator == 0, 1.0, stabilized))
    return z.detach() + (denominator - denominator.detach()) * ratio.detach()


class Layer(nn.Module):
    """A linear layer or convolution under a rule."""

    def __init__(self, layer: nn.Linear | _ConvNd, rule: Rule) -> None:
        super().__init__()
        self.layer, self.rule = layer, rule

    def operation(self, a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        layer: Any = self.layer
        if isinstance(layer, nn.Linear):
            return F.linear(a, weight, bias)
        assert isinstance(layer, nn.Conv2d)
        assert layer.padding_mode == "zeros"
        return F.conv2d(a, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)

    def forward(self, a: Tensor) -> Tensor:
        bias = None if self.layer.bias is None else self.layer.bias.detach()
        return self.rule(self.operation, a, self.layer.weight.detach(), bias)


class ReLU6(nn.Module):
    """Hands relevance on unchanged, also where it saturates."""

    def forward(self, z: Tensor) -> Tensor:
        fixed = z.detach().clone()
        return z * torch.where(fixed > 0, fixed.clamp(max=6) / fixed, 0.0)


class GroupNorm(nn.Module):
    """Group norm of 4-d inputs whose standard deviation is a constant, before what else the layer holds."""

    def __init__(self, norm: nn.GroupNorm, rest: nn.Module) -> None:
        super().__init__()
        self.norm, self.rest = norm, rest

    def forward(self, x: Tensor) -> Tensor:
        groups = x.reshape(x.shape[0], self.norm.num_groups, -1)
        centred = groups - groups.mean(2, keepdim=True)
        deviation = torch.sqrt(centred.square().mean(2, keepdim=True) + self.norm.eps).detach()
        weight, bias = (parameter.reshape(1, -1, 1, 1) for parameter in (self.norm.weight, self.norm.bias))
        output: Tensor = self.rest((centred / deviation).reshape(x.shape) * weight + bias)
        return output


def rewrite(model: nn.Module, replace: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """A copy with modules replaced, parameters shared; `replace` returns None for what stays."""
    rewritten = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    for parent in list(rewritten.modules()):
        for name, module in list(parent.named_children()):
            replacement = replace(module)
            if replacement is not None:
                setattr(parent, name, replacement)
    return rewritten


def under(rule_of: Callable[[nn.Module], Rule]) -> Callable[[nn.Module], nn.Module | None]:
    """For `rewrite`: every linear layer under the rule that `rule_of` gives it, and ReLU6 passed through."""

    def replace(module: nn.Module) -> nn.Module | None:
        if isinstance(module, (nn.Linear, _ConvNd)):
            return Layer(module, rule_of(module))
        return ReLU6() if isinstance(module, nn.ReLU6) else None

    return replace
