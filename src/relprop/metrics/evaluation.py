"""Several methods, several metrics, all batches of a loader: one table."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from relprop.arguments import bar
from relprop.errors import InputError, InputTypeError
from relprop.metrics._explain import Explain, checked_explain, checked_input, checked_target
from relprop.metrics.curves import standard_error
from relprop.tables import html_table, text_table
from relprop.training import one_measurement


@dataclass(frozen=True)
class Evaluation:
    """Every metric of every method on every sample, from ``evaluate``.

    Attributes:
        values: from the name of a method and of a metric to ``[N]``, on the CPU.
    """

    values: dict[str, dict[str, Tensor]]

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and lists."""
        return {method: {name: each.tolist() for name, each in found.items()} for method, found in self.values.items()}

    def _table(self) -> tuple[list[str], list[list[str]]]:
        metrics = list(next(iter(self.values.values())))
        rows = [
            [method, *(f"{float(found[name].mean()):.4g} ± {standard_error(found[name]):.2g}" for name in metrics)]
            for method, found in self.values.items()
        ]
        return ["method", *metrics], rows

    def __str__(self) -> str:
        header, rows = self._table()
        return text_table(header, rows)

    def _repr_html_(self) -> str:
        return html_table(*self._table())


@one_measurement
def evaluate(
    explainers: Mapping[str, Explain],
    metrics: Mapping[str, Callable[..., Any]],
    model: nn.Module,
    batches: Iterable[Any],
    *,
    progress: bool = False,
) -> Evaluation:
    """Measure every explainer by every metric, over batches.

    Definition: ``metric(explain, model, x, target, *more)`` of each batch ``(x, target, *more)``, one after the other.

    Args:
        explainers: from names to ``explain(model, x, target) -> relevance``.
        metrics: from names to ``metric(explain, model, x, target)``, which returns ``[N]`` or what has ``values``
            ``[N]``, as all of :mod:`relprop.metrics` do that take these four; ``functools.partial`` fixes options.
            One that takes more arguments by position gets what else a batch holds, in its order, such as a mask; the
            others do not. A lambda makes one of what takes other arguments, such as relevance and a mask.
        model: what is explained.
        batches: a ``DataLoader``, or any iterable of ``(x, target)``, where target may be None, or of
            ``(x, target, *more)``. The tensors are moved to the device of the model's first parameter; every metric
            gets its own copies.
        progress: show a bar of the batches (tqdm).

    Raises:
        InputError: no batch, no explainer or no metric; a batch with less than two entries or no sample, or with more
            where no metric takes them; relevance of another shape than x; a metric that returns anything else than a
            number for each sample.
        InputTypeError: explainers or metrics that are no mapping; an explainer or a metric that cannot be called with
            these arguments; batches that are not iterable; an x that is no tensor.
        TargetError, TargetTypeError: a list of another number of targets than of samples, or no integers.
        MissingExtraError: ``progress=True`` without tqdm.

    >>> from relprop.metrics import gini_sparseness, selectivity
    >>> model = nn.Linear(4, 3)
    >>> explainers = {"input": lambda model, x, target: x, "W x": lambda model, x, target: x * model.weight[target]}
    >>> batches = [(torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])) for _ in range(2)]
    >>> found = evaluate(explainers, {"selectivity": selectivity}, model, batches)
    >>> found.values["W x"]["selectivity"].shape
    torch.Size([10])
    """
    for what, given in (("explainers", explainers), ("metrics", metrics)):
        if not isinstance(given, Mapping):
            raise InputTypeError(f"{what} is a {type(given).__name__}; expected a dict from names to callables")
    for name, metric in metrics.items():
        if not callable(metric):
            raise InputTypeError(
                f"metric {name!r} is a {type(metric).__name__}; expected a callable metric(explain, model, x, target)"
            )
    if not explainers or not metrics:
        raise InputError(f"got {len(explainers)} explainers and {len(metrics)} metrics; expected at least one of each")
    named = {method: _named(method, explain) for method, explain in explainers.items()}
    parts: dict[str, dict[str, list[Tensor]]] = {method: {name: [] for name in metrics} for method in explainers}
    parameter = next(iter(model.parameters()), None)
    empty = True
    if not isinstance(batches, Iterable):
        raise InputTypeError(f"batches is a {type(batches).__name__}; expected an iterable of pairs (x, target)")
    for batch in bar(batches, progress, "evaluate"):
        x, target, *more = (_placed(entry, parameter) for entry in _entries(batch))
        behind = {name: more if _takes_more(metric) else [] for name, metric in metrics.items()}
        for name, metric in metrics.items():
            _check_call(name, metric, x, target, behind[name])
        if more and not any(behind.values()):
            raise InputError(
                f"a batch has {2 + len(more)} entries, and no metric takes more than (explain, model, x, target); give "
                "pairs (x, target), or a metric that takes what is behind them: metric(explain, model, x, target, mask)"
            )
        empty = False
        for method, explain in named.items():
            for name, metric in metrics.items():
                found = metric(explain, model, *map(_copy, (x, target, *behind[name])))
                parts[method][name].append(_values(name, found, len(x)))
    if empty:
        raise InputError("there was no batch: the loader is empty, or an iterator that is used up")
    return Evaluation(
        {method: {name: torch.cat(each) for name, each in found.items()} for method, found in parts.items()}
    )


def _named(method: str, explain: Any) -> Any:
    """Return an explainer whose relevance is looked at, whichever metric asks for it; relevance that is there as it is.

    Raises:
        InputTypeError: it is no explainer.
    """
    explain = checked_explain(explain, f"explainer {method!r}")
    if isinstance(explain, Tensor):
        return explain

    @wraps(explain)
    def named(model: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        shape = tuple(x.shape)
        found = explain(model, x, *args, **kwargs)
        if not isinstance(found, Tensor):
            raise InputTypeError(
                f"explainer {method!r} returned relevance, a {type(found).__name__}; expected a tensor of shape {shape}"
            )
        if tuple(found.shape) != shape:
            raise InputError(
                f"explainer {method!r} returned relevance of shape {tuple(found.shape)}; expected {shape}, the shape "
                "of the input it explains"
            )
        return found

    named.__name__ = method
    return named


def _entries(batch: Any) -> tuple[Any, ...]:
    """Return what a batch holds, x and target at least, as tensors where it is arrays; both are checked."""
    expected = "expected a pair (x, target), or (x, target, ...) with what else the metrics take"
    if not isinstance(batch, (tuple, list)):
        raise InputError(f"a batch is a {type(batch).__name__}; {expected}")
    if len(batch) < 2:
        raise InputError(f"a batch has {len(batch)} {'entry' if len(batch) == 1 else 'entries'}; {expected}")
    first, target, *more = (torch.as_tensor(entry) if hasattr(entry, "__array__") else entry for entry in batch)
    x = checked_input(first)
    # What a tensor says is for the metrics to check: one of the user's may want more than a class of each sample.
    return x, target if isinstance(target, Tensor) else checked_target(target, len(x)), *more


def _placed(entry: Any, parameter: Tensor | None) -> Any:
    """Return an entry of a batch on the device of the model."""
    return entry.to(parameter.device) if isinstance(entry, Tensor) and parameter is not None else entry


def _copy(entry: Any) -> Any:
    """Return an entry that a metric may write into."""
    return entry.clone() if isinstance(entry, Tensor) else entry


def _signature(metric: Any) -> inspect.Signature | None:
    """Return what a metric takes; None for what does not say so, as some builtins."""
    try:
        return inspect.signature(metric)
    except (TypeError, ValueError):
        return None


def _takes_more(metric: Any) -> bool:
    """Say whether a metric takes more by position than an explainer, a model, x and a target."""
    signature = _signature(metric)
    if signature is None:
        return False
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return inspect.Parameter.VAR_POSITIONAL in kinds or sum(kind in by_position for kind in kinds) > 4


def _check_call(name: str, metric: Any, x: Tensor, target: Any, more: list[Any]) -> None:
    """Raise where a metric does not take what it would be called with.

    Raises:
        InputTypeError: says what to write.
    """
    signature = _signature(metric)
    if signature is None:
        return
    try:
        signature.bind(None, None, x, target, *more)
    except TypeError as error:
        title = getattr(metric, "__name__", type(metric).__name__)
        title = "metric" if title == "<lambda>" else title
        takes = list(signature.parameters)
        if len(takes) > 1 and takes[0] == "relevance":
            rest = [other for other, parameter in signature.parameters.items() if parameter.default is parameter.empty]
            behind = "".join(f", {other}" for other in rest[1:])
            hint = f"lambda explain, model, x, target{behind}: {title}(explain(model, x, target){behind})"
        elif len(takes) == 1:
            hint = f"lambda explain, model, x, target: {title}(explain(model, x, target))"
        else:
            hint = f"lambda explain, model, x, target: {title}(...)"
        given = "".join(f", entry {index} of the batch" for index in range(2, 2 + len(more)))
        raise InputTypeError(
            f"metric {name!r} takes ({', '.join(takes)}), and is called with (explain, model, x, target{given}): "
            f"{error}. Give batches what it takes behind these four, fix options by functools.partial, or write {hint}"
        ) from None


def _values(name: str, found: Any, samples: int) -> Tensor:
    """Return what a metric found, ``[N]``, on the CPU.

    Raises:
        InputError: anything else than a number for each sample.
    """
    values = found if isinstance(found, Tensor) else getattr(found, "values", None)
    if isinstance(values, Tensor) and values.shape == (samples,):
        return values.detach().double().cpu()
    came = f"a {type(found).__name__}" if found is not None else "None"
    if isinstance(values, Tensor):
        held = "" if values is found else " with values"
        came = f"a {type(found).__name__}{held} of shape {tuple(values.shape)}"
    raise InputError(
        f"metric {name!r} returned {came}; expected a tensor of shape ({samples},), one number for each sample, or "
        "what has such values"
    )
