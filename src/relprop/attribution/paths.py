"""Gradients gathered on the way from a baseline to the input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from relprop.arguments import positive_number, whole_number
from relprop.attribution.base import convergence_delta
from relprop.attribution.baselines import as_baselines, change, check_movable
from relprop.attribution.contract import Contract, Method
from relprop.attribution.gradient import Gradient
from relprop.attribution.options import Options, maps_and_delta
from relprop.attribution.passes import Passes, Variant, compared, weighted_sum
from relprop.attribution.quadrature import Rule, quadrature
from relprop.errors import ConvergenceWarning, InputTypeError, warn
from relprop.inputs import as_inputs
from relprop.targets import Target

if TYPE_CHECKING:
    from typing_extensions import Unpack


class IntegratedGradients(Method, name="integrated_gradients"):
    """The gradient averaged on the straight path from a baseline to the input, times their difference.

    Definition: ``R_i = (x_i - x'_i) int_0^1 df/dx_i(x' + t (x - x')) dt``, the integral as a weighted sum over
    ``n_steps`` points. With ``multiply_by_inputs=False`` the averaged gradient itself, a coefficient.
    Conserves: ``sum R = f(x) - f(x')`` as the number of steps grows; ``delta`` says how far off the sum is.

    Args:
        model: any ``nn.Module`` that is differentiable almost everywhere on the path.
        multiply_by_inputs: False returns the averaged gradient, which claims no sum.
    Source: Sundararajan et al. 2017 (arXiv:1703.01365).

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    >>> x = torch.randn(5, 3, dtype=torch.float64)
    >>> found, delta = IntegratedGradients(model).attribute(x, target=1, return_convergence_delta=True)
    >>> found.shape, bool((delta.abs() < 1e-6).all())
    (torch.Size([5, 3]), True)
    """

    contract = Contract("1", "relevance", "f - f'", "in the limit of many steps")
    per_sample = ("baselines",)

    def __init__(self, model: nn.Module, multiply_by_inputs: bool = True) -> None:
        super().__init__(model)
        self.multiply_by_inputs = multiply_by_inputs
        if not multiply_by_inputs:
            self.contract = Contract("1", "coefficient")

    @maps_and_delta
    def attribute(
        self,
        inputs: Any,
        baselines: Any = None,
        target: Target = None,
        additional_forward_args: Any = None,
        n_steps: int = 50,
        method: Rule = "gausslegendre",
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
        *,
        tolerance: float | None = None,
        max_steps: int = 3200,
        progress: bool = False,
        **options: Unpack[Options],
    ) -> Any:
        """Return the attribution of every input.

        Args:
            inputs: a tensor ``[N, ...]`` of floating point numbers, a tuple of them, or a structure (see
                :meth:`Attribution.attribute`). Of token ids, explain the embeddings in their place.
            baselines: x': None (zero), a number, a tensor ``[N, ...]`` or ``[1, ...]``; for several inputs a tuple with
                one of these for each, or a structure like theirs.
            target, additional_forward_args, options: see :meth:`Attribution.attribute`.
            n_steps: how many points of the path are looked at.
            method: ``"gausslegendre"``, ``"riemann_left"``, ``"riemann_right"``, ``"riemann_middle"`` or
                ``"riemann_trapezoid"``. (The weights of Captum's trapezoid sum to ``1 - 1 / n_steps``; these to 1.)
            internal_batch_size: the most samples in one pass; None: one point of the path for the whole batch a pass.
                (Captum's None takes all points at once.)
            return_convergence_delta: also return ``delta = f(x) - f(x') - sum R``, ``[N]``: Captum's with the other
                sign. It has no graph.
            tolerance: double the number of steps until ``|delta|`` of every sample is at most that.
            max_steps: no more steps than that for ``tolerance``.
            progress: show a progress bar, by tqdm.

        Returns:
            a tensor or a tuple of tensors, of the structure, shapes, dtypes and device of ``inputs``; with
            ``return_convergence_delta`` a pair of that and delta.

        Raises:
            InputError: for no steps, another ``method``, baselines of another shape, a tolerance that is no positive
                number, or a delta or a tolerance where no sum is claimed.
            InputTypeError: for token ids.
            MissingExtraError: ``progress=True`` without tqdm.
            RelpropError: what every method raises.

        Warns:
            ConvergenceWarning: where ``max_steps`` were not enough for ``tolerance``.
        """
        if return_convergence_delta or tolerance is not None:
            self.require_completeness()
        steps = whole_number("n_steps", n_steps)
        most = whole_number("max_steps", max_steps)
        tolerance = None if tolerance is None else positive_number("tolerance", tolerance)
        given = as_inputs(inputs)
        check_movable(given, "IntegratedGradients")
        ends = [
            end if x.is_floating_point() else x
            for x, end in zip(given.tensors, as_baselines(given, baselines), strict=True)
        ]
        passes = compared(
            self.model,
            given,
            target,
            additional_forward_args,
            internal_batch_size=internal_batch_size,
            progress=progress,
            **options,
        )
        maps = self._integral(passes, ends, *quadrature(method, steps))
        if not return_convergence_delta and tolerance is None:
            return given.packed(maps)
        difference = change(self, passes, ends)
        delta = convergence_delta(difference, _detached(maps), given)
        while tolerance is not None and float(delta.abs().max()) > tolerance:
            if 2 * steps > most:
                warn(
                    f"IntegratedGradients: |delta| is {float(delta.abs().max()):.3g} after {steps} steps, above the "
                    f"tolerance of {tolerance:g}; max_steps={most} allows no more.",
                    ConvergenceWarning,
                )
                break
            steps *= 2
            maps = self._integral(passes, ends, *quadrature(method, steps))
            delta = convergence_delta(difference, _detached(maps), given)
        return (given.packed(maps), delta) if return_convergence_delta else given.packed(maps)

    def _integral(
        self, passes: Passes, ends: list[Tensor], points: list[float], weights: list[float]
    ) -> list[Tensor | None]:
        given = passes.given
        inputs = given.tensors if passes.options["create_graph"] else [x.detach() for x in given.tensors]
        on_path: Iterator[Variant] = (
            [end + t * (x - end) if x.is_floating_point() else x for x, end in zip(inputs, ends, strict=True)]
            for t in points
        )
        found = weighted_sum(passes.over(Gradient(self.model).attribute, on_path, len(points)), weights)
        maps: list[Tensor | None] = given.aligned(found, "The gradient")
        if any(c is not None and not x.is_floating_point() for c, x in zip(maps, inputs, strict=True)):
            raise InputTypeError(
                "The inputs hold token ids, and integers lie on no path. Explain the embedded tokens in their place."
            )
        if not self.multiply_by_inputs:
            return maps
        return [None if c is None else c * (x - end) for c, x, end in zip(maps, inputs, ends, strict=True)]


def _detached(maps: list[Tensor | None]) -> list[Tensor | None]:
    return [None if part is None else part.detach() for part in maps]
