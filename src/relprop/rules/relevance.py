"""The one relevance function: how the relevance of an output is shared among the inputs, whatever the rule.

A linear map gives ``z_k = sum_j a_j w_jk + b_k``. Every rule for it follows from two sums, that of the positive
contributions to an output and that of the negative ones,

    P_k = sum_j (a_j w_jk)+ + (b_k)+        N_k = sum_j (a_j w_jk)- + (b_k)-        P_k + N_k = z_k

A rule is *data*: groups ``(p, n, share, sign)``. A group counts positive contributions ``p`` times, negative ones ``n``
times, and hands on a share of the relevance ``R_k`` of the outputs of one sign:

    s_k = p P_k + n N_k                     q_k = share R_k / stab(s_k)
    R_j = sum_groups sum_k (p (a_j w_jk)+ + n (a_j w_jk)-) q_k

==================  =========================================  ====================================================
rule                groups                                     where
==================  =========================================  ====================================================
LRP-0, epsilon      (1, 1)                                     everywhere; ``s`` is the output, which is known
z+                  (1, 0)                                     everywhere
alpha-beta          (1, 0, alpha) and (0, 1, -beta)            everywhere
gamma               (1 + g, 1) and (1, 1 + g)                  above zero, and below
zB                  (1, 1)                                     of the contributions ``(a - l) w+`` and ``(a - h) w-``
w^2, flat           (1, 0)                                     of the contributions ``w^2`` and ``1``
==================  =========================================  ====================================================

What reaches no input follows from the same sums: ``q (p b+ + n b-)`` stays with the bias, ``share R - q s`` with the
stabilizer, and what a rule makes or drops by definition, as where there is nothing to share, with the rule.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from relprop.errors import RuleError
from relprop.propagation.math.linear_map import LinearMap
from relprop.propagation.math.numerics import TAU, damped, quotient, safe, shared_out


def positive(x: Tensor) -> Tensor:
    """Return ``(x)+``."""
    return x.clamp(min=0)


def negative(x: Tensor) -> Tensor:
    """Return ``(x)-``; at 0 the derivative is that of one side, as that of ``(x)+`` is of the other."""
    return torch.where(x < 0, x, 0.0)


@dataclass(frozen=True)
class Parts:
    """The function ``p (x)+ + n (x)-`` of a weight or a bias.

    >>> Parts(1.5, 1.0)(torch.tensor([2.0, -2.0]))
    tensor([ 3., -2.])
    """

    p: float
    n: float

    def __call__(self, x: Tensor) -> Tensor:
        if self.even:
            return _times(self.p, x)
        if self.p == 0:
            return _times(self.n, negative(x))
        if self.n == 0:
            return _times(self.p, positive(x))
        if abs(self.p) >= abs(self.n):  # on the larger of both, so that nothing cancels
            return torch.add(_times(self.n, x), positive(x), alpha=self.p - self.n)
        return torch.add(_times(self.p, x), negative(x), alpha=self.n - self.p)

    @property
    def even(self) -> bool:
        """Say whether both parts count alike."""
        return self.p == self.n

    @property
    def mirrored(self) -> Parts:
        """Return what takes the same part of contributions where the input is negative."""
        return Parts(self.n, self.p)


ALL, POSITIVE, NEGATIVE = Parts(1.0, 1.0), Parts(1.0, 0.0), Parts(0.0, 1.0)


def _less(z: Tensor, bias: Tensor | float) -> Tensor:
    """Return ``z - b``, exactly 0 where it is no more than the rounding error of ``z``: there nothing was added up."""
    found = z - bias
    return torch.where(found.abs() <= _ROUNDED * torch.finfo(z.dtype).eps * z.abs(), 0.0, found)


_ROUNDED = 2.0
"""How many units in the last place a sum may be off that starts with a bias and adds nothing to it."""


def _times(number: float, x: Tensor) -> Tensor:
    """Return ``number x``, which is ``x`` itself times 1."""
    return x if number == 1 else number * x


@dataclass(frozen=True)
class Group:
    """Contributions that share relevance among themselves.

    Definition: ``R_j = sum_k (p (a_j w_jk)+ + n (a_j w_jk)-) / stab(p P_k + n N_k) share R_k``.

    Args:
        p, n: how often positive and negative contributions count; without unit.
        share: of the relevance; without unit, 1 by default.
        sign: 1 for outputs with ``P + N >= 0`` alone, -1 for those below zero, 0 (the default) for all.

    Raises:
        RuleError: where one is no finite number, where no contribution counts, and for any other sign.

    >>> Group(1.25, 1.0, sign=1)
    Group(p=1.25, n=1.0, share=1.0, sign=1)
    """

    p: float
    n: float
    share: float = 1.0
    sign: Literal[-1, 0, 1] = 0

    def __post_init__(self) -> None:
        for name in ("p", "n", "share"):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
                raise RuleError(f"Group: {name} must be a finite number, got {number!r}.")
        if self.p == self.n == 0:
            raise RuleError("Group: p and n are both 0, so that no contribution counts; give one of them a number.")
        if self.sign not in (-1, 0, 1):
            raise RuleError(f"Group: sign must be 1 (outputs >= 0), -1 (below zero) or 0 (all), got {self.sign!r}.")

    @property
    def parts(self) -> Parts:
        """Return ``p (x)+ + n (x)-``."""
        return Parts(self.p, self.n)

    @property
    def even(self) -> bool:
        """Say whether all contributions count alike, so that their sum is a multiple of the output."""
        return self.p == self.n


LRP_0 = Group(1.0, 1.0)
"""All contributions as they are."""


@dataclass(frozen=True)
class Relative:
    """A stabilizer without unit: a share of the size that the sums have, at each position, over the output channels.

    Definition: ``stab(s_k) = s_k + e sign(s_k) rms(s)``, where ``rms(s)`` is the root mean square of ``s`` over the
    output channels at the position of ``k``. So relevance is as many times larger where all activations are, and a deep
    network whose activations fade conserves as a shallow one does.

    Args:
        number: ``e``, without unit: a number, or a tensor that broadcasts to the output.

    Raises:
        RuleError: where ``number`` is no finite number >= 0, nor a tensor.

    >>> Relative(1e-6)
    Relative(number=1e-06)
    """

    number: float | Tensor

    def __post_init__(self) -> None:
        given: Any = self.number
        known = isinstance(given, Tensor) or (isinstance(given, (int, float)) and not isinstance(given, bool))
        if not known or (not isinstance(given, Tensor) and not 0 <= given < math.inf):
            raise RuleError(f"Relative: number must be a finite number >= 0 or a tensor of such, got {given!r}.")

    def of(self, layer: LinearMap, sums: Tensor) -> Tensor:
        """Return ``e rms(sums)``, for the sums of a ``layer``; it broadcasts to them."""
        return self.number * layer.rms(sums)


Stabilizer: TypeAlias = "float | Tensor | Callable[[Tensor], Tensor] | None"
"""What is added to the size of the sums: a number or a tensor in their units, or what makes one of them."""


class Contributions(ABC):
    """What an output is put together from, and what its relevance is shared among.

    A rule that is groups makes them in :meth:`GroupRule.contributions`.

    Attributes:
        exact: the sum of all is the output itself, and no relevance arrives where that is zero: ``R / z`` is ``c``.
        positive_only: no relevance arrives where the sum of all is below zero.
    """

    exact: bool = False
    positive_only: bool = False

    @abstractmethod
    def sum(self, parts: Parts) -> Tensor:
        """Return ``p P + n N``, with the numbers of ``parts``, in the shape of the output."""

    @abstractmethod
    def back(self, q: Tensor, parts: Parts) -> Tensor:
        """Return ``sum_k (p (a_j w_jk)+ + n (a_j w_jk)-) q_k / a_j``, in the shape of the input.

        ``q`` has the shape of the output, and ``parts`` the numbers p and n.
        """

    def bias(self, parts: Parts, z: Tensor) -> Tensor | None:
        """Return ``p b+ + n b-``, with the numbers of ``parts``, as it broadcasts to the output ``z``.

        None where the bias takes no part.
        """
        return None


class Products(Contributions):
    """The contributions ``a_j w_jk`` of a linear map, with its bias as one of an input of 1.

    What :meth:`GroupRule.contributions` returns by default.

    Args:
        layer: the linear map.
        a, z: its input and its output.
        with_bias: the bias takes part in the sums.
    """

    def __init__(self, layer: LinearMap, a: Tensor, z: Tensor, with_bias: bool) -> None:
        self.layer, self.a = layer, a
        self._bias = layer.bias if with_bias else None
        self._total = z if with_bias or layer.bias is None else _less(z, layer.shift(z))
        self.exact = self._total is z and not layer.zeros_receive
        self.positive_only = self._total is z and layer.positive_output_only

    def sum(self, parts: Parts) -> Tensor:
        if parts.even:
            return _times(parts.p, self._total)
        layer, bias = self.layer, None if self._bias is None else parts(self._bias)
        if layer.nonnegative_input:
            return layer.forward(self.a, layer.modified(parts), bias)
        above = layer.forward(positive(self.a), layer.modified(parts), bias)
        return above + layer.forward(negative(self.a), layer.modified(parts.mirrored))

    def back(self, q: Tensor, parts: Parts) -> Tensor:
        layer = self.layer
        if parts.even:
            return layer.transpose(_times(parts.p, q))
        c = layer.transpose(q, layer.modified(parts))
        if layer.nonnegative_input:
            return c
        return torch.where(self.a < 0, layer.transpose(q, layer.modified(parts.mirrored)), c)

    def bias(self, parts: Parts, z: Tensor) -> Tensor | None:
        return None if self._bias is None else self.layer.per_channel(parts(self._bias), z)


class Distances(Contributions):
    """The contributions ``(a_j - l_j) (w_jk)+`` and ``(a_j - h_j) (w_jk)-`` of an input in a box.

    All count as positive ones, which they are where ``l <= a <= h``.

    For :meth:`GroupRule.contributions`, as ``ZBox`` has it.

    Args:
        layer: the linear map.
        a: its input.
        over, under: ``a - l`` and ``a - h``.
    """

    def __init__(self, layer: LinearMap, a: Tensor, over: Tensor, under: Tensor) -> None:
        self._layer, self._a, self._over, self._under = layer, a, over, under

    def sum(self, parts: Parts) -> Tensor:
        layer = self._layer
        above = layer.forward(self._over, layer.modified(POSITIVE))
        return _times(parts.p, above + layer.forward(self._under, layer.modified(NEGATIVE)))

    def back(self, q: Tensor, parts: Parts) -> Tensor:
        layer = self._layer
        above = self._over * layer.transpose(q, layer.modified(POSITIVE))
        below = self._under * layer.transpose(q, layer.modified(NEGATIVE))
        return _times(parts.p, above + below) / safe(self._a)


class Weights(Contributions):
    """The contributions ``v(w_jk) >= 0`` of a linear map, whatever its input; padding is no input.

    For :meth:`GroupRule.contributions`, as ``WSquare`` has it.

    Args:
        layer: the linear map.
        a: its input.
        value: ``v``.
    """

    def __init__(self, layer: LinearMap, a: Tensor, value: Callable[[Tensor], Tensor]) -> None:
        self._layer, self._a, self._weight = layer, a, layer.modified(value)

    def sum(self, parts: Parts) -> Tensor:
        return _times(parts.p, self._layer.forward(self._layer.ones(), self._weight))

    def back(self, q: Tensor, parts: Parts) -> Tensor:
        return self._layer.transpose(_times(parts.p, q), self._weight) / safe(self._a)


class Ones(Contributions):
    """A contribution of 1 by every input that an output reaches: alike for all channels, of which one is enough.

    For :meth:`GroupRule.contributions`, as ``Flat`` has it.

    Args:
        layer: the linear map.
        a: its input.
    """

    def __init__(self, layer: LinearMap, a: Tensor) -> None:
        self._layer, self._a, self._weight = layer, a, layer.geometry.one_channel(layer.weight)

    def sum(self, parts: Parts) -> Tensor:
        layer = self._layer
        return layer.geometry.to_channels(_times(parts.p, layer.forward(layer.ones(), self._weight)), layer.weight)

    def back(self, q: Tensor, parts: Parts) -> Tensor:
        layer = self._layer
        return layer.transpose(layer.geometry.over_channels(_times(parts.p, q)), self._weight) / safe(self._a)


# The function ----------------------------------------------------------------------------------------


def coefficient(
    groups: Sequence[Group], contributions: Contributions, z: Tensor, c: Tensor, stabilizer: Stabilizer
) -> Tensor:
    """Return the coefficient ``R_j / a_j`` of the input.

    Args:
        groups: those of the rule.
        contributions: what they are groups of.
        z, c: the output and its coefficient, so that its relevance is ``R = z c``.
        stabilizer: a number >= 0, or a tensor that broadcasts to the output, in units of the sums; or what makes one of
            the sums. Where it is None nothing is added, and it counts as the rule's own choice that ``R / 0 = 0``.
    """
    shared = _shared(groups, contributions, z, c, stabilizer)
    found = [contributions.back(each.q, each.group.parts) for each in shared]
    return reduce(torch.add, found) if found else contributions.back(0 * c, ALL)


def absorbed(
    groups: Sequence[Group], contributions: Contributions, z: Tensor, c: Tensor, stabilizer: Stabilizer
) -> dict[str, Tensor]:
    """Return, by name, the relevance of every output that reaches no input; for the arguments see above."""
    shared = _shared(groups, contributions, z, c, stabilizer)
    relevance, zero = z * c, torch.zeros_like(z)
    lost = relevance - sum((each.q * each.total for each in shared), zero)
    dropped = relevance - sum((each.served(relevance) for each in shared), zero)
    biases = [(each.q, contributions.bias(each.group.parts, z)) for each in shared]
    shares = {"bias": sum((q * bias for q, bias in biases if bias is not None), zero)}
    if stabilizer is None:  # LRP-0 loses nothing where no relevance arrives at zeros
        return shares if contributions.exact and list(groups) == [LRP_0] else {**shares, "rule": lost}
    if _hand_on_all(groups):
        return {**shares, "stabilizer": lost}
    return {**shares, "stabilizer": lost - dropped, "rule": dropped}


@dataclass(frozen=True)
class _Shared:
    """What one group hands on, at the outputs that it ``serves``: ``q = share R / stab(s)`` of the sum ``s``."""

    group: Group
    total: Tensor
    q: Tensor
    serves: Tensor | bool = True

    def served(self, relevance: Tensor) -> Tensor:
        """Return the share of the relevance where there is something to share it among."""
        return torch.where((self.total.abs() > TAU) & self.serves, self.group.share * relevance, 0.0)


def _shared(
    groups: Sequence[Group], contributions: Contributions, z: Tensor, c: Tensor, stabilizer: Stabilizer
) -> list[_Shared]:
    """Return what every group hands on, without those that hand on nothing."""
    served = [group for group in groups if group.share and not (group.sign < 0 and contributions.positive_only)]
    totals = _totals(served, contributions)

    def quotients(share: float, total: Tensor, size: Tensor | None) -> Tensor:
        relevance = z * c if share == 1 else share * (z * c)
        if size is not None:
            return shared_out(relevance, total, size)
        return quotient(relevance, total, 0.0 if stabilizer is None or callable(stabilizer) else stabilizer)

    if stabilizer is None and contributions.exact and served == [LRP_0]:
        return [_Shared(LRP_0, z, c)]
    if callable(stabilizer) and contributions.exact and served == [LRP_0]:
        return [_Shared(LRP_0, z, damped(c, z, stabilizer(z)))]
    sizes = [stabilizer(total) if callable(stabilizer) else None for total in totals]
    if contributions.positive_only or not any(group.sign for group in served):
        return [
            _Shared(g, total, quotients(g.share, total, size))
            for g, total, size in zip(served, totals, sizes, strict=True)
        ]
    above = contributions.sum(ALL) >= 0
    serves = {1: above, -1: ~above, 0: above | ~above}
    if [group.sign for group in served] == [1, -1] and served[0].share == served[1].share:
        total = torch.where(above, totals[0], totals[1])  # every output is in one group: one quotient is enough
        size = None if sizes[0] is None or sizes[1] is None else torch.where(above, sizes[0], sizes[1])
        found = [quotients(served[0].share, total, size)] * 2
    else:
        found = [quotients(g.share, total, size) for g, total, size in zip(served, totals, sizes, strict=True)]
    return [
        _Shared(group, total, torch.where(serves[group.sign], q, 0.0), serves[group.sign])
        for group, total, q in zip(served, totals, found, strict=True)
    ]


def _hand_on_all(groups: Sequence[Group]) -> bool:
    """Say whether contributions of either sign count, to outputs of either sign, and share all of the relevance."""
    shares = [sum(group.share for group in groups if group.sign in (0, sign)) for sign in (1, -1)]
    return shares == [1, 1] and all(group.p and group.n for group in groups)


def _totals(groups: Sequence[Group], contributions: Contributions) -> list[Tensor]:
    """Return ``s = p P + n N`` of every group, from two sums at most.

    A group that counts contributions unevenly alone is one sum by itself. Of several, ``N`` is the sum of all less
    ``P``, which costs nothing where that is known; but where ``N`` may be far smaller than ``P`` and counts for more,
    the difference would hold rounding errors alone, and it is a sum of its own.
    """
    uneven = {group.parts for group in groups if not group.even}
    if len(uneven) < 2:
        known = {parts: contributions.sum(parts) for parts in {group.parts for group in groups}}
        return [known[group.parts] for group in groups]
    total, above = contributions.sum(ALL), contributions.sum(POSITIVE)
    below = contributions.sum(NEGATIVE) if any(_needs_negative(group) for group in groups) else total

    def of(group: Group) -> Tensor:
        if group.p == 0 or group.n == 0:  # nothing times a sum that overflows is no number
            return _times(group.p, above) if group.n == 0 else _times(group.n, below)
        if _needs_negative(group):
            return group.p * above + group.n * below
        return torch.add(group.n * total, above, alpha=group.p - group.n)

    return [of(group) for group in groups]


def _needs_negative(group: Group) -> bool:
    return group.p == 0 or (group.n > group.p and group.sign >= 0)
