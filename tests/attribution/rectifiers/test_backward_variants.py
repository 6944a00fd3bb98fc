"""Deconvolution and guided backprop: against autograd with the ReLUs written out, against Captum, in every spelling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from relprop import (
    Attribution,
    Deconvolution,
    Gradient,
    GuidedBackprop,
    InputError,
    Unit,
)
from tests.checks import refuses
from tests.models import close, gradient, images, mlp, settle, vectors
from tests.networks import zoo

Activation = Callable[[Tensor], Tensor]

# ---------------------------------------------------------------------------------------------- reference


class Deconvolved(Function):
    """A ReLU whose backward is a ReLU."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return torch.where(z > 0, z, 0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (c,) = gradients
        return torch.where(c > 0, c, 0.0)


class Guided(Function):
    """A ReLU whose backward passes what is positive, where the input was."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return torch.where(z > 0, z, 0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (c,), (z,) = gradients, ctx.saved_tensors
        return torch.where((c > 0) & (z > 0), c, 0.0)


METHODS: dict[str, tuple[type[Attribution], Activation]] = {
    "deconvolution": (Deconvolution, Deconvolved.apply),
    "guided": (GuidedBackprop, Guided.apply),
}

both = pytest.mark.parametrize(("method", "relu"), METHODS.values(), ids=METHODS)


def test_by_hand() -> None:
    """One hidden layer: z = (-1, 2, 3), what comes back is (1, -2, 4)."""
    model = nn.Sequential(nn.Linear(1, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False)).double()
    model[0].weight.data = torch.tensor([[-1.0], [2.0], [3.0]], dtype=torch.float64)
    model[2].weight.data = torch.tensor([[1.0, -2.0, 4.0]], dtype=torch.float64)
    x = torch.ones(1, 1, dtype=torch.float64)
    assert Gradient(model).attribute(x).item() == -2 * 2 + 4 * 3
    assert Deconvolution(model).attribute(x).item() == 1 * -1 + 4 * 3
    assert GuidedBackprop(model).attribute(x).item() == 4 * 3


# -------------------------------------------------------------------------------------- spellings of a ReLU


class Network(nn.Module):
    """Convolutions, a residual sum and pooling around one activation, which is called four times."""

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.hidden, self.out = nn.Linear(36, 7), nn.Linear(7, 3)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        h = self.activation(self.norm(self.first(x)))
        h = self.activation(h + self.second(h))
        h = F.max_pool2d(self.activation(h - 0.3), 2)
        out: Tensor = self.out(self.activation(self.hidden(h.flatten(1))))
        return out


def written_over(x: Tensor) -> Tensor:
    """A ReLU in place whose result is not what is used."""
    y = x.clone()
    F.relu(y, inplace=True)
    return y


SPELLINGS: dict[str, Activation] = {
    "module, reused": nn.ReLU(),
    "module, in place, reused": nn.ReLU(inplace=True),
    "F.relu": F.relu,
    "F.relu in place": lambda x: F.relu(x, inplace=True),
    "F.relu_": F.relu_,
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "method": lambda x: x.relu(),
    "method in place": lambda x: x.relu_(),
    "in place, result not used": written_over,
    "clamp": lambda x: x.clamp(min=0),
    "clamp by position": lambda x: torch.clamp(x, 0.0),
    "clamp in place": lambda x: x.clamp_(min=0),
    "clamp_min": lambda x: x.clamp_min(0),
    "clip": lambda x: torch.clip(x, min=0.0, max=None),
    "threshold": lambda x: F.threshold(x, 0.0, 0.0),
    "Threshold in place": nn.Threshold(0.0, 0.0, inplace=True),
}


@both
@pytest.mark.parametrize("spelling", list(SPELLINGS))
def test_every_spelling(method: type[Attribution], relu: Activation, spelling: str) -> None:
    model, x = settle(Network(SPELLINGS[spelling])), images()
    expected = gradient(lambda leaf: settle(Network(relu))(leaf)[:, 1], x)
    plain = gradient(lambda leaf: model(leaf)[:, 1], x)
    assert not torch.allclose(expected, plain)
    close(method(model).attribute(x, 1), expected)


@pytest.mark.filterwarnings("ignore::relprop.NoEffectWarning")  # that it is the gradient is what is tested
@both
def test_what_is_no_relu_is_differentiated_as_it_is(method: type[Attribution], relu: Activation) -> None:
    others: list[Activation] = [
        lambda x: x.clamp(min=0.1), lambda x: x.clamp(0, 1), lambda x: x.clamp_min(-0.1), F.relu6, F.leaky_relu, F.gelu,
        lambda x: F.threshold(x, 0.1, 0.0), lambda x: F.threshold(x, 0.0, 0.5), lambda x: x.clamp(max=0.5),
    ]  # fmt: skip
    for other in others:
        model, x = settle(Network(other)), images()
        close(method(model).attribute(x, 1), gradient(lambda leaf, model=model: model(leaf)[:, 1], x))


# --------------------------------------------------------------------------- Captum, where every ReLU is a module


def modules() -> nn.Sequential:
    return settle(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(20, 7), nn.ReLU(), nn.Linear(7, 3),
        )
    )  # fmt: skip


def by_captum(name: str, model: nn.Module, *layer: nn.Module) -> Any:
    """Captum's method of this name; its warnings (about hooks, and about gradients it asks for itself) are its own."""
    captum = pytest.importorskip("captum.attr", reason="captum is not installed: pip install 'relprop[bench]'")
    return getattr(captum, name)(model, *layer)


@both
@pytest.mark.parametrize("target", [1, [2, 0]], ids=["one", "each"])
@pytest.mark.filterwarnings("ignore::UserWarning:captum")
def test_against_captum(method: type[Attribution], relu: Activation, target: Any) -> None:
    model, x = modules(), images()
    close(method(model).attribute(x, target), by_captum(method.__name__, model).attribute(x, target=target))


@both
@pytest.mark.filterwarnings("ignore::UserWarning:captum")
def test_captum_for_a_hidden_unit(method: type[Attribution], relu: Activation) -> None:
    model, x = modules(), images()
    neuron = by_captum(f"Neuron{method.__name__}", model, model[3])
    close(method(model).attribute(x, Unit("3", (2, 1, 3))), neuron.attribute(x, neuron_selector=(2, 1, 3)))


# ------------------------------------------------------------------------------------------- the pipeline


@both
def test_layers_targets_and_the_model_as_it_was(method: type[Attribution], relu: Activation) -> None:
    model, x = settle(Network(nn.ReLU(inplace=True))), images()
    before = zoo.fingerprint(model)
    explainer = method(model)
    rows = explainer.attribute_targets(x, [0, 2])
    twin = settle(Network(relu))
    for row, target in zip(rows, (0, 2), strict=True):
        close(row, gradient(lambda leaf, target=target: twin(leaf)[:, target], x))
    below = explainer.attribute_layers(x, "norm", 1)["norm"]
    h = twin.norm(twin.first(x)).detach()

    def above(leaf: Tensor) -> Tensor:
        a = relu(leaf)
        a = relu(a + twin.second(a))
        out: Tensor = twin.out(relu(twin.hidden(F.max_pool2d(relu(a - 0.3), 2).flatten(1))))
        return out[:, 1]

    close(below, gradient(above, h))
    assert zoo.fingerprint(model) == before


@both
def test_a_coefficient_has_no_delta_and_no_report(method: type[Attribution], relu: Activation) -> None:
    model = mlp()
    words = (method.__name__, "does not claim to sum", "no convergence delta", "GradientXInput")
    for ask in (
        lambda: method(model).attribute(vectors(), 1, return_convergence_delta=True),
        lambda: method(model).report(vectors(), 1),
    ):
        with refuses(model, InputError, ValueError, *words):
            ask()
    assert method.contract.output == "coefficient" and method.contract.seed == "1" and not method.contract.complete


def explicit(weights: list[Tensor], z: list[Tensor], guide: bool) -> Tensor:
    """The coefficient of the input of an MLP of ReLU, tanh and ReLU, by its formula; column 1 of the output."""
    c = weights[3][1].expand(len(z[0]), -1)
    c = c.clamp(min=0) * ((z[2] > 0) if guide else 1.0)
    c = (c @ weights[2]) * (1 - torch.tanh(z[1]).square())
    c = c @ weights[1]
    c = c.clamp(min=0) * ((z[0] > 0) if guide else 1.0)
    return c @ weights[0]


@both
def test_a_loss_on_the_map_sees_the_network_as_it_is(method: type[Attribution], relu: Activation) -> None:
    layers = [nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 6), nn.Linear(6, 3)]
    model = settle(nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.Tanh(), layers[2], nn.ReLU(), layers[3]))
    x, leaf = vectors().requires_grad_(), vectors().requires_grad_()
    found = method(model).attribute(x, 1, create_graph=True)
    first = layers[0](leaf)
    second = layers[1](first.relu())
    expected = explicit(
        [layer.weight for layer in layers], [first, second, layers[2](second.tanh())], method is GuidedBackprop
    )
    close(found, expected)
    variables = [layer.weight for layer in layers]
    mine = torch.autograd.grad(found.square().sum(), [x, *variables])
    theirs = torch.autograd.grad(expected.square().sum(), [leaf, *variables])
    for one, other in zip(mine, theirs, strict=True):
        close(one, other)


@both
@pytest.mark.parametrize("cell", [False, True], ids=["layer", "cell"])
def test_relus_of_recurrent_layers(method: type[Attribution], relu: Activation, cell: bool) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = (
                nn.RNNCell(4, 3, nonlinearity="relu") if cell else nn.RNN(4, 3, nonlinearity="relu", batch_first=True)
            )

        def forward(self, x: Tensor) -> Tensor:
            if cell:
                h: Tensor = self.rnn(x[:, 1], self.rnn(x[:, 0]))
                return h
            out: Tensor = self.rnn(x)[0][:, -1]
            return out

    model, x = settle(Recurrent()), torch.randn(2, 2, 4, dtype=torch.float64)
    names = ("weight_ih", "bias_ih", "weight_hh", "bias_hh")
    w_in, b_in, w_hidden, b_hidden = (model.rnn.get_parameter(name + ("" if cell else "_l0")) for name in names)

    def steps(leaf: Tensor) -> Tensor:
        h = torch.zeros(2, 3, dtype=leaf.dtype)
        for t in range(2):
            h = relu(F.linear(leaf[:, t], w_in, b_in) + F.linear(h, w_hidden, b_hidden))
        return h[:, 1]

    close(method(model).attribute(x, 1), gradient(steps, x))


@both
def test_token_ids(method: type[Attribution], relu: Activation) -> None:
    class Sentence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.hidden, self.out = nn.Embedding(9, 4), nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, ids: Tensor) -> Tensor:
            out: Tensor = self.out(self.hidden(self.embedding(ids.clone())).relu().mean(1))
            return out

    model, ids = settle(Sentence(), seed=1), torch.tensor([[1, 2, 3], [4, 5, 6]])
    expected = gradient(lambda e: model.out(relu(model.hidden(e)).mean(1))[:, 1], model.embedding(ids))
    close(method(model).attribute(ids, 1), expected.sum(-1))
