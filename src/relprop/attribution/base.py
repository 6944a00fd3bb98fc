"""The one pipeline: rules, one forward, one backward, and what each method makes of the coefficient."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor

from relprop.arguments import takes
from relprop.attribution.contract import Method
from relprop.attribution.options import Condition, ForwardOptions, Options, maps, maps_and_delta
from relprop.conservation import ConservationReport, make_report, name_stabilizers
from relprop.errors import InputError, MethodError, ModelError, NumericalError, TargetError, TargetTypeError
from relprop.inputs import Given, as_args, as_condition, as_inputs, as_kwargs, as_layers, grad_mode, is_tiny
from relprop.operations.table import operations
from relprop.presence import Presence
from relprop.propagation.call.call import Call
from relprop.propagation.call.current import foremost
from relprop.propagation.call.options import Options as CallOptions
from relprop.propagation.call.way import Autograd, Way
from relprop.propagation.facts.operation import Table
from relprop.propagation.run.explained_output import Reading
from relprop.propagation.run.forward import ChannelMask, Forward, forward
from relprop.rules.universal import channel_mask
from relprop.targets import Target, reading
from relprop.training import attribution_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")


class Attribution(Method):
    """A method of one forward and one backward. See the methods below for arguments shared by all.

    Nothing of the model is ever written: no parameter, buffer, attribute or flag, whatever happens.

    >>> from relprop import Contract
    >>> class SquareTimesGradient(Attribution):
    ...     '''``x^2 df/dx``.'''
    ...     contract = Contract("1", "relevance")
    ...     def result(self, call, x, c):
    ...         return x.square() * c
    >>> model = torch.nn.Linear(2, 1)
    >>> _ = model.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    >>> SquareTimesGradient(model).attribute(torch.tensor([[1.0, 2.0]]))
    tensor([[ 3., -4.]])
    """

    # What a method is --------------------------------------------------------------------------

    def way(self, table: Table | None = None) -> Way:
        """Return how the method passes through a model in one call: as autograd does.

        Args:
            table: the rows that it runs, where these are not those of the rules.
        """
        return Autograd(table)

    @abstractmethod
    def result(self, call: Call, x: Tensor, c: Tensor) -> Tensor:
        """Return the attribution of an input ``x`` from its coefficient ``c``."""

    def seed(self, output: Tensor) -> Tensor:
        """Return the coefficient of the explained output ``[N]`` with which the backward begins, ``[N]``.

        Of 1, the relevance that arrives is the output itself in methods whose relevance is the input times its
        coefficient, as LRP's is; of ``1 / output`` it is 1.
        """
        return torch.ones_like(output)

    def make_call(self, *, table: Table | None = None, **options: Any) -> Call:
        """Return the state of one call.

        Args:
            table: rows of operations that this method runs otherwise, by function; all others are as autograd has them,
                or as the rules.
            options: see :class:`relprop.propagation.call.options.Options`.
        """
        return Call(self.model, self.way(table), operations(), CallOptions(**options))

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
        """Run the forward pass: see :func:`relprop.propagation.run.forward.forward`."""
        return forward(call, inputs, args, kwargs, targets, layers, condition)

    def after_forward(self, passed: Forward) -> None:  # most methods have nothing to look at
        """Look at a forward pass before its backward runs."""

    # What users call ---------------------------------------------------------------------------

    @maps_and_delta
    def attribute(
        self,
        inputs: Any,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        return_convergence_delta: bool = False,
        **options: Unpack[Options],
    ) -> Any:
        """Return the attribution of every input.

        Args:
            inputs: a tensor ``[N, ...]`` or a tuple of them. Integers (token ids) are explained at the output of the
                embedding that consumes them, summed over its features: ``[N, T]``. Or a structure that the model
                takes as one argument: a mapping, a dataclass, lists and tuples of such; :class:`relprop.Keywords`
                for what it takes by keyword. Its tensors need have no batch in common (nodes and edges of a graph):
                the rows of the output count as samples, and delta is one number for all, ``[1]``, unless all tensors of
                the structure have as many. What is not explained (integers no embedding consumes, bools, masks of
                infinities, tensors without influence) is None in the result.
            target: which output to explain: None (one output per sample), an int, a tensor with one or N integers, a
                list of ints, a tuple (an index into outputs of more dimensions), a list of tuples, a callable that
                receives what the model returned and gives ``[N]``, or a hidden unit (see :class:`relprop.Unit`).
            additional_forward_args: further positional arguments of the model, not explained.
            return_convergence_delta: also return ``delta = f - sum R``, ``[N]``; only for methods that claim a sum.
            options: see :class:`relprop.attribution.options.Options`.

        Returns:
            a tensor or a tuple of tensors, of the structure, shapes, dtypes and device of ``inputs``; with
            ``return_convergence_delta`` a pair of that and delta.

        Raises:
            RelpropError: see :mod:`relprop.errors`.
        """
        given = as_inputs(inputs)

        def read(passed: Forward) -> tuple[list[Tensor | None], Tensor]:
            return self._maps(passed, 0), passed.explained(0)

        found, explained = self._run(read, given, [target], additional_forward_args, **options)
        packed = given.packed(found)
        if not return_convergence_delta:
            return packed
        return packed, convergence_delta(explained if options["create_graph"] else explained.detach(), found, given)

    @takes
    def attribute_layers(
        self,
        inputs: Any,
        layers: str | Sequence[str],
        target: Target = None,
        additional_forward_args: Any = None,
        **options: Unpack[Options],
    ) -> dict[str, Tensor | Any]:
        """Return the attribution of the outputs of named modules, all from one backward.

        Args:
            inputs, target, additional_forward_args, options: see :meth:`attribute`.
            layers: the dotted name of a module of the model, or a list of them.

        Returns:
            by name, a tensor of the shape of the module's output (the first tensor, where it returns several); a
            tuple in call order for a module that is used more than once. Where the target does not depend on a layer
            (it lies above a unit, or in another branch) its relevance is zero.

        Raises:
            InputError: where the model has no such module, or it is not called, or what it returns does not depend on
                the input.
            InputTypeError: for what is no name.
            RelpropError: see :mod:`relprop.errors`.

        >>> from relprop import LRP
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> maps = LRP(model).attribute_layers(torch.randn(5, 3), ["0", "1"], target=1)
        >>> {name: found.shape for name, found in maps.items()}
        {'0': torch.Size([5, 4]), '1': torch.Size([5, 4])}
        """
        given = as_inputs(inputs)
        names = as_layers(self.model, layers)

        def read(passed: Forward) -> dict[str, tuple[Tensor, ...]]:
            maps = passed.layer_maps(0, partial(self._result, passed.call))
            for name in names:
                if name not in maps:
                    raise InputError(f"Module {name!r} was not called in this forward pass.")
                _check_found(passed.call, maps[name])
            return maps

        maps = self._run(read, given, [target], additional_forward_args, names, **options)
        return {name: maps[name][0] if len(maps[name]) == 1 else maps[name] for name in names}

    @maps
    def attribute_targets(
        self,
        inputs: Any,
        targets: Sequence[Target],
        additional_forward_args: Any = None,
        **options: Unpack[Options],
    ) -> Any:
        """Return the attributions of several targets from one forward and T backwards.

        Args:
            inputs, additional_forward_args, options: see :meth:`attribute`.
            targets: a list of T targets, each as :meth:`attribute` takes it.

        Returns:
            ``[T, N, ...]``, in the structure of ``inputs``.

        Raises:
            TargetError: for an empty list.
            TargetTypeError: for what is no list.
            RelpropError: see :mod:`relprop.errors`.

        >>> from relprop import Gradient
        >>> Gradient(torch.nn.Linear(3, 4)).attribute_targets(torch.randn(5, 3), [0, 3]).shape
        torch.Size([2, 5, 3])
        """
        given = as_inputs(inputs)
        if not isinstance(targets, (list, tuple)):
            raise TargetTypeError(f"attribute_targets takes a list of targets, got {type(targets).__name__}.")
        chosen = list(targets)
        if not chosen:
            raise TargetError("No target was given; expected a list of targets.")

        def read(passed: Forward) -> list[list[Tensor | None]]:
            return [self._maps(passed, index, retain_graph=index < len(chosen) - 1) for index in range(len(chosen))]

        rows = self._run(read, given, chosen, additional_forward_args, **options)
        return given.packed([None if maps[0] is None else torch.stack(maps) for maps in zip(*rows, strict=True)])

    @takes
    def report(
        self,
        inputs: Any,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        condition: Condition = None,
        **options: Unpack[ForwardOptions],
    ) -> ConservationReport:
        """Return where the relevance went: see :class:`relprop.ConservationReport`.

        Args:
            inputs, target, additional_forward_args, condition: see :meth:`attribute`.
            options: see :class:`relprop.attribution.options.ForwardOptions`.

        Raises:
            InputError: where the method claims no sum.
            RelpropError: see :mod:`relprop.errors`.

        Warns:
            StabilizerWarning: where stabilizers took more than 1 % of the explained output.

        >>> from relprop import LRP; from relprop.rules import Zero
        >>> model = torch.nn.Linear(2, 1)
        >>> _ = model.weight.data.copy_(torch.tensor([[3.0, -1.0]])), model.bias.data.fill_(1.0)
        >>> print(LRP(model, Zero()).report(torch.tensor([[1.0, 2.0]])))
        module     call    rule    out  in  bias  unexplained
        ---------  ------  ------  ---  --  ----  -----------
        (model)    linear  Zero()    2   1     1            .
        f - sum R                    2   1     1            .
        """
        self.require_completeness()
        given = as_inputs(inputs)

        def read(passed: Forward) -> ConservationReport:
            found = self._maps(passed, 0)
            explained = passed.explained(0).detach().double()
            delta = convergence_delta(explained, found, given)
            explained = explained if delta.shape == explained.shape else explained.sum().reshape(1)
            arrived = explained - delta
            report = make_report(passed.call.trace.records, explained.cpu(), arrived.cpu())
            if not (passed.call.options.looking or math.isfinite(report.unexplained)):
                raise _NotFiniteError  # the map is, but not all that was dropped on the way
            name_stabilizers(report, float(explained.abs().sum()))
            return report

        return self._run(read, given, [target], additional_forward_args, condition=condition, measuring=True, **options)

    # The pipeline ------------------------------------------------------------------------------

    def _run(self, read: Callable[[Forward], T], inputs: Given, *given: Any, **options: Any) -> T:
        """Run the forward pass and return what is read from it; when that is done, nothing of the call is left.

        Where what was read is not finite, all is run once more: so that nothing arrives where no coefficient is, and
        with a look at every call, which raises at the first that makes infinity or NaN of finite numbers. So a GPU is
        asked for numbers once an attribution, however many calls there are.
        """
        try:
            return self._run_once(read, inputs, *given, **options)
        except _NotFiniteError:
            pass
        try:
            return self._run_once(read, inputs, *given, **options, looking=True)
        except _NotFiniteError as error:
            raise NumericalError(*error.args) from None

    def _run_once(
        self,
        read: Callable[[Forward], T],
        inputs: Given,
        targets: Sequence[Target],
        additional: Any,
        layers: Sequence[str] = (),
        *,
        forward_kwargs: Mapping[str, Any] | None,
        condition: Condition,
        **options: Any,
    ) -> T:
        masks = {
            name: partial(channel_mask, indices=units, where=f"condition at {name!r}")
            for name, units in as_condition(self.model, condition).items()
        }
        chosen = [reading(self.model, target, inputs.samples) for target in targets]
        call = self.make_call(**options)
        presence, recording = Presence(), torch.is_grad_enabled()
        try:
            with attribution_of(self.model), grad_mode(), foremost(call, presence):
                try:
                    passed = self.forward(
                        call, inputs, as_args(additional), as_kwargs(forward_kwargs), chosen, layers, masks
                    )
                    for output in passed.selected:
                        _check_output(call, output)
                    passed.seeds = [self._seed(output) for output in passed.selected]
                    self.after_forward(passed)
                    if len(inputs.tensors) > 1 or call.blocked:
                        passed.held = call.known.graph.held_roots()
                    call.forget_forward()
                    return read(passed)
                finally:
                    call.close()
        finally:
            presence.over = True
            torch._C._set_grad_enabled(recording)  # also where an interrupt came while it was being set

    def _seed(self, output: Tensor) -> Tensor:
        """Return the coefficient of the explained output, checked.

        Raises:
            MethodError: where that is no tensor like the output.
        """
        found: Any = self.seed(output)
        like = [(x.shape, x.dtype, x.device) for x in (found, output) if isinstance(x, Tensor)]
        if len(like) == 2 and like[0] == like[1]:
            return cast("Tensor", found)
        came = f"a tensor of shape {tuple(found.shape)}, {found.dtype}" if isinstance(found, Tensor) else repr(found)
        raise MethodError(
            f"{type(self).__name__}.seed returned {came}, expected one of shape {tuple(output.shape)}, {output.dtype}, "
            "on the device of the output: the coefficient with which the backward begins, one for every sample, such "
            "as torch.ones_like(output)."
        )

    def _maps(self, passed: Forward, target: int, retain_graph: bool = False) -> list[Tensor | None]:
        """Return the finished map of every input."""
        found = passed.maps(
            target, partial(self._result, passed.call), retain_graph, self.contract.output == "relevance"
        )
        _check_found(passed.call, found)
        return found

    def _result(self, call: Call, x: Tensor, c: Tensor) -> Tensor:
        """Return what the method makes of a coefficient, checked.

        Raises:
            MethodError: where that is no tensor of the shape of ``x``, or ``x`` was written into.
        """
        before = 0 if x.is_inference() else x._version
        found = self.result(call, x, c)
        title, given = f"{type(self).__name__}.result", cast("Any", found)
        if not isinstance(given, Tensor):
            raise MethodError(f"{title} returned {type(given).__name__}, expected a tensor of shape {tuple(x.shape)}.")
        if found.shape != x.shape:
            raise MethodError(
                f"{title} returned a tensor of shape {tuple(found.shape)}, expected {tuple(x.shape)}, as x."
            )
        if not x.is_inference() and x._version != before:
            raise MethodError(f"{title} writes into x, which is the caller's; return a new tensor, such as x * c.")
        return found


class _NotFiniteError(Exception):
    """Raised inside the pipeline where a result is not finite, before it is known what made it so."""


def _check_found(call: Call, maps: Sequence[Tensor | None]) -> None:
    """Raise where relevance is NaN or infinite; what other methods give is theirs to judge."""
    if not call.way.explains:
        return
    found = [part.detach() for part in maps if part is not None]
    if bool(torch.stack([part.sum().isfinite() for part in found]).all()):
        return  # one pass over the numbers, where asking each of them takes a tenfold time
    if not all(bool(part.isfinite().all()) for part in found):
        raise _NotFiniteError(
            "The relevance is NaN or infinite, and no rule made it so of finite numbers: an operation has an infinite "
            "slope at this input, such as a root or a norm of zero, or the numbers do not fit their type. Explain in "
            "float64 or float32, or set a rule (Block, Detach, Pass) at the operation."
        )


def _check_output(call: Call, output: Tensor) -> None:
    if is_tiny(output.dtype):
        raise ModelError(
            f"The explained output has dtype {output.dtype}, in which there is next to no arithmetic. Let a callable "
            "target convert it, such as lambda out: out.float()[:, 1]."
        )
    if not bool(torch.isfinite(output.detach()).all()):
        raise NumericalError("The explained output is NaN or infinite; there is nothing to explain.")
    if not output.requires_grad or not call.known.graph.active(output):
        why = (
            " A part of the model runs under torch.no_grad or inference_mode, where it cannot be followed."
            if call.without_gradient
            else ""
        )
        constants = (
            ", or only through what the rules hold constant: denominators, gates" if call.known.graph.holds else ""
        )
        raise InputError(f"The explained output does not depend on the input{constants}.{why}")


def convergence_delta(explained: Tensor, found: Sequence[Tensor | None], given: Given) -> Tensor:
    """Return ``f - sum R`` of every sample, or of all together where the inputs have no batch in common."""
    maps = [part.to(explained.dtype) for part in found if part is not None]
    if given.rows != len(explained):
        return explained.sum().reshape(1) - sum(part.sum() for part in maps)
    return explained - sum(part.reshape(len(part), -1).sum(1) for part in maps)
