"""What is known of the tensors of one call, and how a tensor comes by what is known of another."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from relprop.propagation.facts.exponentials import Formulas
from relprop.propagation.facts.fills import Fills
from relprop.propagation.facts.graph import Graph
from relprop.propagation.facts.origins import Origins
from relprop.propagation.facts.products import Products
from relprop.propagation.facts.protection import Protected
from relprop.propagation.facts.saved import CopyOnWrite
from relprop.propagation.facts.token_ids import Tokens


class Known:
    """What is known of the tensors of one call.

    What the output of an operation keeps says its row. What is the same tensor once more, or is written over, goes
    through the methods below, so that nothing known is forgotten on the way, or stays where it is true no more.

    Attributes:
        protected: what the model owns.
        graph: what depends on the explained input.
        origins: where tensors came from: bounds, gates, factors, masks.
        saving: what autograd saved, cloned before it is written over.
        formulas: how tensors were computed from the argument of an exponential.
        fills: what was written over by constants.
        products: what was multiplied by constants, entry by entry.
        tokens: where the token ids of explained inputs are.
    """

    def __init__(self, model: nn.Module, is_input: Callable[[Protected, Tensor], bool] | None = None) -> None:
        protected = self.protected = Protected(model)
        self.graph = Graph(None if is_input is None else lambda leaf: is_input(protected, leaf))
        self.origins = Origins()
        self.saving = CopyOnWrite()
        self.formulas = Formulas(self.saving)
        self.fills = Fills()
        self.products = Products()
        self.tokens: list[Tokens] = []

    def copies(self, new: Tensor, old: Tensor) -> None:
        """Note that a tensor is another once more: all that is known of that one is known of it."""
        self.stands_for(new, old)
        self.formulas.note(new, self.formulas.of(old))
        factors = self.products.of(old)
        if factors is not None:
            self.products.note(new, *factors)

    def stands_for(self, new: Tensor, old: Tensor) -> None:
        """Note that a tensor has the values of another, and must be gone through: no formula leads past it."""
        self.graph.reach(new)
        self.origins.note(new, self.origins.of(old))

    def before_write(self, tensor: Tensor) -> None:
        """Clone what was saved from a tensor's memory, before somebody writes into it."""
        self.saving.before_write(tensor)
        self.formulas.before_write(tensor)

    def write(self, target: Tensor, value: Tensor) -> None:
        """Write a value over a whole tensor: from then on that is what is known of the value."""
        origin, formula = self.origins.of(value), self.formulas.of(value)
        self.before_write(target)
        target.copy_(value)
        self.origins.note(target, origin)
        self.formulas.note(target, formula)
        self.graph.overwrite(target, value)
        self.graph.reach(target)

    def forget_forward(self) -> None:
        """Let go of what only the forward needed."""
        self.graph.clear()
        self.origins.clear()
        self.formulas.clear()
        self.fills.clear()
        self.products.clear()

    def forget(self) -> None:
        """Let go of everything."""
        self.forget_forward()
        self.saving.clear()
        self.protected.clear()
        for tokens in self.tokens:
            tokens.clear()
