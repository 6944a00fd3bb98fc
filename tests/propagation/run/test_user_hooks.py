"""Hooks of the user's own: those of the forward are part of the model, those of gradients are not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, BackwardHookWarning, Gradient, InputError, Rules, UncoveredOperationWarning
from tests.models import settle
from tests.propagation.run.wrapped import EVERY, Net, assert_same, images, three_layers
from tests.unrolled import Share, assert_close, check, dense, each_rule, random

# Hooks of the user's own --------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["stem.0", "stem.1", "stem.2", "body", "pool", "head", ""])
@pytest.mark.filterwarnings("ignore::relprop.BackwardHookWarning")
def test_backward_hooks_do_not_change_the_map(where: str) -> None:
    """They put nodes between a convolution and its batch norm, which are folded all the same."""
    model = Net(inplace=False)  # PyTorch itself forbids writing into what such a hook stands behind
    model.get_submodule(where).register_full_backward_hook(lambda module, inputs, outputs: None)
    model.get_submodule(where).register_full_backward_pre_hook(lambda module, outputs: None)
    assert_same(model)
    names = ["stem.0", "stem", "body.0", "body", "head"]
    found = LRP(model).attribute_layers(images(), names, 1)
    for name, expected in LRP(Net()).attribute_layers(images(), names, 1).items():
        assert_close(found[name], expected, name)


def test_backward_hooks_are_named() -> None:
    model = Net()
    model.pool.register_full_backward_hook(lambda module, inputs, outputs: None)
    with pytest.warns(BackwardHookWarning, match=r"'pool' \(MaxPool2d\) has backward hooks.*coefficients") as caught:
        LRP(model).attribute(images(), 1)
    assert len(caught) == 1
    handle = nn.modules.module.register_module_full_backward_hook(lambda module, inputs, outputs: None)
    plain = Net(inplace=False)
    try:
        with pytest.warns(BackwardHookWarning, match=r"Every module has backward hooks.*coefficients") as caught:
            LRP(plain).attribute(images(), 1)
        assert len(caught) == 1
        Gradient(plain).attribute(images(), 1)  # whose gradients they are
    finally:
        handle.remove()


def test_hooks_of_gradients_rest_while_relevance_is_explained() -> None:
    """A model that scales or records gradients of its activations is explained as if it did not; a loss sees it."""

    class Scaled(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.net, self.scale, self.seen = three_layers(), scale, []

        def forward(self, x: Tensor) -> Tensor:
            h = self.net[:2](x)
            if h.requires_grad and self.scale != 1.0:
                h.register_hook(lambda c: (self.seen.append(1), c * self.scale)[1])  # type: ignore[func-returns-value]
            return self.net[2:](h)  # type: ignore[no-any-return]

    x, model, plain = random(3, 4), Scaled(3.0), Scaled(1.0)
    for name, rule in EVERY.items():
        with pytest.warns(UncoveredOperationWarning, match="register_hook in Scaled sets a hook"):
            found = LRP(model, rule).attribute(x, 1)
        assert torch.equal(found, LRP(plain, rule).attribute(x, 1)), name
        assert not model.seen
    with pytest.warns(UncoveredOperationWarning, match="register_hook"):
        relevance = LRP(model, "epsilon").attribute(x, 1, create_graph=True)
    other = LRP(plain, "epsilon").attribute(x, 1, create_graph=True)
    assert torch.equal(relevance.detach(), other.detach()) and not model.seen
    relevance.sum().backward()
    assert model.seen
    # The plain gradient is that of the model with its hooks.
    assert_close(Gradient(model).attribute(x, 1), 3 * Gradient(plain).attribute(x, 1))


def test_hooks_of_gradients_in_an_attached_block() -> None:
    """The user's own hook, in no module, sees the coefficient."""
    model, x, seen = three_layers(), random(3, 4).requires_grad_(), []
    with Rules.preset("epsilon").attach(model) as attached:
        h = model[:2](x)
        h.register_hook(lambda c: seen.append(c))
        output = model[2:](h)
    torch.autograd.grad(output[:, 1].sum(), x)
    attached.finish()
    expected = LRP(model, "epsilon").attribute_layers(x.detach(), "1", 1)["1"]
    assert_close(h.detach() * seen[0], expected)


@each_rule
def test_hooks_with_keywords_and_before_the_module(rule: str) -> None:
    model: Any = three_layers()
    model[2].register_forward_pre_hook(lambda module, args, kwargs: ((), {"input": args[0] * 2.0}), with_kwargs=True)
    model[2].register_forward_hook(lambda module, args, kwargs, out: out + kwargs["input"].flip(1), with_kwargs=True)

    def reference(share: Share, x: Tensor) -> Tensor:
        h = 2 * dense(share, model[0], x).relu()
        return dense(share, model[4], (dense(share, model[2], h) + h.flip(1)).relu())

    check(model, reference, random(3, 4), rule=rule)


class Passes(nn.Module):
    """Hands its input on, beside something else."""

    def forward(self, h: Tensor, *, form: str = "tensor") -> Any:
        return {"tensor": h, "tuple": (h, None), "mapping": {"h": h, "n": 3}}[form]


@pytest.mark.parametrize("form", ["tensor", "tuple", "mapping"])
@pytest.mark.parametrize("keyword", [False, True])
def test_relevance_at_a_module_that_returns_its_input(form: str, keyword: bool) -> None:
    """Only what passes through the module, not what goes round it."""

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below, self.part, self.above = nn.Linear(4, 4), Passes(), nn.Linear(4, 3)
            settle(self)

        def forward(self, x: Tensor) -> Tensor:
            h = self.below(x).relu()
            out = self.part(h=h, form=form) if keyword else self.part(h, form=form)
            out = out if form == "tensor" else out[0] if form == "tuple" else out["h"]
            return self.above(3 * out + h)  # type: ignore[no-any-return]

    model, x = Around(), random(3, 4)
    found = LRP(model, "epsilon").attribute_layers(x, ["part", "below"], 1)
    assert_close(found["part"], 0.75 * found["below"])
    plain = LRP(model, "epsilon").attribute(x, 1)
    assert_close(plain, LRP(copy.deepcopy(model), "epsilon").attribute(x, 1, condition={"part": [0, 1, 2, 3]}))


def test_a_model_that_turns_gradients_off_says_so() -> None:
    class Silent(nn.Module):
        def __init__(self, mode: Any) -> None:
            super().__init__()
            self.layer, self.mode = nn.Linear(4, 3), mode
            settle(self)

        def forward(self, x: Tensor) -> Tensor:
            with self.mode():
                return self.layer(x)  # type: ignore[no-any-return]

    for mode in (torch.no_grad, torch.inference_mode):
        with pytest.raises(
            InputError, match=r"does not depend on the input\. A part of the model runs under torch.no_grad"
        ):
            LRP(Silent(mode)).attribute(random(3, 4), 1)
