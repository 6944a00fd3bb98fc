"""Conservation: does the relevance add up to the output, with one sign, and who took the rest?

Montavon et al. 2017 (doi:10.1016/j.patcog.2016.11.008), definitions 1 to 3: an explanation is conservative where
``sum R = f``, positive where ``R >= 0``, and consistent where it is both. Neither says that it is right:
``R_i = f / d`` is consistent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from relprop.errors import InputError
from relprop.metrics._explain import Explain, Output, Target, explained, scores
from relprop.tables import text_table
from relprop.training import one_measurement


@dataclass(frozen=True)
class Conservation:
    """What relevance adds up to, from ``conservation``; every tensor ``[N]``, float64.

    Attributes:
        output: the explained output ``f``.
        total: ``sum R``.
        magnitude: ``sum |R|``.
        positivity: ``sum (R)+ / sum |R|``, in [0, 1]; 1 is a map without negative relevance, and an empty map.
    """

    output: Tensor
    total: Tensor
    magnitude: Tensor
    positivity: Tensor

    @property
    def values(self) -> Tensor:
        """The relative delta ``|f - sum R| / |f|``, ``[N]``, in [0, inf], lower is better; 0 / 0 is 0."""
        return _over(self.output - self.total, self.output)

    @property
    def gain(self) -> Tensor:
        """``sum |R| / |f|``, ``[N]``: 1 where conservative and positive, far above it where parts cancel."""
        return _over(self.magnitude, self.output)

    @property
    def mean(self) -> float:
        """The mean relative delta."""
        return float(self.values.mean())

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and lists."""
        return {
            "output": self.output.tolist(),
            "total": self.total.tolist(),
            "magnitude": self.magnitude.tolist(),
            "positivity": self.positivity.tolist(),
            "relative_delta": self.values.tolist(),
        }

    def __str__(self) -> str:
        columns = (self.output, self.total, self.values, self.gain, self.positivity)
        rows = [[str(n), *(f"{float(value):.4g}" for value in row)] for n, row in enumerate(zip(*columns, strict=True))]
        header = ["sample", "f", "sum R", "relative delta", "sum |R| / |f|", "positivity"]
        return text_table(header, rows, right=range(1, len(header)))


@one_measurement
def conservation(
    explain: Explain,
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    output: Output = "logit",
    internal_batch_size: int | None = 512,
    progress: bool = False,
) -> Conservation:
    """Measure whether relevance adds up to the output, and how much of it is positive.

    Definition: relative delta ``|f - sum R| / |f|``; positivity ``sum (R)+ / sum |R|``.
    Range: relative delta [0, inf], lower is better, inf where f alone is 0; positivity [0, 1], higher is better where
    nothing speaks against the target.
    Source: Montavon et al. 2017, definitions 1 and 2 (doi:10.1016/j.patcog.2016.11.008).

    Args:
        explain: ``explain(model, x, target) -> relevance``.
        model: what is explained.
        x: ``[N, ...]``.
        target: None, an int, or one for each sample.
        output: what relevance should add up to: ``"logit"``, ``"probability"``, or a callable from the model's outputs
            and the target to ``[N]``.
        internal_batch_size: inputs explained at once.
        progress: show a bar.

    Raises:
        InputError: an explainer that returns another shape, or NaN.
        RelpropError: what ``perturbation_curve`` raises of targets, outputs and the model.

    >>> linear = torch.nn.Linear(2, 1, bias=False)
    >>> _ = linear.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    >>> result = conservation(lambda model, x, target: x * model.weight, linear, torch.tensor([[1.0, 1.0]]))
    >>> print(result)
    sample  f  sum R  relative delta  sum |R| / |f|  positivity
    ------  -  -----  --------------  -------------  ----------
    0       2      2               0              2        0.75
    """
    relevance = explained(explain, model, x, target, internal_batch_size=internal_batch_size, progress=progress)
    value = scores(model, x, target, output, internal_batch_size=internal_batch_size)
    flat = relevance.double().flatten(1)
    magnitude = flat.abs().sum(dim=1)
    positivity = torch.where(magnitude == 0, 1.0, flat.clamp(min=0).sum(dim=1) / magnitude)
    return Conservation(value.double(), flat.sum(dim=1), magnitude, positivity)


@dataclass(frozen=True)
class Absorbed:
    """The parts of an output, as shares of it, from ``absorbed_shares``; together they are 1.

    Attributes:
        inputs: ``sum R / f``, what reached the inputs.
        shares: by name ("bias", "stabilizer", "softmax", "rule", ...), what was absorbed.
        unexplained: what went missing without a rule that says why.
        modules: by the name of a module and its call, the shares absorbed there, in order of the forward pass; those
            that absorbed nothing are left out.
    """

    inputs: float
    shares: dict[str, float]
    unexplained: float
    modules: dict[str, dict[str, float]]

    @property
    def total(self) -> float:
        """The sum of all parts: 1, up to rounding."""
        return self.inputs + sum(self.shares.values()) + self.unexplained

    def largest(self, share: str) -> tuple[str, float]:
        """Return the module that took most of ``share``, in size, and how much; as ``("2 linear", -0.8)``."""
        taken = {name: shares[share] for name, shares in self.modules.items() if share in shares}
        if not taken:
            raise InputError(f"nothing was absorbed as {share!r}; the shares are {', '.join(self.shares) or 'none'}")
        name = max(taken, key=lambda each: abs(taken[each]))
        return name, taken[name]

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and dicts."""
        return {
            "inputs": self.inputs,
            "shares": dict(self.shares),
            "unexplained": self.unexplained,
            "modules": {name: dict(shares) for name, shares in self.modules.items()},
        }

    def __str__(self) -> str:
        names = list(self.shares)
        rows = [
            [name, "", *(_share(shares.get(each, 0.0)) for each in names), ""]
            for name, shares in self.modules.items()
            if any(abs(share) >= 5e-5 for share in shares.values())
        ]
        rows.append(["all", _share(self.inputs), *map(_share, self.shares.values()), _share(self.unexplained)])
        header = ["share of f", "inputs", *names, "unexplained"]
        return text_table(header, rows, right=range(1, len(header)))


def absorbed_shares(report: Mapping[str, Any]) -> Absorbed:
    """Return which share of the output each cause absorbed, and where.

    Definition: with f and R summed over the batch, ``1 = sum R / f + sum_cause absorbed / f + unexplained / f``.
    Range: any; a share is negative where a cause added relevance (a negative bias does). Nearer to 0 leaves more to
    the inputs.
    Source: Montavon et al. 2019, 10.2 (doi:10.1007/978-3-030-28954-6_10), where biases absorb; Achtibat et al. 2024
    (arXiv:2402.05602), where the softmax does.

    Args:
        report: a report as plain numbers, from ``ConservationReport.to_dict()``. A report sums over its batch: pass
            one sample's for the shares of one sample.

    Raises:
        InputError: no such mapping, or an output of zero, of which there are no shares.

    >>> from relprop import LRP
    >>> from relprop.rules import Zero
    >>> layer = torch.nn.Linear(1, 1)
    >>> _ = layer.weight.data.fill_(3.0), layer.bias.data.fill_(1.0)
    >>> print(absorbed_shares(LRP(layer, Zero()).report(torch.ones(1, 1)).to_dict()))
    share of f      inputs    bias  unexplained
    --------------  ------  ------  -----------
    (model) linear          0.2500
    all             0.7500  0.2500       0.0000
    """
    missing = {"output", "relevance", "absorbed", "unexplained", "entries"} - set(report)
    if missing:
        raise InputError(
            f"report lacks {', '.join(sorted(missing))}; expected what ConservationReport.to_dict() returns"
        )
    f = float(report["output"])
    if f == 0 or not math.isfinite(f):
        raise InputError(f"the output of the report is {f}; shares exist of a finite output other than 0")
    modules: dict[str, dict[str, float]] = {}
    for entry in report["entries"]:
        key = f"{entry['name'] or '(model)'} {entry['operation']}"
        for cause, amount in entry["absorbed"].items():
            if amount != 0:
                taken = modules.setdefault(key, {})
                taken[cause] = taken.get(cause, 0.0) + amount / f
    return Absorbed(
        report["relevance"] / f,
        {cause: amount / f for cause, amount in report["absorbed"].items()},
        report["unexplained"] / f,
        modules,
    )


def _over(part: Tensor, whole: Tensor) -> Tensor:
    """Return ``|part| / |whole|`` with 0 / 0 = 0."""
    return torch.where(part == 0, 0.0, part.abs() / whole.abs())


def _share(value: float) -> str:
    return f"{round(value, 4) + 0.0:.4f}"  # + 0.0: no minus before a zero
