"""ROAD: remove and debias. Accuracy as pixels are imputed, with nothing left of where they were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from relprop.arguments import bar, nonnegative_number
from relprop.errors import InputError, InputTypeError, ModelError
from relprop.metrics._explain import Explain, Output, checked_input, checked_target, explained, scores, selected
from relprop.metrics._features import units
from relprop.metrics.curves import standard_error
from relprop.metrics.imputation import noisy_linear_imputation
from relprop.tables import text_table
from relprop.training import one_measurement


@dataclass(frozen=True)
class Road:
    """Whether the target is still predicted without a part of the pixels, from ``road``.

    Attributes:
        fractions: the parts that are removed, ``[P]``.
        morf, lerf: 1 where the target is predicted, else 0, ``[N, P]``, float64; the mean over samples is the accuracy.
            The scores, where ``road`` was given another ``output``.
        measure: ``"accuracy"`` or ``"score"``.
    """

    fractions: tuple[float, ...]
    morf: Tensor = field(repr=False)
    lerf: Tensor = field(repr=False)
    measure: str = "accuracy"

    @property
    def values(self) -> Tensor:
        """``mean over fractions of LeRF - MoRF``, ``[N]``; in [-1, 1] for the accuracy, higher is better."""
        return (self.lerf - self.morf).mean(dim=1)

    @property
    def mean(self) -> float:
        """The mean of ``values``."""
        return float(self.values.mean())

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and lists."""
        return {
            "measure": self.measure,
            "fractions": list(self.fractions),
            "morf": self.morf.tolist(),
            "lerf": self.lerf.tolist(),
        }

    def __str__(self) -> str:
        rows = [
            [f"{part:.3g}", f"{float(self.morf[:, p].mean()):.4g}", f"{float(self.lerf[:, p].mean()):.4g}"]
            for p, part in enumerate(self.fractions)
        ]
        table = text_table(("removed", f"{self.measure} MoRF", f"{self.measure} LeRF"), rows, right=range(3))
        return f"{table}\nLeRF - MoRF: {self.mean:.4g} +/- {standard_error(self.values):.2g}"


@one_measurement
@torch.no_grad()
def road(
    explain: Explain | Tensor,
    model: nn.Module,
    x: Tensor,
    target: int | Sequence[int] | Tensor,
    *,
    fractions: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9),
    noise: float = 0.01,
    output: Literal["accuracy"] | Output = "accuracy",
    absolute: bool = False,
    seed: int = 0,
    internal_batch_size: int | None = 512,
    progress: bool = False,
) -> Road:
    """Impute the most and the least relevant pixels: is the target still the largest output?

    Definition: for each fraction p, the first ``round(p H W)`` pixels in the order of relevance, with all channels, are
    replaced by ``noisy_linear_imputation``; the score of a sample is 1 if the target is the largest output.
    With another ``output``, that is the score.
    Range: accuracy in [0, 1]; for MoRF lower is better, for LeRF higher, so that ``values``, the mean of LeRF - MoRF
    over the fractions, in [-1, 1], is better higher.
    Source: Rong et al. 2022 (arXiv:2202.00449). Images only.

    Args:
        explain, model, x, absolute, seed, internal_batch_size, progress: as in ``perturbation_curve``.
        target: the class that should be predicted, an int or one for each sample.
        fractions: the parts of the pixels to remove, above 0 and below 1.
        noise: the standard deviation of the noise, in units of the input.
        output: ``"accuracy"``, or as in ``perturbation_curve``: what reads models that return no tensor ``[N, C]``.

    Raises:
        InputError: not images, a fraction outside (0, 1) or so large that no pixel stays, no target.
        InputTypeError: fractions that are no sequence.
        ModelError: outputs that are no tensor ``[N, C]``, C at least 2, and no callable to read them.
        NumericalError: the model returns NaN, or infinity for the target.
        TargetIndexError: a target out of range.
        RelpropError: what ``perturbation_curve`` raises.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    >>> x = torch.randn(3, 1, 4, 4)
    >>> road(lambda model, x, target: x, model, x, 0, fractions=(0.25, 0.5)).morf.shape
    torch.Size([3, 2])
    """
    x = checked_input(x)
    if x.dim() != 4:
        raise InputError(f"ROAD imputes pixels from their neighbours: expected [N, C, H, W], got {tuple(x.shape)}")
    if isinstance(output, str) and output not in ("accuracy", "logit", "probability"):
        raise InputError(
            f"output is {output!r}; expected 'accuracy', 'logit', 'probability' or a callable (outputs, target) -> [N]"
        )
    read: Output = _right if output == "accuracy" else output
    found = checked_target(target, len(x))
    if found is None:
        raise InputError("ROAD measures the accuracy of a class; expected a target")
    parts, pixels = units(x, "pixels"), x[0, 0].numel()
    removed = _parts(fractions)
    counts = [round(part * pixels) for part in removed]
    if not counts or min(removed) <= 0 or max(counts) >= pixels:
        raise InputError(f"fractions are {removed}; expected parts above 0 that leave a pixel of {pixels}")
    with torch.enable_grad():
        relevance = explained(explain, model, x, found, internal_batch_size=internal_batch_size, progress=progress)
    totals = parts.total(relevance, absolute)
    kept = {}
    for name in ("morf", "lerf"):
        places = parts.ranks(totals, seed, descending=name == "morf").view(len(x), *x.shape[2:])
        right = []
        for count in bar(counts, progress, name):
            # Imputed as one batch, so that the noise does not depend on the size of batches.
            imputed = noisy_linear_imputation(x, places < count, noise=noise, seed=seed)
            right.append(scores(model, imputed, found, read, internal_batch_size=internal_batch_size))
        kept[name] = torch.stack(right, dim=1).double()
    return Road(removed, kept["morf"], kept["lerf"], "accuracy" if output == "accuracy" else "score")


def _parts(fractions: Any) -> tuple[float, ...]:
    try:
        given = fractions.tolist() if isinstance(fractions, Tensor) and fractions.dim() else list(fractions)
    except TypeError as error:
        raise InputTypeError(f"fractions is {fractions!r}; expected a sequence of parts, as (0.1, 0.5)") from error
    return tuple(nonnegative_number("a fraction", each) for each in given)


def _right(outputs: Any, target: Any) -> Tensor:
    """Return 1 where the target is the largest output, else 0, ``[N]``; NaN where one is NaN or the target infinite."""
    own = selected(outputs, target)
    if outputs.shape[1] < 2:
        raise ModelError(f"the model returns {tuple(outputs.shape)}; the accuracy needs two or more outputs to compare")
    column = torch.as_tensor(target, device=outputs.device) % outputs.shape[1]
    broken = outputs.isnan().any(dim=1) | ~own.isfinite()
    right: Tensor = outputs.argmax(dim=1) == column
    return right.double().masked_fill(broken, torch.nan)
