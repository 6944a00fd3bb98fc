"""Maps that explain nothing, to compare explanations with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from relprop.attribution.base import Attribution
from relprop.attribution.contract import Contract
from relprop.propagation.call.call import Call
from relprop.randomness import draws


class Input(Attribution, name="input"):
    """The input itself: an explanation must show more than that.

    Definition: ``R = x``. For token ids it is the sum over the features of their embedding, and for layers
    (``attribute_layers``) the activation. The forward and the backward run all the same, to find these, and what the
    output does not depend on, which is the error that it is for every method.
    Conserves: nothing; there is no delta.

    Args:
        model: any ``nn.Module``.
    Source: Alber et al. 2019, iNNvestigate (arXiv:1808.04260).

    >>> import torch
    >>> Input(torch.nn.Linear(2, 1)).attribute(torch.tensor([[1.0, 2.0]]))
    tensor([[1., 2.]])
    """

    contract = Contract("", "relevance")

    def result(self, call: Call, x: Tensor, c: Tensor) -> Tensor:
        return x


class Random(Attribution, name="random"):
    """Gaussian noise, whatever the model and the input: what chance would show.

    Definition: ``R ~ N(0, 1)``, of mean 0 and standard deviation 1, drawn anew at every call, in single precision. The
    forward and the backward run all the same: what the output does not depend on is the error that it is for every
    method.
    Conserves: nothing; there is no delta.

    Args:
        model: any ``nn.Module``.
        seed: what the numbers are drawn from, on the CPU: the same seed gives the same maps in the same order, on every
            device and in every dtype. None is 0.
        generator: a generator of your own in the place of ``seed``, which moves on.

    Raises:
        InputError: where both are given, or the seed is out of range.
        InputTypeError: for a seed that is no integer, and a generator that is none.
    Source: Alber et al. 2019, iNNvestigate (arXiv:1808.04260), whose ``random`` adds the input.

    >>> import torch
    >>> x = torch.ones(2, 3)
    >>> first, second = (Random(torch.nn.Linear(3, 1), seed=1).attribute(x) for _ in range(2))
    >>> first.shape, torch.equal(first, second)
    (torch.Size([2, 3]), True)
    """

    contract = Contract("", "relevance")

    def __init__(self, model: nn.Module, seed: int | None = None, *, generator: torch.Generator | None = None) -> None:
        super().__init__(model)
        self._draws = draws(seed, generator)

    def result(self, call: Call, x: Tensor, c: Tensor) -> Tensor:
        return self._draws.normal(x)
