"""A linear map with parameters, whatever module or function it was called by.

A rule sees a :class:`LinearMap` and nothing else: the weight, the bias, the map itself with any weight
in the place of its own, and the transpose.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop.propagation.math.numerics import rms


class Geometry(ABC):
    """How a weight acts on an input: everything about a linear call except its tensors."""

    layer_type: type[nn.Module]
    """The module this call is selected as where it runs in no module of a matching type."""

    @abstractmethod
    def forward(self, a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return ``weight a + bias``."""

    @abstractmethod
    def transpose(self, c: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        """Return ``weight^T c``, shaped as ``like``, the input of the call."""

    @abstractmethod
    def ones(self, like: Tensor) -> Tensor:
        """Return a 1 for every input of one sample; broadcasts over the batch of the output."""

    def shift(self, bias: Tensor, z: Tensor) -> Tensor:
        """Return the bias in a shape that broadcasts to the output ``z``."""
        return bias

    def channels(self, a: Tensor) -> int | None:
        """Return the dimension of the channels of the input ``a``, where it has such a thing."""
        return None

    def output_channels(self, z: Tensor) -> tuple[int, ...]:
        """Return the dimensions of the output ``z`` that only the weight has; none where that is not known."""
        return (-1,)

    def has_batch(self, z: Tensor) -> bool:
        """Say whether dimension 0 of the input or output ``z`` counts samples."""
        return z.dim() > 1

    # Constants of the output channels, by which what scales and shifts the output is part of the map ------

    def weight_dims(self, z: Tensor) -> tuple[int, ...]:
        """Return the dimensions of the output ``z`` that the weight has, so that constants along them fold into it."""
        return tuple(d % z.dim() for d in self.output_channels(z))

    def constants(self, numbers: Tensor, z: Tensor) -> Tensor:
        """Return numbers, one for every entry along :meth:`weight_dims`, in the shape of a bias."""
        return numbers

    def scaled(self, weight: Tensor, scale: Tensor) -> Tensor:
        """Return the weight whose output is multiplied by ``scale``, which has the shape of a bias."""
        raise NotImplementedError(type(self).__name__)  # of a sum, into which nothing is folded

    def folded(
        self, weight: Tensor, bias: Tensor | None, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the weight ``s W`` and the bias ``s b + t`` of the map whose output is scaled and shifted."""
        if scale is not None:
            weight, bias = self.scaled(weight, scale), None if bias is None else scale * bias
        return weight, bias if shift is None else shift if bias is None else bias + shift

    # Channels that are alike: where every weight of a map is 1, one of each group of them is enough ---

    def one_channel(self, weight: Tensor) -> Tensor:
        """Return a weight of ones that makes one output channel of every group."""
        return torch.ones_like(weight)

    def to_channels(self, z: Tensor, weight: Tensor) -> Tensor:
        """Return the output of :meth:`one_channel` as it broadcasts to that of ``weight``."""
        return z

    def over_channels(self, c: Tensor) -> Tensor:
        """Return ``c`` summed over the output channels of every group."""
        return c

    # Units: the rows of the weight, each applied to every sample (or position) alike -------------

    has_units = True
    """Every output is one unit's answer to one sample; false where that depends on the product."""

    def rows(self, weight: Tensor) -> Tensor:
        """Return the weight by unit, ``[units, inputs of a unit]``."""
        raise NotImplementedError(type(self).__name__)

    def from_rows(self, rows: Tensor, like: Tensor) -> Tensor:
        """Return what :meth:`rows` would have made ``rows`` of, shaped as the weight ``like``."""
        raise NotImplementedError(type(self).__name__)

    def by_unit(self, z: Tensor) -> Tensor:
        """Return the output by unit, ``[samples, units]``: every position is a sample."""
        raise NotImplementedError(type(self).__name__)

    def correlate(self, a: Tensor, g: Tensor, weight: Tensor) -> Tensor:
        """Return ``sum g x`` over samples, of every unit with each of its inputs, shaped as ``weight``."""
        raise NotImplementedError(type(self).__name__)


@dataclass(frozen=True)
class Dense(Geometry):
    """``z = a weight^T + bias`` over the last dimension."""

    layer_type = nn.Linear

    def forward(self, a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(a, weight, bias)

    def transpose(self, c: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        return torch.matmul(c, weight)

    def ones(self, like: Tensor) -> Tensor:
        return torch.ones_like(like[:1] if like.dim() > 1 else like)

    def scaled(self, weight: Tensor, scale: Tensor) -> Tensor:
        return weight * scale[:, None]

    def one_channel(self, weight: Tensor) -> Tensor:
        return torch.ones_like(weight[:1])

    def over_channels(self, c: Tensor) -> Tensor:
        return c.sum(-1, keepdim=True)

    def rows(self, weight: Tensor) -> Tensor:
        return weight

    def from_rows(self, rows: Tensor, like: Tensor) -> Tensor:
        return rows

    def by_unit(self, z: Tensor) -> Tensor:
        return z.reshape(-1, z.shape[-1])

    def correlate(self, a: Tensor, g: Tensor, weight: Tensor) -> Tensor:
        return self.by_unit(g).mT @ a.reshape(-1, a.shape[-1])


@dataclass(frozen=True)
class Convolution(Geometry):
    """A convolution, or its transpose, in one to three dimensions.

    ``extra`` is the zero padding that ``padding="same"`` adds behind an input when an even kernel makes
    it asymmetric, one number per dimension.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    output_padding: tuple[int, ...] = (0,)
    extra: tuple[int, ...] = ()

    @property
    def layer_type(self) -> type[nn.Module]:  # type: ignore[override]  # depends on the dimensions
        plain = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
        mirrored = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
        return (mirrored if self.transposed else plain)[self.dimensions - 1]

    @property
    def dimensions(self) -> int:
        return len(self.stride)

    def forward(self, a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        batched = self._padded(a if self.has_batch(a) else a[None])
        z = torch.convolution(
            batched,
            weight,
            bias,
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding,
            self.groups,
        )
        return z if self.has_batch(a) else z[0]

    def transpose(self, c: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        # The input itself lends only its shape.
        gradient = self._gradients(like, c, weight, (True, False, False))[0]
        for dimension, added in enumerate(self.extra, start=2):
            gradient = gradient.narrow(dimension, 0, gradient.shape[dimension] - added)
        return gradient if self.has_batch(like) else gradient[0]

    def ones(self, like: Tensor) -> Tensor:
        return torch.ones_like(like[:1] if self.has_batch(like) else like)

    def shift(self, bias: Tensor, z: Tensor) -> Tensor:
        return bias.reshape(-1, *(1,) * self.dimensions)

    def channels(self, a: Tensor) -> int | None:
        return 1 if self.has_batch(a) else 0

    def output_channels(self, z: Tensor) -> tuple[int, ...]:
        return (1,) if self.has_batch(z) else (0,)

    def scaled(self, weight: Tensor, scale: Tensor) -> Tensor:
        if not self.transposed:
            return weight * scale.reshape(-1, *(1,) * (self.dimensions + 1))
        grouped = weight.reshape(self.groups, -1, *weight.shape[1:])
        channels = scale.reshape(self.groups, 1, -1, *(1,) * self.dimensions)
        return (grouped * channels).reshape(weight.shape)

    def one_channel(self, weight: Tensor) -> Tensor:
        return torch.ones_like(weight[:, :1] if self.transposed else weight[: self.groups])

    def to_channels(self, z: Tensor, weight: Tensor) -> Tensor:
        if self.groups == 1:
            return z
        alike = weight.shape[1] if self.transposed else weight.shape[0] // self.groups
        return z.repeat_interleave(alike, self.channels(z))

    def over_channels(self, c: Tensor) -> Tensor:
        channel = self.channels(c)
        assert channel is not None
        return c.reshape(*c.shape[:channel], self.groups, -1, *c.shape[channel + 1 :]).sum(channel + 1)

    def has_batch(self, z: Tensor) -> bool:
        return z.dim() == self.dimensions + 2

    def rows(self, weight: Tensor) -> Tensor:
        if not self.transposed:
            return weight.flatten(1)
        grouped = weight.reshape(self.groups, -1, *weight.shape[1:])
        return grouped.transpose(1, 2).flatten(0, 1).flatten(1)

    def from_rows(self, rows: Tensor, like: Tensor) -> Tensor:
        if not self.transposed:
            return rows.reshape(like.shape)
        grouped = rows.reshape(self.groups, like.shape[1], -1, *like.shape[2:])
        return grouped.transpose(1, 2).reshape(like.shape)

    def by_unit(self, z: Tensor) -> Tensor:
        channel = self.channels(z)
        assert channel is not None
        return z.movedim(channel, -1).flatten(0, -2)

    def correlate(self, a: Tensor, g: Tensor, weight: Tensor) -> Tensor:
        # The weight itself lends only its shape.
        return self._gradients(a, g, weight, (False, True, False))[1]

    def _gradients(self, a: Tensor, g: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]) -> tuple[Tensor, ...]:
        """Return the gradients by the input and by the weight, those of them that are wanted."""
        batched = self.has_batch(a)
        gradients: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
            g if batched else g[None],
            self._padded(a if batched else a[None]),
            weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding,
            self.groups,
            wanted,
        )
        return gradients

    def _padded(self, a: Tensor) -> Tensor:
        if not any(self.extra):
            return a
        return F.pad(a, [side for added in reversed(self.extra) for side in (0, added)])


Pairs: TypeAlias = "tuple[tuple[int, int], ...]"
"""Dimensions of an output, each with the dimension of a weight that it is."""


@dataclass(frozen=True)
class Contraction(Geometry):
    """Any other product of an input with a parameter: ``matmul``, ``einsum``, ``addmm`` and their kin.

    Attributes:
        product: what is linear in each of the two.
        dims: the dimensions of the output that only the weight has, each with that of the weight that it is.
        shared: likewise those that both have.
    """

    product: Callable[[Tensor, Tensor], Tensor]
    dims: Pairs = ()
    shared: Pairs = ()
    layer_type = nn.Linear
    has_units = False

    def forward(self, a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        z = self.product(a, weight)
        return z if bias is None else z + bias

    def transpose(self, c: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        with torch.enable_grad():
            origin = torch.zeros_like(like).requires_grad_()
            z = self.product(origin, weight)
            connected = c.requires_grad or weight.requires_grad
            return torch.autograd.grad(z, origin, c, create_graph=connected)[0]

    def ones(self, like: Tensor) -> Tensor:
        return torch.ones_like(like)

    def output_channels(self, z: Tensor) -> tuple[int, ...]:
        return tuple(d for d, _ in self.dims)

    def weight_dims(self, z: Tensor) -> tuple[int, ...]:
        return tuple(sorted(d % z.dim() for d, _ in (*self.dims, *self.shared)))

    def constants(self, numbers: Tensor, z: Tensor) -> Tensor:
        dims = self.weight_dims(z)
        return numbers.reshape([size if d in dims else 1 for d, size in enumerate(z.shape)])

    def scaled(self, weight: Tensor, scale: Tensor) -> Tensor:
        dims = {at % weight.dim(): d % scale.dim() for d, at in (*self.dims, *self.shared)}  # by that of the weight
        first = [dims[at] for at in sorted(dims)]
        ordered = scale.permute([*first, *(d for d in range(scale.dim()) if d not in first)])
        return weight * ordered.reshape([scale.shape[dims[at]] if at in dims else 1 for at in range(weight.dim())])


@dataclass(frozen=True)
class Addition(Geometry):
    """``z = sum_i w a_i + bias`` over dimension 0, where the terms of a sum are stacked; the weight is one number."""

    layer_type = nn.Identity
    has_units = False

    def forward(self, a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        z = (a * weight).sum(0)
        return z if bias is None else z + bias

    def transpose(self, c: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        return (c * weight).expand_as(like)

    def ones(self, like: Tensor) -> Tensor:
        return torch.ones_like(like)

    def output_channels(self, z: Tensor) -> tuple[int, ...]:
        return ()


@dataclass(frozen=True)
class LinearMap:
    """The linear map ``z = W a + b`` of one call, as a rule sees it.

    Attributes:
        geometry: how a weight acts on an input, which the functions below make use of.
        like: the input, of which only the shape, the type and the device count.
        weight: the weight passed to the call, with what scales its output folded in.
        bias: the bias likewise, with what shifts its output, or None.
        nonnegative_input: the input is known to hold nothing below zero.
        positive_output_only: no relevance arrives where ``z <= 0``.
        zeros_receive: relevance may arrive at outputs of exactly zero (given as ``z = tau``).
        cache: what keeps modified weights between calls, or None.

    >>> from relprop import LRP; from relprop.rules import LinearRule
    >>> class WithoutBias(LinearRule):
    ...     '''LRP-0 of the map without its bias.'''
    ...     def coefficient(self, layer, a, z, c):
    ...         return layer.transpose(z * c / (z - layer.shift(z)))
    >>> layer = nn.Linear(2, 1)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, -1.0]])), layer.bias.data.fill_(1.0)
    >>> LRP(layer, WithoutBias()).attribute(torch.tensor([[1.0, 1.0]]))
    tensor([[ 4.5000, -1.5000]])
    """

    geometry: Geometry
    like: Tensor
    weight: Tensor
    bias: Tensor | None
    nonnegative_input: bool = False
    positive_output_only: bool = False
    zeros_receive: bool = False
    cache: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor] | None = None
    _made: dict[Callable[[Tensor], Tensor], Tensor] = field(default_factory=dict, repr=False, compare=False)

    def forward(self, a: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Return ``weight a + bias``: the layer's own ``weight`` by default, no ``bias`` by default."""
        return self.geometry.forward(a, self.weight if weight is None else weight, bias)

    def transpose(self, c: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return ``weight^T c``, shaped as the layer's input; the layer's own ``weight`` by default."""
        return self.geometry.transpose(c, self.weight if weight is None else weight, self.like)

    def modified(self, change: Callable[[Tensor], Tensor]) -> Tensor:
        """Return ``change(weight)``: made once for this map, or kept from an earlier call if that was asked for."""
        if change not in self._made:
            self._made[change] = change(self.weight) if self.cache is None else self.cache(change, self.weight)
        return self._made[change]

    def shift(self, z: Tensor) -> Tensor | float:
        """Return the bias as it broadcasts to the output ``z``, or 0."""
        return 0.0 if self.bias is None else self.per_channel(self.bias, z)

    def per_channel(self, numbers: Tensor | Sequence[float], z: Tensor) -> Tensor:
        """Return ``numbers``, one for every output channel, as they broadcast to the output ``z``."""
        if not isinstance(numbers, Tensor):
            numbers = torch.as_tensor(numbers, dtype=z.dtype, device=z.device)
        return self.geometry.shift(numbers, z)

    def channels(self, a: Tensor) -> int | None:
        """Return the dimension of the channels of the input ``a``, where it has such a thing."""
        return self.geometry.channels(a)

    def rms(self, sums: Tensor) -> Tensor:
        """Return the root mean square of sums over the output channels, position by position.

        Positions, rows and samples do not see each other: what is one sample more, or padding, changes nothing. Where
        it is not known which dimensions are channels, that of every entry by itself, its size.
        """
        dims = self.geometry.output_channels(sums)
        return rms(sums, dims) if dims else sums.abs()

    def sample_dims(self, z: Tensor) -> tuple[int, ...]:
        """Return the dimensions of the output that belong to one sample."""
        return tuple(range(1 if self.geometry.has_batch(z) else 0, z.dim()))

    def ones(self) -> Tensor:
        """Return a 1 for every input; broadcasts over the batch."""
        return self.geometry.ones(self.like)


def same_padding(kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return ``padding="same"`` as symmetric padding and what is added behind the input.

    >>> same_padding((4, 3), (1, 1))
    ((1, 1), (1, 0))
    """
    totals = [step * (size - 1) for size, step in zip(kernel, dilation, strict=True)]
    return tuple(total // 2 for total in totals), tuple(total % 2 for total in totals)
