"""Losses on relevance under norms, below rules that reach zeros: derivatives against central differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, Rules
from relprop.rules import Flat, LinearRule, WSquare, ZBox
from tests.models import settle

FEATURES = 6
NORMS: dict[str, Callable[[], nn.Module]] = {
    "RMSNorm": lambda: nn.RMSNorm(FEATURES),
    "RMSNorm plain": lambda: nn.RMSNorm(FEATURES, elementwise_affine=False),
    "LayerNorm": lambda: nn.LayerNorm(FEATURES),
    "LayerNorm bias=False": lambda: nn.LayerNorm(FEATURES, bias=False),
    "LayerNorm plain": lambda: nn.LayerNorm(FEATURES, elementwise_affine=False),
    "GroupNorm": lambda: nn.GroupNorm(2, FEATURES),
    "GroupNorm plain": lambda: nn.GroupNorm(2, FEATURES, affine=False),
    "InstanceNorm": lambda: nn.Sequential(nn.Unflatten(1, (2, 3)), nn.InstanceNorm1d(2), nn.Flatten()),
    "InstanceNorm affine": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 3)), nn.InstanceNorm1d(2, affine=True), nn.Flatten()
    ),
}
PLACES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "first": lambda norm: nn.Sequential(norm, nn.Linear(FEATURES, 3)),
    "between": lambda norm: nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.GELU(), norm, nn.Linear(FEATURES, 3)),
    "in a residual branch": lambda norm: Residual(norm),
}
RULES: tuple[LinearRule, ...] = (Flat(), WSquare(), ZBox(-4.0, 4.0))


class Residual(nn.Module):
    """``x + f(norm(x))``."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.branch, self.out = norm, nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(x + self.branch(self.norm(x))))  # type: ignore[no-any-return]


@pytest.mark.parametrize("place", list(PLACES))
@pytest.mark.parametrize("norm", list(NORMS))
def test_the_derivative_of_a_loss_is_that_of_central_differences(norm: str, place: str) -> None:
    """By the input and by every parameter, for each rule that reaches zeros, on all layers or the first alone."""
    model = settle(PLACES[place](NORMS[norm]()))
    x, direction, weights = torch.randn(3, 3, FEATURES, dtype=torch.float64)
    parameters = list(model.parameters())
    directions = [torch.randn_like(parameter) for parameter in parameters]
    for rules in (*RULES, Rules.preset("epsilon").first(Flat())):

        def loss(y: Tensor, create_graph: bool = False, rules: Rules | LinearRule = rules) -> Tensor:
            return (LRP(model, rules).attribute(y, 1, create_graph=create_graph) * weights).sum()

        def at(step: float) -> Tensor:
            with torch.no_grad():
                for parameter, way in zip(parameters, directions, strict=True):
                    parameter.add_(step * way)
            found = loss(x + step * direction)
            with torch.no_grad():
                for parameter, way in zip(parameters, directions, strict=True):
                    parameter.sub_(step * way)
            return found

        leaf = x.clone().requires_grad_()
        tensors, ways = [leaf, *parameters], [direction, *directions]
        slopes = torch.autograd.grad(loss(leaf, create_graph=True), tensors, allow_unused=True)
        found = sum((slope * way).sum() for slope, way in zip(slopes, ways, strict=True) if slope is not None)
        expected = (at(1e-6) - at(-1e-6)) / 2e-6
        assert abs(found - expected) <= 1e-5 * (abs(expected) + 1), repr(rules)
