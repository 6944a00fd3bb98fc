"""Input invariance: a constant that is added to the input and taken out by the first bias should change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from relprop.errors import InputError, InputTypeError, ModelError
from relprop.metrics._checked import allowed, copied, in_precision, must_be_numbers, must_explain, tensor_output
from relprop.metrics._explain import Explain, Target, checked_input, chunks, explained, finite
from relprop.metrics._randomised import has_parameters, run
from relprop.metrics.curves import standard_error
from relprop.tables import text_table
from relprop.training import one_measurement


@dataclass(frozen=True)
class InputInvariance:
    """How far the explanations of equal functions of shifted inputs are apart, from ``input_invariance``.

    Attributes:
        values: ``|R - R'|_1 / |R|_1``, ``[N]``, in [0, inf]; lower is better.
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


@one_measurement
def input_invariance(
    explain: Explain,
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    shift: float | Tensor = 1.0,
    tolerance: float | None = None,
    internal_batch_size: int | None = 512,
    progress: bool = False,
) -> InputInvariance:
    """Add a constant to the input, take it out by the first layer's bias, and compare the explanations.

    Definition: ``g(x + m) = f(x)`` by ``shifted_model``; ``values = |R_f(x) - R_g(x + m)|_1 / |R_f(x)|_1`` (0 / 0 = 0).
    Range: [0, inf], inf where R_f alone is empty; lower is better, 0 for the gradient. Methods that multiply by the
    input, or refer to 0, cannot have 0: their reference has moved.
    Source: Kindermans et al. 2019 (arXiv:1711.00867).

    Args:
        explain: ``explain(model, x, target) -> relevance``; it gets f with x and g with x + m.
        model, x, target, internal_batch_size, progress: as in ``perturbation_curve``.
        shift: m, a number or a tensor that broadcasts to one sample.
        tolerance: how far ``g(x + m)`` may be from ``f(x)``, relative to the largest output: 1e-3 by default, or half
            the digits of the dtype where that is more (0.03 for float16, 0.09 for bfloat16).

    Raises:
        InputError: ``g(x + m)`` is not ``f(x)``, since the input goes elsewhere, too; relevance of another shape, or
            NaN.
        InputTypeError: relevance in the place of the explainer.
        MissingExtraError, TargetError, TargetTypeError: as ``continuity``.
        RelpropError: what ``shifted_model`` raises.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    >>> x = torch.randn(2, 3).double()
    >>> gradient = lambda model, x, target: torch.func.grad(lambda x: model(x).sum())(x)
    >>> input_invariance(gradient, model, x).values.round(decimals=6)
    tensor([0., 0.], dtype=torch.float64)
    """
    must_explain(explain, "input_invariance", "the shifted model, too")
    x = checked_input(x)
    other, moved = _shifted(model, x, shift)
    _check_outputs(model, other, x, moved, tolerance, internal_batch_size)
    maps = [
        explained(explain, each, inputs, target, internal_batch_size=internal_batch_size, progress=progress)
        for each, inputs in ((model, x), (other, moved))
    ]
    change, whole = ((each).double().flatten(1).abs().sum(dim=1) for each in (maps[0] - maps[1], maps[0]))
    return InputInvariance(torch.where(change == 0, 0.0, change / whole), *maps)


@one_measurement
@torch.no_grad()
def shifted_model(model: nn.Module, x: Tensor, shift: float | Tensor) -> nn.Module:
    """Return a copy of the model that computes the same for ``x + shift`` as the model does for x.

    Definition: the first layer's bias becomes ``b - W m``; a convolution that pads with zeros pads with m instead, so
    that the border, too, is x + m of what it was. That it computes the same is checked on two samples.
    Source: Kindermans et al. 2019 (arXiv:1711.00867).

    Args:
        model: its first layer with parameters, in the order in which it calls them, is ``nn.Linear``, ``nn.Conv1d``,
            ``nn.Conv2d`` or ``nn.Conv3d``, and takes the values of the input as they are: the input, a view of it, or
            with its dimensions in another order.
        x: ``[N, ...]``, floating; copies of the model run on its first two samples.
        shift: m, a number or a tensor that broadcasts to one sample. For convolutions: a number, or one for each
            channel, such as ``[C, 1, 1]``. For linear layers over the last dimension of ``[N, T, D]``: a number, or one
            for each feature, ``[D]``.

    Raises:
        ModelError: the first layer is another, or gets other values than the input's; a model that returns no tensor or
            cannot be copied.
        InputError: a shift that does not fit; NaN or infinity in it, in x or in what comes out; or a copy that computes
            something else: the input goes to other layers, too, or to the first one more than once.
        InputTypeError: an input of integers; a shift that is no number.

    >>> model = nn.Conv2d(1, 2, 3, padding=1)
    >>> x = torch.randn(1, 1, 5, 5)
    >>> torch.allclose(shifted_model(model, x, 2.0)(x + 2.0), model(x), atol=1e-5)
    True
    """
    other, moved = _shifted(model, checked_input(x), shift)
    _check_outputs(model, other, x[:2], moved[:2], None, None)
    return other


def _shifted(model: nn.Module, x: Tensor, shift: float | Tensor) -> tuple[nn.Module, Tensor]:
    """Return the shifted model, not yet checked, and ``x + m``."""
    must_be_numbers(x, "a shift is added to it")
    finite(x, "x")
    try:
        if isinstance(shift, Tensor) and shift.is_complex():
            raise TypeError("complex numbers")
        m = torch.as_tensor(shift, dtype=torch.float64, device=x.device).detach().to(x.dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputTypeError(f"shift is {shift!r:.80}; expected a number or a tensor of real numbers") from error
    if not bool(m.isfinite().all()):
        raise InputError(f"shift holds NaN or infinity in {x.dtype}; expected finite numbers")
    try:
        whole = m.expand(x.shape[1:])[None]
    except RuntimeError as error:
        raise InputError(
            f"shift has shape {tuple(m.shape)}; expected a number or what broadcasts to {tuple(x.shape[1:])}"
        ) from error
    other = copied(model, "shifting the input")
    name, entered, order = _first_layer(model, x[:2])
    layer: Any = other.get_submodule(name)
    # m as it enters the layer, in the precision in which nothing is lost.
    enters = whole.expand(2, *x.shape[1:])[: len(x)].permute(order).reshape(entered).double()
    weight = layer.weight.double()
    if isinstance(layer, nn.Linear):
        rows = enters.reshape(-1, entered[-1])
        if bool((rows != rows[0]).any()):
            raise InputError(
                f"shift differs between the places to which the first layer, {name!r}, is applied; expected one number "
                f"for each of the {entered[-1]} features of its input, {entered}, the same everywhere"
            )
        taken = weight @ rows[0]
    else:
        flat = enters.reshape(-1, layer.in_channels, *entered[-(weight.dim() - 2) :]).transpose(0, 1).flatten(1)
        if bool((flat != flat[:, :1]).any()):
            raise InputError("shift differs within a channel; expected one number for each channel of a convolution")
        each = flat[:, 0]
        # The channels of the input that each output channel sees.
        groups, wide = layer.groups, weight.flatten(2).sum(dim=2)
        taken = (wide.view(groups, -1, wide.shape[1]) * each.view(groups, 1, -1)).sum(dim=2).flatten()
        _pad_with(layer, each.to(x.dtype))
    bias = -taken if layer.bias is None else layer.bias.double() - taken
    layer.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=layer.weight.requires_grad)
    return other, x + m


@torch.no_grad()
def _check_outputs(
    model: nn.Module, other: nn.Module, x: Tensor, moved: Tensor, tolerance: float | None, size: int | None
) -> None:
    """Raise unless the other model computes for the moved inputs what the model does for x; copies of both run."""
    model, other = (copied(each, "shifting the input") for each in (model, other))
    apart, largest = [], []
    ours = x
    for rows in chunks(len(x), size):
        ours, theirs = (
            tensor_output(model, run(each, inputs[rows]), "input_invariance")
            for each, inputs in ((model, x), (other, moved))
        )
        apart.append((ours.double() - theirs.double()).abs().max())
        largest.append(ours.double().abs().max())
    share = allowed(tolerance, 1e-3, ours.dtype, x.dtype)
    far, reach = (float(torch.stack(each).max()) for each in (apart, largest))  # NaN where there is one
    if not far <= share * reach:
        raise InputError(
            f"the shifted model is up to {far:.3g} away from the model, whose outputs reach {reach:.3g}; expected "
            f"at most {share:g} of that. The input may reach other layers than the first, or that more than once"
            f"{in_precision(ours.dtype)}"
        )


def _first_layer(model: nn.Module, x: Tensor) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    """Return the first layer with parameters that is called, the shape that enters it, and of what order of dimensions.

    What enters is ``x.permute(order).reshape(shape)``.
    """
    name, entered = _entering(model, x)
    shape = tuple(entered.shape)
    orders = [
        order for order in permutations(range(x.dim())) if torch.equal(x.permute(order).reshape(shape), entered.to(x))
    ]
    places = torch.arange(x.numel(), device=x.device).view(x.shape)
    if any(not torch.equal(places.permute(order).flatten(), places.permute(orders[0]).flatten()) for order in orders):
        # Blank samples look the same in several orders: numbers that differ, also when rounded, of both signs.
        probe = ((places + 1) * (1 - 2 * (places % 2)) / x.numel()).to(x.dtype)
        entered = _entering(model, probe)[1].to(x)
        orders = [order for order in orders if torch.equal(probe.permute(order).reshape(shape), entered)]
    if not orders:
        raise ModelError(
            f"the first layer, {name!r}, gets other values than the input, or in another order; expected the input as "
            "it is, so that the layer's bias can compensate the shift: explain the part of the model behind what comes "
            "before"
        )
    return name, shape, orders[0]


def _entering(model: nn.Module, x: Tensor) -> tuple[str, Tensor]:
    """Return the name of the first layer with parameters that is called, and what enters it."""
    model = copied(model, "shifting the input")
    calls: list[tuple[str, nn.Module, Any]] = []
    for name, module in model.named_modules():
        if has_parameters(module):

            def note(module: nn.Module, inputs: Any, name: str = name) -> None:
                if not calls:
                    given = inputs[0] if inputs else None
                    calls.append((name, module, given.clone() if isinstance(given, Tensor) else given))

            module.register_forward_pre_hook(note)
    run(model, x)
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
    return name, entered


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
