"""Gradients gathered at random points between the input and many baselines."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from relprop.arguments import whole_number
from relprop.attribution.base import convergence_delta
from relprop.attribution.baselines import as_distribution, batched, check_movable
from relprop.attribution.contract import Contract, Method
from relprop.attribution.gradient import Gradient
from relprop.attribution.noise import Levels, deviations, noisy
from relprop.attribution.options import Options, maps_and_delta
from relprop.attribution.passes import Variant, compared, weighted_sum
from relprop.randomness import draws
from relprop.targets import Target

if TYPE_CHECKING:
    from typing_extensions import Unpack


class GradientShap(Method, name="gradient_shap"):
    """Expected gradients: gradients at random points between the input and baselines, times their difference.

    Definition: ``R = E[(x~ - x') df/dx(x' + t (x~ - x'))]`` over ``t ~ U(0, 1)``, baselines ``x'`` drawn from those
    given, and ``x~ = x + e``, ``e ~ N(0, stdevs^2)``; the mean over ``n_samples`` draws for every sample. Without noise
    these are the expected gradients of Erion et al., integrated gradients averaged over the baselines.
    Conserves: ``sum R = f(x) - E[f(x')]`` in the mean over many draws, without noise; ``delta`` takes the mean of
    ``f(x')`` over the baselines that were drawn.

    Args:
        model: any ``nn.Module`` that is differentiable almost everywhere between the baselines and the input.
    Source: Lundberg and Lee 2017 (arXiv:1705.07874); Erion et al. 2021 (doi:10.1038/s42256-021-00343-w).

    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    >>> x, background = torch.randn(5, 3), torch.randn(20, 3)
    >>> GradientShap(model).attribute(x, background, target=1).shape
    torch.Size([5, 3])
    """

    contract = Contract("1", "relevance", "f - f'", "in the mean over many draws, without noise")
    takes_seed = True

    @maps_and_delta
    def attribute(
        self,
        inputs: Any,
        baselines: Any,
        n_samples: int = 50,
        stdevs: Levels = 0.0,
        target: Target = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        internal_batch_size: int | None = None,
        progress: bool = False,
        **options: Unpack[Options],
    ) -> Any:
        """Return the attribution of every input.

        Args:
            inputs: a tensor ``[N, ...]`` of floating point numbers, or a tuple of them.
            baselines: those to draw from: a tensor ``[M, ...]``, whose M need not be N; a number, for all entries of
                one baseline; for several inputs a tuple with one of these for each, of the same M (of which one draw
                takes the same for all inputs).
            n_samples: how many draws every sample has.
            stdevs: the standard deviation of the noise; for several inputs, one for all or a tuple.
            target, additional_forward_args, options: see :meth:`Attribution.attribute`.
            return_convergence_delta: also return ``delta = f(x) - mean f(x') - sum R``, ``[N]``. It has no graph.
            seed: what is drawn from, on the CPU: the same seed gives the same map. None is 0.
            generator: a generator of your own in the place of ``seed``, which moves on.
            internal_batch_size: the most samples in one pass; None: one draw for the whole batch a pass. What is drawn
                does not depend on it.
            progress: show a progress bar, by tqdm.

        Returns:
            a tensor or a tuple of tensors, of the structure, shapes, dtypes and device of ``inputs``; with
            ``return_convergence_delta`` a pair of that and delta.

        Raises:
            InputError: for no draws, negative noise, or baselines of another shape.
            InputTypeError: for token ids.
            MissingExtraError: ``progress=True`` without tqdm.
            RelpropError: what every method raises.
        """
        count = whole_number("n_samples", n_samples)
        given = batched(inputs, "GradientShap")
        check_movable(given, "GradientShap")
        pool = as_distribution(given, baselines)
        spread = deviations(given, stdevs)
        source = draws(seed, generator)
        passes = compared(
            self.model,
            given,
            target,
            additional_forward_args,
            internal_batch_size=internal_batch_size,
            progress=progress,
            **options,
        )
        sources = given.tensors if options["create_graph"] else tuple(x.detach() for x in given.tensors)
        drawn: list[Tensor] = []  # which baselines
        ways: deque[list[Tensor]] = deque()  # from them to the input, of the draws whose pass is still to come

        def points() -> Iterator[Variant]:
            for _ in range(count):
                drawn.append(source.indices(len(pool[0]), given.tensors[0].shape[0]))
                starts = _chosen(pool, drawn[-1])
                ends = noisy(sources, spread, source)
                ways.append([end - start for start, end in zip(starts, ends, strict=True)])
                t = source.uniform(sources[0], len(drawn[-1]))
                yield [
                    start + t.to(way).reshape(-1, *(1,) * (way.dim() - 1)) * way
                    for start, way in zip(starts, ways[-1], strict=True)
                ]

        found = passes.over(Gradient(self.model).attribute, points(), count)
        shares = (
            [c * w for c, w in zip(given.aligned(maps, "The gradient"), ways.popleft(), strict=True)] for maps in found
        )
        maps = weighted_sum(shares, [1 / count] * count)
        if not return_convergence_delta:
            return given.packed(maps)
        quiet = replace(passes, options={"forward_kwargs": options["forward_kwargs"]}, progress=False)
        starts = (_chosen(pool, which) for which in drawn)
        (value,) = quiet.over(self.explained, [given.tensors], 1)
        reference = weighted_sum(quiet.over(self.explained, starts, count), [1 / count] * count)
        return given.packed(maps), convergence_delta(value - reference, [m.detach() for m in maps], given)


def _chosen(pool: Sequence[Tensor], which: Tensor) -> list[Tensor]:
    return [base[which.to(base.device)] for base in pool]
