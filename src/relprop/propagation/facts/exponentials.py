"""How tensors were computed from the argument of an exponential: so a softmax is known that was written by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from relprop.propagation.facts.operation import Image
from relprop.propagation.facts.saved import CopyOnWrite, storage_key
from relprop.trees import map_tensors, tensors_in

Compute = Callable[[Tensor], Tensor]


class Form(Enum):
    """What a formula gives, for the argument z."""

    SHIFTED = "z less something"
    IMAGE = "an image of exp(z): entries, sums, views, multiples"
    INVERSE = "1 over an image"
    LOGARITHM = "the logarithm of an image"
    LOG_PROBABILITY = "z less the logarithm of an image"


@dataclass
class Argument:
    """The argument of exponentials: a tensor of the model, true as long as its version is ``version``."""

    tensor: Tensor
    version: int

    @property
    def unchanged(self) -> bool:
        return self.tensor._version == self.version


@dataclass(frozen=True)
class Formula:
    """How a tensor was computed.

    Attributes:
        argument: from what.
        kind: what it is of that.
        compute: from the argument to the tensor, by the functions that the model called.
        summed: entries were summed on the way.
    """

    argument: Argument
    kind: Form
    compute: Compute
    summed: bool = False


_IMAGES = (Image.SUMS, Image.KEEPS, Image.DIVIDES)


class Formulas:
    """The formulas of the tensors of one call, held as long as the tensors live."""

    def __init__(self, saving: CopyOnWrite) -> None:
        self._saving = saving
        self._known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    @property
    def exist(self) -> bool:
        """Say whether there is one at all."""
        return bool(self._known)

    def of(self, x: Any) -> Formula | None:
        """Return how a tensor was computed, if it and what it was computed from still are what they were."""
        version, formula = self._known.get(x, (0, None)) if isinstance(x, Tensor) else (0, None)
        return formula if formula is not None and version == x._version and formula.argument.unchanged else None

    def note(self, x: Tensor, formula: Formula | None) -> None:
        """Remember how the tensor, as it is now, was computed."""
        if formula is not None:
            self._known[x] = x._version, formula

    def begin(self, x: Tensor) -> Argument:
        """Return a tensor as an argument, the same one for all that is computed from it."""
        for _, formula in self._known.values():
            if formula.argument.tensor is x and formula.argument.unchanged:
                return formula.argument  # type: ignore[no-any-return]
        return Argument(x, x._version)

    def before_write(self, x: Tensor) -> None:
        """Keep the values of a tensor that is an argument, before the model writes into it."""
        for argument in {id(formula.argument): formula.argument for _, formula in self._known.values()}.values():
            if argument.unchanged and storage_key(argument.tensor) == storage_key(x):
                argument.tensor = x.clone()
                argument.version = argument.tensor._version

    def clear(self) -> None:
        self._known = WeakTensorKeyDictionary()

    # Following the calls of a model -----------------------------------------------------------------

    def follow(
        self,
        does: Image,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        active: list[Tensor],
        out: Tensor,
    ) -> None:
        """Remember how the output of a call was computed, where its arguments came from an exponential.

        Args:
            does: what the operation makes of an image.
            active: the arguments that depend on the input.
        """
        moves = does is Image.MOVES
        if does is Image.SUBTRACTS and not kwargs and len(active) == 2:
            self.note(out, self._difference(*args))
            return
        source = args[0] if moves and args else active[0]  # of other arguments a view takes the shape
        formula = self.of(source) if moves or len(active) == 1 else None
        if formula is None:
            return
        kind, image = formula.kind, formula.kind is Form.IMAGE
        if image and does is Image.LOGARITHM:
            kind = Form.LOGARITHM
        elif image and (does is Image.INVERTS or (does is Image.DIVIDES and args[0] is not source)):
            kind = Form.INVERSE
        elif not (moves or (image and does in _IMAGES)):
            return
        compute = self._again(func, args, kwargs, source, formula.compute)
        self.note(out, Formula(formula.argument, kind, compute, formula.summed or does is Image.SUMS))

    def shift(self, out: Tensor, x: Tensor, other: Any) -> None:
        """Remember that ``out = x - other``."""
        self.note(out, Formula(self.begin(x), Form.SHIFTED, self._again(torch.sub, (x, other), {}, x, lambda z: z)))

    def _difference(self, first: Any, second: Any) -> Formula | None:
        """Return ``z`` less a logarithm of an image of ``exp(z)``."""
        formula = self.of(second)
        if formula is None or formula.kind is not Form.LOGARITHM:
            return None
        logarithm, shifted = formula.compute, self.of(first)
        if formula.argument.tensor is first:
            return Formula(formula.argument, Form.LOG_PROBABILITY, lambda z: z - logarithm(z), formula.summed)
        if shifted is None or shifted.kind is not Form.SHIFTED or shifted.argument is not formula.argument:
            return None
        inner = shifted.compute
        return Formula(formula.argument, Form.LOG_PROBABILITY, lambda z: inner(z) - logarithm(z), formula.summed)

    def _again(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], active: Tensor, inner: Compute
    ) -> Compute:
        """Return a call as a function of the argument; the constants in it stay what they were."""
        held = [None if x is active else self._saving.save(x) for x in tensors_in((args, kwargs))]

        def compute(z: Tensor) -> Tensor:
            left, value = iter(held), inner(z)

            def given(_: Tensor) -> Tensor:
                saved = next(left)
                return value if saved is None else saved.tensor

            again: tuple[Any, Any] = map_tensors(given, (args, kwargs))
            return func(*again[0], **again[1])  # type: ignore[no-any-return]

        return compute
