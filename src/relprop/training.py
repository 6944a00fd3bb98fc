"""Models that draw numbers or look across the batch: a warning, and draws that are the same for several passes."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from relprop.errors import TrainingModeWarning, warn
from relprop.presence import Presence

F = TypeVar("F", bound=Callable[..., Any])
_explained = threading.local()


@contextmanager
def attribution_of(model: nn.Module) -> Iterator[None]:
    """Warn of training mode, once for all the passes of one attribution: those inside are silent."""
    models = _now("models")
    if _now("measured") or any(model is other for _, other in models):
        yield
        return
    warn_of_training(model)
    presence = Presence()
    try:
        models.append((presence, model))
        yield
    finally:
        presence.over = True


@contextmanager
def measurement_of(models: Iterable[nn.Module]) -> Iterator[None]:
    """Warn of training mode once for a measurement: explanations inside, of the models and of copies, are silent."""
    measured = bool(_now("measured"))
    warned = None if measured else next((model for model in models if warn_of_training(model, "measurement")), None)
    presence = Presence()
    try:
        if warned is not None:
            _now("measured").append((presence, warned))
        yield
    finally:
        presence.over = True


def _now(what: str) -> list[tuple[Presence, nn.Module]]:
    """Return what goes on on this thread, without what is over."""
    found: list[tuple[Presence, nn.Module]] = _explained.__dict__.setdefault(what, [])
    found[:] = [each for each in found if not each[0].over]
    return found


def one_measurement(metric: F) -> F:
    """Return a metric that warns of training mode once, however often it runs its arguments ``model`` and ``other``."""
    names = list(inspect.signature(metric).parameters)

    @functools.wraps(metric)
    def once(*args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        models = [given[name] for name in ("model", "other") if isinstance(given.get(name), nn.Module)]
        with measurement_of(models):
            return metric(*args, **kwargs)

    return cast("F", once)


def one_attribution(method: F) -> F:
    """Return a method of an explainer that warns of training mode once, however many passes it makes."""

    @functools.wraps(method)
    def once(self: Any, *args: Any, **kwargs: Any) -> Any:
        with attribution_of(self.model):
            return method(self, *args, **kwargs)

    return cast("F", once)


def warn_of_training(model: nn.Module, what: str = "explanation") -> bool:
    """Warn where dropout or a norm in training mode would change the answer, and say if so; change nothing."""
    changing = (
        nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm, nn.RReLU, nn.RNNBase, nn.MultiheadAttention,
    )  # fmt: skip
    for name, module in model.named_modules():
        rate = getattr(module, "p", getattr(module, "dropout", 1))
        by_itself = isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.track_running_stats
        if module.training and (by_itself or (isinstance(module, changing) and rate != 0)):
            kind = "normalises each sample by itself, and by running statistics after model.eval()"
            warn(
                f"Module {name!r} ({type(module).__name__}) is in training mode, so the {what} is that of a "
                f"{f'network that {kind}' if by_itself else 'random or batch-dependent network'}. Call model.eval() "
                "first if that is not meant.",
                TrainingModeWarning,
            )
            return True
    return False


class SameDraws:
    """Passes that draw the same numbers from the global generators, so that they are passes of one network.

    The first pass draws as it would, and so moves the generators on; the others draw what it drew, and move nothing.

    Args:
        model, tensors: on whose devices numbers are drawn.
    """

    def __init__(self, model: nn.Module, tensors: Iterable[Tensor]) -> None:
        held = (*tensors, *model.parameters(), *model.buffers())
        self._devices = sorted({tensor.get_device() for tensor in held if tensor.is_cuda})
        self._states: tuple[Tensor, list[Tensor]] | None = None

    @contextmanager
    def again(self) -> Iterator[None]:
        """Run one of the passes."""
        if self._states is None:
            self._states = torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in self._devices]
            yield
            return
        with torch.random.fork_rng(self._devices):
            torch.set_rng_state(self._states[0])
            for device, state in zip(self._devices, self._states[1], strict=True):
                torch.cuda.set_rng_state(state, device)
            yield
