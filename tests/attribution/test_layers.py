"""Relevance at the outputs of named layers, all from one backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, Gradient, GradientXInput, Rules
from relprop.rules import Epsilon, Gamma, LinearRule, ZPlus
from tests import reference_steps
from tests.models import close, images, mlp, residual, settle, vectors, without_bias

RULES = {
    "epsilon": (Epsilon(0.1), ("epsilon", {"epsilon": 0.1})),
    "gamma": (Gamma(0.25), ("gamma", {"gamma": 0.25})),
    "zplus": (ZPlus(), ("zplus", {})),
}


def convolutional() -> nn.Sequential:
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 2),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(20, 3),
    )
    return settle(layers)


@pytest.mark.parametrize("rule", list(RULES))
def test_every_layer_of_a_sequence(rule: str) -> None:
    model, x = convolutional(), images()
    package, (name, options) = RULES[rule]
    seed = torch.tensor([0.0, 1.0, 0.0], dtype=x.dtype)
    # The reference runs its modules one by one, where in-place ReLU would overwrite what it has kept.
    plain = [nn.ReLU() if isinstance(module, nn.ReLU) else module for module in model]
    expected = reference_steps.explain(plain, x, seed, (name, options))
    found = LRP(model, package).attribute_layers(x, [str(i) for i in range(8)], 1)
    assert list(found) == [str(i) for i in range(8)]
    for i in range(8):
        close(found[str(i)], expected[i + 1])
    close(LRP(model, package).attribute(x, 1), expected[0])


def test_all_from_one_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = convolutional(), images()
    calls = []
    grad = torch.autograd.grad

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return grad(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    LRP(model, "lrp0").attribute_layers(x, ["0", "2", "4", "7"], 1)
    assert len(calls) == 1


def test_one_name_and_several() -> None:
    model, x = mlp(), vectors()
    alone = LRP(model).attribute_layers(x, "1", 2)
    assert list(alone) == ["1"]
    assert torch.equal(alone["1"], LRP(model).attribute_layers(x, ["3", "1"], 2)["1"])
    assert torch.equal(alone["1"], LRP(model).attribute_layers(x, ("1",), 2)["1"])


def test_the_whole_model_as_a_layer() -> None:
    model, x = mlp(), vectors()
    found = LRP(model).attribute_layers(x, ["", "4"], 2)
    with torch.no_grad():
        expected = torch.zeros(2, 3, dtype=x.dtype)
        expected[:, 2] = model(x)[:, 2]
    close(found[""], expected)
    close(found["4"], expected)


@pytest.mark.parametrize("rule", [Epsilon(0.0), Gamma(0.25, stabilizer=0.0)])
def test_sum_at_each_layer_of_a_network_without_biases_is_the_output(rule: LinearRule) -> None:
    model, x = without_bias(convolutional()), images()
    model[1].running_mean.zero_()
    with torch.no_grad():
        output = model(x)[:, 1]
    names = [str(i) for i in range(8)]
    found = LRP(model, rule).attribute_layers(x, names, 1)
    for name in names:
        close(found[name].flatten(1).sum(1), output)


@pytest.mark.parametrize("name", ["stem", "norm", "act", "branch", "branch.0", "branch.2", "pool", "mean", "head"])
def test_layers_of_a_residual_network(name: str) -> None:
    """LRP-0 at a layer is the gradient by its output times its output."""
    model, x = residual(), images()
    kept: dict[str, Tensor] = {}

    def keep(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        kept["value"] = output.detach().clone()
        kept["leaf"] = kept["value"].clone().requires_grad_()
        return kept["leaf"] * 1.0  # so that the in-place ReLU may write

    handle = model.get_submodule(name).register_forward_hook(keep)
    score = model(x)[:, 1].sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(score, kept["leaf"])
    expected = gradient * kept["value"]
    if name in ("stem", "branch.0"):
        # Folded with the batch norm behind it: its relevance is that of the pair's output.
        partner = "norm" if name == "stem" else "branch.1"
        expected = LRP(model, "lrp0").attribute_layers(x, partner, 1)[partner]
    close(LRP(model, "lrp0").attribute_layers(x, name, 1)[name], expected)
    if name not in ("stem", "branch.0"):
        close(GradientXInput(model).attribute_layers(x, name, 1)[name], expected)
        close(Gradient(model).attribute_layers(x, name, 1)[name], gradient)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.again = nn.Linear(5, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        h = torch.relu(self.again(h))
        h = torch.relu(self.again(h))
        out: Tensor = self.head(h)
        return out


@pytest.mark.parametrize("rule", list(RULES))
def test_a_module_used_twice_gives_a_tuple_in_call_order(rule: str) -> None:
    model, x = settle(Twice()), vectors()
    unrolled = nn.Sequential(
        model.first, nn.ReLU(), model.again, nn.ReLU(), nn.Linear(5, 5).double(), nn.ReLU(), model.head
    )
    unrolled[4].load_state_dict(model.again.state_dict())
    package = RULES[rule][0]
    found = LRP(model, package).attribute_layers(x, ["again", "first"], 1)
    expected = LRP(unrolled, package).attribute_layers(x, ["2", "4", "0"], 1)
    assert isinstance(found["again"], tuple)
    close(found["again"][0], expected["2"])
    close(found["again"][1], expected["4"])
    close(found["first"], expected["0"])


def test_a_layer_that_another_target_needs() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left = nn.Linear(4, 2)
            self.right = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.left(x), self.right(x)], 1)

    model, x = settle(Heads()), vectors()
    found = LRP(model).attribute_layers(x, ["left", "right"], 0)
    assert bool((found["right"] == 0).all())
    close(found["left"][:, 0], model(x)[:, 0].detach())


def test_a_layer_with_a_second_output() -> None:
    # Relevance is read at the first tensor that a module returns.
    model = settle(nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (6, 1)), nn.MaxPool1d(1, return_indices=True)))
    x = vectors()
    found = LRP(model, "lrp0").attribute_layers(x, ["2", "0"], lambda out: out[0][:, 2, 0])
    assert found["2"].shape == (2, 6, 1)
    close(found["2"].flatten(1), found["0"])


def test_layers_and_rules_are_independent() -> None:
    """Asking for a layer changes no map; relevance there is what enters it from above, whatever its own rule."""
    model, x = residual(), images()
    rules = Rules.preset("epsilon_gamma")
    at_branch = LRP(model, rules).attribute_layers(x, "branch", 1)["branch"]
    other = LRP(model, rules.set("branch.0", "flat").first("wsquare")).attribute_layers(x, "branch", 1)["branch"]
    close(at_branch, other)


def test_layers_by_kwargs_and_in_half_precision() -> None:
    model, x = residual().float(), images().float()
    found = LRP(model).attribute_layers(x, ["stem", "head"], target=torch.tensor([0, 3]))
    assert found["stem"].dtype == torch.float32
    assert found["stem"].shape == (2, 4, 6, 6)
    close(found["head"].sum(1), model(x)[[0, 1], [0, 3]].detach(), 1e-6)
    assert not found["head"].requires_grad


def shortcut(module: nn.Module) -> nn.Module:
    """`head(shortcut(h) + tanh(layer(h)))`: what the shortcut returns is, with an identity, `h` itself."""

    class Shortcut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.layer = nn.Linear(4, 4)
            self.head = nn.Linear(4, 3)
            self.shortcut = module

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            out: Tensor = self.head(self.shortcut(h) + torch.tanh(self.layer(h)))
            return out

    return settle(Shortcut())


def identity_matrix() -> nn.Linear:
    """The identity as a layer of its own, whose output is another tensor."""
    layer = nn.Linear(4, 4, bias=False)
    layer.weight.data.copy_(torch.eye(4))
    return layer


@pytest.mark.parametrize("module", [nn.Identity(), nn.Dropout(), nn.Flatten(), nn.Sequential()], ids=repr)
def test_a_module_that_returns_its_input_has_relevance_of_its_own(module: nn.Module) -> None:
    model, x = shortcut(module), vectors()
    with torch.no_grad():
        h = model.first(x)
    # Not what goes through the layer beside it.
    close(LRP(model, "lrp0").attribute_layers(x, "shortcut", 1)["shortcut"], h * model.head.weight[1].detach())
    explicit = shortcut(identity_matrix())
    explicit.load_state_dict({**model.state_dict(), "shortcut.weight": torch.eye(4)})
    for units in ([], [1, 2]):
        expected = LRP(explicit, "lrp0").attribute(x, 1, condition={"shortcut": units})
        close(LRP(model, "lrp0").attribute(x, 1, condition={"shortcut": units}), expected)
