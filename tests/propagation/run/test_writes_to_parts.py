"""Writes into parts, through views and into `out=`: the maps are those of the unrolled network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models import settle
from tests.unrolled import Bodies, Share, check, check_between, dense, each_rule, passing, random

CASES = Bodies()
case = CASES.beside


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


@case(lambda h, x: torch.cat([2 * h[:, :2], h[:, 2:]], 1))
def scale_a_slice(h: Tensor, x: Tensor) -> Tensor:
    h[:, :2] *= 2
    return h


@case(lambda h, x: torch.cat([h[:, :2].relu(), h[:, 2:]], 1))
def relu_on_a_slice(h: Tensor, x: Tensor) -> Tensor:
    F.relu(h[:, :2], inplace=True)
    return h


@case(lambda h, x: torch.cat([x[:, [0, 3]], 2 * h[:, :1], h[:, [1, 1, 2]]], 1))
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


@case(lambda h, x: h + F.pad(x[:, [1, 0]], (2, 2)))
def index_add(h: Tensor, x: Tensor) -> Tensor:
    h.index_add_(1, torch.tensor([3, 2]), x[:, :2])
    return h


@case(lambda h, x: h + F.pad(x[:, :1] + x[:, 1:2], (5, 0)))
def scatter_add(h: Tensor, x: Tensor) -> Tensor:
    h.scatter_add_(1, torch.full((3, 2), 5), x[:, :2])
    return h


@case(lambda h, x: torch.where(h.detach() < 0, 0.1 * h, h))
def scale_by_a_mask(h: Tensor, x: Tensor) -> Tensor:
    h[h < 0] *= 0.1
    return h


@case(lambda h, x: torch.cat([x[:, :3], x[:, 1:2], h[:, 4:]], 1))
def put_by_indices(h: Tensor, x: Tensor) -> Tensor:
    h.index_put_((torch.arange(3), torch.zeros(3, dtype=torch.long)), x[:, 0])
    h.index_copy_(1, torch.tensor([1]), x[:, [1]])
    mask = torch.zeros(3, 6, dtype=torch.bool)
    mask[:, 2] = True
    h.masked_scatter_(mask, x[:, 2].clone())
    h.scatter_(1, torch.full((3, 1), 3), x[:, 1:2])
    return h


@case(lambda h, x: (h * torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 1.0])).tril(1))
def drop_by_indices(h: Tensor, x: Tensor) -> Tensor:
    h.index_fill_(1, torch.tensor([1, 3]), 0.0)
    h.tril_(1)
    return h


@case(lambda h, x: torch.stack([2 * h[0], h[1], 3 * h[2].relu()]))
def rows_one_by_one(h: Tensor, x: Tensor) -> Tensor:
    for position in range(3):
        h[position] *= 1.0
    h[0].mul_(2)
    h[2].mul_(3).relu_()
    return h


# Views -----------------------------------------------------------------------------------------


@case(lambda h, x: 2 * h)
def scale_a_view(h: Tensor, x: Tensor) -> Tensor:
    h.view(3, 2, 3).mul_(torch.tensor(2.0))  # of the moment: a number would be part of the layer
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
    h.mul_(torch.tensor(2.0))
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
    torch.mul(h, torch.tensor(3.0), out=h)
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


@case(lambda h, x: torch.where(h.detach() > 0, h, x[:, :1]))
def out_of_where(h: Tensor, x: Tensor) -> Tensor:
    torch.where(h > 0, h, x[:, :1], out=h)
    return h


@case(lambda h, x: h.max(1, keepdim=True)[0].expand(3, 6) + h.clamp(min=0))
def out_of_two_results(h: Tensor, x: Tensor) -> Tensor:
    values, indices = h.new_empty(3, 1), torch.empty(3, 1, dtype=torch.long)
    torch.max(h, 1, keepdim=True, out=(values, indices))
    assert torch.equal(indices[:, 0], h.argmax(1))
    torch.maximum(h, torch.zeros_like(h), out=h)
    return values.expand(3, 6) + h


@each_rule
@pytest.mark.parametrize("name", CASES)
def test_a_write_equals_the_unrolled_network(name: str, rule: str) -> None:
    check_between(*CASES[name], rule=rule)


@each_rule
def test_a_matrix_product_into_out(rule: str) -> None:
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

    check(model, reference, random(3, 4), rule=rule)
