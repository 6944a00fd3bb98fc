"""Rules for the first layer, whose relevance is no multiple of the activation.

They give relevance to inputs of zero too. All three leave the bias out, and conserve without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from relprop.errors import RuleError
from relprop.propagation.math.linear_map import LinearMap
from relprop.rules.relevance import LRP_0, Contributions, Distances, Group, Ones, Weights
from relprop.rules.rule import GroupRule


@dataclass(frozen=True)
class ZBox(GroupRule):
    """The zB rule: for inputs in a box, such as pixels.

    Definition: ``R_j = sum_k (a_j w_jk - l_j (w_jk)+ - h_j (w_jk)-) / stab(sum_j ...) R_k``, computed as
    ``(a_j - l_j) (w_jk)+ + (a_j - h_j) (w_jk)-``, in which nothing cancels.
    Bias: ignored.
    Conserves: always, but for the stabilizer.

    Args:
        low, high: the least and the greatest value an input can take, ``low <= a <= high``: numbers, or tensors that
            broadcast to the layer's input; one number per channel for a convolution. Bounds are those of what reaches
            the layer: normalised bounds, where the model normalises inside.
        stabilizer: without unit, see :class:`Relative`; 1e-6 by default.

    Raises:
        RuleError: where ``low > high``, or they are neither numbers nor tensors that broadcast to each other; where
            ``stabilizer`` is no number >= 0; while explaining, where the bounds do not broadcast to the layer's input.
    Source: Montavon et al. 2017, eq. 16 (doi:10.1016/j.patcog.2016.11.008).

    >>> import torch; from relprop import LRP
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    >>> LRP(layer, ZBox(0.0, 1.0, stabilizer=0)).attribute(torch.tensor([[1.0, 0.0]]))
    tensor([[2.2500, 0.7500]])
    """

    low: float | Tensor
    high: float | Tensor
    stabilizer: float = 1e-6
    bias = "ignore"
    reaches_zeros = True
    groups = (LRP_0,)

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = (_number_or_tensor(name, bound) for name, bound in (("low", self.low), ("high", self.high)))
        try:
            ordered = bool((low.to(high.device) <= high).all())
        except RuntimeError:
            raise RuleError(
                f"ZBox: low and high must broadcast to each other, got {tuple(low.shape)} and {tuple(high.shape)}."
            ) from None
        if not ordered:
            raise RuleError(f"ZBox: low must be <= high everywhere, got low={self.low!r}, high={self.high!r}.")

    def contributions(self, layer: LinearMap, a: Tensor, z: Tensor) -> Contributions:
        return Distances(layer, a, *self._distances(layer, a))

    def _distances(self, layer: LinearMap, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``a - low`` and ``a - high``."""
        found = []
        for name, bound in (("low", self.low), ("high", self.high)):
            tensor = torch.as_tensor(bound, dtype=a.dtype, device=a.device)
            channels = layer.channels(a)
            if channels is not None and tensor.dim() == 1 and tensor.shape[0] == a.shape[channels]:
                tensor = tensor.reshape(-1, *(1,) * (a.dim() - channels - 1))
            try:
                fits = torch.broadcast_shapes(tensor.shape, a.shape) == a.shape
            except RuntimeError:
                fits = False
            if not fits:
                raise RuleError(
                    f"ZBox: {name} has shape {tuple(tensor.shape)}, which does not broadcast to the input "
                    f"{tuple(a.shape)} of the layer (behind its padding, where padding_mode is not 'zeros'). Give a "
                    "number, one number per channel, or a tensor of that shape."
                )
            found.append(a - tensor)
        return found[0], found[1]


@dataclass(frozen=True)
class WSquare(GroupRule):
    """The w^2 rule: for inputs without bounds.

    Definition: ``R_j = sum_k w_jk^2 / sum_j w_jk^2 R_k``; padding is no input.
    Bias: ignored.
    Conserves: always.

    Args:
        stabilizer: without unit, see :class:`Relative`; 0 by default, since nothing cancels.

    Raises:
        RuleError: where ``stabilizer`` is no number >= 0.
    Source: Montavon et al. 2017, eq. 12 (doi:10.1016/j.patcog.2016.11.008).

    >>> import torch; from relprop import LRP
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    >>> LRP(layer, WSquare(stabilizer=0)).attribute(torch.tensor([[1.0, -7.0]]))
    tensor([[9., 1.]])
    """

    stabilizer: float = 0.0
    bias = "ignore"
    reaches_zeros = True
    groups = (Group(1, 0),)

    def contributions(self, layer: LinearMap, a: Tensor, z: Tensor) -> Contributions:
        return Weights(layer, a, torch.square)


@dataclass(frozen=True)
class Flat(GroupRule):
    """The flat rule: every input alike.

    Definition: ``R_j = sum_k 1 / n_k R_k``, with ``n_k`` the number of inputs that reach output ``k``; padding is none.
    Bias: ignored.
    Conserves: always.

    Args:
        stabilizer: without unit, see :class:`Relative`; 0 by default, since nothing cancels.

    Raises:
        RuleError: where ``stabilizer`` is no number >= 0.
    Source: Lapuschkin et al. 2019, supplement (doi:10.1038/s41467-019-08987-4).

    >>> import torch; from relprop import LRP
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    >>> LRP(layer, Flat(stabilizer=0)).attribute(torch.tensor([[1.0, 0.0]]))
    tensor([[1.5000, 1.5000]])
    """

    stabilizer: float = 0.0
    bias = "ignore"
    reaches_zeros = True
    groups = (Group(1, 0),)

    def contributions(self, layer: LinearMap, a: Tensor, z: Tensor) -> Contributions:
        return Ones(layer, a)


def _number_or_tensor(name: str, bound: Any) -> Tensor:
    try:
        return torch.as_tensor(bound)
    except (TypeError, ValueError, RuntimeError):
        raise RuleError(f"ZBox: {name} must be a number or a tensor, got {bound!r}.") from None
