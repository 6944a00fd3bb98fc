"""Input invariance: a constant that is added to the input and taken out by the first bias should change nothing."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from relprop.errors import InputError, ModelError
from relprop.metrics._checked import must_explain
from relprop.metrics._explain import Explain, Target, checked_input, chunks, explained
from relprop.metrics._randomised import has_parameters
from relprop.metrics.curves import standard_error
from relprop.tables import text_table


@dataclass(frozen=True)
class InputInvariance:
    """How far the explanations of equal functions of shifted inputs are apart, from ``input_invariance``.

    Attributes:
        values: ``|R - R'|_1 / |R|_1``, ``[N]``; lower is better.
        maps, shifted_maps: R and R', ``[N, ...]``.
    """

    values: Tensor
    maps: Tensor = field(repr=False)
    shifted_maps: Tensor = field(repr=False)

    @property
    def mean(self) -> float:
        """The mean of ``values``."""
        return float(self.values.mean())

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and lists, without the maps."""
        return {"values": self.values.tolist()}

    def __str__(self) -> str:
        row = [f"{self.mean:.4g}", f"{standard_error(self.values):.2g}", f"{float(self.values.max()):.4g}"]
        return text_table(("|R - R'| / |R|", "+/-", "max"), [row], right=range(3))


def input_invariance(
    explain: Explain,
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    shift: float | Tensor = 1.0,
    tolerance: float = 1e-3,
    internal_batch_size: int | None = 512,
    progress: bool = False,
) -> InputInvariance:
    """Add a constant to the input, take it out by the first layer's bias, and compare the explanations.

    Definition: ``g(x + m) = f(x)`` by ``shifted_model``; ``values = |R_f(x) - R_g(x + m)|_1 / |R_f(x)|_1`` (0 / 0 = 0).
    Range: [0, inf); lower is better, 0 for the gradient. Methods that multiply by the input, or refer to 0, cannot have
    0: their reference has moved.
    Source: Kindermans et al. 2019 (arXiv:1711.00867).

    Args:
        explain: ``explain(model, x, target) -> relevance``; it gets f with x and g with x + m.
        model, x, target, internal_batch_size, progress: as in ``perturbation_curve``.
        shift: m, a number or a tensor that broadcasts to one sample.
        tolerance: how far ``g(x + m)`` may be from ``f(x)``, relative to the largest output.

    Raises:
        InputTypeError: relevance in the place of the explainer.
        InputError, ModelError: as ``shifted_model``; ``g(x + m)`` is not ``f(x)``: the input goes elsewhere, too.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    >>> x = torch.randn(2, 3).double()
    >>> gradient = lambda model, x, target: torch.func.grad(lambda x: model(x).sum())(x)
    >>> input_invariance(gradient, model, x).values.round(decimals=6)
    tensor([0., 0.], dtype=torch.float64)
    """
    must_explain(explain, "input_invariance", "the shifted model, too")
    x = checked_input(x)
    other = shifted_model(model, x, shift)
    moved = x + torch.as_tensor(shift, dtype=x.dtype, device=x.device)
    apart = size = 0.0
    with torch.no_grad():
        for rows in chunks(len(x), internal_batch_size):
            ours, theirs = model(x[rows]), other(moved[rows])
            apart = max(apart, float((ours - theirs).abs().max()))
            size = max(size, float(ours.abs().max()))
    if not apart <= tolerance * size:
        raise InputError(
            f"the shifted model is up to {apart:.3g} away from the model, whose outputs reach {size:.3g}; expected at "
            f"most {tolerance:g} of that. The input may reach other layers than the first"
        )
    maps = [
        explained(explain, each, inputs, target, internal_batch_size=internal_batch_size, progress=progress)
        for each, inputs in ((model, x), (other, moved))
    ]
    change, whole = ((each).double().flatten(1).abs().sum(dim=1) for each in (maps[0] - maps[1], maps[0]))
    return InputInvariance(torch.where(change == 0, 0.0, change / whole), *maps)


@torch.no_grad()
def shifted_model(model: nn.Module, x: Tensor, shift: float | Tensor) -> nn.Module:
    """Return a copy of the model that computes the same for ``x + shift`` as the model does for x.

    Definition: the first layer's bias becomes ``b - W m``; a convolution that pads with zeros pads with m instead, so
    that the border, too, is x + m of what it was.
    Source: Kindermans et al. 2019 (arXiv:1711.00867).

    Args:
        model: its first layer with parameters, in the order in which it calls them, is ``nn.Linear``, ``nn.Conv1d``,
            ``nn.Conv2d`` or ``nn.Conv3d``, and takes the input, or a flat view of it.
        x: ``[N, ...]``, to run the model once, as a copy.
        shift: m, a number or a tensor that broadcasts to one sample. For convolutions: a number, or one for each
            channel, such as ``[C, 1, 1]``.

    Raises:
        ModelError: the first layer is another.
        InputError: a shift that does not fit.

    >>> model = nn.Conv2d(1, 2, 3, padding=1)
    >>> x = torch.randn(1, 1, 5, 5)
    >>> torch.allclose(shifted_model(model, x, 2.0)(x + 2.0), model(x), atol=1e-5)
    True
    """
    other = copy.deepcopy(model)
    name, entered = _first_layer(model, x[:2])
    layer: Any = other.get_submodule(name)
    m = torch.as_tensor(shift, dtype=x.dtype, device=x.device)
    try:
        m = m.expand(x.shape[1:])
    except RuntimeError as error:
        raise InputError(
            f"shift has shape {tuple(m.shape)}; expected a number or what broadcasts to {tuple(x.shape[1:])}"
        ) from error
    if isinstance(layer, nn.Linear):
        taken = layer.weight @ m.reshape(entered)
    else:
        flat = m.flatten(1)
        if bool((flat != flat[:, :1]).any()):
            raise InputError("shift differs within a channel; expected one number for each channel of a convolution")
        each = flat[:, 0]
        # The channels of the input that each output channel sees.
        groups, wide = layer.groups, layer.weight.flatten(2).sum(dim=2)
        taken = (wide.view(groups, -1, wide.shape[1]) * each.view(groups, 1, -1)).sum(dim=2).flatten()
        _pad_with(layer, each)
    bias = -taken if layer.bias is None else layer.bias - taken
    layer.bias = nn.Parameter(bias, requires_grad=layer.weight.requires_grad)
    return other


def _first_layer(model: nn.Module, x: Tensor) -> tuple[str, tuple[int, ...]]:
    """Return the name of the first layer with parameters that is called, and the shape of a sample that enters it."""
    model, calls = copy.deepcopy(model), []
    for name, module in model.named_modules():
        if has_parameters(module):

            def note(module: nn.Module, inputs: Any, name: str = name) -> None:
                calls.append((name, module, inputs[0] if inputs else None))

            module.register_forward_pre_hook(note)
    with torch.no_grad():
        model(x)
    if not calls:
        raise ModelError(f"{type(model).__name__} calls no module that has parameters; there is no bias to compensate")
    name, layer, entered = calls[0]
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    if not isinstance(layer, kinds) or not isinstance(entered, Tensor):
        raise ModelError(
            f"the first layer with parameters, {name!r}, is a {type(layer).__name__}; expected one of "
            f"{', '.join(kind.__name__ for kind in kinds)}, whose bias can compensate the shift"
        )
    if entered.numel() != x.numel():
        raise ModelError(
            f"the first layer, {name!r}, gets {tuple(entered.shape)}; expected the input, {tuple(x.shape)}"
        )
    return name, tuple(entered.shape[1:])


def _pad_with(layer: Any, values: Tensor) -> None:
    """Make a convolution pad with a number for each channel where it padded with zeros."""
    widths = _widths(layer)
    if layer.padding_mode != "zeros" or not any(widths):
        return  # other modes repeat the input, which is shifted already
    layer.register_buffer("pad_values", values.view(-1, *(1,) * (layer.weight.dim() - 2)))
    layer.pad_widths = widths
    layer.padding = (0,) * (layer.weight.dim() - 2)
    layer.__class__ = type(type(layer).__name__, (_PadsWithValues, type(layer)), {})


def _widths(layer: Any) -> list[int]:
    """Return how much a convolution pads, last dimension first, as ``torch.nn.functional.pad`` takes it."""
    found: Sequence[int] = layer._reversed_padding_repeated_twice
    return list(found)


class _PadsWithValues(nn.Module):
    """What makes a convolution pad with values: it stays the convolution it is, for rules that go by type and name."""

    pad_values: Tensor
    pad_widths: list[int]

    def forward(self, x: Tensor) -> Tensor:
        shape = [size + sum(self.pad_widths[2 * d : 2 * d + 2]) for d, size in enumerate(reversed(x.shape[2:]))][::-1]
        border = pad(torch.ones_like(x), self.pad_widths) == 0
        padded = torch.where(border, self.pad_values.expand(*x.shape[:2], *shape), pad(x, self.pad_widths))
        result: Tensor = super().forward(padded)
        return result
