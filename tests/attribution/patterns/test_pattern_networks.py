"""Patterns in every kind of network: reused and tied parameters, residual sums, all layer types, composites."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import relprop
from relprop import Gradient, PatternAttribution, PatternNet
from relprop.attribution.patterns.pattern_methods import PatternMethod
from tests.attribution.patterns.pattern_reference import METHODS, backward_weight, data, numpy_pattern
from tests.networks import zoo


class Reused(nn.Module):
    """One layer three times, once as a function, and the same weight transposed at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(torch.relu(self.layer(x)))
        x = F.linear(torch.relu(x), self.layer.weight, self.layer.bias)
        return torch.relu(x) @ self.layer.weight


@pytest.mark.parametrize("method", METHODS)
def test_all_uses_of_a_parameter_are_pooled(method: type[PatternMethod]) -> None:
    torch.manual_seed(1)
    model, fitted, x = Reused().double(), data(200, 4), data(6, 4, seed=4)
    found = method(model).fit(fitted.split(64), "relu+")
    assert list(found.patterns) == ["layer.weight", "layer.weight.T"]
    assert found.patterns.samples == {"layer.weight": 600, "layer.weight.T": 200}
    with torch.no_grad():
        w, b = model.layer.weight, model.layer.bias
        steps = [fitted]
        for _ in range(3):
            steps.append((steps[-1] if len(steps) == 1 else steps[-1].relu()) @ w.T + b)
        inputs = torch.cat([steps[0], steps[1].relu(), steps[2].relu()])
        tied = steps[3].relu()
        a = numpy_pattern(inputs.numpy(), w, b, "relu+")
        t = numpy_pattern(tied.numpy(), w.T.contiguous(), torch.zeros(4, dtype=torch.float64), "linear")
        v, u = backward_weight(method, w, a), backward_weight(method, w.T, t)
        z1 = x @ w.T + b
        z2 = z1.relu() @ w.T + b
        z3 = z2.relu() @ w.T + b
        out = z3.relu() @ w
        c = (F.one_hot(torch.tensor(2), 4) * out) @ u * (z3 > 0)
        expected = ((c @ v * (z2 > 0)) @ v * (z1 > 0)) @ v
    torch.testing.assert_close(found.attribute(x, 2), expected, rtol=1e-9, atol=1e-11)


class Residual(nn.Module):
    """``x + conv(relu(norm(conv(x))))``: the second convolution has no ReLU of its own, nor has the stem."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(2, 3, 3, padding=1)
        self.conv1, self.norm = nn.Conv1d(3, 3, 3, padding=1, bias=False), nn.BatchNorm1d(3)
        self.conv2 = nn.Conv1d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.conv2(self.norm(self.conv1(x)).relu_())
        y += x
        return F.relu(y, inplace=True).sum(2)


@pytest.mark.parametrize("method", METHODS)
def test_residual_sums_pass_the_gradient(method: type[PatternMethod]) -> None:
    torch.manual_seed(2)
    model, x = Residual().double().eval(), data(5, 2, 7, seed=1)
    with torch.no_grad():
        model.norm.running_mean.copy_(data(3) / 3)
        model.norm.running_var.copy_(data(3, seed=1).square() + 0.5)
    fitted = method(model).fit(data(80, 2, 7).split(30))
    unit = "conv1.weight with norm"
    assert list(fitted.patterns) == ["stem.weight", unit, "conv2.weight"]
    assert [p.rectified for p in fitted.patterns.values()] == [False, True, False]
    p0, p1, p2 = (
        backward_weight(method, p.weight, p.directions["relu+" if p.rectified else "linear"])
        for p in fitted.patterns.values()
    )
    with torch.no_grad():
        z0 = model.stem(x)
        z1 = model.norm(model.conv1(z0))
        z2 = model.conv2(z1.relu()) + z0
        c = F.one_hot(torch.tensor(1), 3)[None, :, None] * z2.relu().sum(2, keepdim=True) * (z2 > 0)
        c = c + F.conv_transpose1d(F.conv_transpose1d(c, p2) * (z1 > 0), p1, padding=1)
        expected = F.conv_transpose1d(c, p0, padding=1)
    torch.testing.assert_close(fitted.attribute(x, 1), expected, rtol=1e-9, atol=1e-11)


def layers() -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]:
    return {
        "transposed": (
            lambda: nn.Sequential(
                nn.ConvTranspose2d(2, 4, 3, stride=2, groups=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                nn.Linear(196, 3),
            ),
            (2, 3, 3),
        ),
        "3d": (lambda: nn.Sequential(nn.Conv3d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)), (1, 3, 3, 3)),
        "dense norm": (
            lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.ReLU(), nn.Linear(6, 3)),
            (4,),
        ),
        "weight norm": (
            lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 5)), nn.ReLU(), nn.Linear(5, 3)),
            (4,),
        ),
        "over time": (
            lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2), nn.Flatten()), (3, 4),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_all_uses_of_a_weight_that_is_computed_are_pooled(method: type[PatternMethod]) -> None:
    """A parametrized layer that is used twice gives the maps of the same layer without parametrization."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.out(torch.relu(self.layer(torch.relu(self.layer(x)))))
            return out

    torch.manual_seed(1)
    plain, normed, fitted, x = Twice().double(), Twice().double(), data(200, 4), data(6, 4, seed=4)
    normed.load_state_dict(plain.state_dict())
    parametrizations.weight_norm(normed.layer)
    first, second = (method(model).fit(fitted.split(70)) for model in (plain, normed))
    assert list(second.patterns) == ["layer#0", "out.weight"]
    assert second.patterns.samples == {"layer#0": 400, "out.weight": 200}
    torch.testing.assert_close(second.attribute(x, 1), first.attribute(x, 1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", layers())
def test_every_kind_of_layer_has_its_pattern_and_passes_it(name: str) -> None:
    """Against autograd on a copy of the network that holds the patterns for weights, on the units that are on."""
    torch.manual_seed(3)
    make, shape = layers()[name]
    model = make().double().eval()
    method = PatternAttribution(model).fit(data(90, *shape).split(40))
    x, target = data(4, *shape, seed=8), 1
    sites = {pattern.weight.shape: pattern for pattern in method.patterns.values()}
    assert len(sites) == len(method.patterns) == 2
    calls = [module for module in model if getattr(module, "weight", None) is not None and module.weight.dim() > 1]
    outputs: dict[nn.Module, Tensor] = {}
    for module in model:
        module.register_forward_hook(lambda module, _, out: outputs.__setitem__(module, out.detach()))
    expected_out = model(x).detach()
    c = torch.zeros_like(expected_out)
    c[:, target] = expected_out[:, target]
    for module in reversed(model):
        before = outputs[model[list(model).index(module) - 1]] if module is not model[0] else x
        if module in calls:
            pattern = sites[module.weight.shape]
            assert pattern.rectified == (module is calls[0])
            weight = pattern.weight * pattern.directions["relu+" if pattern.rectified else "linear"]
            geometry = {"stride": module.stride, "groups": module.groups} if hasattr(module, "stride") else {}
            kind = type(module).__name__.split("Parametrized")[-1]
            run = {
                "Linear": F.linear, "Conv3d": F.conv3d, "ConvTranspose2d": F.conv_transpose2d,
            }[kind]  # fmt: skip
            origin = before.clone().requires_grad_()
            (c,) = torch.autograd.grad(run(origin, weight, **geometry), origin, c)
        elif isinstance(module, nn.ReLU):
            c = c * (before > 0)
        elif isinstance(module, nn.Flatten):
            c = c.reshape(before.shape)
    torch.testing.assert_close(method.attribute(x, target), c, rtol=1e-9, atol=1e-11)


class Tied(nn.Module):
    """A convolution, and its transpose with the same weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(data(4, 2, 3) / 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose1d(torch.relu(F.conv1d(x, self.weight)), self.weight).sum(2)


@pytest.mark.parametrize("method", METHODS)
def test_the_transpose_with_the_same_weight_has_units_of_its_own(method: type[PatternMethod]) -> None:
    model, x = Tied(), data(4, 2, 6, seed=1)
    fitted = method(model).fit([data(70, 2, 6)])
    assert list(fitted.patterns) == ["weight", "weight transposed"]
    v, u = (
        backward_weight(method, p.weight, p.directions[region])
        for p, region in zip(fitted.patterns.values(), ("relu+", "linear"), strict=True)
    )
    with torch.no_grad():
        w = model.weight
        c = F.one_hot(torch.tensor(1), 2)[None, :, None] * model(x)[:, :, None].expand(-1, -1, 6)
        expected = F.conv_transpose1d(F.conv1d(c, u) * (F.conv1d(x, w) > 0), v)
        rows = fitted.patterns["weight transposed"].directions["linear"].transpose(0, 1).flatten(1)
        torch.testing.assert_close((rows * w.transpose(0, 1).flatten(1)).sum(1), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(fitted.attribute(x, 1), expected, rtol=1e-9, atol=1e-11)


class Behind(nn.Module):
    """A linear layer, and something behind it."""

    def __init__(self, behind: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.head, self.behind = nn.Linear(4, 6), nn.Linear(6, 2), behind

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.behind(self.layer(x)))


BEHIND: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "relu": (torch.relu, True),
    "relu_": (lambda z: z.relu_(), True),
    "clamp": (lambda z: z.clamp(min=0), True),
    "clamp_min": (lambda z: torch.clamp_min(z, 0), True),
    "threshold": (lambda z: F.threshold(z, 0.0, 0.0), True),
    "a view before it": (lambda z: z.view(-1, 2, 3).permute(2, 0, 1).relu().permute(1, 2, 0).reshape(-1, 6), True),
    "halves": (lambda z: torch.cat([part.relu() for part in z.chunk(2, 1)], 1), True),
    "dropout at rest": (lambda z: F.dropout(z, training=False).relu(), True),
    "clamp elsewhere": (lambda z: z.clamp(min=-1), False),
    "nothing": (lambda z: z, False),
    "tanh": (torch.tanh, False),
    "after a sum": (lambda z: (z + 1).relu(), False),
    "a view written over": (lambda z: z.clone().mul_(2).relu(), False),
}


@pytest.mark.parametrize("name", BEHIND)
def test_what_counts_as_followed_by_a_relu(name: str) -> None:
    behind, rectified = BEHIND[name]
    torch.manual_seed(7)
    model, x = Behind(behind).double(), data(3, 4, seed=1)
    method = PatternNet(model).fit([data(60, 4)])
    assert [p.rectified for p in method.patterns.values()] == [rectified, False]
    direction = method.patterns["layer.weight"].directions["relu+" if rectified else "linear"]
    z = model.layer(x).detach().requires_grad_()
    out = behind(z.clone()) @ model.head.weight.detach().T + model.head.bias
    through = behind(z.clone()) @ method.patterns["head.weight"].directions["linear"].T
    (c,) = torch.autograd.grad((through[:, 1] * out[:, 1].detach()).sum(), z)
    torch.testing.assert_close(method.attribute(x, 1), c @ direction, rtol=1e-9, atol=1e-11)


def test_a_convolution_is_judged_with_and_without_its_batch_norm_where_both_are_used() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv1d(2, 3, 3, padding=1), nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            plain = self.conv(x)
            return (torch.relu(self.norm(plain)) + plain * 2).sum(2)

    torch.manual_seed(8)
    model, x = Both().double().eval(), data(3, 2, 5, seed=1)
    model.norm.bias.data = data(3) / 5
    method = PatternNet(model).fit([data(70, 2, 5)])
    assert list(method.patterns) == ["conv.weight", "conv.weight with norm"]
    plain, folded = method.patterns.values()
    with torch.no_grad():
        c = F.one_hot(torch.tensor(1), 3)[None, :, None] * model(x)[:, :, None].expand(-1, -1, 5)
        gate = (model.norm(model.conv(x)) > 0) * c
        expected = F.conv_transpose1d(gate, folded.directions["relu+"], padding=1)
        expected += F.conv_transpose1d(2 * c, plain.directions["linear"], padding=1)
    torch.testing.assert_close(method.attribute(x, 1), expected, rtol=1e-9, atol=1e-11)


class Attending(nn.Module):
    """Self-attention and an LSTM: composites whose linear maps are found inside."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.lstm = nn.LSTM(4, 3, batch_first=True)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.attention(x, x, x, need_weights=False)
        return self.head(self.lstm(x)[0][:, -1])


def test_attention_and_recurrent_layers_are_opened() -> None:
    torch.manual_seed(4)
    model, x = Attending().double(), data(3, 5, 4, seed=1)
    method = PatternNet(model).fit([data(60, 5, 4)])
    assert method.patterns.samples["lstm.weight_ih_l0"] == 300
    assert "lstm.weight_hh_l0" in method.patterns and "attention.out_proj.weight" in method.patterns
    assert any(unit.startswith("attention.in_proj_weight") for unit in method.patterns)
    own = {
        unit: relprop.Pattern(p.weight, p.bias, dict.fromkeys(p.directions, p.weight), p.missing, p.parameter)
        for unit, p in method.patterns.items()
    }
    as_gradient = PatternNet(model, relprop.Patterns("relu+-", own, method.patterns.samples)).attribute(x, 0)
    expected = Gradient(model).attribute(x, 0) * model(x)[:, 0, None, None].detach()
    torch.testing.assert_close(as_gradient, expected, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(method.attribute(x, 0), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Units whose output never varied:relprop.PatternWarning")
@pytest.mark.parametrize(
    ("name", "calls", "rectified"),
    [("torchvision/resnet18", 21, 9), ("torchvision/shufflenet_v2_x0_5", 57, 37), ("torchvision/googlenet", 58, 57)],
)
def test_networks_of_torchvision(name: str, calls: int, rectified: int) -> None:
    """Every linear call is found; with its weight for a pattern the map is the gradient times the output."""
    model, x = zoo.build(name), zoo.images(name)
    target = zoo.targets(model, x)
    patterns = PatternNet(model).fit([x]).patterns
    assert len(patterns) == calls and sum(pattern.rectified for pattern in patterns.values()) == rectified
    own = {
        unit: relprop.Pattern(p.weight, p.bias, dict.fromkeys(p.directions, p.weight), p.missing, p.parameter)
        for unit, p in patterns.items()
    }
    found = PatternNet(model, relprop.Patterns("relu+-", own, patterns.samples)).attribute(x, target)
    output = model(x).gather(1, target[:, None]).detach()
    assert zoo.difference(found, Gradient(model).attribute(x, target) * output[..., None, None]) < 1e-12


def test_a_product_without_units_is_named() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.head = nn.Parameter(data(4, 4)), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.einsum("ij,njc->nic", self.mix, x).mean(1))

    method = PatternNet(Mixing().double())
    with pytest.warns(relprop.UncoveredOperationWarning, match="einsum.*no units"):
        method.fit([data(30, 4, 3)])
    assert list(method.patterns) == ["head.weight"]


@pytest.mark.parametrize("method", METHODS)
def test_the_derivative_of_the_map_is_that_of_the_network(method: type[PatternMethod]) -> None:
    """One ReLU layer: the map is f_t V2 gate V1, whose derivative is that of f_t where the gates stay."""
    torch.manual_seed(6)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    fitted = method(model).fit([data(80, 4)])
    x = data(3, 4, seed=2).requires_grad_()
    found = fitted.attribute(x, 1, create_graph=True)
    torch.testing.assert_close(found, fitted.attribute(x, 1))
    probe = data(3, 4, seed=5)
    (derivative,) = torch.autograd.grad((found * probe).sum(), x)
    output = model(x)[:, 1]
    (gradient,) = torch.autograd.grad(output.sum(), x)
    scale = (found.detach() * probe).sum(1) / output.detach()
    torch.testing.assert_close(derivative, gradient * scale[:, None], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["pattern_net", "pattern_attribution"])
def test_known_by_name(name: str) -> None:
    model, x = nn.Linear(3, 2), torch.randn(5, 3)
    patterns = PatternNet(model).fit([torch.randn(40, 3)]).patterns
    found = relprop.explain(model, x, 0, name, patterns=patterns)
    method = relprop.Method.named[name](model, patterns)
    assert torch.equal(found, method.attribute(x, 0))
    assert method.contract.seed == "f_t" and not method.contract.complete


@pytest.mark.parametrize("both", [True, False], ids=["both active", "one active"])
@pytest.mark.parametrize("how", ["bilinear", "einsum"])
def test_a_weight_between_two_inputs_has_no_units(how: str, both: bool) -> None:
    """It is named when the patterns are fitted, whether one input depends on what is explained or both do."""

    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.both = nn.Linear(4, 3), nn.Linear(4, 3), nn.Bilinear(3, 3, 2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.one(x), self.two(x if both else x.detach())
            if how == "bilinear":
                return self.both(a, b)  # type: ignore[no-any-return]
            return torch.einsum("ni,oij,nj->no", a, self.both.weight, b)

    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    with pytest.warns(relprop.UncoveredOperationWarning, match=f"{how} in '.*'.*products with a parameter"):
        PatternNet(Between()).fit([x])
