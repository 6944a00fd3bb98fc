"""`Rules.attach`: the user's own forward and `autograd.grad`, with the maps of `LRP`, and true derivatives after it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from relprop import LRP, RuleError, Rules
from relprop.rules import AveragePool, Detach, Flat, Gamma, Zero
from tests.checks import refuses
from tests.models import Wrapped, close, gradient, images, mlp, residual, settle, vectors
from tests.networks import zoo

# What is attached, and when it ends ------------------------------------------------------------------


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


# Whole networks --------------------------------------------------------------------------------------


class Block(nn.Module):
    """[N, 3, 4] to [N, 2]: attention with heads, layer norm, a gated feed-forward, residual sums."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4)
        self.before, self.after = nn.LayerNorm(4), nn.LayerNorm(4)
        self.up, self.gate, self.down = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, 2)).transpose(1, 2) for part in self.qkv(self.before(x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        h = self.after(x)
        x = x + self.down(F.silu(self.gate(h)) * self.up(h) * torch.sigmoid(self.gate(h)))
        scaled = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 0.1)
        out: Tensor = self.head(scaled.mean(1))
        return out


class InPlace(nn.Module):
    """[N, 4] to [N, 2], by statements that write into what they read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        torch.relu_(h)
        out = self.second(h)
        out += h
        out[:, 0] = 2 * out[:, 1]
        out.clamp_(-3, 4).tanh_()
        result: Tensor = self.head(out)
        return result


def tokens() -> Tensor:
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "residual": (residual, images),
    "block": (Block, tokens),
    "in place": (InPlace, vectors),
    "dense": (mlp, vectors),
    "one layer": (lambda: nn.Linear(4, 2), vectors),
}
REGISTRIES: dict[str, Rules] = {
    "none": Rules(),
    "epsilon_gamma": Rules.preset("epsilon_gamma"),
    "alpha2_beta1": Rules.preset("alpha2_beta1"),
    "zplus": Rules.preset("zplus"),
    "first": Rules().set(lambda name, module: True, Gamma(0.5)).first(Flat()),
    "cp_lrp": Rules.preset("cp_lrp"),
    "constants": Rules()
    .set(torch.sigmoid, Detach(), optional=True)
    .set(F.silu, Detach(), optional=True)
    .set(torch.max_pool2d, AveragePool(), optional=True),
}


def attached(model: nn.Module, rules: Rules, x: Tensor, target: int = 1) -> Tensor:
    """The relevance, by the user's own forward and `autograd.grad`."""
    leaf = x.clone().requires_grad_()
    with rules.attach(model) as block:
        out = model(leaf)
    (c,) = torch.autograd.grad(out[:, target].sum(), leaf)
    block.finish()
    return x * c


@pytest.mark.parametrize("rules", list(REGISTRIES))
@pytest.mark.parametrize("name", list(MODELS))
def test_relevance_is_that_of_lrp(name: str, rules: str) -> None:
    make, inputs = MODELS[name]
    registry = REGISTRIES[rules]
    model, x = settle(make()), inputs()
    before, plain = zoo.fingerprint(model), model(x)
    close(attached(model, registry, x), LRP(model, registry).attribute(x, 1))
    assert zoo.fingerprint(model) == before
    assert torch.equal(model(x), plain)
    assert not _get_current_function_mode_stack()


@pytest.mark.parametrize("name", list(MODELS))
def test_true_derivatives_once_finished(name: str) -> None:
    make, inputs = MODELS[name]
    model, leaf = settle(make()), inputs().requires_grad_()
    tensors = [leaf, *model.parameters()]
    expected = torch.autograd.grad(model(leaf).sin().sum(), tensors)
    with Rules.preset("epsilon_gamma").attach(model) as block:
        out = model(leaf)
    (c,) = torch.autograd.grad(out[:, 1].sum(), leaf, retain_graph=True)
    (again,) = torch.autograd.grad(out[:, 1].sum(), leaf, retain_graph=True)
    assert torch.equal(c, again), "it explains until it is told to finish"
    block.finish()
    block.finish()  # once more does no harm
    largest = max(float(part.abs().max()) for part in expected)
    for mine, theirs in zip(torch.autograd.grad(out.sin().sum(), tensors), expected, strict=True):
        # A bias that a softmax or a norm cancels has a derivative of zero but for rounding.
        assert float((mine - theirs).abs().max()) <= 1e-12 * max(float(theirs.abs().max()), 1e-2 * largest)


def test_no_parameter_gets_a_gradient_while_it_explains() -> None:
    model, leaf = mlp(), vectors().requires_grad_()
    with Rules.preset("epsilon").attach(model) as block:
        out = model(leaf)
    out[:, 1].sum().backward(retain_graph=True)
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())
    close(leaf.detach() * leaf.grad, LRP(model, "epsilon").attribute(leaf.detach(), 1))
    block.finish()
    out[:, 1].sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in list(model.parameters())[:-1])


def test_two_forwards_before_a_backward_and_in_any_order() -> None:
    model, rules = residual(), REGISTRIES["first"]
    first, second = images(seed=1).requires_grad_(), images(n=3, seed=2).requires_grad_()
    with rules.attach(model) as block:
        one = model(first)
        two = model(second)
        shared = model(first + 1)
    (late,) = torch.autograd.grad(two[:, 0].sum(), second)
    (early,) = torch.autograd.grad(one[:, 2].sum(), first)
    block.finish()
    close(second.detach() * late, LRP(model, rules).attribute(second.detach(), 0))
    close(first.detach() * early, LRP(model, rules).attribute(first.detach(), 2))
    (true,) = torch.autograd.grad(shared[:, 1].sum(), first)
    close(true, gradient(lambda x: model(x + 1)[:, 1], first))


def test_the_coefficient_of_hidden_tensors() -> None:
    model, x = residual(), images()
    hidden: list[Tensor] = []
    handle = model.pool.register_forward_hook(lambda module, args, out: hidden.append(out))
    with Rules.preset("epsilon_gamma").attach(model) as block:
        out = model(x.clone().requires_grad_())
    (c,) = torch.autograd.grad(out[:, 1].sum(), hidden[0])
    block.finish()
    handle.remove()
    close(hidden[0].detach() * c, LRP(model).attribute_layers(x, "pool", 1)["pool"])


def test_an_input_computed_inside_the_block() -> None:
    model, y = mlp(), vectors().requires_grad_()
    with Rules.preset("epsilon").attach(model) as block:
        out = model(torch.tanh(y) * 3)
    (c,) = torch.autograd.grad(out[:, 1].sum(), y)
    block.finish()
    # tanh passes relevance on unchanged, and so does a factor.
    close(y.detach() * c, LRP(model, "epsilon").attribute(torch.tanh(y.detach()) * 3, 1))


def test_a_loss_on_the_relevance_of_a_network() -> None:
    model, x = settle(Block()), tokens().requires_grad_()
    tensors = [x, *model.parameters()]
    with REGISTRIES["cp_lrp"].attach(model) as block:
        out = model(x)
    (c,) = torch.autograd.grad(out[:, 1].sum(), x, create_graph=True)
    block.finish()
    relevance = LRP(model, "cp_lrp").attribute(x, 1, create_graph=True)
    found, expected = (
        torch.autograd.grad(r.square().sum(), tensors, allow_unused=True, materialize_grads=True)
        for r in (x * c, relevance)
    )
    largest = max(float(part.abs().max()) for part in expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert float((mine - theirs).abs().max()) <= 1e-12 * largest


class Broken(nn.Module):
    """Fails after its first layer, or in the backward."""

    def __init__(self, backward: bool) -> None:
        super().__init__()
        self.first, self.last, self.backward, self.fails = nn.Linear(4, 5), nn.Linear(5, 2), backward, True
        self.between: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        if self.fails and not self.backward:
            self.between = h
            raise ValueError("in the forward")
        if self.fails:
            h.grad_fn.register_prehook(self._fail)
        out: Tensor = self.last(h)
        return out

    @staticmethod
    def _fail(c: Tensor) -> Tensor:
        raise ValueError("in the backward")


def test_an_error_in_the_forward_leaves_nothing() -> None:
    model, x = settle(Broken(backward=False)), vectors().requires_grad_()
    before = zoo.fingerprint(model)
    graphs: list[Tensor] = []

    def run() -> None:
        with Rules.preset("zplus").attach(model):
            graphs.append(model.first(x))
            model(x)

    with pytest.raises(ValueError, match="in the forward"):
        run()
    model.between = None
    assert zoo.fingerprint(model) == before
    assert not _get_current_function_mode_stack()
    # What was built before the error differentiates truly, and so does what follows.
    (true,) = torch.autograd.grad(graphs[0].sum(), x)
    close(true, gradient(lambda leaf: model.first(leaf).sum(1), x))
    model.fails = False
    close(torch.autograd.grad(model(x)[:, 1].sum(), x)[0], gradient(lambda leaf: model(leaf)[:, 1], x))
    close(attached(model, REGISTRIES["zplus"], x.detach()), LRP(model, "zplus").attribute(x.detach(), 1))


def test_an_error_in_the_backward_leaves_nothing() -> None:
    model, x = settle(Broken(backward=True)), vectors().requires_grad_()
    before = zoo.fingerprint(model)
    with Rules.preset("zplus").attach(model) as block:
        out = model(x)
    with pytest.raises(ValueError, match="in the backward"):
        torch.autograd.grad(out[:, 1].sum(), x)
    block.finish()
    assert zoo.fingerprint(model) == before
    model.fails = False
    close(attached(model, REGISTRIES["zplus"], x.detach()), LRP(model, "zplus").attribute(x.detach(), 1))


def test_blocks_in_several_threads_at_once() -> None:
    model, names = residual(), ["none", "epsilon_gamma", "alpha2_beta1", "zplus", "first"]
    before = zoo.fingerprint(model)
    inside = threading.Barrier(len(names) + 1, timeout=60)
    x = images()

    def explain(name: str) -> Tensor:
        leaf = x.clone().requires_grad_()
        with REGISTRIES[name].attach(model) as block:
            inside.wait()  # every thread is inside its own block now
            out = model(leaf)
            (c,) = torch.autograd.grad(out[:, 1].sum(), leaf)
            inside.wait()
        block.finish()
        return x * c

    def differentiate() -> Tensor:
        inside.wait()
        found = gradient(lambda leaf: model(leaf)[:, 1], x)
        inside.wait()
        return found

    with ThreadPoolExecutor(len(names) + 1) as pool:
        plain = pool.submit(differentiate)
        maps = [pool.submit(explain, name) for name in names]
        for name, found in zip(names, maps, strict=True):
            close(found.result(), LRP(model, REGISTRIES[name]).attribute(x, 1))
        close(plain.result(), gradient(lambda leaf: model(leaf)[:, 1], x))
    assert zoo.fingerprint(model) == before


def test_a_training_step_after_the_block_trains_the_model() -> None:
    model, x = mlp(), vectors()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    relevance = attached(model, Rules().set(nn.Linear, Zero()), x)
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()
    changed = attached(model, Rules().set(nn.Linear, Zero()), x)
    assert float((changed - relevance).abs().max()) > 1e-3
    close(changed, LRP(model, Zero()).attribute(x, 1))


def test_methods_inside_the_block() -> None:
    model, x = residual(), images()
    expected = LRP(model, "zplus").attribute(x, 1)
    leaf = x.clone().requires_grad_()
    with Rules.preset("epsilon").attach(model) as block:
        close(LRP(model, "zplus").attribute(x, 1), expected)
        with torch.no_grad():
            assert torch.equal(model(x), residual()(x))
        out = model(leaf)
    (c,) = torch.autograd.grad(out[:, 1].sum(), leaf)
    block.finish()
    close(x * c, LRP(model, "epsilon").attribute(x, 1))


def test_blocks_within_blocks() -> None:
    model, x = residual(), images()
    outer_leaf, inner_leaf, last_leaf = (x.clone().requires_grad_() for _ in range(3))
    rules = {"outer": Rules().set(nn.Conv2d, Gamma()), "inner": Rules().set(nn.Conv2d, "epsilon")}
    with rules["outer"].attach(model) as outer:
        first = model(outer_leaf)
        with rules["inner"].attach(model) as inner:
            second = model(inner_leaf)
        third = model(last_leaf)
    maps = [
        torch.autograd.grad(out[:, 1].sum(), leaf)[0]
        for out, leaf in ((first, outer_leaf), (second, inner_leaf), (third, last_leaf))
    ]
    inner.finish()
    outer.finish()
    for which, c in zip(("outer", "inner", "outer"), maps, strict=True):
        close(x * c, LRP(model, rules[which]).attribute(x, 1))
