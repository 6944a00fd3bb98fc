"""`Rules.attach`: the user's own forward passes build graphs that explain."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType

from torch import nn

from relprop.errors import RuleError
from relprop.inputs import eager, unwrapped
from relprop.operations.table import operations
from relprop.presence import Presence
from relprop.propagation.call.call import Call
from relprop.propagation.call.current import foremost
from relprop.propagation.call.options import Options
from relprop.propagation.facts.protection import Attributes
from relprop.propagation.run.function_mode import RelevanceMode, remove_modes_left
from relprop.propagation.run.module_hooks import ModuleHooks
from relprop.rules.selection import Selection


class Attached:
    """A context in which forward passes of a model build graphs whose gradients are coefficients.

    Every leaf that asks for a gradient and is no parameter is an explained input ``x``; the gradient ``c`` of an output
    by it gives the relevance ``R = x c``. The graphs go on to explain after the block, until :meth:`finish`; after that
    they differentiate truly, also by the parameters. The target is not known while the graph is built, so that with
    rules that reach zeros (zB, w^2, flat) all sums share equally, and not only those below such a layer.

    Args:
        selection: which rule goes where in the model, as :meth:`Rules.attach` gives it.
        model: what runs inside.

    Raises:
        RuleError: for a rule at ``last``; when the block ends, for an entry that served nothing.

    >>> import torch; from relprop import Rules
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
    >>> x = torch.randn(4, 3, requires_grad=True)
    >>> with Rules.preset("epsilon").attach(model) as attached:
    ...     output = model(x)
    >>> (c,) = torch.autograd.grad(output.sum(), x)
    >>> attached.finish()
    >>> (x * c).shape
    torch.Size([4, 3])
    """

    def __init__(self, selection: Selection, model: nn.Module) -> None:
        self._selection = selection
        if self._selection.last is not None:
            raise RuleError(
                "attach cannot resolve the rule for the last layer: the target is not known while the graph is built. "
                "Set it by the layer's name, or use LRP(model, rules)."
            )
        self._model = unwrapped(model)
        self._call = Call(self._model, self._selection, operations(), Options(create_graph=True, open_ended=True))
        self._stack, self._presence = ExitStack(), Presence()

    def __enter__(self) -> Attached:
        remove_modes_left()
        presence = self._presence = Presence()
        try:
            with ExitStack() as stack:
                stack.enter_context(Attributes(self._model, presence))
                stack.enter_context(ModuleHooks(self._model, self._call, presence))
                stack.enter_context(eager())
                stack.enter_context(foremost(self._call, presence))
                stack.enter_context(RelevanceMode(self._call, presence))
                self._stack = stack.pop_all()
        except BaseException:
            presence.over = True
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._stack.close()
        finally:
            self._presence.over = True
        if error is not None:
            self.finish()
            return
        self._call.forget_forward()
        # Each holds the call: now the graphs alone keep anything, and die with the outputs.
        self._call.linear_calls.clear()
        self._selection.verify(self._call.trace.called)

    def finish(self) -> None:
        """Let the graphs built inside differentiate truly from here on; nothing of the call is kept."""
        self._call.close()
