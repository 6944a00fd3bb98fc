"""Operations that users declare: explained as those of torch that compute the same, by every method."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import relprop
from relprop import (
    LRP,
    DeepLift,
    ExcitationBackprop,
    Gradient,
    GuidedBackprop,
    IntegratedGradients,
    NumericalError,
    OperationError,
    Rules,
    UncoveredOperationError,
    UncoveredOperationWarning,
)
from relprop.operations import Difference, Here, operation_of, table
from relprop.rules import Block, Detach, Pass
from tests.unrolled import assert_close, random


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test declares is unknown to the next one."""
    monkeypatch.setattr(table, "_known", table.operations())


LIBRARY = torch.library.Library("relprop_tests", "DEF")
LIBRARY.define("swish(Tensor x) -> Tensor")
LIBRARY.define("swish_(Tensor(a!) x) -> Tensor(a!)")
LIBRARY.define("swish.out(Tensor x, *, Tensor(a!) out) -> Tensor(a!)")
LIBRARY.impl("swish", F.silu, "CompositeImplicitAutograd")


def _swish_(x: Tensor) -> Tensor:
    return x.copy_(F.silu(x))


def _swish_out(x: Tensor, *, out: Tensor) -> Tensor:
    return out.copy_(F.silu(x))


LIBRARY.impl("swish_", _swish_, "CompositeImplicitAutograd")
LIBRARY.impl("swish.out", _swish_out, "CompositeImplicitAutograd")


@torch.library.custom_op("relprop_tests::kernel", mutates_args=())
def kernel(x: Tensor) -> Tensor:
    return F.silu(x)


kernel.register_autograd(
    lambda ctx, c: c * _derivative(ctx.saved_tensors[0]),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
)


def _derivative(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


def swish_function(once: bool = False) -> Any:
    """An autograd function, made anew so that every test declares one of its own."""

    def backward(ctx: Any, c: Tensor) -> Tensor:
        return c * _derivative(ctx.saved_tensors[0])

    class Swish(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x * torch.sigmoid(x)

    Swish.backward = staticmethod(torch.autograd.function.once_differentiable(backward) if once else backward)
    return Swish


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


DECLARED: dict[str, Any] = {"kind": "activation", "quotient": torch.sigmoid, "difference": "smooth"}


def _declare_operator() -> Callable[[Tensor], Tensor]:
    return relprop.operation(torch.ops.relprop_tests.swish, **DECLARED)  # type: ignore[no-any-return]


def _declare_overload() -> Callable[[Tensor], Tensor]:
    relprop.operation(torch.ops.relprop_tests.swish, **DECLARED)
    return torch.ops.relprop_tests.swish.default  # type: ignore[no-any-return]


def _declare_by_overload() -> Callable[[Tensor], Tensor]:
    relprop.operation(torch.ops.relprop_tests.swish.default, **DECLARED)
    return torch.ops.relprop_tests.swish  # type: ignore[no-any-return]


def _in_place() -> Callable[[Tensor], Tensor]:
    relprop.operation(torch.ops.relprop_tests.swish, **DECLARED)
    return lambda x: torch.ops.relprop_tests.swish_(x * 1)


def _in_place_overload() -> Callable[[Tensor], Tensor]:
    relprop.operation(torch.ops.relprop_tests.swish, **DECLARED)
    return lambda x: torch.ops.relprop_tests.swish_.default(x * 1)


def _out(overload: bool) -> Callable[[Tensor], Tensor]:
    packet = relprop.operation(torch.ops.relprop_tests.swish, **DECLARED)
    function = packet.out if overload else packet
    return lambda x: function(x, out=torch.empty(0, dtype=x.dtype))


def _custom_op() -> Callable[[Tensor], Tensor]:
    relprop.operation(kernel, **DECLARED)
    return kernel


def _function(once: bool = False) -> Callable[[Tensor], Tensor]:
    declared = relprop.operation(swish_function(once), **DECLARED)
    return lambda x: declared.apply(x)


def _decorated() -> Callable[[Tensor], Tensor]:
    @relprop.operation(**DECLARED)
    def own(z: Tensor) -> Tensor:
        return z * torch.sigmoid(z)

    return own


def _composite() -> Callable[[Tensor], Tensor]:
    relprop.operation(torch.ops.relprop_tests.swish, kind="composite", body=F.silu)
    return torch.ops.relprop_tests.swish  # type: ignore[no-any-return]


SPELLINGS: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "an operator": _declare_operator,
    "its overload": _declare_overload,
    "declared by its overload": _declare_by_overload,
    "in place": _in_place,
    "in place by its overload": _in_place_overload,
    "out": lambda: _out(False),
    "out by its overload": lambda: _out(True),
    "a custom operator": _custom_op,
    "an autograd function": _function,
    "an autograd function differentiable once": lambda: _function(True),
    "a decorated function": _decorated,
    "a function": lambda: relprop.operation(swish, **DECLARED),
    "a composite": _composite,
}


class Bend(nn.Module):
    """A module that runs one operation."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Branch(nn.Module):
    """A module beside which its input passes."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.bend = Bend(function)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bend(x)  # type: ignore[no-any-return]


def network(function: Callable[[Tensor], Tensor]) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), Branch(function), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 8),
        nn.ReLU(), nn.Linear(8, 4), Branch(function), nn.Linear(4, 2),
    ).double().eval()  # fmt: skip
    with torch.no_grad():
        for index in (7, 9):  # so that guided backprop has something to pass
            model[index].weight.abs_()
    return model


class Gated(nn.Module):
    """A product of a signal and an own operation, which counts of how many factors it is made."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = nn.Linear(6, 4).double(), nn.Linear(6, 4).double()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)[:, :6]
        return (self.first(x) * self.function(self.second(x))).sum(1)


METHODS: dict[str, Callable[[nn.Module], Any]] = {
    "epsilon_gamma": LRP,
    "strict": lambda model: LRP(model, strict=True),
    "attnlrp": lambda model: LRP(model, "attnlrp"),
    "flat": lambda model: LRP(model, "epsilon_plus_flat"),
    "deep_lift": DeepLift,
    "reveal_cancel": lambda model: DeepLift(model, "reveal_cancel", strict=True),
    "guided": GuidedBackprop,
    "excitation": ExcitationBackprop,
    "gradient": Gradient,
    "integrated": IntegratedGradients,
}


@pytest.fixture(params=SPELLINGS, name="spelled")
def _spelled(request: pytest.FixtureRequest) -> Callable[[Tensor], Tensor]:
    return SPELLINGS[request.param]()


# Guided backprop says where it meets no ReLU.
@pytest.mark.filterwarnings("ignore::relprop.NoEffectWarning")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [network, Gated])
def test_it_is_explained_as_the_function_of_torch(
    make: Callable[[Any], nn.Module], method: str, spelled: Callable[[Tensor], Tensor]
) -> None:
    x = random(3, 1, 6, 6, seed=4)
    own, torchs = make(spelled), make(F.silu)
    target = None if make is Gated else 1
    found = METHODS[method](own).attribute(x, target=target)
    assert_close(found, METHODS[method](torchs).attribute(x, target=target), method, tolerance=1e-12)


def test_plan_and_report_show_it_as_torchs_own(spelled: Callable[[Tensor], Tensor]) -> None:
    x = random(3, 1, 6, 6, seed=4)
    own, torchs = network(spelled), network(F.silu)
    rules = Rules.preset("epsilon_gamma")
    kinds = [[row.kind for row in rules.plan(model, x).rows if row.operation != "mul"] for model in (own, torchs)]
    assert kinds[0] == kinds[1]
    assert all(row.covered for row in rules.plan(own, x).rows)
    reports = [LRP(model).report(x, 1) for model in (own, torchs)]
    assert abs(reports[0].unexplained) < 1e-10
    assert abs(reports[0].relevance - reports[1].relevance) < 1e-10


def test_a_loss_on_the_map_differentiates_the_network_as_it_is(spelled: Callable[[Tensor], Tensor]) -> None:
    x = random(2, 1, 6, 6, seed=4)
    gradients = []
    for model in (network(spelled), network(F.silu)):
        LRP(model).attribute(x, 1, create_graph=True).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert_close(gradients[0], gradients[1], "loss", tolerance=1e-10)


def test_a_backward_without_a_derivative_is_named_where_it_would_explain() -> None:
    declared = relprop.operation(swish_function(once=True), kind="affine")
    x = random(2, 1, 6, 6, seed=4)
    with pytest.raises(UncoveredOperationError, match="Swish is once_differentiable; create_graph needs"):
        LRP(network(declared.apply)).attribute(x, 1, create_graph=True)
    declared = relprop.operation(swish_function(once=True), **DECLARED)
    with pytest.raises(UncoveredOperationError, match="Swish is once_differentiable; create_graph needs"):
        Gradient(network(declared.apply)).attribute(x, 1, create_graph=True)


@pytest.mark.parametrize("rule", [Pass(), Detach(), Block()], ids=["pass", "detach", "block"])
def test_a_rule_reaches_it_by_its_module_and_by_itself(rule: Any) -> None:
    x = random(2, 1, 6, 6, seed=4)
    function = swish_function()
    relprop.operation(function, **DECLARED)
    relprop.operation(torch.ops.relprop_tests.swish, **DECLARED)
    relprop.operation(kernel, **DECLARED)
    own = relprop.operation(swish, **DECLARED)
    expected = LRP(network(F.silu), Rules.preset("epsilon").set(F.silu, rule)).attribute(x, 1)
    for model, selectors in (
        (network(lambda z: function.apply(z)), (Bend, function, function.apply)),
        (network(torch.ops.relprop_tests.swish), (Bend, torch.ops.relprop_tests.swish)),
        (network(kernel), (Bend, kernel, torch.ops.relprop_tests.kernel.default)),
        (network(own), (Bend, own, swish)),
    ):
        for selector in selectors:
            found = LRP(model, Rules.preset("epsilon").set(selector, rule)).attribute(x, 1)
            assert_close(found, expected, f"{selector}", tolerance=1e-10)


# Kinds ---------------------------------------------------------------------------------------------------------


class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        return x * y

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> Any:
        x, y = ctx.saved_tensors
        return c * y, c * x


class Pair(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Linear(5, 4).double(), nn.Linear(5, 4).double()
        self.third, self.function = nn.Linear(5, 4).double(), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.function(self.first(x), self.second(x)), self.third(x)).sum(1)


@pytest.mark.filterwarnings("ignore::relprop.NoEffectWarning")
@pytest.mark.parametrize("method", ["epsilon_gamma", "strict", "attnlrp", "flat", "deep_lift", "guided", "excitation"])
def test_a_product_shares_as_one_of_torch(method: str) -> None:
    relprop.operation(Scale, kind="product")
    x = random(3, 5, seed=5)
    found = METHODS[method](Pair(Scale.apply)).attribute(x)
    assert_close(found, METHODS[method](Pair(torch.mul)).attribute(x), method, tolerance=1e-12)


@pytest.mark.parametrize("method", ["epsilon_gamma", "strict", "deep_lift", "guided", "excitation", "integrated"])
@pytest.mark.parametrize(
    ("kind", "function"),
    [("affine", lambda z: 2 * z.roll(1, 1) - 1), ("view", lambda z: z.flip(1))],
    ids=["affine", "view"],
)
def test_what_autograd_is_right_for(kind: str, function: Callable[[Tensor], Tensor], method: str) -> None:
    x = random(3, 1, 6, 6, seed=4)
    own = relprop.operation(lambda z: function(z), kind=kind, name="own")
    found = METHODS[method](network(own)).attribute(x, target=1)
    if method != "excitation" or kind == "view":  # a sum of torch is one of terms to excitation backprop
        assert_close(found, METHODS[method](network(function)).attribute(x, target=1), method, tolerance=1e-12)


def test_a_view_moves_ids_too() -> None:
    @relprop.operation(kind="view")
    def turned(ids: Tensor) -> Tensor:
        return ids.flip(1)

    class Words(nn.Module):
        def __init__(self, turn: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.words, self.last, self.turn = nn.Embedding(9, 4), nn.Linear(20, 1), turn

        def forward(self, ids: Tensor) -> Tensor:
            return self.last(self.words(self.turn(ids)).flatten(1))  # type: ignore[no-any-return]

    ids = torch.tensor([[1, 5, 2, 8, 3]])
    found, expected = (LRP(Words(turn).double()).attribute(ids) for turn in (turned, lambda x: x.flip(1)))
    assert_close(found, expected, "ids")


def test_a_gate_receives_nothing_of_a_product() -> None:
    @relprop.operation(kind="activation", quotient=relprop.operations.quotients.sigmoid, bounds=(0.0, 1.0), gate=True)
    def opened(z: Tensor) -> Tensor:
        return torch.sigmoid(z)

    x = random(3, 1, 6, 6, seed=4)
    found, expected = (LRP(Gated(gate), strict=True).attribute(x) for gate in (opened, torch.sigmoid))
    assert_close(found, expected, "gate", tolerance=1e-12)


def test_a_handler_of_ones_own_runs_it() -> None:
    def run(here: Here, x: Tensor) -> Tensor:
        here.by_autograd()
        return here.call.switch(here.func(x), x * 3)

    own = relprop.operation(lambda z: z.abs(), kind="norm", handler=run, name="tripled")
    x = random(3, 1, 6, 6, seed=4)

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return own(x).sum((1, 2, 3))  # type: ignore[no-any-return]

    assert_close(LRP(Model(), strict=True).attribute(x), 3 * x, "handler")
    with pytest.warns(UncoveredOperationWarning, match="tripled"):
        DeepLift(Model()).attribute(x)


# As the docs say -----------------------------------------------------------------------------------------------


def _lgamma_quotient(z: Tensor) -> Tensor:
    """``lgamma(z) / (z - 1)``, by its series about 1."""
    from relprop.operations.elementary import ratio

    return ratio(torch.lgamma(z), z - 1, -0.5772156649015329, 0.8224670334241132, -0.4006856343865314, 0.27, -0.2)


@pytest.mark.parametrize("function", ["lgamma", "log"])
def test_what_is_a_function_of_a_factor_is_its_gate(function: str) -> None:
    """z f(|z| + 1.5) is an activation spelled as a product: all goes to z."""
    relprop.operation(torch.lgamma, kind="activation", root=1.0, quotient=_lgamma_quotient)

    class Spelled(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return (z * getattr(torch, function)(z.abs() + 1.5)).sum(1)  # type: ignore[no-any-return]

    z = random(3, 5, seed=6)
    expected = z * getattr(torch, function)(z.abs() + 1.5)
    assert_close(LRP(Spelled(), strict=True).attribute(z), expected, function)


@pytest.mark.parametrize("spelled", [torch.lgamma, Tensor.lgamma, lambda z: z.clone().lgamma_()])
def test_a_function_of_torch_is_declared_in_all_its_spellings(spelled: Callable[[Tensor], Tensor]) -> None:
    relprop.operation(torch.lgamma, kind="activation", root=1.0, quotient=_lgamma_quotient)

    class Model(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return spelled(z.abs() + 1.5).sum(1)

    z = random(3, 5, seed=6)
    a = z.abs() + 1.5
    assert_close(LRP(Model(), strict=True).attribute(z), torch.lgamma(a) / (a - 1) * z.abs(), "lgamma")


# What may be asked wrongly -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"kind": "activaton"}, "kind is one of .*Did you mean 'activation'"),
        ({"kind": "gate"}, "kind is one of"),
        ({"kind": "activation"}, "An activation needs its quotient"),
        ({"kind": "activation", "quotient": 2}, "quotient is a function, got 2"),
        ({"kind": "affine", "quotient": torch.sigmoid}, 'quotient is said of activations; write kind="activation"'),
        ({"kind": "view", "gate": True}, "gate is said of activations"),
        ({"kind": "affine", "bounds": (0, 1)}, "bounds is said of activations"),
        ({"kind": "activation", "quotient": torch.sigmoid, "handler": print}, "quotient and handler say twice"),
        ({"kind": "activation", "root": 1.0, "handler": print}, "root needs a quotient"),
        ({"kind": "activation", "quotient": torch.sigmoid, "bounds": (1, 0)}, "low <= high"),
        ({"kind": "linear"}, 'kind="linear" does not say how relevance passes; give a handler'),
        ({"kind": "composite"}, "A composite needs its body"),
        ({"kind": "affine", "body": print}, 'write kind="composite"'),
        ({"kind": "affine", "difference": "smoth"}, "DeepLIFT takes an operation as"),
    ],
)
def test_contradictions_say_what_to_write(stated: dict[str, Any], message: str) -> None:
    with pytest.raises(OperationError, match=message):
        relprop.operation(swish, **stated)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (F.silu, "has a row for silu, of kind activation, which is not replaced"),
        (torch.Tensor.add, "has a row for add"),
        (nn.SiLU, "not the module"),
        (nn.SiLU(), "not the module"),
        ("silu", "is no function"),
        (Scale.apply, "Declare Scale itself, not its apply"),
    ],
)
def test_what_cannot_be_declared(function: Any, message: str) -> None:
    with pytest.raises(OperationError, match=message):
        relprop.operation(function, **DECLARED)


def test_what_is_declared_again_replaces() -> None:
    own = relprop.operation(swish, kind="affine")
    assert relprop.operation(own, **DECLARED) is own
    row = operation_of(own)
    assert row is not None
    assert row.difference is Difference.SMOOTH
    x = random(3, 1, 6, 6, seed=4)
    for make in (DeepLift, ExcitationBackprop, LRP):
        assert_close(make(network(own)).attribute(x, target=1), make(network(F.silu)).attribute(x, target=1), "again")


def test_declaring_twice_wraps_once() -> None:
    declared = swish_function()
    relprop.operation(declared, **DECLARED)
    apply = declared.__dict__["apply"]
    relprop.operation(declared, **DECLARED)
    assert declared.__dict__["apply"] is apply


def test_an_earlier_apply_stays_unseen_and_says_so() -> None:
    declared = swish_function()
    earlier = declared.apply
    relprop.operation(declared, **DECLARED)
    x = random(2, 1, 6, 6, seed=4)
    with pytest.warns(UncoveredOperationWarning, match=r"earlier Swish\.apply, taken before relprop\.operation"):
        LRP(network(earlier)).attribute(x, 1)


def test_a_subclass_has_no_row() -> None:
    declared = relprop.operation(swish_function(), **DECLARED)

    class Other(declared):  # type: ignore[misc, valid-type]
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return 2 * x * torch.sigmoid(x)

    with pytest.warns(UncoveredOperationWarning, match="OtherBackward .* was made by no call relprop can see"):
        LRP(network(Other.apply)).attribute(random(2, 1, 6, 6, seed=4), 1)


def test_without_relprop_nothing_changes() -> None:
    declared = relprop.operation(swish_function(), **DECLARED)
    own = relprop.operation(swish, **DECLARED)
    seen: list[Any] = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    class Kind(Tensor):
        pass

    x = random(3, seed=1)
    with Watch():
        declared.apply(x), own(x)
    assert declared.apply not in seen
    assert own not in seen
    assert type(declared.apply(x.as_subclass(Kind))) is type(swish_function().apply(x.as_subclass(Kind)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.vmap(own)(x)


def test_an_argument_that_is_not_the_first_is_named() -> None:
    @relprop.operation(kind="activation", quotient=lambda z, slope: torch.where(z > 0, 1.0, slope))
    def leaky(z: Tensor, slope: Tensor) -> Tensor:
        return torch.where(z > 0, z, z * slope)

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return leaky(x, x.mean(1, keepdim=True)).sum(1)

    with pytest.warns(UncoveredOperationWarning, match="leaky in Model depends on the input by an argument"):
        LRP(Model()).attribute(random(2, 5, seed=1))


def test_names_do_not_meet_those_of_torch() -> None:
    def silu(z: Tensor) -> Tensor:
        return z * torch.sigmoid(z)

    own = relprop.operation(silu, **DECLARED)
    row = operation_of(own)
    assert row is not None
    assert row.name == f"{__name__}.silu"
    assert operation_of(relprop.operation(torch.ops.relprop_tests.swish, **DECLARED)).name == "relprop_tests.swish"


# What a first try returns --------------------------------------------------------------------------------------


def runs(function: Callable[..., Tensor]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), Bend(function), nn.Linear(4, 2)).double()


def _without_return(*args: Any, **kwargs: Any) -> None:
    return None


def _by_quotient(quotient: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return relprop.operation(lambda z: torch.sigmoid(z), kind="activation", name="own", quotient=quotient, **options)  # type: ignore[no-any-return]


def _by_handler(handler: Callable[..., Any]) -> Callable[..., Any]:
    return relprop.operation(lambda z: torch.sigmoid(z), kind="norm", name="own", handler=handler)  # type: ignore[no-any-return]


def _by_body(body: Callable[..., Any]) -> Callable[..., Any]:
    return relprop.operation(lambda z: torch.sigmoid(z), kind="composite", name="own", body=body)  # type: ignore[no-any-return]


RETURNED: dict[str, tuple[Callable[[], Callable[..., Any]], str]] = {
    "a quotient of None": (lambda: _by_quotient(_without_return), "quotient at 'own' in module '1'.*None.*`return`"),
    "a root's quotient of None": (lambda: _by_quotient(_without_return, root=1.0), "quotient at 'own'.*None"),
    "a number": (lambda: _by_quotient(lambda z: 0.25), r"quotient at 'own'.*float \(0.25\), .*shape \(3, 4\)"),
    "one for all": (lambda: _by_quotient(lambda z: torch.ones(())), r"shape \(\), expected .* \(3, 4\), as the output"),
    "a row": (lambda: _by_quotient(lambda z: z[:1]), r"shape \(1, 4\), expected a tensor of shape \(3, 4\)"),
    "a root's row": (lambda: _by_quotient(lambda z: z[:1], root=1.0), r"shape \(1, 4\), expected .* \(3, 4\)"),
    "a handler of None": (lambda: _by_handler(_without_return), "handler at 'own' in module '1'.*None.*`return`"),
    "a handler of a row": (lambda: _by_handler(lambda here, z: here.func(z)[:1]), r"handler .*\(1, 4\).*\(3, 4\)"),
    "a handler of two": (lambda: _by_handler(lambda here, z: (z, z)), "handler .*, a tensor .*, expected a tensor"),
    "a handler of integers": (lambda: _by_handler(lambda here, z: z.long()), "int64.*expected .*float64"),
    "a body of None": (lambda: _by_body(_without_return), "body at 'own' in module '1'.*None.*`return`"),
    "a body of a sum": (lambda: _by_body(lambda z: z.sum(1)), r"body .*\(3,\).*expected .*\(3, 4\)"),
    "a body of two": (lambda: _by_body(lambda z: [z, z]), "body .*, a tensor .*, expected a tensor"),
}


@pytest.mark.parametrize("case", RETURNED)
def test_what_does_not_fit_the_output_is_named(case: str) -> None:
    declare, message = RETURNED[case]
    model = runs(declare())
    with pytest.raises(OperationError, match=message):
        LRP(model).attribute(random(3, 4, seed=7), 1)


def _of_function() -> Callable[..., Any]:
    function = swish_function()
    relprop.operation(function, kind="composite", body=lambda z: function.apply(z))
    return lambda z: function.apply(z)


def _of_python() -> Callable[..., Any]:
    @relprop.operation(kind="composite", body=lambda z: own(z) * 1.0)
    def own(z: Tensor) -> Tensor:
        return z * torch.sigmoid(z)

    return own


@pytest.mark.parametrize("declare", [_of_function, _of_python])
def test_a_body_that_calls_its_own_function_is_named(declare: Callable[[], Callable[..., Any]]) -> None:
    with pytest.raises(OperationError, match=r"The body at '(Swish|own)'.* calls (Swish|own) itself, without end"):
        LRP(runs(declare())).attribute(random(3, 4, seed=7), 1)


@pytest.mark.parametrize("root", [None, 1.0])
def test_a_quotient_without_a_value_at_zero_is_named(root: float | None) -> None:
    model = runs(_by_quotient(lambda z: (torch.sigmoid(z) - 0.5) / z, root=root))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]))
    with pytest.raises(NumericalError, match=r"The quotient at 'own' in module '1' .* 3 of 12 entries, as at z = 0, "):
        LRP(model).attribute(random(3, 4, seed=7), 1)


@pytest.mark.parametrize("runs_it", [True, False])
@pytest.mark.parametrize("create_graph", [True, False])
def test_the_value_stays_that_of_the_function_whatever_a_handler_computes(runs_it: bool, create_graph: bool) -> None:
    """The handler's output is three times too large, and in float32; what explains is its graph."""
    calls = []

    def value(z: Tensor) -> Tensor:
        calls.append(z)
        return z.abs()

    def run(here: Here, z: Tensor) -> Tensor:
        here.absorbs_nothing()
        return 3 * (here.func(z) if runs_it else z.abs()).float()

    own = relprop.operation(value, kind="norm", handler=run, name="own")
    model, x = runs(own), random(3, 4, seed=7)
    expected = model(x)[:, 1].detach()
    calls.clear()
    explained = []
    target = lambda output: explained.append(output) or output[:, 1]  # noqa: E731
    LRP(model).attribute(x, target, create_graph=create_graph)
    assert len(calls) == 1  # the kernel runs once
    assert torch.equal(explained[0][:, 1], expected)
    torch.testing.assert_close(LRP(model).explained(x, 1), expected)


@pytest.mark.filterwarnings("ignore::relprop.NoEffectWarning")  # the operation is all there is
def test_a_handler_is_asked_by_rules_alone() -> None:
    """Where there are no rules, the function is differentiated as it is."""

    def run(here: Here, x: Tensor) -> Tensor:
        return x / here.rule.denominator(here.call, x.abs().amax(1, keepdim=True))

    own = relprop.operation(lambda x: x / x.abs().amax(1, keepdim=True), kind="norm", handler=run, name="own")
    plain = lambda x: x / x.abs().amax(1, keepdim=True)  # noqa: E731
    x = random(3, 4, seed=7)
    for method in (Gradient, GuidedBackprop):
        assert_close(method(runs(own)).attribute(x, 1), method(runs(plain)).attribute(x, 1), method.__name__)
    assert LRP(runs(own), strict=True).attribute(x, 1).isfinite().all()


@pytest.mark.parametrize("bounds", [1.0, (1.0,), (1, 2, 3), ("a", "b"), (None, 1.0), (2.0, 1.0), {}])
def test_bounds_are_two_numbers(bounds: Any) -> None:
    with pytest.raises(OperationError, match=r"bounds are \(low, high\)"):
        relprop.operation(swish, kind="activation", quotient=torch.sigmoid, bounds=bounds)


def test_an_instance_of_an_autograd_function_is_no_operation() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says so, too
        instance = Scale()
    with pytest.raises(OperationError, match="Declare the class Scale itself, not an instance of it"):
        relprop.operation(instance, kind="product")


# Names are names ------------------------------------------------------------------------------------


class Runs(nn.Module):
    """Runs a function and adds up what it returned."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x * 1.0).sum(1)


def triple(z: Tensor) -> Tensor:
    return 3 * z * torch.sigmoid(z)


@pytest.mark.parametrize("name", ["gelu_", "relu_", "foo_", "add_"])
def test_an_underscore_does_not_make_a_function_write(name: str) -> None:
    """PyTorch names what writes so, and has a function without it; a function of one's own is what it is."""

    def function(z: Tensor) -> Tensor:
        return triple(z)

    function.__name__ = function.__qualname__ = name
    declared = relprop.operation(function, kind="activation", quotient=lambda z: 3 * torch.sigmoid(z))
    x = random(2, 3, seed=1)
    report = LRP(Runs(declared), strict=True).report(x)
    assert report.output == pytest.approx(float(triple(x).sum()))
    assert_close(LRP(Runs(declared), strict=True).attribute(x), triple(x), tolerance=1e-12)


def test_a_name_of_torch_is_refused() -> None:
    with pytest.raises(OperationError, match="'relu' is the name of an operation of PyTorch"):
        relprop.operation(triple, kind="activation", quotient=torch.sigmoid, name="relu")


def test_a_rule_set_on_one_operation_is_not_for_another_of_its_name() -> None:
    made = []
    for _ in range(2):

        class Place:
            @staticmethod
            def swish(z: Tensor) -> Tensor:
                return z * torch.sigmoid(z)

        Place.swish.__module__ = f"library{len(made)}"
        made.append(relprop.operation(Place.swish, kind="activation", quotient=torch.sigmoid))
    first, second = made
    x = random(2, 3, seed=2)
    rules = Rules().set(first, Block(), optional=True)
    assert_close(LRP(Runs(second), rules).attribute(x), F.silu(x), tolerance=1e-12)
    assert not LRP(Runs(first), rules).attribute(x).any()


def test_what_was_made_of_a_function_that_is_declared_again_follows() -> None:
    def seven(z: Tensor) -> Tensor:
        return triple(z)

    before = relprop.operation(seven, kind="activation", quotient=lambda z: torch.full_like(z, 7.0))
    after = relprop.operation(seven, kind="activation", quotient=lambda z: 3 * torch.sigmoid(z))
    assert before is after
    x = random(2, 3, seed=3)
    assert_close(LRP(Runs(before)).attribute(x), triple(x), tolerance=1e-12)


def test_a_product_of_a_list_and_of_one_tensor_twice() -> None:
    """Each has as many factors as it multiplies."""
    of_list = relprop.operation(lambda xs: xs[0] * xs[1], kind="product", name="of_list")
    squared = relprop.operation(lambda a, b: a * b, kind="product", name="of_two")
    x = random(2, 3, seed=4)
    assert_close(LRP(Runs(lambda z: of_list([2 * z, z]))).attribute(x), 2 * x * x, tolerance=1e-12)
    assert_close(LRP(Runs(lambda z: squared(z, z))).attribute(x), x * x, tolerance=1e-12)


@pytest.mark.parametrize("deterministic", [True, False])
def test_what_draws_numbers_runs_once_in_a_report(deterministic: bool) -> None:
    """What belongs to its bias is asked with zeros, where the answer would be that of the same run."""
    calls: list[int] = []

    def shaken(z: Tensor) -> Tensor:
        calls.append(1)
        return 3 * z + 0.25

    own = relprop.operation(shaken, kind="affine", name=f"shaken_{deterministic}", deterministic=deterministic)
    LRP(Runs(own)).report(random(2, 3, seed=4))
    assert (len(calls) == 1) is not deterministic
