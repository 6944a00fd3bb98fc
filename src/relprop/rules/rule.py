"""What a rule is: a small immutable value that says how the relevance of an output is shared among inputs.

There is one abstract class for each kind of operation a rule can serve. A rule knows nothing of hooks,
function modes or modules: it sees tensors, for a linear map a :class:`LinearMap`, and elsewhere a :class:`Flow`. What
it returns is checked: a tensor of the shape, the type and the device of what it explains.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, final

from torch import Tensor

from relprop.errors import RuleError
from relprop.propagation.call.flow import Flow
from relprop.propagation.call.returned import broadcasts
from relprop.propagation.math.linear_map import LinearMap
from relprop.rules import relevance
from relprop.rules.relevance import Contributions, Group, Products, Relative, Stabilizer
from relprop.rules.values import Value

Bias = Literal["absorb", "ignore"]


@dataclass(frozen=True)
class Rule(Value):
    """The root of all rules: values, which compare, hash and print by what they hold.

    Attributes:
        serves: the kinds of operation it can stand at.
        reaches_zeros: its relevance is no multiple of the activation, and reaches units where that is zero.

    >>> from relprop.rules import Epsilon
    >>> Epsilon(0.25), Epsilon(0.25) == Epsilon(0.25)
    (Epsilon(epsilon=0.25, relative=False, bias='absorb'), True)
    """

    serves: ClassVar[frozenset[str]] = frozenset()
    reaches_zeros: ClassVar[bool] = False


class LinearRule(Rule, ABC):
    """A rule for linear maps, by a formula of its own.

    Those with parameters have it wherever they are called. A sum is one too, with weights of 1, and has it where it is
    set at that operation: ``Rules().set(torch.add, rule)``.

    >>> import torch; from relprop import LRP
    >>> class Squares(LinearRule):
    ...     '''``R_j = sum_k a_j w_jk^2 / sum_j a_j w_jk^2 R_k``.'''
    ...     def coefficient(self, layer, a, z, c):
    ...         squares = layer.modified(torch.square)
    ...         return layer.transpose(z * c / layer.forward(a, squares), squares)
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    >>> LRP(layer, Squares()).attribute(torch.tensor([[1.0, 1.0]]))
    tensor([[1.8000, 0.2000]])
    """

    serves = frozenset({"linear", "sum", "shift"})
    exact_by_autograd: ClassVar[bool] = False
    """Autograd's own backward is this rule, on complex numbers too."""

    by_sign: ClassVar[bool] = False
    """Contributions of either sign share apart, and among those of the input so does a constant ``f(0)`` in it."""

    @abstractmethod
    def coefficient(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> Tensor:
        """Return the coefficient ``R_in / a`` of the input.

        Args:
            layer: the linear map.
            a: its input.
            z: its output, ``W a + b``.
            c: the coefficient of the output, so that its relevance is ``z * c``.
        """

    def absorbed(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> dict[str, Tensor]:
        """Return, by name, the relevance that by definition reaches no input, in the shape of the output.

        By default nothing is declared, so that a report shows what is gone as unexplained.

        Args:
            layer, a, z, c: as in ``coefficient``.
        """
        return {}


class GroupRule(LinearRule):
    """A rule that is data: groups of contributions, each of which shares relevance among its own.

    Definition: ``R_j = sum_groups sum_k (p (a_j w_jk)+ + n (a_j w_jk)-) / stab(p P_k + n N_k) share R_k``, see
    :mod:`relprop.rules.relevance`. What the bias, the stabilizer and the rule absorb is accounted for by itself.

    Attributes:
        groups: the groups.
        bias: ``"absorb"``: the bias is one of the contributions, and keeps its share; ``"ignore"``: it is none.
        stabilizer: without unit, in shares of the sums' own size (:class:`Relative`); None for the exact quotient.

    >>> import torch; from relprop import LRP
    >>> class Doubled(GroupRule):
    ...     '''Positive contributions count twice.'''
    ...     groups = (Group(p=2, n=1),)
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    >>> LRP(layer, Doubled()).attribute(torch.tensor([[1.0, 2.0]]))
    tensor([[ 1.5000, -0.5000]])
    """

    bias: Bias = "absorb"
    stabilizer: float | Tensor | None = 1e-6

    def __post_init__(self) -> None:
        if self.bias not in ("absorb", "ignore"):
            raise RuleError(f"{type(self).__name__}: bias must be 'absorb' or 'ignore', got {self.bias!r}.")
        if self.stabilizer is not None and not isinstance(self.stabilizer, Tensor):
            check_nonnegative(self, stabilizer=self.stabilizer)

    @property
    @abstractmethod
    def groups(self) -> Sequence[Group]:
        """Return the groups."""

    def contributions(self, layer: LinearMap, a: Tensor, z: Tensor) -> Contributions:
        """Return what the groups are groups of: by default the products ``a_j w_jk``.

        Args:
            layer, a, z: as in ``coefficient``.

        >>> import torch; from relprop import LRP; from relprop.rules import Weights
        >>> class Size(GroupRule):
        ...     '''``R_j = sum_k |w_jk| / stab(sum_j |w_jk|) R_k``.'''
        ...     groups, bias, stabilizer, reaches_zeros = (Group(p=1, n=0),), "ignore", None, True
        ...     def contributions(self, layer, a, z):
        ...         return Weights(layer, a, torch.abs)
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
        >>> LRP(layer, Size()).attribute(torch.tensor([[1.0, 1.0]]))
        tensor([[1.5000, 0.5000]])
        """
        return Products(layer, a, z, self.bias == "absorb")

    def stabilize(self, layer: LinearMap, z: Tensor) -> float | Tensor | Relative | None:
        """Return what is added to the size of the sums: by default ``Relative(stabilizer)``.

        A number >= 0, or a tensor that broadcasts to the output ``z``, in units of the sums; or :class:`Relative`,
        which has no unit. The sign of the sums is taken care of.

        Args:
            layer, z: as in ``coefficient``.
        """
        return None if self.stabilizer is None else Relative(self.stabilizer)

    @final
    def coefficient(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> Tensor:
        return relevance.coefficient(*self._asked(layer, a, z), z, c, self._stabilizer(layer, z))

    @final
    def absorbed(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor) -> dict[str, Tensor]:
        return relevance.absorbed(*self._asked(layer, a, z), z, c, self._stabilizer(layer, z))

    def _asked(self, layer: LinearMap, a: Tensor, z: Tensor) -> tuple[Sequence[Group], Contributions]:
        """Return the groups and what they are groups of, checked."""
        groups: Any = self.groups
        if not isinstance(groups, (tuple, list)) or not groups or not all(isinstance(each, Group) for each in groups):
            raise RuleError(f"{self!r}.groups is {groups!r}, expected a tuple of groups, such as (Group(p=1, n=0),).")
        contributions: Any = self.contributions(layer, a, z)
        if not isinstance(contributions, Contributions):
            raise RuleError(
                f"{self!r}.contributions returned {type(contributions).__name__}, expected Contributions, such as "
                "Products(layer, a, z, with_bias=True)."
            )
        return groups, contributions

    def _stabilizer(self, layer: LinearMap, z: Tensor) -> Stabilizer:
        """Return what is added to the sums, checked."""
        found: Any = self.stabilize(layer, z)
        if isinstance(found, Relative):
            number = found.number
            if isinstance(number, Tensor):
                return partial(Relative(self._fitting(number, layer, z)).of, layer)
            return partial(found.of, layer) if number else 0.0
        if isinstance(found, Tensor):
            found = self._fitting(found, layer, z)
        elif found is None and self.stabilizer is not None:
            raise RuleError(
                f"{self!r}.stabilize returned None. Write `return` before the result, or stabilizer = None for the "
                "exact quotient."
            )
        elif found is not None and not (isinstance(found, (int, float)) and found >= 0):
            raise RuleError(f"{self!r}.stabilize returned {found!r}, expected a number >= 0, a tensor or Relative.")
        return found  # type: ignore[no-any-return]

    def _fitting(self, found: Tensor, layer: LinearMap, z: Tensor) -> Tensor:
        """Return a stabilizer that is a tensor, checked."""
        # Of a convolution, one number per channel would broadcast over the width.
        least = layer.per_channel(z.new_zeros(1), z).dim()
        if found.dim() and (found.dim() < least or not broadcasts(found, z)):
            raise RuleError(
                f"{self!r}.stabilize returned a tensor of shape {tuple(found.shape)}, expected what broadcasts to "
                f"the output {tuple(z.shape)}; one number for every output channel: layer.per_channel(numbers, z)."
            )
        return found.to(z)


class ActivationRule(Rule, ABC):
    """A rule for elementwise functions.

    >>> import torch; from relprop import LRP, Rules
    >>> class Tangent(ActivationRule):
    ...     '''``R_in = f'(z) z``: autograd's own backward.'''
    ...     def surrogate(self, flow, z, out, quotient):
    ...         return out
    >>> LRP(torch.nn.Tanh(), Rules().set(torch.nn.Tanh, Tangent())).attribute(torch.tensor([[1.0]]))
    tensor([[0.4200]])
    """

    serves = frozenset({"activation"})
    exact_by_autograd: ClassVar[bool] = False
    """On functions that are linear on each side of zero, autograd's own backward is this rule."""

    @abstractmethod
    def surrogate(self, flow: Flow, z: Tensor, out: Tensor, quotient: Tensor) -> Tensor:
        """Return what ``out = f(z)`` is explained as.

        Args:
            flow: what to explain with, such as ``flow.constant(quotient)``.
            z: the argument of the function.
            out: its value.
            quotient: ``(f(z) - f(0)) / z``, and ``f'(0)`` at 0.
        """


class PoolingRule(Rule, ABC):
    """A rule for max pooling.

    >>> import torch; from relprop import LRP, Rules
    >>> class Between(PoolingRule):
    ...     '''Half as the maximum, half as the mean.'''
    ...     def pooled(self, flow, a, out, average):
    ...         return (out + average(a)) / 2
    >>> rules = Rules().set(torch.nn.MaxPool1d, Between())
    >>> LRP(torch.nn.MaxPool1d(2), rules).attribute(torch.tensor([[[1.0, 3.0]]]))
    tensor([[[0.2500, 2.2500]]])
    """

    serves = frozenset({"pooling"})

    @abstractmethod
    def pooled(self, flow: Flow, a: Tensor, out: Tensor, average: Callable[[Tensor], Tensor] | None) -> Tensor:
        """Return what the maximum is explained as; what it differs by is declared as taken by the stabilizer.

        Args:
            flow: what to explain with.
            a: the input.
            out: the maximum of each window.
            average: pools the same windows by their mean; None where pooling is dilated.
        """


class ProductRule(Rule, ABC):
    """A rule for products of active factors.

    >>> import torch; from relprop import LRP, Rules
    >>> class First(ProductRule):
    ...     '''The first factor receives everything.'''
    ...     def shares(self, counts, gates):
    ...         return (1.0, *(0.0 for _ in counts[1:]))
    >>> class Product(torch.nn.Module):
    ...     def forward(self, a, b):
    ...         return a * b
    >>> rules = Rules().set(torch.mul, First())
    >>> LRP(Product(), rules).attribute((torch.tensor([[2.0]]), torch.tensor([[3.0]])))
    (tensor([[6.]]), tensor([[0.]]))
    """

    serves = frozenset({"product", "gate"})

    @abstractmethod
    def shares(self, counts: Sequence[int], gates: Sequence[bool]) -> tuple[float, ...]:
        """Return the share of every factor.

        Args:
            counts: of how many active factors each is itself a product; 0 for a constant.
            gates: whether it is a gate: a sigmoid, or what is made of such.
        """


class NormRule(Rule, ABC):
    """A rule for what divides: standard deviations, norms, denominators.

    >>> import torch; from relprop import LRP, Rules
    >>> class Active(NormRule):
    ...     '''What divides is a factor as any other: autograd's own backward.'''
    ...     def denominator(self, flow, x):
    ...         return x
    >>> class Ratio(torch.nn.Module):
    ...     def forward(self, a, b):
    ...         return a / b
    >>> rules = Rules().set(torch.div, Active())
    >>> LRP(Ratio(), rules).attribute((torch.tensor([[1.0]]), torch.tensor([[2.0]])))
    (tensor([[0.5000]]), tensor([[-0.5000]]))
    """

    serves = frozenset({"norm"})

    @abstractmethod
    def denominator(self, flow: Flow, x: Tensor) -> Tensor:
        """Return the divisor (or its inverse) ``x`` as it is to be explained, by what ``flow`` offers."""


class SoftmaxRule(Rule, ABC):
    """A rule for the probabilities of a softmax, alone or in an attention.

    >>> import torch; from relprop import LRP, Rules
    >>> class Constant(SoftmaxRule):
    ...     '''Probabilities are weights.'''
    ...     def probabilities(self, flow, p):
    ...         return flow.constant(p)
    >>> class Weighted(torch.nn.Module):
    ...     def forward(self, s, v):
    ...         return (torch.softmax(s, 1) * v).sum(1)
    >>> rules = Rules().set(torch.softmax, Constant())
    >>> LRP(Weighted(), rules).attribute((torch.zeros(1, 2), torch.tensor([[1.0, 3.0]])))
    (tensor([[0., 0.]]), tensor([[0.5000, 1.5000]]))
    """

    serves = frozenset({"softmax", "attention"})
    exact_by_autograd: ClassVar[bool] = False
    """Behind its shares, autograd's own backward is this rule: an attention need not keep its probabilities."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "probabilities" in vars(cls):  # what is written anew is said anew
            cls.exact_by_autograd = vars(cls).get("exact_by_autograd", False)

    @abstractmethod
    def probabilities(self, flow: Flow, p: Tensor) -> Tensor:
        """Return the probabilities ``p`` as they are to be explained, by what ``flow`` offers."""

    def shares(self, queries: bool, keys: bool, values: bool, mask: bool) -> tuple[float, float, float, float] | None:
        """Return the shares of the queries, the keys, the values and the scores of an attention.

        The last is what reaches the softmax, which passes its part on; a mask that depends on the input carries it too.
        Those of queries and keys are what reaches these through the scores. By default None: the rule for products
        shares the two products of the attention.

        Args:
            queries, keys, values, mask: which of them depend on the input.
        """
        return None


class FilterRule(Rule, ABC):
    """A rule for the output of any operation, after the operation's own rule.

    It acts on whatever runs where it is set, whether a rule covers it or not. An operation that is made of others (a
    recurrent layer, ``F.normalize``) is one: the filter acts on its output. An operation with several outputs meets it
    once for each. A report counts what it withholds as taken by the rule.

    >>> import torch; from relprop import LRP, Rules
    >>> class Above(FilterRule):
    ...     '''Only what is above 1 passes relevance.'''
    ...     def output(self, flow, out, inputs):
    ...         return flow.scale(out, (out > 1).to(out))
    >>> model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(2, 1, bias=False))
    >>> _ = model[1].weight.data.fill_(1.0)
    >>> LRP(model, Rules().set(torch.nn.ReLU, Above())).attribute(torch.tensor([[0.5, 2.0]]))
    tensor([[0., 2.]])
    """

    @abstractmethod
    def output(self, flow: Flow, out: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        """Return the output as it is to be explained; its value stays that of the model.

        Args:
            flow: what to explain with, such as ``flow.scale(out, mask)``.
            out: the output of the operation.
            inputs: its arguments that depend on the explained input; none where the operation ran out of sight, in a
                custom autograd function or a scripted module.
        """

    by_output_alone: ClassVar[bool] = True
    """It looks at the output only, so that it also stands behind a batch norm that is folded into the operation."""

    hands_on_whole: ClassVar[bool] = False
    """Relevance goes on as it is, whatever the output is worth: it may reach units of zero."""

    blocks: ClassVar[bool] = False
    """No relevance passes it, so that the operation before it needs no rule."""

    def filters(self, kind: str) -> bool:
        """Say whether it acts on the output of operations of this ``kind``, a name of ``relprop.operations.Kind``."""
        return True


def check_nonnegative(rule: object, **numbers: Any) -> None:
    """Raise where a parameter of a rule is negative or NaN."""
    for name, number in numbers.items():
        if not isinstance(number, (int, float)) or isinstance(number, bool) or not number >= 0:
            raise RuleError(f"{type(rule).__name__}: {name} must be a number >= 0, got {number!r}.")
