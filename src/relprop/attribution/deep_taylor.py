"""Deep Taylor decomposition."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from relprop.attribution.contract import Contract
from relprop.attribution.lrp import LRP
from relprop.errors import DeepTaylorWarning, RuleError, warn
from relprop.propagation.run import Forward
from relprop.rules.presets import preset


class DeepTaylor(LRP, name="deep_taylor"):
    """Deep Taylor decomposition of a ReLU network: a first-order expansion of every neuron at a root of its own.

    Definition: the z+ rule, with the bias ignored, on every linear layer but the first; there the w^2 rule for inputs
    without bounds, or the zB rule for inputs in a box.
    Conserves: where every neuron has a positive contribution; ``sum R = f`` then, whatever the biases.

    Args:
        model: any ``nn.Module``; the theory is that of ReLU networks.
        bounds: None, or the pair ``(low, high)`` of what reaches the first layer (see :class:`relprop.rules.ZBox`).

    Raises:
        RuleError: where ``bounds`` is no pair with ``low <= high``.

    Warns:
        DeepTaylorWarning: where a bias is positive. The theory asks for ``b <= 0``, so that the origin of the features
            is a point where the neuron is silent; with ``b > 0`` the rule conserves, but is no expansion at a root.
    Source: Montavon et al. 2017 (doi:10.1016/j.patcog.2016.11.008).

    >>> import torch
    >>> from torch.nn import Linear, ReLU, Sequential
    >>> model = Sequential(Linear(2, 2, bias=False), ReLU(), Linear(2, 1, bias=False))
    >>> for layer in (model[0], model[2]):
    ...     _ = layer.weight.data.copy_(torch.ones_like(layer.weight))
    >>> DeepTaylor(model).attribute(torch.tensor([[1.0, 3.0]]))
    tensor([[4.0000, 4.0000]])
    """

    contract = Contract("f_t", "relevance", "f", "where every neuron has a positive contribution")

    def __init__(self, model: nn.Module, bounds: tuple[float | Tensor, float | Tensor] | None = None) -> None:
        given: Any = bounds
        if given is None:
            rules = preset("deep_taylor")
        elif isinstance(given, (tuple, list)) and len(given) == 2:
            rules = preset("deep_taylor_bounded", low=given[0], high=given[1])
        else:
            raise RuleError(f"bounds must be None or a pair (low, high), got {bounds!r}.")
        super().__init__(model, rules)

    def after_forward(self, passed: Forward) -> None:
        super().after_forward(passed)
        sites = [site for site in passed.call.sites if not site.superseded]
        largest: list[Tensor] = []
        names: list[str] = []
        with torch.no_grad():
            for site in sites:
                bias = site.effective_bias()
                if bias is not None and bias.numel():
                    largest.append(bias.max())
                    names.append(site.key[0])
            positive = (torch.stack(largest) > 0).tolist() if largest else []
        found = [name for name, above in zip(names, positive, strict=True) if above]
        if found:
            shown = ", ".join(repr(name) for name in dict.fromkeys(found[:3])) + (", ..." if len(found) > 3 else "")
            warn(
                f"{len(found)} of {len(sites)} linear layers have a positive bias ({shown}), where deep "
                "Taylor decomposition asks for b <= 0; the maps conserve, but are no expansion at a root there.",
                DeepTaylorWarning,
            )
