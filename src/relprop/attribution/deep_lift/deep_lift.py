"""DeepLIFT: how the output differs from what it is for a baseline, and which inputs account for that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from relprop.arguments import bar, takes
from relprop.attribution.base import Attribution
from relprop.attribution.baselines import as_baselines, as_distribution
from relprop.attribution.contract import Contract, Method
from relprop.attribution.deep_lift.table import Differences
from relprop.attribution.deep_lift.two_runs import PairedCall
from relprop.attribution.options import Options, maps_and_delta
from relprop.errors import InputError, NumericalError
from relprop.inputs import Given, as_inputs
from relprop.operations.table import operations
from relprop.propagation.call.call import Call
from relprop.propagation.call.current import foremost
from relprop.propagation.call.options import Options as CallOptions
from relprop.propagation.call.way import Autograd
from relprop.propagation.facts.operation import Derived
from relprop.propagation.run.explained_output import Reading
from relprop.propagation.run.forward import ChannelMask, Forward, forward
from relprop.targets import Target

if TYPE_CHECKING:
    from typing_extensions import Unpack

_DIFFERENCES = Derived(Differences)
DifferenceRule = Literal["rescale", "reveal_cancel"]
_WHERE = "ReLU, pooling, products, softmax and all else that has a rule"


class DeepLift(Method, name="deep_lift"):
    """Shares of the difference from a baseline: ``R_i = m_i (x_i - x'_i)``.

    Definition: multipliers ``m`` go back from the output by the chain rule, each with ``dy = m dx`` for the differences
    ``dx = x - x'`` from the baseline. Linear maps: ``m = w``. Elementwise functions: by Rescale ``m = dy / dx``, the
    derivative where ``dx`` vanishes. By RevealCancel, behind a linear map (and what is linear between the two: a sum,
    batch norm, an average), ``dz = dz+ + dz-``, its positive and its negative terms, have multipliers of their own,
    ``dy+ / dz+`` and ``dy- / dz-``, where
    ``dy+ = (f(z' + dz+) - f(z') + f(z) - f(z' + dz-)) / 2`` and likewise ``dy-``. Max pooling: the whole difference to
    one entry, the largest now if the maximum grew, else the largest of before; of several, the one that is larger in
    the other pass, and where they tie in both, equally. Products: ``dx (y + y') / 2 + dy (x + x') / 2``. Softmax
    ``p = exp(x - L)``: ``dp_i = w_i (dx_i - sum_j w_j dx_j / sum_j w_j)``, with the logarithmic means ``w`` of ``p``
    and ``p'``. Normalisations and norms: by these, step by step.
    Conserves: ``sum R = f(x) - f(x')`` exactly, whatever the baseline. What has no rule is named in a warning; its
    gradient stands in for a multiplier.

    Args:
        model: any ``nn.Module``. For both inputs it must call the same functions in the same order.
        rule: ``"rescale"`` or ``"reveal_cancel"``.
        strict: what has no rule is an error.

    Raises:
        InputError: for another ``rule``.
    Source: Shrikumar et al. 2017 (arXiv:1704.02685).

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.ReLU())
    >>> _ = model[0].weight.data.copy_(torch.tensor([[3.0, -1.0]])), model[0].bias.data.fill_(-1.0)
    >>> x, baseline = torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 1.0]])
    >>> DeepLift(model).attribute(x, baseline)
    tensor([[1., 0.]])
    """

    contract = Contract("1", "relevance", "f - f'", _WHERE)
    per_sample = ("baselines",)

    def __init__(self, model: nn.Module, rule: DifferenceRule = "rescale", *, strict: bool = False) -> None:
        super().__init__(model)
        if rule not in get_args(DifferenceRule):
            raise InputError(f"rule must be one of {get_args(DifferenceRule)}, got {rule!r}.")
        self.rule, self.strict = rule, strict

    @maps_and_delta
    def attribute(
        self,
        inputs: Any,
        baselines: Any = None,
        target: Target = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        **options: Unpack[Options],
    ) -> Any:
        """Return the attribution of every input.

        Args:
            inputs: a tensor ``[N, ...]`` or a tuple of them, or a structure (see :meth:`Attribution.attribute`). Token
                ids are explained at their embeddings, against those of the baseline's ids.
            baselines: x': None (zero), a number, a tensor ``[N, ...]`` or ``[1, ...]``; for several inputs a tuple with
                one of these for each, or a structure like theirs.
            target, additional_forward_args, options: see :meth:`Attribution.attribute`; what is not explained is the
                same for both.
            return_convergence_delta: also return ``delta = f(x) - f(x') - sum R``, ``[N]``: Captum's with the other
                sign.

        Returns:
            a tensor or a tuple of tensors, of the structure, shapes, dtypes and device of ``inputs``; with
            ``return_convergence_delta`` a pair of that and delta.

        Raises:
            InputError: for baselines of another shape.
            ModelError: where the model goes another way for the baselines than for the inputs.
            NumericalError: where a multiplier is NaN or infinite.
            UncoveredOperationError: with ``strict``, for a function that has no rule.
            RelpropError: what every method raises.

        Warns:
            UncoveredOperationWarning: for a function that has no rule.
        """
        return self._against(inputs, baselines).attribute(
            inputs,
            target,
            additional_forward_args,
            return_convergence_delta=return_convergence_delta,
            **options,
        )

    @takes
    def attribute_layers(
        self,
        inputs: Any,
        layers: str | Sequence[str],
        baselines: Any = None,
        target: Target = None,
        additional_forward_args: Any = None,
        **options: Unpack[Options],
    ) -> dict[str, Tensor | Any]:
        """Return the attribution ``m (a - a')`` of the outputs of named modules, all from one backward.

        Args:
            inputs, baselines, target, additional_forward_args, options: see :meth:`attribute`.
            layers: see :meth:`Attribution.attribute_layers`.

        Returns:
            as :meth:`Attribution.attribute_layers`.

        Raises:
            RelpropError: as :meth:`attribute` and :meth:`Attribution.attribute_layers`.
        """
        against = self._against(inputs, baselines)
        return against.attribute_layers(inputs, layers, target, additional_forward_args, **options)

    def _against(self, inputs: Any, baselines: Any) -> _Against:
        return _Against(self.model, as_baselines(as_inputs(inputs), baselines), self.rule, self.strict)


class _Against(Attribution):
    """The multipliers against one baseline for every sample."""

    contract = DeepLift.contract

    def __init__(self, model: nn.Module, baselines: Sequence[Tensor], rule: str, strict: bool) -> None:
        super().__init__(model)
        self.baselines = tuple(baselines)
        self.rule, self.strict = rule, strict

    def make_call(self, **options: Any) -> PairedCall:
        reveal = self.rule == "reveal_cancel"
        rows = operations()
        asked = CallOptions(strict=self.strict, **options)
        return PairedCall(self.model, Autograd(_DIFFERENCES(rows)), rows, asked, reveal=reveal)

    def forward(
        self,
        call: Call,
        inputs: Given,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        targets: Sequence[Reading],
        layers: Sequence[str],
        condition: Mapping[str, ChannelMask],
    ) -> Forward:
        own, reference = cast(PairedCall, call), self.make_call(create_graph=call.options.create_graph)
        own.follow(reference)
        # Each input is a tensor of its own, though one tensor may be given for two: its baseline is found by it.
        values = replace(inputs, tensors=tuple(x.view_as(x) for x in inputs.tensors))
        others = replace(inputs, tensors=self.baselines)
        devices = {x.get_device() for x in inputs.tensors if x.is_cuda}
        with foremost(reference), torch.random.fork_rng(devices):  # both passes draw the same dropout
            before = forward(reference, others, args, kwargs, targets, layers)
        passed = forward(call, values, args, kwargs, targets, layers, condition)
        own.finish(before, passed)
        return passed

    def result(self, call: Call, x: Tensor, c: Tensor) -> Tensor:
        found = (x - cast(PairedCall, call).counterpart(x)) * c
        if not bool(torch.isfinite(found.detach()).all()):
            raise NumericalError(
                "The multipliers are NaN or infinite: for the inputs or for the baselines the model divides by zero, "
                "or its numbers overflow. Choose other baselines, or a wider dtype."
            )
        return found


class DeepLiftShap(Method, name="deep_lift_shap"):
    """DeepLIFT against several baselines, averaged: an estimate of Shapley values.

    Definition: the mean over the baselines of :class:`DeepLift`.
    Conserves: ``sum R = f(x) - mean f(x')``, as :class:`DeepLift` does.

    Args:
        model, rule, strict: see :class:`DeepLift`.

    Raises:
        InputError: as :class:`DeepLift`.
    Source: Lundberg and Lee 2017 (arXiv:1705.07874).

    >>> import torch
    >>> model = torch.nn.Linear(2, 1)
    >>> _ = model.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    >>> x, baselines = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    >>> DeepLiftShap(model).attribute(x, baselines)
    tensor([[ 1.5000, -1.0000]])
    """

    contract = Contract("1", "relevance", "f - f'", _WHERE)

    def __init__(self, model: nn.Module, rule: DifferenceRule = "rescale", *, strict: bool = False) -> None:
        super().__init__(model)
        self._single = DeepLift(model, rule, strict=strict)
        self.rule, self.strict = rule, strict

    @maps_and_delta
    def attribute(
        self,
        inputs: Any,
        baselines: Any,
        target: Target = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        *,
        progress: bool = False,
        **options: Unpack[Options],
    ) -> Any:
        """Return the attribution of every input.

        Args:
            inputs: a tensor ``[N, ...]`` or a tuple of them.
            baselines: a tensor ``[M, ...]`` of M baselines, each for all samples; for several inputs a tuple with one
                for each, of the same M.
            target, additional_forward_args, options: see :meth:`Attribution.attribute`.
            return_convergence_delta: also return ``delta = f(x) - mean f(x') - sum R``, ``[N]``. (Captum returns one
                for every sample and baseline, with the other sign.)
            progress: show a progress bar over the baselines, by tqdm.

        Returns:
            as :meth:`DeepLift.attribute`.

        Raises:
            MissingExtraError: ``progress=True`` without tqdm.
            RelpropError: as :meth:`DeepLift.attribute`.
        """
        given = as_inputs(inputs)
        if given.samples is None:
            raise InputError("DeepLiftShap takes tensors [N, ...] or a tuple of them, and no inputs in a structure.")
        pool = as_distribution(given, baselines)
        count = len(pool[0])
        maps: list[Tensor] = []
        deltas: Tensor | float = 0.0
        for index in bar(range(count), progress, total=count):
            found = self._single.attribute(
                inputs,
                given.packed([base[index : index + 1] for base in pool]),
                target,
                additional_forward_args,
                return_convergence_delta,
                **options,
            )
            if return_convergence_delta:
                found, delta = found
                deltas = deltas + delta / count
            shares = [part / count for part in given.aligned(found, "The attribution")]
            maps = [total + part for total, part in zip(maps, shares, strict=True)] if maps else shares
        packed = given.packed(maps)
        return (packed, deltas) if return_convergence_delta else packed
