"""Models inside wrappers, and models that hide their calls: the same map as without, or an error that says why."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from relprop import (
    LRP,
    BackwardHookWarning,
    CompiledModelWarning,
    InputError,
    ModelError,
    Rules,
    UncoveredOperationWarning,
)
from relprop.rules import Epsilon, Gamma, Zero
from tests.models import close, settle

RULES = Rules.preset("epsilon_gamma").set("2", Gamma(0.5)).set("4", Epsilon(0.1))
NAMED = Rules().set("*.2", Gamma(0.5)).set("*.4", Epsilon(0.1)).set("*.0", Epsilon(relative=True))


def network() -> nn.Sequential:
    return settle(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)))


def points() -> Tensor:
    return torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def plain() -> Tensor:
    return LRP(network(), RULES).attribute(points(), 1)  # type: ignore[no-any-return]


class Around(nn.Module):
    """The network as a module inside another, run by a function."""

    def __init__(self, run: Callable[[nn.Module, Tensor], Tensor], inner: nn.Module | None = None) -> None:
        super().__init__()
        self.inner, self.run = inner or network(), run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.inner, x)


def compiled(module: Any) -> Any:
    return torch.compile(module, backend="eager")


# ------------------------------------------------------------------------------------------- compiled models


def compiled_in_place() -> nn.Module:
    model = network()
    model.compile(backend="eager")
    return model


@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda: compiled(network()), compiled_in_place], ids=["wrapped", "in place"])
def test_compiled_models_are_explained_through_the_original(make: Callable[[], nn.Module]) -> None:
    model = make()
    with pytest.warns(CompiledModelWarning, match="The model is compiled; .* the original module"):
        lrp = LRP(model, RULES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CompiledModelWarning)
        close(lrp.attribute(points(), 1), plain())
        assert [row.name for row in RULES.plan(model, points(), 1).rows] == ["0", "1", "2", "3", "4"]
        x = points().requires_grad_()
        with RULES.attach(model) as attached:
            (c,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
        attached.finish()
        close(x.detach() * c, plain())
    model(points())  # it still compiles and runs


def test_compiled_parts_of_a_model() -> None:
    model = network()
    function = compiled(F.relu)
    inner = nn.Sequential(compiled(model[:1]), Around(lambda _, h: function(h), nn.Identity()), *model[2:])
    with pytest.warns(CompiledModelWarning, match="Module '0' is compiled"):
        close(LRP(inner, RULES.set("0.*", Epsilon(relative=True))).attribute(points(), 1), plain())


# --------------------------------------------------------------------------------------------- data parallel


def test_data_parallel() -> None:
    model = network()
    wrapped = nn.DataParallel(model)
    close(LRP(wrapped, RULES).attribute(points(), 1), plain())
    assert [row.name for row in RULES.plan(wrapped, points()).rows] == ["0", "1", "2", "3", "4"]
    assert LRP(wrapped, RULES).attribute_layers(points(), "2", 1)["2"].shape == (3, 5)


def test_distributed_data_parallel() -> None:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(network())
        close(LRP(wrapped, RULES).attribute(points(), 1), plain())
        wrapped(points()).sum().backward()  # and it still trains
    finally:
        torch.distributed.destroy_process_group()


# ------------------------------------------------------------------------------- other ways to call a module


def functional(module: nn.Module, x: Tensor) -> Tensor:
    weights = {name: 1.0 * parameter for name, parameter in module.named_parameters()}
    return torch.func.functional_call(module, weights, (x,))  # type: ignore[no-any-return]


def by_keyword(module: nn.Module, x: Tensor) -> Tensor:
    for layer in module.children():
        x = layer(input=x)
    return x


WAYS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "functional_call": functional,
    "by keyword": by_keyword,
    "checkpoint": lambda module, x: checkpoint(module, x, use_reentrant=False),
    "checkpoint_sequential": lambda module, x: checkpoint_sequential(module, 2, x, use_reentrant=False),
}


@pytest.mark.parametrize("way", WAYS)
def test_other_ways_to_call_a_module(way: str) -> None:
    close(LRP(Around(WAYS[way]), NAMED).attribute(points(), 1), plain())


@pytest.mark.parametrize("create_graph", [False, True])
def test_checkpoints_in_training(create_graph: bool) -> None:
    model = Around(WAYS["checkpoint"]).train()
    x = points().requires_grad_(create_graph)
    found = LRP(model, NAMED).attribute(x, 1, create_graph=create_graph)
    close(found.detach(), plain())


def test_graph_modules() -> None:
    close(LRP(torch.fx.symbolic_trace(network()), RULES).attribute(points(), 1), plain())


def test_exported_programs() -> None:
    """Their graphs call operators by overload, in no module of a known type."""
    program = torch.export.export(network(), (points(),)).module()
    close(LRP(program, "lrp0", strict=True).attribute(points(), 1), LRP(network(), "lrp0").attribute(points(), 1))
    close(LRP(program, Gamma(0.5)).attribute(points(), 1), LRP(network(), Gamma(0.5)).attribute(points(), 1))


def test_gradients_in_a_forward_are_refused() -> None:
    def energy(module: nn.Module, x: Tensor) -> Tensor:
        return torch.autograd.grad(module(x).sum(), x, create_graph=True)[0]

    with pytest.raises(ModelError, match=r"takes a gradient .* inside the forward pass"):
        LRP(Around(energy)).attribute(points(), 1)


def test_hooks_of_gradients() -> None:
    """On a module they are named; on a tensor they rest while relevance is explained."""
    model = network()
    handle = model[2].register_full_backward_hook(lambda module, into, out: None)
    with pytest.warns(BackwardHookWarning, match=r"Module '2' \(Linear\) has backward hooks"):
        close(LRP(model, RULES).attribute(points(), 1), plain())
    handle.remove()

    def doubled(module: nn.Module, x: Tensor) -> Tensor:
        h = module[:2](x)  # type: ignore[index]
        h.register_hook(lambda gradient: 2 * gradient)
        return module[2:](h)  # type: ignore[index]

    with pytest.warns(UncoveredOperationWarning, match="register_hook in Around"):
        found = LRP(Around(doubled), NAMED).attribute(points(), 1)
    close(found, plain())


def test_a_part_without_gradients_is_named() -> None:
    def frozen(module: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            return module(x)  # type: ignore[no-any-return]

    with pytest.raises(InputError, match=r"depend on the input. A part of the model runs under torch\.no_grad"):
        LRP(Around(frozen)).attribute(points(), 1)


def test_a_module_in_dicts_and_lists() -> None:
    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            model = network()
            self.named = nn.ModuleDict({"first": model[0], "second": model[2]})
            self.listed = nn.ModuleList([model[4]])
            self.shifts = nn.ParameterList([nn.Parameter(torch.zeros(3, dtype=torch.float64))])

        def forward(self, x: Tensor) -> Tensor:
            for name in self.named:
                x = F.relu(self.named[name](x))
            for layer, shift in zip(self.listed, self.shifts, strict=True):
                x = layer(x) + shift
            return x

    rules = (
        Rules().set("named.first", Epsilon(relative=True)).set("named.second", Gamma(0.5)).set("listed.0", Epsilon(0.1))
    )
    close(LRP(Held(), rules).attribute(points(), 1), plain())


# ------------------------------------------------------------------------------- parametrised and adapted weights


PARAMETRISED: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "old spectral_norm": spectral_norm,
}


@pytest.mark.parametrize("name", PARAMETRISED)
def test_parametrised_weights(name: str) -> None:
    model = network()
    model[2] = PARAMETRISED[name](nn.Linear(6, 5).double()).eval()
    merged = network()
    with torch.no_grad():
        model(points())  # some make their weight when they run
        merged[2].weight.copy_(model[2].weight)
        merged[2].bias.copy_(model[2].bias)
    close(LRP(model, RULES).attribute(points(), 1), LRP(merged, RULES).attribute(points(), 1))


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_the_old_weight_norm() -> None:
    model = network()
    before = copy.deepcopy(model)
    model[2] = weight_norm(model[2])
    close(LRP(model, RULES).attribute(points(), 1), LRP(before, RULES).attribute(points(), 1))


class Adapted(nn.Module):
    """A linear layer with a low-rank adapter: ``W x + b + s B A x``."""

    def __init__(self, layer: nn.Linear, merged: bool) -> None:
        super().__init__()
        self.layer, self.merged = layer, merged
        generator = torch.Generator().manual_seed(3)
        self.down = nn.Parameter(torch.randn(2, layer.in_features, dtype=torch.float64, generator=generator))
        self.up = nn.Parameter(torch.randn(layer.out_features, 2, dtype=torch.float64, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        if self.merged:
            return F.linear(x, self.layer.weight + 0.5 * self.up @ self.down, self.layer.bias)
        return self.layer(x) + 0.5 * F.linear(F.linear(x, self.down), self.up)  # type: ignore[no-any-return]


@pytest.mark.parametrize("merged", [False, True])
def test_adapters(merged: bool) -> None:
    """Merged, the weight is one matrix; as a branch, two maps, which with LRP-0 are the same matrix."""
    model, whole = network(), network()
    model[2] = Adapted(model[2], merged)
    with torch.no_grad():
        whole[2].weight.add_(0.5 * model[2].up @ model[2].down)
    rule = Gamma(0.5) if merged else Zero()
    rules = Rules().set("0", Epsilon(0.1)).set("4", Epsilon(0.1))
    found = LRP(model, rules.set("2", rule)).attribute(points(), 1)
    close(found, LRP(whole, rules.set("2", rule)).attribute(points(), 1))


# ------------------------------------------------------------------------------------------- what cannot be


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("part", [False, True])
@pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(m, points())], ids=["script", "trace"])
def test_scripted_models(make: Callable[[nn.Module], nn.Module], part: bool) -> None:
    model = network()
    hidden = nn.Sequential(make(model[:2]), *model[2:]) if part else make(model)
    with pytest.raises(ModelError, match=r"scripted or traced .* Explain the model it was made from"):
        LRP(hidden)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantised_models() -> None:
    quantised = torch.ao.quantization.quantize_dynamic(network().float(), {nn.Linear})
    with pytest.raises(ModelError, match=r"Module '0' \(Linear\) is quantised, .* before it was quantised"):
        LRP(quantised)


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_lazy_modules() -> None:
    with pytest.raises(ModelError, match=r"Module '1' \(LazyLinear\) has no weights yet. Run the model once"):
        LRP(nn.Sequential(nn.Flatten(), nn.LazyLinear(3)))


@pytest.mark.parametrize(
    "run", [lambda m, x: torch.func.vmap(m)(x), lambda m, x: torch.func.grad(lambda h: m(h).sum())(x)]
)
def test_transforms_of_functions(run: Callable[[nn.Module, Tensor], Tensor]) -> None:
    with pytest.raises(ModelError, match=r"applies a torch\.func transform"):
        LRP(Around(run)).attribute(points(), 1)


def test_reentrant_checkpoints() -> None:
    for way in (checkpoint, lambda m, x, **options: checkpoint_sequential(m, 2, x, **options)):
        model = Around(lambda m, x, way=way: way(m, x, use_reentrant=True))
        with pytest.raises(ModelError, match="use_reentrant=False"):
            LRP(model).attribute(points(), 1)
