"""Implementation invariance: do two networks that compute the same function have the same explanation?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from relprop.errors import InputError, InputTypeError
from relprop.metrics._checked import allowed, in_precision, must_explain
from relprop.metrics._explain import Explain, Output, Target, checked_input, explained, scores, selected
from relprop.tables import text_table
from relprop.training import one_measurement


@dataclass(frozen=True)
class Invariance:
    """How far the maps of two implementations lie apart, from ``implementation_invariance``.

    Attributes:
        values: ``|R_a - R_b|_1 / (|R_a|_1 + |R_b|_1)`` for each sample, ``[N]``, float64, in [0, 1]; lower is better.
            NaN where the sample is a tie.
        ties: ``[N]``, bool: the samples left out.
        outputs: the largest ``|f_a - f_b|`` over the samples.
    """

    values: Tensor
    ties: Tensor
    outputs: float

    @property
    def mean(self) -> float:
        """The mean over the samples that are no ties."""
        return float(self.values[~self.ties].mean())

    @property
    def max(self) -> float:
        """The largest value over the samples that are no ties."""
        return float(self.values[~self.ties].max())

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and lists; None for a tie."""
        values = [None if tie else value for value, tie in zip(self.values.tolist(), self.ties.tolist(), strict=True)]
        return {"values": values, "ties": int(self.ties.sum()), "outputs": self.outputs}

    def __str__(self) -> str:
        counts = [str(len(self.ties)), str(int(self.ties.sum()))]
        header = ["mean", "max", "samples", "ties", "|f_a - f_b|"]
        cells = [f"{self.mean:.4g}", f"{self.max:.4g}", *counts, f"{self.outputs:.2g}"]
        return text_table(header, [cells], right=range(len(header)))


@one_measurement
def implementation_invariance(
    explain: Explain,
    model: nn.Module,
    other: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    ties: Tensor | None = None,
    output: Output = "logit",
    tolerance: float | None = None,
    internal_batch_size: int | None = 512,
    progress: bool = False,
) -> Invariance:
    """Measure how far apart the explanations of two implementations of one function are.

    Definition: ``|R_a - R_b|_1 / (|R_a|_1 + |R_b|_1)`` for each sample, 0 / 0 = 0, once ``f_a(x) = f_b(x)`` has been
    checked on the data. A tie is a sample at a kink of the function (``max(x1, x2)`` at ``x1 = x2``), where the
    explanation may take either side: it is left out. Where two implementations agree around a sample, so do their
    gradients, so a sample whose gradients differ is a tie.
    Range: [0, 1]; 0 is the same map, 1 maps that share nothing, or with opposite signs. Lower is better, but a method
    that depends on the implementation is not wrong: it explains the network, not the function.
    Source: the property, Sundararajan et al. 2017 (arXiv:1703.01365), section 2.2; Montavon 2019
    (doi:10.1007/978-3-030-28954-6_13) compares methods by it. The distance is the
    Bray-Curtis dissimilarity of two maps.

    Args:
        explain: ``explain(model, x, target) -> relevance``.
        model, other: said to compute the same function.
        x: ``[N, ...]``.
        target: None, an int, or one for each sample.
        ties: ``[N]``, bool, where you know them; found by the gradients without it (none where x holds integers).
        output: what is compared: ``"logit"``, ``"probability"``, or a callable from the model's outputs and the target
            to ``[N]``.
        tolerance: the largest difference of outputs, and of gradients, that counts as none, relative to their size:
            1e-4 by default, or half the digits of the dtype where that is more (3.5e-4 for float32, 0.03 for float16,
            0.09 for bfloat16).
        internal_batch_size: inputs explained at once.
        progress: show a bar.

    Raises:
        InputError: outputs that differ; gradients that differ at every sample (the two agree on the data but not around
            it); an explainer that returns another shape, or NaN.
        InputTypeError: relevance in the place of the explainer; ties that are no tensor.
        RelpropError: what ``perturbation_curve`` raises of targets, outputs and the model.

    >>> model = torch.nn.Linear(2, 1)
    >>> other = torch.nn.Sequential(model, torch.nn.Identity())
    >>> result = implementation_invariance(lambda model, x, target: model(x) * x, model, other, torch.ones(3, 2))
    >>> result.values
    tensor([0., 0., 0.], dtype=torch.float64)
    """
    must_explain(explain, "implementation_invariance", "two models")
    x = checked_input(x)
    if ties is not None and not isinstance(ties, Tensor):
        raise InputTypeError(f"ties is a {type(ties).__name__}; expected a tensor [{len(x)}], bool, or None")
    difference = _same_outputs(model, other, x, target, output, tolerance, internal_batch_size)
    if ties is None and not x.is_floating_point():
        ties = torch.zeros(len(x), dtype=torch.bool)
    elif ties is None:
        ties = _kinks(model, other, x, target, output, tolerance, internal_batch_size)
        if bool(ties.all()):
            raise InputError(
                "the two models agree on x, but their gradients differ at every sample: they do not compute the same "
                f"function around x (pass ties to compare their maps all the same){in_precision(x.dtype)}"
            )
    elif ties.shape != (len(x),) or ties.dtype != torch.bool or bool(ties.all()):
        raise InputError(
            f"ties has shape {tuple(ties.shape)} and dtype {ties.dtype}; expected [{len(x)}], bool, not all True"
        )
    first, second = (
        explained(explain, each, x, target, internal_batch_size=internal_batch_size, progress=progress)
        .double()
        .flatten(1)
        for each in (model, other)
    )
    apart = (first - second).norm(p=1, dim=1)
    size = first.norm(p=1, dim=1) + second.norm(p=1, dim=1)
    values = torch.where(apart == 0, 0.0, apart / size)
    return Invariance(torch.where(ties.to(values.device), torch.nan, values), ties, difference)


def _same_outputs(
    model: nn.Module,
    other: nn.Module,
    x: Tensor,
    target: Target,
    output: Output,
    tolerance: float | None,
    size: int | None,
) -> float:
    given = [scores(each, x, target, output, internal_batch_size=size) for each in (model, other)]
    share = allowed(tolerance, 1e-4, *(each.dtype for each in given), x.dtype)
    first, second = (each.double() for each in given)
    apart = (first - second).abs()
    worst = int(apart.argmax())
    if not bool(apart[worst] <= share * torch.maximum(first.abs().max(), second.abs().max())):
        raise InputError(
            f"the two models do not compute the same function: at sample {worst} the one gives "
            f"{float(first[worst]):.6g}, the other {float(second[worst]):.6g} (tolerance {share:g} of the largest "
            f"output{in_precision(given[0].dtype)})"
        )
    return float(apart[worst])


def _kinks(
    model: nn.Module,
    other: nn.Module,
    x: Tensor,
    target: Target,
    output: Output,
    tolerance: float | None,
    size: int | None,
) -> Tensor:
    """Return where the gradients of two models differ, ``[N]``."""
    first, second = (_gradient(each, x, target, output, size).double().flatten(1) for each in (model, other))
    apart = (first - second).norm(dim=1)
    same: Tensor = apart <= allowed(tolerance, 1e-4, x.dtype) * torch.maximum(first.norm(dim=1), second.norm(dim=1))
    return ~same


def _gradient(model: nn.Module, x: Tensor, target: Target, output: Output, size: int | None) -> Tensor:
    def gradient(model: nn.Module, x: Tensor, target: Target) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            total = selected(model(x.clone()), target, output).sum()  # it may write its input
            if not total.requires_grad:
                return torch.zeros_like(x)  # a constant function
            found: Tensor | None = torch.autograd.grad(total, x, allow_unused=True)[0]
        return torch.zeros_like(x) if found is None else found

    return explained(gradient, model, x, target, internal_batch_size=size)
