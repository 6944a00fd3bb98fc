"""Maps of an input with noise: their mean, the mean of their squares, their variance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from relprop.arguments import whole_number
from relprop.attribution.options import maps
from relprop.attribution.passes import Passes, weighted_sum, wide, zipped
from relprop.attribution.wrapper import Wrapper, check_options
from relprop.errors import InputError, InputTypeError, near
from relprop.inputs import Given, as_inputs
from relprop.randomness import Draws, draws
from relprop.targets import Target
from relprop.trees import map_tensors

NoiseType = Literal["smoothgrad", "smoothgrad_sq", "vargrad"]
Levels: TypeAlias = "float | Sequence[float]"


class NoiseTunnel(Wrapper, name="noise_tunnel"):
    """The maps of an input with noise, averaged, over any method.

    Definition: with ``R(x)`` the map of the method and ``e_s ~ N(0, sigma^2)`` for ``s = 1..n``:
    ``1/n sum_s R(x + e_s)`` (``"smoothgrad"``), ``1/n sum_s R(x + e_s)^2`` (``"smoothgrad_sq"``), or the variance
    ``1/n sum_s (R(x + e_s) - mean)^2`` (``"vargrad"``). It averages what the method returns: coefficients of a
    coefficient method, relevance of a relevance method, whose product with the input is that with the noisy input.
    Conserves: nothing; relevance sums to the mean output of the noisy inputs, so that there is no delta.

    Args:
        method: any method, made from a model.

    Raises:
        MethodError: where ``method`` is none, such as a model.
    Source: Smilkov et al. 2017 (arXiv:1706.03825); Hooker et al. 2019 (arXiv:1806.10758) for the squares; Adebayo et
        al. 2018 (arXiv:1810.03307) for the variance.

    >>> from relprop import LRP
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> x = torch.randn(5, 3)
    >>> NoiseTunnel(LRP(model)).attribute(x, target=1, nt_type="vargrad", nt_samples=10).shape
    torch.Size([5, 3])
    """

    nt_type: ClassVar[NoiseType] = "smoothgrad"
    takes_seed = True

    @maps  # type: ignore[arg-type]  # of options that may have any name
    def attribute(
        self,
        inputs: Any,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        nt_type: NoiseType | None = None,
        nt_samples: int = 50,
        noise_level: Levels = 0.15,
        stdevs: Levels | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        internal_batch_size: int | None = None,
        progress: bool = False,
        return_convergence_delta: bool = False,
        **options: Any,
    ) -> Any:
        """Return what is made of the maps of the noisy inputs.

        Args:
            inputs: as those of the method, with at least one tensor of floating point numbers; integers stay as they
                are.
            target, additional_forward_args: as those of the method.
            nt_type: ``"smoothgrad"``, ``"smoothgrad_sq"`` or ``"vargrad"``; None is that of the class.
            nt_samples: n, how many noisy copies each sample has.
            noise_level: sigma relative to the range of a sample, ``max(x) - min(x)``; for several inputs, one for all
                or a tuple. Inputs in a structure have samples where all its tensors have as many rows; else the range
                is that of the whole tensor.
            stdevs: sigma itself, in the place of ``noise_level``; for several inputs, one for all or a tuple.
            seed: what the noise is drawn from, on the CPU: the same seed gives the same map. None is 0. A method that
                draws numbers itself gets a seed that follows from it, another one for every pass.
            generator: a generator of your own in the place of ``seed``, which moves on.
            internal_batch_size: the most samples in one pass; None: one noisy copy of the batch a pass. Noise does not
                depend on it.
            progress: show a progress bar, by tqdm.
            return_convergence_delta: refused, for there is none.
            options: further arguments of the method's ``attribute``.

        Returns:
            what the method returns, of the same structure and shapes.

        Raises:
            InputError: for no copies, negative noise, another ``nt_type``, or a delta asked for.
            InputTypeError: where no input is a tensor of floating point numbers, or for an option that the method does
                not take.
            MissingExtraError: ``progress=True`` without tqdm.
            RelpropError: what the method raises.
        """
        if return_convergence_delta:
            self.require_completeness()
        chosen = self.nt_type if nt_type is None else nt_type
        if chosen not in _STATISTICS:
            raise InputError(f"nt_type must be one of {tuple(_STATISTICS)}, got {chosen!r}.{near(str(chosen), _NAMES)}")
        check_options([self.method], options, type(self).__name__)
        count = whole_number("nt_samples", nt_samples)
        given = as_inputs(inputs)
        passes = Passes(
            given, target, additional_forward_args, options, self.method.per_sample, internal_batch_size, progress
        )
        spread = _relative(given, noise_level) if stdevs is None else deviations(given, stdevs)
        source = draws(seed, generator)
        variants = (noisy(given.tensors, spread, source) for _ in range(count))
        return _STATISTICS[chosen](passes.over(self.runs(source), variants, count), count)


class SmoothGrad(NoiseTunnel, name="smoothgrad"):
    """The mean of the maps of an input with noise, over any method.

    Definition: ``1/n sum_s R(x + e_s)`` with ``e_s ~ N(0, sigma^2)``; :class:`NoiseTunnel` has the arguments.
    Conserves: nothing; there is no delta.

    Args:
        method: any method, made from a model; ``Gradient(model)`` in the paper.

    Raises:
        MethodError: where ``method`` is none, such as a model.
    Source: Smilkov et al. 2017 (arXiv:1706.03825).

    >>> from relprop import Gradient
    >>> model = torch.nn.Linear(2, 1)
    >>> _ = model.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    >>> SmoothGrad(Gradient(model)).attribute(torch.tensor([[1.0, 2.0]]), nt_samples=4)
    tensor([[ 3., -1.]])
    """


class SmoothGradSquared(NoiseTunnel, name="smoothgrad_squared"):
    """The mean of the squared maps of an input with noise, over any method.

    Definition: ``1/n sum_s R(x + e_s)^2`` with ``e_s ~ N(0, sigma^2)``; :class:`NoiseTunnel` has the arguments.
    Conserves: nothing; there is no delta.

    Args:
        method: any method, made from a model; ``Gradient(model)`` in the paper.

    Raises:
        MethodError: where ``method`` is none, such as a model.
    Source: Hooker et al. 2019 (arXiv:1806.10758).

    >>> from relprop import Gradient
    >>> model = torch.nn.Linear(2, 1)
    >>> _ = model.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    >>> SmoothGradSquared(Gradient(model)).attribute(torch.tensor([[1.0, 2.0]]), nt_samples=4)
    tensor([[9., 1.]])
    """

    nt_type = "smoothgrad_sq"


class VarGrad(NoiseTunnel, name="vargrad"):
    """The variance of the maps of an input with noise, over any method.

    Definition: ``1/n sum_s (R(x + e_s) - mean)^2`` with ``e_s ~ N(0, sigma^2)``; :class:`NoiseTunnel` has the
    arguments.
    Conserves: nothing; there is no delta.

    Args:
        method: any method, made from a model; ``Gradient(model)`` in the paper.

    Raises:
        MethodError: where ``method`` is none, such as a model.
    Source: Adebayo et al. 2018 (arXiv:1810.03307).

    >>> from relprop import Gradient
    >>> model = torch.nn.Linear(2, 1)
    >>> VarGrad(Gradient(model)).attribute(torch.tensor([[1.0, 2.0]]), nt_samples=4)
    tensor([[0., 0.]])
    """

    nt_type = "vargrad"


def deviations(given: Given, stdevs: Levels) -> list[Tensor | None]:
    """Return sigma for every input; None for integers.

    Raises:
        InputError: where one is negative or no number, or there are fewer or more than inputs.
        InputTypeError: where no input is a tensor of floating point numbers.
    """
    return _scaled(given, "stdevs", stdevs, lambda x: x.new_ones(()))


def _relative(given: Given, noise_level: Levels) -> list[Tensor | None]:
    return _scaled(given, "noise_level", noise_level, lambda x: _range(x, given))


def _scaled(given: Given, name: str, levels: Levels, unit: Callable[[Tensor], Tensor]) -> list[Tensor | None]:
    if not any(x.is_floating_point() for x in given.tensors):
        raise InputTypeError("Integers cannot be given noise. Explain the embedded tokens in their place.")
    pairs = zip(given.tensors, _levels(name, levels, given), strict=True)
    return [unit(x) * level if x.is_floating_point() else None for x, level in pairs]


def _range(x: Tensor, given: Given) -> Tensor:
    """Return max - min of every sample, or of all where the inputs have no batch in common."""
    batch = given.rows is not None
    rows = x.detach().reshape(x.shape[0] if batch else 1, -1)
    spread = rows.amax(1) - rows.amin(1)
    return spread.reshape(-1, *(1,) * (x.dim() - 1)) if batch else spread.reshape(())


def _levels(name: str, levels: Any, given: Given) -> list[float]:
    listed = list(levels) if isinstance(levels, (tuple, list)) else [levels] * len(given.tensors)
    if len(listed) != len(given.tensors):
        raise InputError(f"{name} has {len(listed)} entries for {len(given.tensors)} inputs.")
    for level in listed:
        if isinstance(level, bool) or not isinstance(level, (int, float)) or not 0 <= level < float("inf"):
            raise InputError(
                f"{name} must be a number of at least 0, or a tuple with one for every input; got {level!r}."
            )
    return [float(level) for level in listed]


def noisy(tensors: Sequence[Tensor], spread: Sequence[Tensor | None], source: Draws) -> list[Tensor]:
    """Return the tensors with noise of standard deviation sigma; as they are where that is None."""
    return [x if sigma is None else x + sigma * source.normal(x) for x, sigma in zip(tensors, spread, strict=True)]


def _mean(found: Iterable[Any], count: int) -> Any:
    return weighted_sum(found, [1 / count] * count)


def _mean_of_squares(found: Iterable[Any], count: int) -> Any:
    return _mean((map_tensors(torch.square, maps) for maps in found), count)


def _variance(found: Iterable[Any], count: int) -> Any:
    """Return the variance by Welford's update: the difference of two large means would cancel."""
    center: Any = None
    spread: Any = None
    maps: Any = None
    for seen, maps in enumerate(found, 1):
        wider = map_tensors(wide, maps)
        if center is None:
            center, spread = wider, map_tensors(torch.zeros_like, wider)
            continue
        before = zipped(torch.sub, wider, center)
        center = zipped(lambda m, d, seen=seen: m + d / seen, center, before)
        after = zipped(torch.sub, wider, center)
        spread = zipped(lambda s, a, b: s + a * b, spread, before, after)
    return zipped(lambda s, like: (s / count).to(like.dtype), spread, maps)


_STATISTICS: Mapping[str, Callable[[Iterable[Any], int], Any]] = {
    "smoothgrad": _mean,
    "smoothgrad_sq": _mean_of_squares,
    "vargrad": _variance,
}
_NAMES = tuple(_STATISTICS)
