"""Writes in place: the model's own values come out unchanged, and the maps are those of the unrolled network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.attribution.models import settle
from tests.propagation.unrolled import Share, check, check_between, conv, dense, passing, random

Body = Callable[[Tensor, Tensor], Tensor]
Case = tuple[Body, Body]

CASES: dict[str, Case] = {}


def case(pure: Body) -> Callable[[Body], Body]:
    """Enter a body that writes, beside the one that does not."""

    def enter(body: Body) -> Body:
        CASES[body.__name__] = body, pure
        return body

    return enter


def kept(h: Tensor, factor: Tensor | list[float]) -> Tensor:
    """Every column by its own number."""
    return h * torch.as_tensor(factor, dtype=h.dtype)


def columns(*parts: Tensor) -> Tensor:
    return torch.stack(parts, 1)


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
    h *= 9
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
    out.relu_().sub_(h * 2).mul_(0.5)
    out += 1.0
    return out


@case(lambda h, x: h / 4 - 1)
def divide(h: Tensor, x: Tensor) -> Tensor:
    h /= 4
    h -= 1
    return h


@case(lambda h, x: 0.5 * h * h.detach() + 0.5 * h.detach() * h)
def multiply_by_itself(h: Tensor, x: Tensor) -> Tensor:
    h *= h
    return h


@case(lambda h, x: h * random(3, 6, seed=5) + 2 * h.relu())
def write_over_what_was_saved(h: Tensor, x: Tensor) -> Tensor:
    factor = random(3, 6, seed=5)
    product = h * factor
    factor.zero_()  # autograd has saved it
    h.relu_()
    h *= 2
    return product + h


# Assignments -----------------------------------------------------------------------------------


@case(lambda h, x: torch.cat([x[:, :1], h[:, 1:]], 1))
def assign_a_column(h: Tensor, x: Tensor) -> Tensor:
    h[:, 0] = x[:, 0]
    return h


@case(lambda h, x: torch.cat([torch.full_like(h[:, :1], 1.5), h[:, 1:]], 1))
def assign_a_number(h: Tensor, x: Tensor) -> Tensor:
    h[:, 0] = 1.5
    return h


@case(lambda h, x: torch.cat([h[:, 3:5], h[:, 2:]], 1))
def assign_a_slice_of_itself(h: Tensor, x: Tensor) -> Tensor:
    h[:, :2] = h[:, 3:5]
    return h


@case(lambda h, x: torch.where(h < 0, 0.1, h))
def assign_by_a_mask(h: Tensor, x: Tensor) -> Tensor:
    h[h < 0] = 0.1
    return h


@case(lambda h, x: torch.cat([x, 2 * h[:, :2]], 1))
def fill_an_empty_tensor(h: Tensor, x: Tensor) -> Tensor:
    out = torch.empty(3, 6, dtype=h.dtype)
    out[:, :4] = x
    out[..., 4:] = h[:, :2] * 2
    return out


@case(lambda h, x: kept(h, [2, 2, 1, 1, 1, 1]))
def scale_a_slice(h: Tensor, x: Tensor) -> Tensor:
    h[:, :2] *= 2
    return h


@case(lambda h, x: torch.cat([h[:, :2].relu(), h[:, 2:]], 1))
def relu_on_a_slice(h: Tensor, x: Tensor) -> Tensor:
    F.relu(h[:, :2], inplace=True)
    return h


@case(lambda h, x: columns(x[:, 0], x[:, 3], 2 * h[:, 0], h[:, 1], h[:, 1], h[:, 2]))
def copy_into(h: Tensor, x: Tensor) -> Tensor:
    out = h.new_empty(3, 6)
    out[:, :2].copy_(x[:, [0, 3]])
    out[:, 2:4].copy_(h[:, :2] * torch.tensor([2.0, 1.0]))
    out.narrow(1, 4, 2).copy_(h[:, 1:3])
    return out


@case(lambda h, x: x.new_zeros(3, 6) + 3 * h.flip(1))
def write_after_zero(h: Tensor, x: Tensor) -> Tensor:
    flipped = h.flip(1)
    h.zero_()
    h.add_(flipped, alpha=3)
    return h


@case(lambda h, x: torch.where(h.detach() > 1, -1.0, h))
def masked_fill(h: Tensor, x: Tensor) -> Tensor:
    h.masked_fill_(h > 1, -1.0)
    return h


@case(lambda h, x: h + F.pad(columns(x[:, 1], x[:, 0]), (2, 2)))
def index_add(h: Tensor, x: Tensor) -> Tensor:
    h.index_add_(1, torch.tensor([3, 2]), x[:, :2])
    return h


@case(lambda h, x: h + F.pad(x[:, :1] + x[:, 1:2], (5, 0)))
def scatter_add(h: Tensor, x: Tensor) -> Tensor:
    h.scatter_add_(1, torch.full((3, 2), 5), x[:, :2])
    return h


# Views -----------------------------------------------------------------------------------------


@case(lambda h, x: 2 * h)
def scale_a_view(h: Tensor, x: Tensor) -> Tensor:
    h.view(3, 2, 3).mul_(2)
    return h


@case(lambda h, x: torch.cat([h[:, :1], h[:, 1:2] + h[:, :1], h[:, 2:]], 1))
def add_to_a_column(h: Tensor, x: Tensor) -> Tensor:
    h[:, 1].add_(h[:, 0])
    return h


@case(lambda h, x: torch.cat([h[:, :1] + h[:, 1:2], h[:, 1:]], 1).relu())
def a_view_made_before_the_write(h: Tensor, x: Tensor) -> Tensor:
    first = h[:, 0]
    transposed = h.t()
    first += transposed[1]
    transposed.relu_()
    return h


@case(lambda h, x: 2 * h + torch.cat([2 * h[:, 3:], 2 * h[:, :3]], 1))
def a_view_read_after_the_base_was_written(h: Tensor, x: Tensor) -> Tensor:
    left, right = h[:, :3], h[:, 3:]
    h.mul_(2)
    return h + torch.cat([right, left], 1)


@case(lambda h, x: torch.cat([h[:, :3] + x[:, :3], h[:, 3:].relu()], 1))
def both_halves_of_a_split(h: Tensor, x: Tensor) -> Tensor:
    left, right = h[:, :3], h[:, 3:]
    left.add_(x[:, :3])
    F.relu_(right)
    return h


@case(lambda h, x: passing(torch.tanh, h).flip(1))
def change_the_shape_in_place(h: Tensor, x: Tensor) -> Tensor:
    h.unsqueeze_(1)
    h.squeeze_(1)
    h.t_()
    out = h.tanh()
    h.unsqueeze_(0)
    return out.flip(0).transpose_(0, 1)


# ``out=`` --------------------------------------------------------------------------------------


@case(lambda h, x: h + 2 * h.relu())
def out_of_a_sum(h: Tensor, x: Tensor) -> Tensor:
    room = torch.empty_like(h)
    torch.add(h, h.relu(), alpha=2, out=room)
    return room


@case(lambda h, x: 3 * h)
def out_over_the_input(h: Tensor, x: Tensor) -> Tensor:
    torch.mul(h, 3, out=h)
    return h


@case(lambda h, x: torch.cat([x, h[:, :2]], 1))
def out_of_cat_into_nothing(h: Tensor, x: Tensor) -> Tensor:
    room = torch.empty(0, dtype=h.dtype)
    torch.cat([x, h[:, :2]], 1, out=room)
    return room


@case(lambda h, x: torch.cat([2 * h[:, :3], h[:, 3:]], 1))
def out_into_a_view(h: Tensor, x: Tensor) -> Tensor:
    torch.mul(h[:, :3], 2, out=h[:, :3])
    return h


@pytest.mark.parametrize("name", CASES)
def test_a_write_equals_the_unrolled_network(name: str) -> None:
    check_between(*CASES[name])


def test_a_matrix_product_into_out() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.above = nn.Parameter(torch.empty(4, 6)), nn.Linear(6, 2)
            settle(self)

        def forward(self, x: Tensor) -> Tensor:
            room = x.new_empty(3, 6)
            torch.matmul(x, self.weight, out=room)
            return self.above(room.relu_())  # type: ignore[no-any-return]

    model = Product()

    def reference(share: Share, x: Tensor) -> Tensor:
        return dense(share, model.above, share(F.linear, x, model.weight.t()).relu())

    check(model, reference, random(3, 4))


def test_the_model_may_write_into_its_input() -> None:
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

    check(model, reference, random(3, 4))


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


def test_a_residual_block_with_writes() -> None:
    model = Block()

    def reference(share: Share, x: Tensor) -> Tensor:
        identity = fused(share, model.first, model.norm, x).relu()
        out = (fused(share, model.second, model.again, identity) + identity).relu()
        return dense(share, model.head, out.mean((2, 3)))

    check(model, reference, random(2, 2, 5, 5))


def test_a_write_between_convolution_and_batch_norm_prevents_folding() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)
            settle(self)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            h[:, 0] *= 2
            return self.norm(h)  # type: ignore[no-any-return]

    model = Written()

    def reference(share: Share, x: Tensor) -> Tensor:
        h = conv(share, model.first, x)
        h = torch.cat([2 * h[:, :1], h[:, 1:]], 1)
        norm = model.norm
        return F.batch_norm(h, norm.running_mean, norm.running_var, norm.weight.detach(), norm.bias.detach())

    check(model, reference, random(2, 2, 5, 5))
