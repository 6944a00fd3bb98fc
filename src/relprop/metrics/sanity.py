"""Sanity: does the explanation depend on what the model has learned, and on what it is asked?

Adebayo et al. 2018 (arXiv:1810.03292) randomise parameters, layer by layer: an explanation that stays as it was does
not explain the model. All works on copies of the model; the model itself is never written.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from relprop.arguments import bar as with_bar
from relprop.arguments import whole_number
from relprop.errors import InputError, TargetError
from relprop.metrics._checked import must_be_numbers, must_explain
from relprop.metrics._explain import Explain, Target, checked_input, checked_target, explained, generator
from relprop.metrics._randomised import chosen, layers_in_order, randomise
from relprop.metrics.curves import standard_error
from relprop.metrics.similarity import Similarity, similarity_of
from relprop.tables import text_table
from relprop.training import one_measurement


@dataclass(frozen=True)
class Randomisation:
    """How alike the explanation stays as layers lose what they learned, from ``parameter_randomisation``.

    Attributes:
        layers: which was randomised (cascading: last) at each step, the one nearest to the output first.
        similarity: to the explanation of the model as it is, ``[N, len(layers)]``.
        maps: the explanations at each step, ``[len(layers) + 1, N, ...]``; the model's own first.
        parameters: for each step, the names of the parameters that it changed; together, cascading, all that are
            random in the end.
    """

    layers: tuple[str, ...]
    similarity: Tensor
    maps: Tensor = field(repr=False)
    parameters: tuple[tuple[str, ...], ...] = field(repr=False)

    @property
    def values(self) -> Tensor:
        """The mean over the layers, ``[N]``; lower is better. NaN where the similarity is undefined at one of them."""
        return self.similarity.mean(dim=1)

    @property
    def mean(self) -> float:
        """The mean of ``values``."""
        return float(self.values.mean())

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and lists, without the maps."""
        return {
            "layers": list(self.layers),
            "similarity": self.similarity.tolist(),
            "parameters": [list(names) for names in self.parameters],
        }

    def __str__(self) -> str:
        rows = [
            [layer or "(the model)", f"{float(each.mean()):.4g}", f"{standard_error(each):.2g}"]
            for layer, each in zip(self.layers, self.similarity.T, strict=True)
        ]
        return text_table(("randomised", "similarity", "+/-"), rows, right=(1, 2))


@one_measurement
def parameter_randomisation(
    explain: Explain,
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    order: Literal["cascading", "independent"] = "cascading",
    similarity: Similarity = "spearman",
    absolute: bool = False,
    layers: Sequence[str] | None = None,
    seed: int = 0,
    internal_batch_size: int | None = 512,
    progress: bool = False,
) -> Randomisation:
    """Randomise layers and compare explanations: they should change.

    Definition: on a copy of the model, modules with parameters are randomised from the output to the input, each on top
    of those before (``"cascading"``) or alone (``"independent"``); ``similarity[n, l] = s(R(x_n), R_l(x_n))``. Every
    parameter that the model uses is drawn anew: by the module's ``reset_parameters`` where it has that; what that
    leaves constant or as it was (norm weights of one, biases of zero, a layer scale), and parameters of modules
    without, from a normal distribution of the parameter's mean and standard deviation (of a constant c, ``|c|``; of
    zeros, the root mean square of the module's parameters, or 1). ``parameters`` of the result says which changed.
    Range: that of the similarity, [-1, 1] for all named ones; lower (near 0) is better. A map that follows the input,
    as an edge detector, stays at 1; so does an explainer that ignores the model it is given, and a constant. NaN, and
    with it the mean, where the similarity is undefined: the correlation of maps that differ, one of which does not
    vary, and the cosine of a map of zeros with another.
    Source: Adebayo et al. 2018 (arXiv:1810.03292). High values after the top layers are no proof against a method:
    lower layers keep what they learned (Binder et al. 2023, arXiv:2211.12486).

    Args:
        explain: ``explain(model, x, target) -> relevance``; it gets the copies.
        model, x, target, internal_batch_size, progress: as in ``perturbation_curve``.
        order: ``"cascading"`` or ``"independent"``.
        similarity: ``"spearman"`` (rank correlation), ``"pearson"``, ``"cosine"``, ``"ssim"`` or ``"hog"`` (both need
            scikit-image and images), or a callable ``(a, b) -> [N]``.
        absolute: compare ``|R|``.
        layers: names of modules, if not all that have parameters of their own and are used (called, or their
            parameters read, as those of ``nn.MultiheadAttention.out_proj``).
        seed: for the parameters. Parameters that modules share change together.

    Raises:
        InputError: an unknown order or similarity; relevance of another shape, or NaN.
        InputTypeError: relevance in the place of the explainer; a seed that is no integer.
        ModelError: no module with parameters, no module of a name, or a model that cannot be copied.
        MissingExtraError: SSIM or HOG without scikit-image; ``progress=True`` without tqdm.
        TargetError, TargetTypeError: another number of targets than of samples, or no integers.

    >>> model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1))
    >>> result = parameter_randomisation(lambda model, x, target: x, model, torch.randn(3, 6))
    >>> print(result)  # an explanation that does not look at the model
    randomised  similarity  +/-
    ----------  ----------  ---
    2                    1    0
    0                    1    0
    """
    if order not in ("cascading", "independent"):
        raise InputError(f"order is {order!r}; expected 'cascading' or 'independent'")
    alike = similarity_of(similarity)
    must_explain(explain, "parameter_randomisation", "copies of the model with other parameters")
    x = checked_input(x)
    found = checked_target(target, len(x))
    seeds = generator(seed)
    names = chosen(layers, layers_in_order(model, x[:2]))[::-1]
    changed, parameters = copy.deepcopy(model), []
    maps = [explained(explain, model, x, found, internal_batch_size=internal_batch_size)]
    for name in with_bar(names, progress, "randomise"):
        if order == "independent":
            changed = copy.deepcopy(model)
        parameters.append(randomise(changed, name, int(torch.randint(2**62, (1,), generator=seeds))))
        maps.append(explained(explain, changed, x, found, internal_batch_size=internal_batch_size))
    compared = [each.abs() if absolute else each for each in maps]
    values = torch.stack([alike(compared[0], each) for each in compared[1:]], dim=1)
    return Randomisation(tuple(names), values, torch.stack(maps), tuple(parameters))


def smoothed(explain: Explain, *, sigma: float = 0.2, samples: int = 50, seed: int = 0) -> Explain:
    """Return an explainer that averages over noise: ``parameter_randomisation`` of it is smooth MPRT.

    Definition: ``1/S sum_s R(x + sigma (max x - min x) e_s)``, ``e_s ~ N(0, 1)``, with the range of each sample.
    Source: Hedstroem et al. 2024 (arXiv:2401.06465): noise in the gradient alone makes maps look different, and the
    average takes it out. Smilkov et al. 2017 (arXiv:1706.03825) for the noise level.

    Args:
        explain: any explainer.
        sigma: as a part of the sample's range.
        samples: S.
        seed: the same noise in every call.

    Raises:
        InputError: fewer than 1 sample, a negative sigma.
        InputTypeError: relevance in the place of the explainer; when it is called, an input of integers.
        TargetError, TargetTypeError: when it is called, another number of targets than of samples, or no integers.

    >>> model = nn.Linear(3, 1)
    >>> smooth = smoothed(lambda model, x, target: model.weight.expand_as(x), samples=4)
    >>> torch.allclose(smooth(model, torch.randn(2, 3), None), model.weight)
    True
    """
    must_explain(explain, "smoothed", "noisy copies of the input")
    whole_number("samples", samples)
    if not sigma >= 0:
        raise InputError(f"sigma is {sigma}; expected a part of the sample's range, 0 or more")

    def explain_smoothly(model: nn.Module, x: Tensor, target: Any) -> Tensor:
        must_be_numbers(checked_input(x), "smoothed adds noise to it")
        source = generator(seed)
        flat, total = x.flatten(1), torch.zeros_like(x, dtype=torch.float64)
        width = (flat.amax(dim=1) - flat.amin(dim=1)).view(-1, *(1,) * (x.dim() - 1))
        for _ in range(samples):
            # One draw for all samples: what a sample gets does not depend on how x is batched.
            noise = torch.randn(x.shape[1:], generator=source, dtype=torch.float64).to(x.device, x.dtype)
            total += explained(explain, model, x + sigma * width * noise, target)
        return (total / samples).to(x.dtype)

    return explain_smoothly


@dataclass(frozen=True)
class EfficientRandomisation:
    """The complexity of explanations before and after all parameters are randomised, from ``efficient_randomisation``.

    Attributes:
        before, after: the entropy of the histogram of R, ``[N]``.
        parameters: the names of the parameters that were randomised.
    """

    before: Tensor
    after: Tensor
    parameters: tuple[str, ...] = field(repr=False)

    @property
    def values(self) -> Tensor:
        """``(after - before) / before``, ``[N]``; higher is better. 0 / 0 is 0."""
        return torch.where(self.after == self.before, 0.0, (self.after - self.before) / self.before)

    @property
    def mean(self) -> float:
        """The mean of ``values``."""
        return float(self.values.mean())

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and lists."""
        return {
            "before": self.before.tolist(),
            "after": self.after.tolist(),
            "values": self.values.tolist(),
            "parameters": list(self.parameters),
        }

    def __str__(self) -> str:
        parts = {"before": self.before, "after": self.after, "relative rise": self.values}
        rows = [[name, f"{float(each.mean()):.4g}", f"{standard_error(each):.2g}"] for name, each in parts.items()]
        return text_table(("complexity", "mean", "+/-"), rows, right=(1, 2))


@one_measurement
def efficient_randomisation(
    explain: Explain,
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    bins: int = 100,
    seed: int = 0,
    internal_batch_size: int | None = 512,
    progress: bool = False,
) -> EfficientRandomisation:
    """Randomise all parameters at once: the explanation should become more complex.

    Definition: ``(C(R') - C(R)) / C(R)``, where R' explains a copy with all parameters randomised, drawn as
    ``parameter_randomisation`` draws them, and C is the entropy of the histogram of a map, ``- sum_b p_b ln p_b``, p_b
    the share of its entries in each of ``bins`` equal bins from its smallest to its largest entry.
    Range: [-1, inf]; higher is better, 0 for an explanation that does not look at the model. inf where the map was
    constant, of entropy 0, and is not any more.
    Source: Hedstroem et al. 2024 (arXiv:2401.06465), efficient MPRT: no order of layers, no similarity.

    Args:
        bins: how many, at least 2; 100 by default.
        explain, model, x, target, seed, internal_batch_size, progress: as in ``parameter_randomisation``.

    Raises:
        RelpropError: what ``parameter_randomisation`` raises.

    >>> model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1))
    >>> efficient_randomisation(lambda model, x, target: x, model, torch.randn(2, 6)).values
    tensor([0., 0.], dtype=torch.float64)
    """
    must_explain(explain, "efficient_randomisation", "a copy of the model with other parameters")
    x = checked_input(x)
    whole_number("bins", bins, least=2)
    seeds = generator(seed)
    names = layers_in_order(model, x[:2])[::-1]
    changed = copy.deepcopy(model)
    parameters: list[str] = []
    for name in names:
        parameters += randomise(changed, name, int(torch.randint(2**62, (1,), generator=seeds)))
    before, after = (
        _histogram_entropy(
            explained(explain, each, x, target, internal_batch_size=internal_batch_size, progress=progress), bins
        )
        for each in (model, changed)
    )
    return EfficientRandomisation(before, after, tuple(dict.fromkeys(parameters)))


@one_measurement
def random_logit(
    explain: Explain,
    model: nn.Module,
    x: Tensor,
    target: int | Sequence[int] | Tensor,
    classes: int,
    *,
    similarity: Similarity = "spearman",
    absolute: bool = False,
    seed: int = 0,
    internal_batch_size: int | None = 512,
    progress: bool = False,
) -> Tensor:
    """Explain another output: the explanation should change.

    Definition: ``s(R(x, target), R(x, c))``, where c is drawn uniformly from the other classes, for each sample.
    Range: that of the similarity, [-1, 1] for all named ones; lower is better. 1 for equal maps, NaN where the
    similarity is undefined, as for ``parameter_randomisation``.
    Source: Sixt et al. 2020 (arXiv:1912.09818), who compare by SSIM.

    Args:
        target: an int, or one for each sample.
        classes: how many there are, at least 2.
        explain, model, x, similarity, absolute, seed, internal_batch_size, progress: as in ``parameter_randomisation``.

    Shapes: ``-> [N]``, float64.

    Raises:
        InputError: fewer than 2 classes; an unknown similarity, relevance of another shape, or NaN.
        InputTypeError, MissingExtraError, TargetTypeError: as ``parameter_randomisation``.
        TargetError: no target, or one that is no class.

    >>> model = nn.Linear(3, 4)
    >>> random_logit(lambda model, x, target: x * model.weight[target], model, torch.randn(2, 3), [0, 2], 4).shape
    torch.Size([2])
    """
    must_explain(explain, "random_logit", "another output")
    x = checked_input(x)
    alike = similarity_of(similarity)
    whole_number("classes", classes, least=2)
    found = checked_target(target, len(x))
    if found is None:
        raise TargetError("random_logit compares the target's explanation with another's; expected a target")
    first = torch.as_tensor(found).expand(len(x)).cpu()
    if bool(((first < 0) | (first >= classes)).any()):
        raise TargetError(f"targets are from {int(first.min())} to {int(first.max())}; expected 0 to {classes - 1}")
    other = (first + torch.randint(1, classes, (len(x),), generator=generator(seed))) % classes
    maps = [
        explained(explain, model, x, each.to(x.device), internal_batch_size=internal_batch_size, progress=progress)
        for each in (first, other)
    ]
    if absolute:
        maps = [each.abs() for each in maps]
    return alike(*maps)


def _histogram_entropy(maps: Tensor, bins: int) -> Tensor:
    """Return the entropy of the histogram of each map, ``[N]``, float64; 0 for a constant map."""
    flat = maps.double().flatten(1)
    low = flat.amin(dim=1, keepdim=True)
    width = flat.amax(dim=1, keepdim=True) - low
    place = torch.where(width == 0, 0.0, (flat - low) / width * bins).long().clamp(max=bins - 1)
    counts = torch.zeros(len(flat), bins, dtype=torch.float64, device=flat.device)
    counts.scatter_add_(1, place, torch.ones_like(flat))
    shares = counts / flat.shape[1]
    entropy: Tensor = torch.special.xlogy(shares, shares).sum(dim=1).neg()
    return entropy + 0.0  # no -0
