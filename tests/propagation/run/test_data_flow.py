"""How values may travel through a model, and the maps that must come of it: those of the unrolled network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import LRP, Rules, UncoveredOperationWarning
from relprop.rules import Epsilon, Flat, Gamma, WSquare, ZBox, Zero
from tests import explicit
from tests.models import settle
from tests.unrolled import (
    RULES,
    Share,
    assert_close,
    check,
    conv,
    dense,
    each_rule,
    explain,
    passing,
    random,
    strong_epsilon,
    weigh,
)


class Repeats(nn.Module):
    """One layer, one activation module and one norm, each used three times."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.act, self.head = nn.Linear(5, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)
        settle(self)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.act(self.norm(self.layer(x)))
        return self.head(x)  # type: ignore[no-any-return]


@each_rule
def test_a_module_used_more_than_once(rule: str) -> None:
    model = Repeats()
    norm: Any = model.norm
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)

    def reference(share: Share, x: Tensor) -> Tensor:
        for layer in [copy.deepcopy(model.layer) for _ in range(3)]:
            weight, bias = layer.weight * scale[:, None], (layer.bias - norm.running_mean) * scale + norm.bias
            x = share(F.linear, x, weight, bias).relu()
        return dense(share, model.head, x)

    check(model, reference, random(4, 5), rule=rule)


class Tied(nn.Module):
    """Two modules with one weight, and the weight once more, transposed, as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        settle(self)

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(self.first(x).relu()).relu()
        return F.linear(h, self.first.weight.t())


@each_rule
def test_tied_weights(rule: str) -> None:
    model = Tied()

    def reference(share: Share, x: Tensor) -> Tensor:
        h = dense(share, model.second, dense(share, model.first, x).relu()).relu()
        return share(F.linear, h, model.first.weight.t())

    check(model, reference, random(3, 4), rule=rule)


@each_rule
def test_a_forward_called_twice_inside_a_model(rule: str) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
            settle(self)

        def forward(self, x: Tensor) -> Tensor:
            first = self.part(x)
            second = self.part.forward(2 * x + 1)
            return first - self.part(second)  # type: ignore[no-any-return]

    model = Twice()

    def reference(share: Share, x: Tensor) -> Tensor:
        def part(a: Tensor) -> Tensor:
            return dense(share, model.part[2], dense(share, model.part[0], a).relu())

        return part(x) - part(part(2 * x + 1))

    check(model, reference, random(3, 4), rule=rule)


@each_rule
def test_layers_called_by_keyword(rule: str) -> None:
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.weight = nn.Conv2d(2, 3, 3, stride=2), nn.Parameter(torch.empty(3, 3, 2, 2))
            self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(3, 4)
            settle(self)

        def forward(self, image: Tensor) -> Tensor:
            h = F.relu(input=self.conv(input=image))
            h = F.conv2d(weight=self.weight, input=h, bias=None, padding=1, stride=(1, 1))
            norm = self.norm
            h = F.batch_norm(
                input=h,
                running_mean=norm.running_mean,
                running_var=norm.running_var,
                bias=norm.bias,
                weight=norm.weight,
                training=False,
            )
            h = torch.mean(input=torch.add(input=h, other=h.relu(), alpha=2), dim=(2, 3))
            return F.linear(input=h, weight=self.head.weight, bias=self.head.bias)

    model = Keywords()

    def reference(share: Share, x: Tensor) -> Tensor:
        norm: Any = model.norm
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        h = conv(share, model.conv, x).relu()
        weight, bias = model.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale
        h = share(lambda a, w, b: F.conv2d(a, w, b, padding=1), h, weight, bias)
        return dense(share, model.head, (h + 2 * h.relu()).mean((2, 3)))

    check(model, reference, random(2, 2, 7, 7), rule=rule)


def three_layers() -> nn.Sequential:
    layers = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    return settle(layers)  # type: ignore[return-value]


HOOKS: dict[str, tuple[Callable[[nn.Module], Any], Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "output doubled": (
        lambda layer: layer.register_forward_hook(lambda module, args, out: torch.tensor(2.0) * out),
        lambda a: a,
        lambda z: 2 * z,
    ),
    "output passed through an activation": (
        lambda layer: layer.register_forward_hook(lambda module, args, out: F.silu(out)),
        lambda a: a,
        lambda z: passing(F.silu, z, 0.5),
    ),
    "output written to": (
        lambda layer: layer.register_forward_hook(lambda module, args, out: out.mul_(torch.tensor(3.0))),
        lambda a: a,
        lambda z: 3 * z,
    ),
    "input changed": (
        lambda layer: layer.register_forward_pre_hook(lambda module, args: (args[0].flip(1) - 1,)),
        lambda a: a.flip(1) - 1,
        lambda z: z,
    ),
    "input changed, with keywords": (
        lambda layer: layer.register_forward_pre_hook(
            lambda module, args, kwargs: ((3 * args[0],), kwargs), with_kwargs=True
        ),
        lambda a: 3 * a,
        lambda z: z,
    ),
    "output replaced by a sum with the input": (
        lambda layer: layer.register_forward_hook(lambda module, args, out: out + args[0][:, :4]),
        lambda a: a,
        lambda z: z,  # the sum is made in the test
    ),
}


@each_rule
@pytest.mark.parametrize("name", HOOKS)
def test_hooks_of_the_user_are_part_of_the_model(name: str, rule: str) -> None:
    model = three_layers()
    register, before, after = HOOKS[name]
    register(model[2])

    def reference(share: Share, x: Tensor) -> Tensor:
        h = dense(share, model[0], x).relu()
        z = after(dense(share, model[2], before(h)))
        if "sum" in name:
            z = z + h[:, :4]
        return dense(share, model[4], z.relu())

    check(model, reference, random(3, 4), rule=rule)


def test_hooks_of_the_user_belong_to_their_module() -> None:
    """What a hook computes is selected by the name of the module it hangs on."""
    model: Any = three_layers()
    extra = nn.Parameter(random(4, 4, seed=3))
    model[2].register_forward_hook(lambda module, args, out: out @ extra)
    model[2].register_forward_pre_hook(
        lambda module, args: (F.linear(args[0], extra[[0, 1, 2, 3, 0]][:, [0, 1, 2, 3, 1]]),)
    )
    rules = Rules().set("[04]", Zero()).set("2", Epsilon(0.1))
    x, zero = random(3, 4), explicit.zero
    leaf = x.clone().requires_grad_()
    h = zero(F.linear, leaf, model[0].weight, model[0].bias).relu()
    h = strong_epsilon(F.linear, h, extra[[0, 1, 2, 3, 0]][:, [0, 1, 2, 3, 1]].detach(), None)
    h = strong_epsilon(F.linear, h, model[2].weight, model[2].bias)
    h = strong_epsilon(F.linear, h, extra.detach().t(), None).relu()
    out = zero(F.linear, h, model[4].weight, model[4].bias)
    (c,) = torch.autograd.grad(weigh(out).sum(), leaf)
    assert_close(LRP(model, rules).attribute(x, weigh), x * c)


@each_rule
def test_a_convolution_that_applies_relu_itself(rule: str) -> None:
    class Rectified(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return F.relu(super().forward(input), inplace=True)

    model: Any = settle(
        nn.Sequential(Rectified(2, 3, 3), Rectified(3, 3, 2, padding=1), nn.Flatten(), nn.Linear(48, 3))
    )

    def reference(share: Share, x: Tensor) -> Tensor:
        h = conv(share, model[1], conv(share, model[0], x).relu()).relu()
        return dense(share, model[3], h.flatten(1))

    check(model, reference, random(2, 2, 5, 5), rule=rule)


@each_rule
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(4, 3), (3, 4)),
        (nn.Linear(4, 3, bias=False), (2, 5, 4)),
        (nn.Conv2d(2, 3, 3, padding=1), (2, 2, 4, 4)),
    ],
    ids=["linear", "linear over positions", "convolution"],
)
def test_a_model_that_is_one_layer(layer: nn.Module, shape: tuple[int, ...], rule: str) -> None:
    settle(layer)
    apply = dense if isinstance(layer, nn.Linear) else conv
    check(layer, lambda share, x: apply(share, layer, x), random(*shape), rule=rule)


@each_rule
def test_an_input_used_twice_and_passed_twice(rule: str) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f, self.g = three_layers(), nn.Linear(4, 3)
            settle(self, 7)

        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            return self.f(x) + self.g(x if y is None else y) + self.g(x)  # type: ignore[no-any-return]

    model = Sum()

    def reference(share: Share, x: Tensor, y: Tensor | None = None) -> Tensor:
        f = dense(share, model.f[4], dense(share, model.f[2], dense(share, model.f[0], x).relu()).relu())
        return f + dense(share, model.g, x if y is None else y) + dense(share, model.g, x)

    x = random(3, 4)
    check(model, reference, x, rule=rule)
    check(model, reference, x, x, rule=rule)
    check(model, reference, x, random(3, 4, seed=1), rule=rule)


@each_rule
def test_an_input_that_is_returned_and_one_that_is_an_argument_too(rule: str) -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            settle(self)

        def forward(self, x: Tensor, constant: Tensor, scale: float = 1.0) -> Tensor:
            return x + torch.tensor(scale) * self.layer(x) * constant  # type: ignore[no-any-return]

    model, x = Skip(), random(3, 4)
    found = LRP(model, RULES[rule][0]).attribute(x, weigh, x, forward_kwargs={"scale": 2.0})

    def reference(share: Share, a: Tensor) -> Tensor:
        return a + 2 * dense(share, model.layer, a) * x

    assert_close(found, explain(reference, rule, x)[0])


@each_rule
def test_inputs_of_several_shapes(rule: str) -> None:
    class Meets(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image, self.row, self.head = nn.Conv2d(2, 3, 3), nn.Linear(5, 3), nn.Linear(3, 2)
            settle(self)

        def forward(self, image: Tensor, row: Tensor) -> Tensor:
            h = self.image(image).relu().mean((2, 3)) + self.row(row)
            return self.head(h.relu())  # type: ignore[no-any-return]

    model = Meets()

    def reference(share: Share, image: Tensor, row: Tensor) -> Tensor:
        h = conv(share, model.image, image).relu().mean((2, 3)) + dense(share, model.row, row)
        return dense(share, model.head, h.relu())

    check(model, reference, random(3, 2, 5, 5), random(3, 5, seed=1), rule=rule)


@pytest.mark.parametrize("name", RULES)
def test_two_forwards_before_a_backward(name: str) -> None:
    model = three_layers()
    first, second = random(3, 4).requires_grad_(), random(2, 4, seed=1).requires_grad_()
    with Rules().set(lambda name, module: True, RULES[name][0]).attach(model) as attached:
        one = model(first)
        two = model(second)
    (c_one,) = torch.autograd.grad(weigh(one).sum(), first, retain_graph=True)
    (c_two,) = torch.autograd.grad(weigh(two).sum(), second)
    (again,) = torch.autograd.grad(weigh(one).sum(), first, retain_graph=True)

    def reference(share: Share, x: Tensor) -> Tensor:
        return dense(share, model[4], dense(share, model[2], dense(share, model[0], x).relu()).relu())

    assert_close(first.detach() * c_one, explain(reference, name, first.detach())[0])
    assert_close(second.detach() * c_two, explain(reference, name, second.detach())[0])
    assert torch.equal(again, c_one)
    attached.finish()
    (true,) = torch.autograd.grad(weigh(one).sum(), first)
    plain = first.detach().requires_grad_()
    (expected,) = torch.autograd.grad(weigh(model(plain)).sum(), plain)
    assert_close(true, expected)


@pytest.mark.parametrize(
    "rule", [Zero(), Gamma(), Flat(), WSquare(), ZBox(-3.0, 3.0)], ids=lambda rule: type(rule).__name__
)
@pytest.mark.parametrize("switch", [torch.no_grad, torch.inference_mode])
def test_the_mode_of_the_caller_does_not_matter(rule: Any, switch: Any) -> None:
    model, x = three_layers(), random(3, 4)
    expected = LRP(model, rule).attribute(x, 1)
    with switch():
        made_inside = x * 1.0
        found = LRP(model, rule).attribute(x, 1)
        inside = LRP(model, rule).attribute(made_inside, 1)
        maps = LRP(model, rule).attribute_layers(made_inside, ["0", "2"], 1)
        assert not torch.is_grad_enabled()
    assert torch.equal(found, expected) and torch.equal(inside, expected)
    for name, map_ in LRP(model, rule).attribute_layers(x, ["0", "2"], 1).items():
        assert torch.equal(map_, maps[name])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.requires_grad_(False)
    assert torch.equal(LRP(model, rule).attribute(x, 1), expected)


def test_a_model_that_turns_gradients_off_for_a_part() -> None:
    """What the model computes without gradients is a constant, as it is for the gradient."""

    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
            settle(self)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                scale = self.other(x).relu()
                scale += 1
            return self.layer(x) * scale + self.layer(x.detach())  # type: ignore[no-any-return]

    model = Partly()

    def reference(share: Share, x: Tensor) -> Tensor:
        scale = model.other(x.detach()).relu().detach() + 1
        return dense(share, model.layer, x) * scale + model.layer(x.detach()).detach()  # type: ignore[no-any-return]

    for name in ("lrp0", "gamma"):
        with pytest.warns(UncoveredOperationWarning, match="module 'other'"):
            found = LRP(model, RULES[name][0]).attribute(random(3, 4), weigh)
        assert_close(found, explain(reference, name, random(3, 4))[0], name)
