"""One model, many threads: each gets what it would have got alone."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from relprop import LRP, Rules
from relprop.rules import AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZBox, Zero, ZPlus
from tests.models import settle
from tests.unrolled import RULES, Share, assert_close, conv, dense, explain, random, snapshot, weigh

THREADS = 8
ROUNDS = 4


@pytest.fixture(autouse=True)
def impatient() -> Iterator[None]:
    """Let threads take turns a thousand times as often as usual."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(interval)


class Network(nn.Module):
    """[N, 2, 6, 6] to [N, 3]: a layer used twice, folded batch norm, writes in place, a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.body = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1)
        self.relu, self.pool, self.head = nn.ReLU(inplace=True), nn.AvgPool2d(2), nn.Linear(12, 3)
        settle(self)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.norm(self.stem(x)))
        for _ in range(2):
            out = self.body(h)
            out += h
            h = self.relu(out)
        return self.head(self.pool(h).flatten(1))  # type: ignore[no-any-return]


def reference(model: Any) -> Callable[[Share, Tensor], Tensor]:
    norm = model.norm
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    weight = model.stem.weight * scale[:, None, None, None]
    bias = (model.stem.bias - norm.running_mean) * scale + norm.bias

    def network(share: Share, x: Tensor) -> Tensor:
        h = share(torch.conv2d, x, weight, bias).relu()
        for _ in range(2):
            h = (conv(share, model.body, h) + h).relu()
        return dense(share, model.head, torch.nn.functional.avg_pool2d(h, 2).flatten(1))

    return network


def at_once(jobs: list[Callable[[], Any]]) -> list[Any]:
    """Run every job in a thread of its own, all of them starting together."""
    gate = threading.Barrier(len(jobs))

    def run(job: Callable[[], Any]) -> Any:
        gate.wait()
        return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result() for future in [pool.submit(run, job) for job in jobs]]


def test_eight_threads_with_rules_of_their_own() -> None:
    """Every thread has its rule and its input; rules are also chosen by the names that the hooks keep."""
    model = Network()
    names = (list(RULES) * 2)[:THREADS]
    inputs = [random(2, 2, 6, 6, seed=seed) for seed in range(THREADS)]
    expected = [explain(reference(model), name, x)[0] for name, x in zip(names, inputs, strict=True)]
    shared = {
        name: LRP(model, Rules().set("*", Zero()).set("stem", rule).set("body", rule).set("head", rule))
        for name, (rule, _) in RULES.items()
    }

    def job(name: str, x: Tensor) -> Callable[[], list[Tensor]]:
        return lambda: [shared[name].attribute(x, weigh) for _ in range(ROUNDS)]

    with snapshot(model):
        found = at_once([job(name, x) for name, x in zip(names, inputs, strict=True)])
    for name, maps, other in zip(names, found, expected, strict=True):
        for one in maps:
            assert_close(one, other, name)


def test_one_explainer_that_keeps_weights_in_eight_threads() -> None:
    model = Network()
    lrp = LRP(model, Gamma(), cache_weights=True)
    inputs = [random(2, 2, 6, 6, seed=seed) for seed in range(THREADS)]
    expected = [LRP(model, Gamma()).attribute(x, weigh) for x in inputs]
    found = at_once([lambda x=x: [lrp.attribute(x, weigh) for _ in range(ROUNDS)] for x in inputs])  # type: ignore[misc]
    for maps, other in zip(found, expected, strict=True):
        assert all(torch.equal(one, other) for one in maps)


def test_threads_that_do_different_things() -> None:
    """Layers, conditions, reports and plans, beside plain forwards and backwards that must not notice."""
    model = Network()
    x = random(2, 2, 6, 6)
    lrp = LRP(model, Rules.preset("epsilon_gamma_box", low=-4.0, high=4.0))

    def plain() -> tuple[Tensor, Tensor]:
        leaf = x.clone().requires_grad_()
        out = model(leaf)
        return out.detach(), torch.autograd.grad(weigh(out).sum(), leaf)[0]

    def unhooked() -> Tensor:
        with torch.no_grad():
            return model(x)  # type: ignore[no-any-return]

    jobs: list[Callable[[], Any]] = [
        lambda: lrp.attribute(x, 0),
        lambda: lrp.attribute_layers(x, ["stem", "body", "pool"], 1),
        lambda: lrp.attribute(x, 2, condition={"stem": [1], "body": [0, 2]}),
        lambda: str(lrp.report(x, 0)),
        lambda: str(lrp.rules.plan(model, x, 1)),
        lambda: lrp.attribute_targets(x, [0, 1, 2]),
        plain,
        unhooked,
    ]
    alone = [job() for job in jobs]
    with snapshot(model):
        for _ in range(ROUNDS):
            for one, other in zip(at_once(jobs), alone, strict=True):
                assert _same(one, other)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


@pytest.mark.filterwarnings("ignore::relprop.errors.TrainingModeWarning")
def test_threads_in_training_mode() -> None:
    """Batch statistics are each thread's own, and the running ones stay as they are."""
    model = Network().train()
    lrp = LRP(model, Epsilon(0.1))
    inputs = [random(4, 2, 6, 6, seed=seed) for seed in range(THREADS)]
    alone = [lrp.attribute(x, weigh) for x in inputs]
    with snapshot(model):
        found = at_once([lambda x=x: [lrp.attribute(x, weigh) for _ in range(ROUNDS)] for x in inputs])  # type: ignore[misc]
    for maps, other in zip(found, alone, strict=True):
        assert all(torch.equal(one, other) for one in maps)


class Trouble(Exception):
    """What goes wrong."""


@pytest.mark.slow
def test_exceptions_of_one_thread_are_its_own() -> None:
    """Half of the threads fail half way; each gets its own exception, the others their maps."""

    class Fragile(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if float(x.detach().abs().max()) > 100:
                raise Trouble
            return x

    model = settle(nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Sequential(Fragile())), nn.ReLU(), nn.Linear(4, 3)))
    rules: list[Any] = [Gamma(), ZPlus(), AlphaBeta(2, 1), ZBox(-4.0, 4.0), WSquare(), Flat(), Zero(), Epsilon()]
    x = random(3, 4)
    alone = [LRP(model, rule).attribute(x, 1) for rule in rules]

    def good(rule: Any) -> Callable[[], list[Tensor]]:
        return lambda: [LRP(model, rule).attribute(x, 1) for _ in range(10)]

    def bad() -> None:
        for _ in range(10):
            with pytest.raises(Trouble):
                LRP(model).attribute(1e6 * x, 1)

    with snapshot(model):
        found = at_once([job for rule in rules for job in (good(rule), bad)])
    for maps, other in zip(found[::2], alone, strict=True):
        assert all(torch.equal(one, other) for one in maps)


def test_a_call_that_begins_and_ends_while_another_handles_its_exception() -> None:
    """PyTorch walks the hooks of a module that raised: nobody may add or remove one meanwhile."""
    failing, done = threading.Event(), threading.Event()

    class Fragile(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if threading.current_thread() is not threading.main_thread():
                raise Trouble
            return x

    def slow(module: nn.Module, args: Any, output: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            failing.set()
            assert done.wait(60)

    model, x = settle(nn.Sequential(nn.Linear(4, 4), Fragile(), nn.Linear(4, 3))), random(3, 4)
    model[1].register_forward_hook(slow, always_call=True)  # type: ignore[index]
    expected = LRP(model).attribute(x, 1)

    def fail() -> None:
        with pytest.raises(Trouble):
            LRP(model).attribute(x, 1)

    with snapshot(model), ThreadPoolExecutor(1) as pool:
        result = pool.submit(fail)
        assert failing.wait(60)
        assert torch.equal(LRP(model).attribute(x, 1), expected)
        done.set()
        result.result()


def test_a_thread_that_the_model_starts_is_not_explained_but_harms_nothing() -> None:
    """A mode is a thread's own: what another thread computes is an ordinary, and here a constant, tensor."""

    class Helper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.side = nn.Linear(4, 3), nn.Linear(4, 3)
            settle(self)

        def forward(self, x: Tensor) -> Tensor:
            side: list[Tensor] = []
            constant = x.detach()
            worker = threading.Thread(target=lambda: side.append(self.side(constant).detach()))
            worker.start()
            worker.join()
            return self.layer(x) * side[0]  # type: ignore[no-any-return]

    model, x = Helper(), random(3, 4)

    def network(share: Share, a: Tensor) -> Tensor:
        return dense(share, model.layer, a) * model.side(x).detach()  # type: ignore[no-any-return]

    for name in ("epsilon", "gamma"):
        assert_close(LRP(model, RULES[name][0]).attribute(x, weigh), explain(network, name, x)[0])
    assert not _get_current_function_mode_stack()
