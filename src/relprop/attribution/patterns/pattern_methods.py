"""PatternNet and PatternAttribution: the gradient of a network whose weights are replaced by what they detect."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from torch import Tensor, nn

from relprop.attribution.base import Attribution
from relprop.attribution.contract import Contract
from relprop.attribution.patterns.calls import Names, UnitCall, Visit
from relprop.attribution.patterns.estimators import Estimator
from relprop.attribution.patterns.fit import fit_patterns
from relprop.attribution.patterns.quality import SignalQuality, measure
from relprop.attribution.patterns.store import Pattern, Patterns
from relprop.errors import InputError, InputTypeError, PatternError, PatternWarning, warn
from relprop.propagation.call.call import Call
from relprop.propagation.run.forward import Forward

if TYPE_CHECKING:
    from typing import Self


class PatternMethod(Attribution):
    """What the methods of patterns share: fitting, keeping and judging the patterns.

    Attributes:
        patterns: what was fitted or given; None before.
    """

    contract = Contract("f_t", "coefficient")

    def __init__(self, model: nn.Module, patterns: Patterns | None = None) -> None:
        super().__init__(model)
        if patterns is not None and not isinstance(patterns, Patterns):
            raise InputTypeError(f"patterns must be Patterns of a fitted method, got {type(patterns).__name__}.")
        self.patterns = patterns

    # Patterns ------------------------------------------------------------------------------------

    def fit(self, loader: Iterable[Any], estimator: Estimator = "relu+-", *, progress: bool = False) -> Self:
        """Fit the patterns of every linear and convolutional layer to data, in one pass.

        For a unit with input ``x`` and ``z = w'x + b``, over the samples of a mask ``m``,
        ``q = sum(m z x)/n - (sum(m x)/n)(sum z / N)`` and ``a = q / (w'q)``. The mask is 1 (``"linear"``),
        ``[z > 0]`` (``"relu+"``) or ``[z <= 0]``; ``n = sum m``, and ``sum z / N`` is over all samples. Every position
        of a convolution is a sample, padding included; all uses of a parameter are pooled; a batch norm behind a
        layer is folded into it. A unit whose ``n`` or ``w'q`` is 0 gets ``a = 0``, and a warning.

        Args:
            loader: yields batches, tensors ``[N, ...]`` or tuples whose first entry is the input; they are moved to
                the device of the model. The sums are kept in float64; of a batch nothing is kept.
            estimator: ``"linear"``; ``"relu+"``, with the patterns of ``z > 0`` for the layers that a ReLU follows;
                or ``"relu+-"``, which adds those of ``z <= 0`` for :meth:`signal_quality` and explains as ``"relu+"``.
            progress: show a bar.

        Returns: the method itself, fitted.

        Raises:
            InputError: for an unknown estimator, or a loader without batches.
            PatternError: where the model has no layer to fit.
        Source: Kindermans et al. 2018 (arXiv:1705.05598).

        >>> import torch; from relprop import PatternNet
        >>> method = PatternNet(nn.Linear(3, 2)).fit([torch.randn(50, 3) for _ in range(4)], "linear")
        >>> print(method.patterns)
        parameter  shape  samples  backward  units without
        ---------  -----  -------  --------  -------------
        weight     2x3        200  linear    -
        """
        if estimator not in get_args(Estimator):
            raise InputError(f"estimator must be one of {get_args(Estimator)}, got {estimator!r}.")
        self.patterns = fit_patterns(self.model, loader, estimator, progress)
        return self

    def save(self, path: str | Path) -> None:
        """Write the patterns as a safetensors file, with the weights that they were fitted to.

        Args:
            path: where the file goes.

        Raises:
            PatternError: before they are fitted.
            MissingExtraError: without safetensors (``pip install relprop[patterns]``).
        """
        self._fitted().save(path)

    def load(self, path: str | Path) -> Self:
        """Read the patterns from a file that :meth:`save` wrote.

        Args:
            path: where the file lies.

        Returns: the method itself.

        Raises:
            PatternError: where the file holds no patterns, or those of another network.
            MissingExtraError: without safetensors (``pip install relprop[patterns]``).
        """
        self.patterns = Patterns.load(path, self.model)
        return self

    def signal_quality(
        self,
        loader: Iterable[Any],
        test: Iterable[Any],
        *,
        layers: Iterable[str] | None = None,
        units: int = 16,
        patches: int = 5000,
        seed: int = 0,
        progress: bool = False,
    ) -> SignalQuality:
        """Return how much of each unit's output its estimated signal holds.

        ``rho(S) = 1 - max_v |corr(w'x, v'(x - S(x)))|``: 1 where what is left of ``x`` says nothing of the output. For
        patterns ``S(x) = a w'x``, with the pattern of the side of zero on which ``z`` lies (``"relu+-"``); the filter
        itself has ``a = w / |w|^2``. The patterns were fitted to one split of the data; ``v`` is fitted to a second by
        truncated least squares, and the correlation is that on a third. It is 0 where ``std(v'd) < 1e-9 std(w'x)``.

        Args:
            loader: the second split, to which ``v`` is fitted.
            test: the third, on which the correlation is measured.
            layers: names of modules; all that have patterns by default.
            units: the most units of a layer, chosen at random.
            patches: the most samples of a layer in either split, chosen at random; more than a unit has inputs.
            seed: of both choices.
            progress: show a bar.

        Raises:
            PatternError: before the patterns are fitted, or where they are those of other weights.
            InputError: where a split has not more samples than a unit has inputs, or calls a layer never; where no
                unit's output varies; for ``units`` below 1 and ``patches`` below 2.
        Source: Kindermans et al. 2018 (arXiv:1705.05598).

        >>> import torch; from relprop import PatternNet
        >>> method = PatternNet(nn.Linear(3, 2)).fit([torch.randn(50, 3)], "linear")
        >>> found = method.signal_quality([torch.randn(50, 3)], [torch.randn(50, 3)])
        >>> {layer: [*values] for layer, values in found.values.items()}, found.samples
        ({'weight': ['filter', 'linear']}, {'weight': (50, 50)})
        """
        return measure(self.model, self._fitted(), loader, test, layers, units, patches, seed, progress)

    def _fitted(self) -> Patterns:
        if self.patterns is None:
            raise PatternError(
                f"{type(self).__name__} has no patterns yet. Call fit(loader), or load(path) those of this network."
            )
        return self.patterns

    # The pipeline --------------------------------------------------------------------------------

    def make_call(self, **options: Any) -> Call:
        self._fitted()
        call = super().make_call(**options)
        Visit(call, Names(self.model), self._weight)
        return call

    def seed(self, output: Tensor) -> Tensor:
        return output

    def after_forward(self, passed: Forward) -> None:
        patterns = self._fitted()
        changed: dict[str, None] = {}
        for linear_call in passed.call.linear_calls:
            if isinstance(linear_call, UnitCall) and not linear_call.superseded:
                weight, bias = linear_call.effective()
                if not _pattern(patterns, linear_call.unit, weight).fits(weight, bias):
                    changed[linear_call.unit] = None
        if changed:
            warn(
                f"The weights have changed since the patterns were fitted ({', '.join(changed)}). Fit them again.",
                PatternWarning,
            )

    def result(self, call: Call, x: Tensor, c: Tensor) -> Tensor:
        return c

    def _weight(self, linear_call: UnitCall, weight: Tensor) -> Tensor:
        """Return what a coefficient passes back through in the place of the weight."""
        patterns = self._fitted()
        pattern = _pattern(patterns, linear_call.unit, weight)
        direction = pattern.directions[patterns.region(linear_call.unit, linear_call.rectified)]
        return self._replaced(weight, direction.to(device=weight.device, dtype=weight.dtype))

    @abstractmethod
    def _replaced(self, weight: Tensor, pattern: Tensor) -> Tensor:
        """Return what stands for a weight, from its pattern."""


def _pattern(patterns: Patterns, unit: str, weight: Tensor) -> Pattern:
    """Return the pattern of a linear call, of which the weight is given."""
    found = patterns.get(unit)
    if found is None or found.weight.shape != weight.shape:
        has = "none" if found is None else f"one of shape {tuple(found.weight.shape)}"
        raise PatternError(
            f"The linear call {unit!r} has a weight of shape {tuple(weight.shape)}, and the patterns hold {has} "
            "for it: they are those of another network, or of data that took another way through it. Fit them "
            "to this model."
        )
    return found


class PatternNet(PatternMethod, name="pattern_net"):
    """The signal that a network detects: its gradient, with every weight replaced by the unit's pattern.

    Definition: begin with ``f_t(x)``; linear and convolutional layers pass ``c_in = A^T c_out``, where the rows of
    ``A`` are the patterns ``a`` of the units, in the place of ``W^T c_out``. ReLU, pooling, sums and all else pass the
    gradient; batch norm is folded into the layer before it. The output is the coefficient: no product with the input.
    Conserves: nothing; the map is an estimate of the signal, in units of the input times the output.

    Args:
        model: any ``nn.Module``.
        patterns: those of another method fitted to the same model; :meth:`fit` or :meth:`load` give them otherwise.

    Raises:
        InputTypeError: for ``patterns`` that are none.
        PatternError: while explaining, before it was fitted, or with the patterns of another network.
    Source: Kindermans et al. 2018 (arXiv:1705.05598).

    >>> import torch
    >>> signal, distractor = torch.randn(2, 10000, generator=torch.Generator().manual_seed(0)).double()
    >>> x = torch.stack([signal + distractor, distractor], 1)
    >>> model = torch.nn.Linear(2, 1, bias=False).double()
    >>> _ = model.weight.data.copy_(torch.tensor([[1.0, -1.0]]))
    >>> method = PatternNet(model).fit([x], "linear")
    >>> method.attribute(torch.tensor([[5.0, 3.0]]).double()).round(decimals=1) + 0.0  # the signal is 5 - 3 = 2
    tensor([[2., 0.]], dtype=torch.float64)
    """

    def _replaced(self, weight: Tensor, pattern: Tensor) -> Tensor:
        return pattern


class PatternAttribution(PatternMethod, name="pattern_attribution"):
    """How much every input contributed through the signal: the gradient, with weights times patterns.

    Definition: as :class:`PatternNet`, with ``w * a`` (entry by entry) in the place of ``a``: begin with ``f_t(x)``,
    and pass ``c_in = (W * A)^T c_out``. The output is the coefficient: no product with the input.
    Conserves: nothing in general. A row of ``W * A`` sums to 1, so that what a layer receives is what it passes on but
    for what padding and units that are off take.

    Args:
        model: any ``nn.Module``.
        patterns: those of another method fitted to the same model; :meth:`fit` or :meth:`load` give them otherwise.

    Raises:
        InputTypeError: for ``patterns`` that are none.
        PatternError: while explaining, before it was fitted, or with the patterns of another network.
    Source: Kindermans et al. 2018 (arXiv:1705.05598).

    >>> import torch
    >>> signal, distractor = torch.randn(2, 10000, generator=torch.Generator().manual_seed(0)).double()
    >>> x = torch.stack([signal + distractor, distractor], 1)
    >>> model = torch.nn.Linear(2, 1, bias=False).double()
    >>> _ = model.weight.data.copy_(torch.tensor([[1.0, -1.0]]))
    >>> method = PatternAttribution(model).fit([x], "linear")
    >>> method.attribute(torch.tensor([[5.0, 3.0]]).double()).round(decimals=1) + 0.0
    tensor([[2., 0.]], dtype=torch.float64)
    """

    def _replaced(self, weight: Tensor, pattern: Tensor) -> Tensor:
        return weight * pattern
