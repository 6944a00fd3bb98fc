"""Ctrl-C at any moment: hooks, attributes and modes are as before, at the latest when the next call begins."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from relprop import LRP, Rules
from relprop.propagation.call.current import current
from relprop.propagation.facts.protection import Attributes
from relprop.propagation.run.module_hooks import ModuleHooks
from tests.models import settle
from tests.unrolled import snapshot

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer that interrupts")


class Keeps(nn.Module):
    """Assigns to itself, holds a list, and writes into its buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen, self.steps = nn.Linear(6, 6), [], 0
        self.register_buffer("total", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        self.seen.append(x.detach())
        self.total += x.detach().sum(0)
        return torch.relu(self.layer(x))


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = nn.MultiheadAttention(6, 2, batch_first=True), nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None].expand(-1, 3, -1)
        return self.norm(x + self.attention(x, x, x)[0]).mean(1)  # type: ignore[no-any-return]


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "dense": settle(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2))),
        "assigns": settle(nn.Sequential(Keeps(), Keeps(), nn.Linear(6, 2))),
        "attends": settle(nn.Sequential(Attends(), nn.Linear(6, 2))),
    }


class Stop(KeyboardInterrupt):
    """What the timer raises."""


def interrupted(run: Callable[[], Any], after: float) -> bool:
    """Run, and stop it after so many seconds: whether it was stopped."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stop

    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, after)
        run()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except Stop:
        return True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return False


CALLS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "attribute": lambda model, x: LRP(model).attribute(x, 1),
    "report": lambda model, x: LRP(model, "epsilon").report(x, 1),
    "plan": lambda model, x: Rules.preset("epsilon").plan(model, x, target=1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dense", "assigns", "attends"])
def test_an_interrupt_at_any_moment_leaves_nothing(name: str) -> None:
    """In a process of its own: an interrupt may hit a lock of whoever measures coverage."""
    code = f"from {__name__} import interrupt_at_any_moment; interrupt_at_any_moment({name!r})"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COV")}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    run = [sys.executable, "-W", "ignore", "-c", code]
    ran = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr


def interrupt_at_any_moment(name: str) -> None:
    """Interrupt a hundred calls; after each of them the next call, of whatever model, finds nothing left."""
    model, other = networks()[name], settle(nn.Linear(3, 2))
    x, y = torch.randn(4, 6).double(), torch.randn(2, 3).double()
    draw, stopped = random.Random(name), 0
    expected = LRP(model).attribute(x, 1)
    with snapshot(model):
        for number in range(100):
            call = CALLS[list(CALLS)[number % len(CALLS)]]
            begun = time.perf_counter()
            call(model, x)
            taken = time.perf_counter() - begun
            stopped += interrupted(lambda call=call: call(model, x), max(draw.random() * taken, 1e-5))
            assert torch.is_grad_enabled()
            LRP(other).attribute(y, 1)
            assert current() is None
            assert not _get_current_function_mode_stack()
            assert not ModuleHooks._users
            assert not Attributes._open
            assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules()), number
        assert torch.equal(LRP(model).attribute(x, 1), expected)
    assert stopped > 50
    kept = torch.ones(2, requires_grad=True) * 2  # nothing is packed by a call that was stopped
    assert (kept * kept).grad_fn is not None


def test_what_an_interrupt_has_left_is_taken_back_by_the_next_call() -> None:
    """As it would be, had it come between any two steps of beginning and ending."""
    model = networks()["assigns"]
    x = torch.randn(4, 6).double()
    LRP(model).attribute(x, 1)
    with snapshot(model):
        for owner, name, when in STEPS:
            plain = getattr(owner, name)
            calls = 0

            def broken(*args: Any, plain: Any = plain, when: int = when, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == when:
                    raise Stop
                found = plain(*args, **kwargs)
                if calls == -when:
                    raise Stop
                return found

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(owner, name, broken)
                with pytest.raises(Stop):
                    LRP(model).attribute(x, 1)
            LRP(networks()["dense"]).attribute(x, 1)
            assert not ModuleHooks._users and not Attributes._open
            assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules()), (name, when)


STEPS: list[tuple[Any, str, int]] = [
    *((nn.Module, "register_forward_pre_hook", when) for when in (1, 2, -1, -3)),
    *((nn.Module, "register_forward_hook", when) for when in (1, 2, -1, -4)),
]
