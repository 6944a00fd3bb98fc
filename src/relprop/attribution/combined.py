"""Several methods' maps in one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from relprop.attribution.contract import Contract, Method
from relprop.attribution.options import maps_and_delta
from relprop.attribution.passes import weighted_sum
from relprop.attribution.wrapper import as_method, check_options
from relprop.errors import InputError, MethodError
from relprop.targets import Target


class Combined(Method, name="combined"):
    """The weighted sum of several methods' maps.

    Definition: ``R = sum_m w_m R_m``; for LRP at several gammas, ``Combined([(LRP(model, Gamma(g)), 1 / 3) for g in
    (0.1, 0.25, 1.0)])``.
    Conserves: what all the methods claim, where the weights sum to 1.

    Args:
        methods: methods of one model, or pairs of a method and its weight. They must all return coefficients, or all
            relevance.
        weights: one for every method, where ``methods`` holds no pairs; by default the mean is taken.

    Raises:
        MethodError: where there is no method, something else than one, one of another model, or coefficients beside
            relevance.
        InputError: where weights are no finite numbers, or not as many as methods.
    Source: relprop's own, a weighted sum.

    >>> import torch
    >>> from relprop import LRP
    >>> from relprop.rules import Gamma
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> several = Combined([(LRP(model, Gamma(0.1)), 0.5), (LRP(model, Gamma(1.0)), 0.5)])
    >>> several.attribute(torch.randn(5, 3), target=1).shape
    torch.Size([5, 3])
    """

    def __init__(
        self, methods: Sequence[Method | tuple[Method, float]], weights: Sequence[float] | None = None
    ) -> None:
        if isinstance(methods, Method) or not isinstance(methods, (tuple, list)) or not methods:
            raise MethodError(f"Combined takes a list of methods, or of pairs (method, weight); got {methods!r}.")
        self.methods, self.weights = _split(methods, weights)
        super().__init__(self.methods[0].model)
        if any(method.model is not self.model for method in self.methods):
            raise MethodError("Combined takes methods of one model; these explain different ones.")
        self.contract = _contract(self.methods, self.weights)
        self.takes_seed = all(method.takes_seed for method in self.methods)
        self.per_sample = tuple({name: None for method in self.methods for name in method.per_sample})

    def _no_claim(self) -> str:
        if abs(sum(self.weights) - 1) > 1e-9:
            return f" (its weights sum to {sum(self.weights):g}, not to 1)"
        claims = (f"{type(m).__name__} to {m.contract.sums_to or 'nothing'}" for m in self.methods)
        return f" (its methods claim different sums: {', '.join(claims)})"

    @maps_and_delta  # type: ignore[arg-type]  # of options that may have any name
    def attribute(
        self,
        inputs: Any,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        return_convergence_delta: bool = False,
        **options: Any,
    ) -> Any:
        """Return the weighted sum of the methods' maps.

        Args:
            inputs, target, additional_forward_args: as those of the methods.
            return_convergence_delta: also return the weighted sum of the deltas, which is ``f - sum R``, or
                ``f - f' - sum R``.
            options: further arguments of every method's ``attribute``, a seed among them.

        Returns:
            what the methods return, of the same structure and shapes.

        Raises:
            InputError: where a delta is asked for and no sum is claimed.
            InputTypeError: for an option that not all the methods take.
            RelpropError: what the methods raise.
        """
        check_options(self.methods, options, "Combined")
        if return_convergence_delta:
            self.require_completeness()
            options["return_convergence_delta"] = True
        if additional_forward_args is not None:
            options["additional_forward_args"] = additional_forward_args
        found = (method.attribute(inputs, target=target, **options) for method in self.methods)
        return weighted_sum(found, self.weights)


def _split(methods: Sequence[Any], weights: Any) -> tuple[tuple[Method, ...], tuple[float, ...]]:
    pairs = [item for item in methods if isinstance(item, (tuple, list)) and len(item) == 2]
    if pairs and len(pairs) != len(methods):
        raise MethodError("Combined takes a list of methods, or of pairs (method, weight), and not both.")
    if pairs and weights is not None:
        raise InputError("Give the weights in pairs with the methods or as `weights`, not both.")
    chosen = tuple(as_method(item, "Combined") for item in ([pair[0] for pair in pairs] or methods))
    found = [pair[1] for pair in pairs] or ([1 / len(chosen)] * len(chosen) if weights is None else list(weights))
    if len(found) != len(chosen):
        raise InputError(f"There are {len(found)} weights for {len(chosen)} methods.")
    for weight in found:
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not abs(weight) < float("inf"):
            raise InputError(f"A weight must be a finite number, got {weight!r}.")
    return chosen, tuple(map(float, found))


def _contract(methods: Sequence[Method], weights: Sequence[float]) -> Contract:
    contracts = [method.contract for method in methods]
    first = contracts[0]
    if any(contract.output != first.output for contract in contracts):
        kinds = ", ".join(f"{type(m).__name__} returns a {m.contract.output}" for m in methods)
        raise MethodError(f"A coefficient and a relevance cannot be added: {kinds}. Combine methods of one kind.")
    seed = first.seed if all(contract.seed == first.seed for contract in contracts) else ""
    claimed = first.sums_to if all(contract.sums_to == first.sums_to for contract in contracts) else ""
    if abs(sum(weights) - 1) > 1e-9 or not claimed:
        return Contract(seed, first.output)
    conditions = "; and ".join(dict.fromkeys(contract.conditions for contract in contracts))
    return Contract(seed, first.output, claimed, conditions)
