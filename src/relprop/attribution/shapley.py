"""Shapley values by sampling, which Captum computes."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from relprop.arguments import whole_number
from relprop.attribution.base import convergence_delta
from relprop.attribution.baselines import as_baselines, batched, change
from relprop.attribution.contract import Contract, Method
from relprop.attribution.options import PerturbationOptions, maps_and_delta
from relprop.attribution.passes import Passes, compared
from relprop.attribution.perturbation import feature_labels
from relprop.errors import InputError, MissingExtraError
from relprop.randomness import as_seed
from relprop.targets import Target

if TYPE_CHECKING:
    from typing_extensions import Unpack


class ShapleyValueSampling(Method, name="shapley_value_sampling"):
    """What a feature adds to the output, averaged over random orders in which features join. Needs Captum.

    Definition: features replace their baselines one after the other; ``R_i`` is what the output gains when the feature
    of i joins, averaged over ``n_samples`` random orders. All entries of one feature get its value. No gradient is
    taken.
    Conserves: the sum over features is ``f(x) - f(x')`` for every order; so is that over entries where every entry is a
    feature of its own.

    Args:
        model: any ``nn.Module``, differentiable or not.

    Raises:
        MissingExtraError: while explaining, where Captum is not installed.
    Source: Castro et al. 2009 (https://www.sciencedirect.com/science/article/pii/S0305054808000804), by Captum
        (arXiv:2009.07896).

    >>> import torch
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    >>> ShapleyValueSampling(model).attribute(torch.tensor([[1.0, 2.0]]))
    tensor([[ 3., -2.]])
    """

    contract = Contract("", "relevance", "f - f'", "where every entry is a feature of its own")
    takes_seed = True
    per_sample = ("baselines", "feature_mask")
    needs: ClassVar[tuple[str, ...]] = ("captum.attr",)

    @maps_and_delta
    def attribute(
        self,
        inputs: Any,
        baselines: Any = None,
        target: Target = None,
        additional_forward_args: Any = None,
        feature_mask: Any = None,
        n_samples: int = 25,
        *,
        seed: int | None = None,
        return_convergence_delta: bool = False,
        **options: Unpack[PerturbationOptions],
    ) -> Any:
        """Return the share of every feature.

        Args:
            inputs: a tensor ``[N, ...]`` or a tuple of them; of integers (token ids) too.
            baselines, feature_mask: see :meth:`FeatureAblation.attribute`.
            target, additional_forward_args: see :meth:`Attribution.attribute`.
            n_samples: how many orders (for :class:`KernelShap`: sets) of features are drawn.
            seed: what they are drawn from: the same seed gives the same map. None is 0.
            return_convergence_delta: also return ``delta = f(x) - f(x') - sum R``, ``[N]``.
            options: see :class:`relprop.attribution.options.PerturbationOptions`; the progress bar is Captum's.

        Returns:
            a map for every input, in the structure and the shapes of ``inputs``; with ``return_convergence_delta`` a
            pair of that and delta.

        Raises:
            InputError: for no samples, baselines or masks of another shape, or inputs in a structure.
            InputTypeError: for a mask that holds no integers, or a seed that is none.
            MissingExtraError: what it needs is not installed.
            RelpropError: what every method raises.
        """
        explainer = self._explainer()
        given = batched(inputs, type(self).__name__)
        count = whole_number("n_samples", n_samples)
        ends = as_baselines(given, baselines)
        labels, numbers = feature_labels(given, feature_mask)
        # Captum counts features from 0 on, and leaves out none.
        numbered = [torch.bucketize(label.contiguous(), torch.tensor(numbers, device=label.device)) for label in labels]
        passes = replace(compared(self.model, given, target, additional_forward_args, **options), progress=False)
        sampling = {"n_samples": count, "show_progress": options["progress"]}
        with _seeded(as_seed(seed)):
            maps = self._sampled(explainer, passes, ends, numbered, len(numbers), sampling)
        packed = given.packed(maps)
        if not return_convergence_delta:
            return packed
        return packed, convergence_delta(change(self, passes, ends), maps, given)

    def _explainer(self) -> Any:
        """Return Captum's class.

        Raises:
            MissingExtraError: where something is not installed.
        """
        try:
            modules = [importlib.import_module(name) for name in self.needs]
        except ImportError as error:
            raise MissingExtraError(
                f"{type(self).__name__} is computed by Captum and needs {' and '.join(self.needs)}: {error}; "
                "pip install relprop[captum]"
            ) from error
        return getattr(modules[0], type(self).__name__)

    def _sampled(
        self,
        explainer: Any,
        passes: Passes,
        ends: list[Tensor],
        labels: list[Tensor],
        features: int,
        options: Mapping[str, Any],
    ) -> list[Tensor | None]:
        """Return what Captum makes of a batch."""
        inputs = tuple(x.detach() for x in passes.given.tensors)
        samples, limit = len(inputs[0]), passes.internal_batch_size

        def values(*changed: Tensor) -> Tensor:
            copies = len(changed[0]) // samples
            if copies == 1:
                (found,) = passes.over(self.explained, [changed], 1)
            else:
                found = passes.run(self.explained, changed, [*range(samples)] * copies)
            return found  # type: ignore[no-any-return]

        found = explainer(values).attribute(
            inputs,
            baselines=tuple(ends),
            feature_mask=tuple(labels),
            perturbations_per_eval=max(1, (limit or samples) // samples),
            **options,
        )
        kinds = [x.dtype if x.is_floating_point() else torch.get_default_dtype() for x in inputs]
        return [part.to(kind) for part, kind in zip(found, kinds, strict=True)]


class KernelShap(ShapleyValueSampling, name="kernel_shap"):
    """Shapley values as the weighted least squares fit of a linear model of which features are there. Needs Captum.

    Definition: ``R`` minimises ``sum_z k(z) (f(x_z) - f(x') - sum_i z_i R_i)^2`` over ``n_samples`` random sets z of
    features, where ``x_z`` has the features of z and the baseline elsewhere, and k is the Shapley kernel. All entries
    of one feature get its value. Samples are explained one after the other.
    Conserves: the sum over features is ``f(x) - f(x')`` up to the fit, for the full and the empty set weigh a million;
    so is that over entries where every entry is a feature of its own.

    Args:
        model: any ``nn.Module``, differentiable or not.

    Raises:
        MissingExtraError: while explaining, where Captum or scikit-learn is not installed.
    Source: Lundberg and Lee 2017 (arXiv:1705.07874), by Captum (arXiv:2009.07896).

    >>> import torch
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    >>> KernelShap(model).attribute(torch.tensor([[1.0, 2.0]])).round(decimals=2)
    tensor([[ 3., -2.]])
    """

    contract = Contract("", "relevance", "f - f'", "up to the fit, where every entry is a feature of its own")
    needs = ("captum.attr", "sklearn")

    def _sampled(
        self,
        explainer: Any,
        passes: Passes,
        ends: list[Tensor],
        labels: list[Tensor],
        features: int,
        options: Mapping[str, Any],
    ) -> list[Tensor | None]:
        if features < 2:
            raise InputError("KernelShap needs two features at least, to share the output among.")

        def one(inputs: Any, ends: Any, labels: Any, **arguments: Any) -> list[Tensor | None]:
            single = Passes(
                batched(inputs, "KernelShap"),
                arguments["target"],
                arguments.get("additional_forward_args"),
                {"forward_kwargs": arguments["forward_kwargs"]},
                internal_batch_size=passes.internal_batch_size,
                draws=passes.draws,
            )
            return super(KernelShap, self)._sampled(explainer, single, ends, labels, features, options)

        each = replace(
            passes,
            options={**passes.options, "ends": ends, "labels": labels},
            per_sample=("ends", "labels"),
            internal_batch_size=1,
        )
        (found,) = each.over(one, [passes.given.tensors], 1)
        return list(found)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Give the global generators, from which Captum draws, a seed, and their state back afterwards."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield
