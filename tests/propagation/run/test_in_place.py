"""Writes in place: the model's own values come out unchanged, and the maps are those of the unrolled network."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import LRP, Rules
from relprop.rules import Flat, WSquare, ZBox
from tests.models import settle
from tests.unrolled import (
    Bodies,
    Share,
    assert_close,
    check,
    check_between,
    conv,
    dense,
    each_rule,
    passing,
    random,
    weigh,
)

CASES = Bodies()
case = CASES.beside


# ReLU ------------------------------------------------------------------------------------------


@case(lambda h, x: h.relu())
def relu_as_a_module(h: Tensor, x: Tensor) -> Tensor:
    return nn.ReLU(inplace=True)(h)  # type: ignore[no-any-return]


@case(lambda h, x: h.relu())
def relu_as_a_function(h: Tensor, x: Tensor) -> Tensor:
    return F.relu(h, inplace=True)


@case(lambda h, x: h.relu())
def relu_as_a_function_by_position(h: Tensor, x: Tensor) -> Tensor:
    return F.relu(h, True)


@case(lambda h, x: h.relu())
def relu_of_torch_as_a_statement(h: Tensor, x: Tensor) -> Tensor:
    torch.relu_(h)
    return h


@case(lambda h, x: h.relu())
def relu_of_functional_as_a_statement(h: Tensor, x: Tensor) -> Tensor:
    F.relu_(h)
    return h


@case(lambda h, x: h.relu())
def relu_of_the_tensor_as_a_statement(h: Tensor, x: Tensor) -> Tensor:
    h.relu_()
    return h


@case(lambda h, x: h.relu())
def relu_by_keyword(h: Tensor, x: Tensor) -> Tensor:
    F.relu(input=h, inplace=True)
    return h


@case(lambda h, x: h.relu() + 2 * h.relu())
def relu_seen_through_an_alias(h: Tensor, x: Tensor) -> Tensor:
    alias = h
    out = F.relu(h, inplace=True)
    return out + 2 * alias


@case(lambda h, x: h.relu() * 3)
def relu_on_a_view_of_all(h: Tensor, x: Tensor) -> Tensor:
    h.view(-1).relu_()
    return h * 3


@case(lambda h, x: F.leaky_relu(h, 0.2))
def leaky_relu(h: Tensor, x: Tensor) -> Tensor:
    F.leaky_relu_(h, 0.2)
    return h


@case(lambda h, x: F.threshold(h, 0.3, 0.0))
def threshold(h: Tensor, x: Tensor) -> Tensor:
    return F.threshold(h, 0.3, 0.0, inplace=True)


# Activations -----------------------------------------------------------------------------------


@case(lambda h, x: passing(F.silu, h, 0.5))
def silu(h: Tensor, x: Tensor) -> Tensor:
    F.silu(h, inplace=True)
    return h


@case(lambda h, x: passing(F.hardswish, h, 0.5))
def hardswish(h: Tensor, x: Tensor) -> Tensor:
    return F.hardswish(h, inplace=True)


@case(lambda h, x: passing(F.mish, h, 0.6))
def mish_as_a_module(h: Tensor, x: Tensor) -> Tensor:
    nn.Mish(inplace=True)(h)
    return h


@case(lambda h, x: passing(F.elu, h))
def elu(h: Tensor, x: Tensor) -> Tensor:
    F.elu_(h)
    return h


@case(lambda h, x: passing(F.relu6, h * 9))
def relu6(h: Tensor, x: Tensor) -> Tensor:
    h *= torch.tensor(9.0)  # of the moment: a number would be part of the layer
    return nn.ReLU6(inplace=True)(h)  # type: ignore[no-any-return]


@case(lambda h, x: passing(torch.tanh, h))
def tanh(h: Tensor, x: Tensor) -> Tensor:
    return h.tanh_()


@case(lambda h, x: passing(torch.sigmoid, h, 0.25))
def sigmoid(h: Tensor, x: Tensor) -> Tensor:
    torch.sigmoid_(h)
    return h


@case(lambda h, x: passing(lambda z: z.clamp(-0.5, 0.8), h))
def clamp(h: Tensor, x: Tensor) -> Tensor:
    h.clamp_(-0.5, 0.8)
    return h


@case(lambda h, x: passing(lambda z: z.clamp(min=0.2), h, 0.0))
def clamp_from_below(h: Tensor, x: Tensor) -> Tensor:
    return torch.clamp_(h, min=0.2)


@case(lambda h, x: h)
def dropout_that_does_nothing(h: Tensor, x: Tensor) -> Tensor:
    return nn.Dropout(0.5, inplace=True).eval()(h)  # type: ignore[no-any-return]


@case(lambda h, x: h.relu() + h.relu())
def write_to_what_dropout_returned(h: Tensor, x: Tensor) -> Tensor:
    same = F.dropout(h, 0.5, training=False)  # the very values of h, in eval mode
    same.relu_()
    return same + h


@case(lambda h, x: h.relu() - 1)
def no_longer_non_negative(h: Tensor, x: Tensor) -> Tensor:
    out = h.relu()
    out.view(-1).sub_(1)
    return out


@case(lambda h, x: h.relu() - 1)
def no_longer_non_negative_below_the_view(h: Tensor, x: Tensor) -> Tensor:
    out = h.relu()
    view = out.view(2, 9)
    out.sub_(1)
    return view.view(3, 6)


# Sums ------------------------------------------------------------------------------------------


@case(lambda h, x: h.relu() + F.pad(x, (0, 2)))
def add_the_identity(h: Tensor, x: Tensor) -> Tensor:
    out = h.relu()
    out += F.pad(x, (0, 2))
    return out


@case(lambda h, x: h.relu() + 3 * h)
def accumulate(h: Tensor, x: Tensor) -> Tensor:
    total = torch.zeros_like(h)
    total.add_(h.relu())
    total.add_(h, alpha=3)
    return total


@case(lambda h, x: 0.5 * (h.relu() - 2 * h) + 1.0)
def a_chain_of_writes(h: Tensor, x: Tensor) -> Tensor:
    out = h.clone()
    out.relu_().sub_(h * torch.tensor(2.0)).mul_(0.5)
    out += 1.0
    return out


@case(lambda h, x: h / 4 - 1)
def divide(h: Tensor, x: Tensor) -> Tensor:
    h /= torch.tensor(4.0)
    h -= torch.tensor(1.0)
    return h


@case(lambda h, x: 0.5 * h * h.detach() + 0.5 * h.detach() * h)
def multiply_by_itself(h: Tensor, x: Tensor) -> Tensor:
    h *= h
    return h


@case(lambda h, x: 0.5 * h * x[:, :1].detach() + 0.5 * h.detach() * x[:, :1])
def multiply_by_the_input(h: Tensor, x: Tensor) -> Tensor:
    h.mul_(x[:, :1])
    return h


@case(lambda h, x: h * torch.sigmoid(x[:, :1]).detach())
def multiply_by_a_gate(h: Tensor, x: Tensor) -> Tensor:
    h *= torch.sigmoid(x[:, :1])
    return h


@case(lambda h, x: h / h.norm(dim=1, keepdim=True).detach())
def divide_by_the_norm(h: Tensor, x: Tensor) -> Tensor:
    h /= h.norm(dim=1, keepdim=True)
    return h


@case(lambda h, x: passing(torch.square, h, 0.0))
def square(h: Tensor, x: Tensor) -> Tensor:
    h **= 2
    return h


@case(lambda h, x: h.cumsum(1) - h.mean(1, keepdim=True))
def running_sums(h: Tensor, x: Tensor) -> Tensor:
    mean = h.mean(1, keepdim=True)
    h.cumsum_(1)
    h -= mean
    return h


@case(lambda h, x: h.detach() * 0 + 3 * F.pad(x, (1, 1)))
def cut_off(h: Tensor, x: Tensor) -> Tensor:
    h.detach_()
    h.zero_()
    h.add_(F.pad(x, (1, 1)), alpha=3)
    return h


@case(lambda h, x: h * random(3, 6, seed=5) + 2 * h.relu())
def write_over_what_was_saved(h: Tensor, x: Tensor) -> Tensor:
    factor = random(3, 6, seed=5)
    product = h * factor
    factor.zero_()  # autograd has saved it
    h.relu_()
    h *= 2
    return product + h


@each_rule
@pytest.mark.parametrize("name", CASES)
def test_a_write_equals_the_unrolled_network(name: str, rule: str) -> None:
    check_between(*CASES[name], rule=rule)


@each_rule
def test_the_model_may_write_into_its_input(rule: str) -> None:
    class Normalises(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)
            settle(self)

        def forward(self, x: Tensor) -> Tensor:
            x.sub_(0.5).div_(2.0)
            x[:, 3] = 0.25
            return self.layer(x)  # type: ignore[no-any-return]

    model = Normalises()

    def reference(share: Share, x: Tensor) -> Tensor:
        scaled = (x - 0.5) / 2
        return dense(share, model.layer, torch.cat([scaled[:, :3], torch.full_like(x[:, 3:], 0.25)], 1))

    check(model, reference, random(3, 4), rule=rule)


class Block(nn.Module):
    """[N, 2, 5, 5] to [N, 3]: in-place ReLU after folded batch norms, and a sum in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.again = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(4, 3)
        settle(self)

    def forward(self, x: Tensor) -> Tensor:
        identity = self.relu(self.norm(self.first(x)))
        out = self.again(self.second(identity))
        out += identity
        self.relu(out)
        return self.head(out.mean((2, 3)))  # type: ignore[no-any-return]


def fused(share: Share, layer: Any, norm: Any, x: Tensor) -> Tensor:
    """A convolution and its batch norm as one map."""
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    bias = norm.bias - norm.running_mean * scale
    if layer.bias is not None:
        bias = bias + layer.bias * scale

    def operation(a: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return F.conv2d(a, w, b, padding=layer.padding)

    return share(operation, x, layer.weight * scale[:, None, None, None], bias)


@each_rule
def test_a_residual_block_with_writes(rule: str) -> None:
    model = Block()

    def reference(share: Share, x: Tensor) -> Tensor:
        identity = fused(share, model.first, model.norm, x).relu()
        out = (fused(share, model.second, model.again, identity) + identity).relu()
        return dense(share, model.head, out.mean((2, 3)))

    check(model, reference, random(2, 2, 5, 5), rule=rule)


class Copies(Block):
    """The same block, without a write."""

    def forward(self, x: Tensor) -> Tensor:
        identity = F.relu(self.norm(self.first(x)))
        out = F.relu(self.again(self.second(identity)) + identity)
        return self.head(out.mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("rule", [Flat(), WSquare(), ZBox(-4.0, 4.0)], ids=lambda rule: type(rule).__name__)
def test_a_residual_block_with_writes_where_zeros_receive_relevance(rule: Any) -> None:
    """Flat, w^2 and zB reach dead units: with writes as without."""
    x = random(2, 2, 5, 5).relu()
    for rules in (rule, Rules.preset("epsilon_gamma").first(rule)):
        assert_close(LRP(Block(), rules).attribute(x, weigh), LRP(Copies(), rules).attribute(x, weigh))


@each_rule
@pytest.mark.parametrize("written", ["output", "output through a view", "input"])
def test_a_write_between_convolution_and_batch_norm(written: str, rule: str) -> None:
    """Of the output it is part of the layer; of its input, or of a view, the norm cannot be."""

    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)
            settle(self)

        def forward(self, x: Tensor) -> Tensor:
            x = x.relu()
            h = self.first(x)
            if written == "output":
                h.mul_(2)
            elif written == "input":
                x.mul_(2)
            else:
                h.view(-1).mul_(2)
            return self.norm(h)  # type: ignore[no-any-return]

    model = Written()

    def reference(share: Share, x: Tensor) -> Tensor:
        norm, layer = model.norm, copy.deepcopy(model.first)
        scale = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)  # type: ignore[operator, arg-type]
        shift = norm.bias.detach() - norm.running_mean * scale  # type: ignore[operator]
        if written != "input":
            layer.weight.data.mul_(2), layer.bias.data.mul_(2)
        if written == "output":
            layer.weight.data.mul_(scale[:, None, None, None]), layer.bias.data.mul_(scale).add_(shift)
            return conv(share, layer, x.relu())
        return conv(share, layer, x.relu()) * scale[:, None, None] + shift[:, None, None]

    check(model, reference, random(2, 2, 5, 5), rule=rule)
