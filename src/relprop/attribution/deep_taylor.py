"""Deep Taylor decomposition."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from relprop.attribution.contract import Contract
from relprop.attribution.lrp import LRP
from relprop.errors import DeepTaylorWarning, RuleError, warn
from relprop.propagation.run.forward import Forward
from relprop.rules.input import WSquare, ZBox
from relprop.rules.presets import everywhere
from relprop.rules.rule import LinearRule
from relprop.rules.signed import RescaledExcitation

Root = Literal["excitation", "nearest"]


class DeepTaylor(LRP, name="deep_taylor"):
    """Deep Taylor decomposition of a ReLU network: a first-order expansion of every neuron at a root of its own.

    Definition: a linear layer's rule follows from where the roots of its neurons are looked for; the bias is ignored.
    ``"nearest"``: the nearest root of all, w^2. ``"excitation"``: what excites the neuron scaled down until it is
    silent, z+; what inhibits it scaled down by a share ``gamma`` of that, ``R_j`` proportional to
    ``a_j (w+ + gamma w-)`` for ``a >= 0`` (see :class:`relprop.rules.RescaledExcitation`). The first layer, whose
    inputs may have any sign: the nearest root, or, for inputs in a box, the corner that silences the neuron, zB.
    Conserves: where every neuron has a positive contribution; ``sum R = f`` then, whatever the biases.

    Args:
        model: any ``nn.Module``; the theory is that of ReLU networks.
        bounds: None, or the pair ``(low, high)`` of what reaches the first layer (see :class:`relprop.rules.ZBox`).
        root: where the roots are: ``"excitation"`` or ``"nearest"``.
        gamma: of ``"excitation"``: 0, the default, is z+; 1 is LRP-0 with the bias ignored (Gradient x Input of a
            ReLU network without biases, if ``first`` is ``"excitation"`` too); ``1 / (1 + g)`` is LRP-gamma.
        first: where the roots of the first layers are: None (the nearest, or by ``bounds``), ``"excitation"`` or
            ``"nearest"``.

    Raises:
        RuleError: where ``bounds`` is no pair with ``low <= high``, or given with ``first``; for another root; where
            ``gamma`` is not between 0 and 1, or there is no root that it describes.

    Warns:
        DeepTaylorWarning: where a bias is positive. The theory asks for ``b <= 0``, so that the origin of the features
            is a point where the neuron is silent; with ``b > 0`` the rule conserves, but is no expansion at a root.
    Source: Montavon et al. 2017 (doi:10.1016/j.patcog.2016.11.008); the share gamma: Montavon et al. 2018
        (doi:10.1016/j.dsp.2017.10.011).

    >>> import torch
    >>> from torch.nn import Linear, ReLU, Sequential
    >>> model = Sequential(Linear(2, 2, bias=False), ReLU(), Linear(2, 1, bias=False))
    >>> for layer in (model[0], model[2]):
    ...     _ = layer.weight.data.copy_(torch.ones_like(layer.weight))
    >>> DeepTaylor(model).attribute(torch.tensor([[1.0, 3.0]]))
    tensor([[4.0000, 4.0000]])
    """

    contract = Contract("f_t", "relevance", "f", "where every neuron has a positive contribution")

    def __init__(
        self,
        model: nn.Module,
        bounds: tuple[float | Tensor, float | Tensor] | None = None,
        *,
        root: Root = "excitation",
        gamma: float = 0.0,
        first: Root | None = None,
    ) -> None:
        for name, choice in (("root", root), ("first", first)):
            if choice not in (*get_args(Root), *((None,) if name == "first" else ())):
                raise RuleError(f"{name} must be one of {get_args(Root)}, got {choice!r}.")
        if gamma and "excitation" not in (root, first):
            raise RuleError(f"gamma belongs to root='excitation'; the nearest root has none, got gamma={gamma!r}.")
        if bounds is not None and first is not None:
            raise RuleError("bounds and first both say where the roots of the first layers are; give one of them.")
        rules: dict[Root, LinearRule] = {"excitation": RescaledExcitation(gamma), "nearest": WSquare()}
        super().__init__(
            model, everywhere(rules[root]).first(rules[first or "nearest"] if bounds is None else _box(bounds))
        )

    def after_forward(self, passed: Forward) -> None:
        super().after_forward(passed)
        linear_calls = [linear_call for linear_call in passed.call.linear_calls if not linear_call.superseded]
        largest: list[Tensor] = []
        names: list[str] = []
        with torch.no_grad():
            for linear_call in linear_calls:
                bias = linear_call.effective_bias()
                if bias is not None and bias.numel():
                    largest.append(bias.max())
                    names.append(linear_call.key[0])
            positive = (torch.stack(largest) > 0).tolist() if largest else []
        found = [name for name, above in zip(names, positive, strict=True) if above]
        if found:
            shown = ", ".join(repr(name) for name in dict.fromkeys(found[:3])) + (", ..." if len(found) > 3 else "")
            warn(
                f"{len(found)} of {len(linear_calls)} linear layers have a positive bias ({shown}), where deep "
                "Taylor decomposition asks for b <= 0; the maps conserve, but are no expansion at a root there.",
                DeepTaylorWarning,
            )


def _box(bounds: Any) -> ZBox:
    if isinstance(bounds, (tuple, list)) and len(bounds) == 2:
        return ZBox(bounds[0], bounds[1])
    raise RuleError(f"bounds must be None or a pair (low, high), got {bounds!r}.")
