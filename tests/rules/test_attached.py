"""`Rules.attach`: the user's own forward and `autograd.grad`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from relprop import LRP, RuleError, Rules
from relprop.rules import Flat, Gamma
from tests.checks import refuses
from tests.models import Wrapped, close, images, mlp, residual, settle, vectors
from tests.networks import zoo

PRESETS = ["lrp0", "epsilon", "epsilon_gamma", "epsilon_plus", "alpha2_beta1", "zplus", "flat", "epsilon_plus_flat"]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_gradient_is_the_coefficient(preset: str) -> None:
    model, x = residual(), images()
    before = zoo.fingerprint(model)
    leaf = x.clone().requires_grad_()
    with Rules.preset(preset).attach(model) as attached:
        out = model(leaf)
    (c,) = torch.autograd.grad(out[:, 1].sum(), leaf)
    attached.finish()
    expected = LRP(model, preset).attribute(x, 1)
    kept = x != 0
    close(torch.where(kept, x * c, expected), expected)
    assert torch.equal(out, model(x))
    assert zoo.fingerprint(model) == before


def test_afterwards_the_graph_differentiates_truly() -> None:
    model, x = residual(), images()
    results = []
    for attach in (True, False):
        leaf = x.clone().requires_grad_()
        if attach:
            with Rules.preset("epsilon_gamma").attach(model) as attached:
                out = model(leaf)
            torch.autograd.grad(out[:, 1].sum(), leaf, retain_graph=True)
            attached.finish()
        else:
            out = model(leaf)
        results.append(torch.autograd.grad(out.square().sum(), [leaf, *model.parameters()]))
    for found, expected in zip(*results, strict=True):
        close(found, expected) if bool(expected.any()) else None


def test_several_forwards_and_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(4, 5), nn.Linear(3, 5)
            self.head = nn.Linear(5, 2)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            out: Tensor = self.head(torch.relu(self.left(x) + self.right(y)))
            return out

    model = settle(Two())
    x, y = vectors().requires_grad_(), vectors(features=3).requires_grad_()
    rules = Rules().set(nn.Linear, Gamma()).first("epsilon")
    with rules.attach(model) as attached:
        first, second = model(x, y), model(2 * x, y)
        # A backward may run inside the block too.
        one = torch.autograd.grad(first[:, 1].sum(), [x, y])
    two = torch.autograd.grad(second[:, 0].sum(), [x, y])
    attached.finish()
    for factor, target, found in ((1, 1, one), (2, 0, two)):
        expected = LRP(model, rules).attribute((factor * x.detach(), y.detach()), target)
        for leaf, c, map_ in zip((x, y), found, expected, strict=True):
            close(leaf.detach() * c, map_)


def test_a_loss_on_the_relevance() -> None:
    model, x = mlp(), vectors().requires_grad_()
    with Rules.preset("epsilon").attach(model) as attached:
        out = model(x)
    (c,) = torch.autograd.grad(out[:, 1].sum(), x, create_graph=True)
    attached.finish()
    found = torch.autograd.grad((x * c).square().sum(), [x, *model.parameters()], allow_unused=True)
    relevance = LRP(model, "epsilon").attribute(x, 1, create_graph=True)
    expected = torch.autograd.grad(relevance.square().sum(), [x, *model.parameters()], allow_unused=True)
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None and bool(theirs.any()):
            close(mine, theirs)


def test_an_error_inside_leaves_nothing() -> None:
    model = residual()
    before = zoo.fingerprint(model)
    broken = Wrapped(model, lambda out: out / [])
    with pytest.raises(TypeError, match="list"), Rules().set("model.stem", Gamma()).attach(broken):
        broken(images().requires_grad_())
    assert zoo.fingerprint(model) == before
    assert not _get_current_function_mode_stack()


def test_what_runs_outside_is_not_explained() -> None:
    model, other, x = mlp(), mlp(bias=False), vectors().requires_grad_()
    with Rules.preset("zplus").attach(model) as attached:
        pass
    (plain,) = torch.autograd.grad(other(x)[:, 1].sum(), x)
    attached.finish()
    leaf = x.detach().clone().requires_grad_()
    (expected,) = torch.autograd.grad(other(leaf)[:, 1].sum(), leaf)
    close(plain, expected)


def test_last_is_refused() -> None:
    # The target is not known while the graph is built; unresolved, every layer would pass for the last.
    model = mlp()
    with refuses(model, RuleError, ValueError, "last", "attach"), Rules.preset("epsilon").last(Flat()).attach(model):
        model(vectors().requires_grad_())
