"""Several methods, several metrics, all batches of a loader: one table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from relprop.arguments import bar
from relprop.errors import InputError, InputTypeError
from relprop.metrics._explain import Explain, checked_input, checked_target
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
    metrics: Mapping[str, Callable[[Explain, nn.Module, Tensor, Any], Any]],
    model: nn.Module,
    batches: Iterable[Any],
    *,
    progress: bool = False,
) -> Evaluation:
    """Measure every explainer by every metric, over batches.

    Definition: ``metric(explain, model, x, target)`` of each batch, one after the other.

    Args:
        explainers: from names to ``explain(model, x, target) -> relevance``.
        metrics: from names to ``metric(explain, model, x, target)``, which returns ``[N]`` or what has ``values``
            ``[N]``, as all of :mod:`relprop.metrics` do that take these four; ``functools.partial`` fixes options.
            A lambda calls those that need more, such as neighbours of x, another model, or relevance and a mask.
        model: what is explained.
        batches: a ``DataLoader``, or any iterable of pairs ``(x, target)``, where target may be None. They are moved to
            the device of the model's first parameter; every metric gets its own copy.
        progress: show a bar of the batches (tqdm).

    Raises:
        InputError: no batch, no explainer or no metric; a batch that is no pair or has no sample; a metric that returns
            anything else than a number for each sample.
        InputTypeError: explainers or metrics that are no mapping; a metric that cannot be called; batches that are not
            iterable; an x that is no tensor.
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
    parts: dict[str, dict[str, list[Tensor]]] = {method: {name: [] for name in metrics} for method in explainers}
    parameter = next(iter(model.parameters()), None)
    empty = True
    if not isinstance(batches, Iterable):
        raise InputTypeError(f"batches is a {type(batches).__name__}; expected an iterable of pairs (x, target)")
    for batch in bar(batches, progress, "evaluate"):
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise InputError(f"a batch is a {type(batch).__name__}; expected a pair (x, target)")
        x = checked_input(torch.as_tensor(batch[0]) if hasattr(batch[0], "__array__") else batch[0])
        # What a tensor says is for the metrics to check: one of the user's may want more than a class of each sample.
        array = isinstance(batch[1], Tensor) or hasattr(batch[1], "__array__")
        target = torch.as_tensor(batch[1]) if array else checked_target(batch[1], len(x))
        if parameter is not None:
            x = x.to(parameter.device)
            target = target.to(parameter.device) if isinstance(target, Tensor) else target
        empty = False
        for method, explain in explainers.items():
            for name, metric in metrics.items():
                own = target.clone() if isinstance(target, Tensor) else target
                found = metric(explain, model, x.clone(), own)
                values = getattr(found, "values", None) if not isinstance(found, Tensor) else found
                if not isinstance(values, Tensor) or values.shape != (len(x),):
                    raise InputError(
                        f"metric {name!r} returned {found!r:.80}; expected [{len(x)}], one for each sample"
                    )
                parts[method][name].append(values.detach().double().cpu())
    if empty:
        raise InputError("there was no batch: the loader is empty, or an iterator that is used up")
    return Evaluation(
        {method: {name: torch.cat(each) for name, each in found.items()} for method, found in parts.items()}
    )
