"""What the tests of propagation compare with: the same network unrolled, explained by its plain gradient.

A reference is a function of the inputs that writes nothing in place, uses no module twice and calls every linear
map as `share(operation, a, weight, bias)`; its activations hand relevance on by `passing`. Then input times gradient
is the relevance. Nothing here comes from relprop but the rules that are put to the test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import LRP
from relprop.rules import AlphaBeta, Epsilon, Gamma, LinearRule, Zero, ZPlus
from tests import explicit
from tests.models import settle
from tests.reference_steps import by_sign

DTYPE = torch.float64

Operation = explicit.Operation
Share = Callable[..., Tensor]
Reference = Callable[..., Tensor]


def strong_epsilon(operation: Operation, a: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Epsilon 0.1: R_j = sum_k a_j w_kj / (z_k + 0.1 sign(z_k)) R_k."""
    z = operation(a, weight, bias)
    return _through(z, z, 1.0, torch.as_tensor(0.1, dtype=z.dtype))


def alpha2_beta1(operation: Operation, a: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """R_j = sum_k (2 (a_j w_kj)+ / sum (.)+ - (a_j w_kj)- / sum (.)-) R_k."""
    z = operation(a, weight, bias)
    up, down = weight.clamp(min=0), weight.clamp(max=0)
    bias_up, bias_down = (None, None) if bias is None else (bias.clamp(min=0), bias.clamp(max=0))
    raising = operation(a.clamp(min=0), up, bias_up) + operation(a.clamp(max=0), down, None)
    lowering = operation(a.clamp(min=0), down, bias_down) + operation(a.clamp(max=0), up, None)
    sizes = (explicit.STABILIZER * explicit.size(whole, weight) for whole in (raising, lowering))
    return _through(z, raising, 2.0, next(sizes)) + _through(z, lowering, -1.0, next(sizes)) - z.detach()


def _through(z: Tensor, whole: Tensor, factor: float, epsilon: Tensor) -> Tensor:
    """The value of z, whose derivative shares `factor` of its relevance as the terms of `whole`."""
    stabilized = whole + epsilon * torch.where(whole < 0, -torch.ones_like(z), torch.ones_like(z))
    ratio = torch.where(whole == 0, 0.0, factor * z / torch.where(whole == 0, 1.0, stabilized))
    return z.detach() + (whole - whole.detach()) * ratio.detach()


RULES: dict[str, tuple[LinearRule, Callable[..., Tensor]]] = {
    "lrp0": (Zero(), explicit.zero),
    "epsilon": (Epsilon(0.1), strong_epsilon),
    "gamma": (Gamma(0.25), explicit.gamma),
    "zplus": (ZPlus(), explicit.zplus),
    "alpha2_beta1": (AlphaBeta(2, 1), alpha2_beta1),
}
each_rule = pytest.mark.parametrize("rule", RULES)  # for tests that `check`: a case for each


def share_by(name: str) -> Share:
    """The linear map of a reference under one of the rules; the bias may be left out."""
    rule = RULES[name][1]

    def share(operation: Operation, a: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return rule(operation, a, weight.detach().clone(), None if bias is None else bias.detach().clone())

    return share


def dense(share: Share, layer: Any, a: Tensor) -> Tensor:
    """A linear layer of a reference, with copies of the layer's parameters."""
    return share(F.linear, a, layer.weight, layer.bias)


def conv(share: Share, layer: Any, a: Tensor, weight: Tensor | None = None) -> Tensor:
    """A convolution of a reference, with copies of the layer's parameters or with another weight."""

    def operation(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return F.conv2d(x, w, b, layer.stride, layer.padding, layer.dilation, layer.groups)

    return share(operation, a, layer.weight if weight is None else weight, layer.bias)


_ABOVE: list[str] = []
"""The rule of the layer above what a reference computes now, where it is known."""


def passing(function: Callable[[Tensor], Tensor], z: Tensor, slope: float = 1.0) -> Tensor:
    """f(z), that hands relevance on: its derivative is (f(z) - f(0)) / z, and `slope` at zero.

    Below z+ and alpha-beta, what it adds to f(0) and f(0) itself share by sign.
    """
    fixed = z.detach()
    value, origin = function(fixed), function(torch.zeros_like(fixed))
    signal = value - origin
    quotient = torch.where(fixed == 0, slope, signal / torch.where(fixed == 0, 1.0, fixed))
    alpha_beta = {"zplus": (1.0, 0.0), "alpha2_beta1": (2.0, 1.0)}.get(_ABOVE[-1] if _ABOVE else "")
    if alpha_beta is not None and bool((origin != 0).any()):
        share = by_sign(signal, origin, torch.ones_like(value), *alpha_beta)
        quotient = quotient * value * share / torch.where(signal == 0, 1.0, signal)
    return value + (z - fixed) * quotient


def random(*shape: int, seed: int = 0) -> Tensor:
    """Numbers of both signs, in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)


def weigh(output: Tensor) -> Tensor:
    """One number per sample: the outputs under weights of both signs."""
    return (output * random(*output.shape[1:], seed=9)).flatten(1).sum(1)


def explain(reference: Reference, name: str, *inputs: Tensor) -> tuple[Tensor, ...]:
    """The relevance of every input under the named rule."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    selected = weigh(reference(share_by(name), *leaves))
    gradients = torch.autograd.grad(selected.sum(), leaves)
    return tuple(x.detach() * c for x, c in zip(leaves, gradients, strict=True))


def assert_close(found: Tensor, expected: Tensor, what: str = "", tolerance: float = 1e-10) -> None:
    """Two maps are one, relative to the largest entry."""
    assert found.shape == expected.shape, what
    scale = float(expected.abs().max())
    assert scale > 1e-6, f"{what}: the reference is empty"
    error = float((found - expected).abs().max()) / scale
    assert error <= tolerance, f"{what}: {error:.1e} relative"


class Watched:
    """A target that weighs the outputs, and keeps what the model returned."""

    def __init__(self) -> None:
        self.outputs: list[Tensor] = []

    def __call__(self, output: Tensor) -> Tensor:
        self.outputs.append(output.detach().clone())
        return weigh(output)


def check(model: nn.Module, reference: Reference, *inputs: Tensor, rule: str) -> None:
    """The rule gives the map of the reference, on an unchanged forward; the report adds up to the same."""
    with torch.no_grad():
        plain = model(*(x.clone() for x in inputs))
    copies = [x.clone() for x in inputs]
    given: Any = copies[0] if len(copies) == 1 else tuple(copies)
    expected = explain(reference, rule, *inputs)
    unrolled = reference(share_by(rule), *inputs)
    assert_close(plain, unrolled.detach(), "another network", 1e-12)
    lrp, target = LRP(model, RULES[rule][0]), Watched()
    for options in ({}, {"create_graph": True}):
        found = lrp.attribute(given, target, **options)  # type: ignore[arg-type]
        maps = found if isinstance(found, tuple) else (found,)
        for one, other in zip(maps, expected, strict=True):
            assert_close(one.detach(), other, f"{options}")
    assert all(torch.equal(output, plain) for output in target.outputs), "the forward changed"
    target = Watched()
    report = lrp.report(given, target)
    assert torch.equal(target.outputs[0], plain), "the forward changed in a report"
    total = torch.stack([part.flatten(1).sum(1) for part in expected]).sum(0)
    size = float(plain.abs().max()) + max(float(part.abs().max()) for part in expected)
    assert float((report.delta - (weigh(plain) - total)).abs().max()) < 1e-10 * size, "the report"
    report.check(1e-9)
    for x, copy in zip(inputs, copies, strict=True):
        assert torch.equal(x, copy), "the caller's tensor was written to"


Body = Callable[[Tensor, Tensor], Tensor]


class Bodies(dict[str, tuple[Body, Body]]):
    """Functions of (h, x) that write, by name, each beside the same function that does not."""

    def beside(self, pure: Body) -> Callable[[Body], Body]:
        """Enter a function that writes, beside the one that does not."""

        def enter(body: Body) -> Body:
            self[body.__name__] = body, pure
            return body

        return enter


class Between(nn.Module):
    """[N, 4] to [N, 5]: a linear layer, a function of its output and of the input, a linear layer."""

    def __init__(self, body: Callable[[Tensor, Tensor], Tensor], hidden: int = 6) -> None:
        super().__init__()
        self.below, self.body, self.above = nn.Linear(4, 6), body, nn.Linear(hidden, 5)
        settle(self)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.above(self.body(self.below(x), x))
        return out


def check_between(
    body: Callable[[Tensor, Tensor], Tensor], pure: Callable[[Tensor, Tensor], Tensor], hidden: int = 6, *, rule: str
) -> None:
    """A body that may write anywhere equals the same body written without writes."""
    model = Between(body, hidden)

    def reference(share: Share, x: Tensor) -> Tensor:
        below = dense(share, model.below, x)
        _ABOVE.append(rule)
        try:
            between = pure(below, x)
        finally:
            _ABOVE.pop()
        return dense(share, model.above, between)

    check(model, reference, random(3, 4), rule=rule)


@contextmanager
def snapshot(model: nn.Module) -> Iterator[None]:
    """Whatever the body does, the model is what it was: values, gradients, flags, hooks and attributes."""
    before = _state(model)
    values = {name: tensor.detach().clone() for name, tensor in _tensors(model).items()}
    yield
    after = _state(model)
    for name in before:
        assert after[name] == before[name], name
    assert after.keys() == before.keys()
    for name, tensor in _tensors(model).items():
        assert torch.equal(tensor, values[name]), f"{name} was written to"


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    found = dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])
    found |= {f"{name}.grad": p.grad for name, p in model.named_parameters() if p.grad is not None}
    for name, module in model.named_modules():
        attributes = vars(module).items()
        found |= {f"{name}.{key} (attribute)": value for key, value in attributes if isinstance(value, Tensor)}
    return found


def _state(model: nn.Module) -> dict[str, Any]:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
    state: dict[str, Any] = {"state_dict": list(model.state_dict())}
    for name, tensor in _tensors(model).items():
        state[f"identity of {name}"] = None if "attribute" in name else id(tensor)
        state[f"storage of {name}"] = None if "attribute" in name else tensor.data_ptr()
        state[f"flags of {name}"] = (tensor.requires_grad, tensor.dtype, tensor.shape)
        state[f"hooks on {name}"] = len(tensor._backward_hooks or {})
    for name, module in model.named_modules():
        state[f"class of {name}"] = type(module)
        state[f"training of {name}"] = module.training
        state[f"hooks of {name}"] = {hook: list(getattr(module, hook)) for hook in hooks}
        state[f"attributes of {name}"] = sorted(vars(module))
    return state
