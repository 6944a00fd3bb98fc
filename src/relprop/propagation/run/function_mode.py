"""The only function mode: every call a model makes passes here, and meets the handler of its operation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode

from relprop.errors import RelpropError
from relprop.presence import Presence
from relprop.propagation.call.call import Call
from relprop.propagation.call.current import current
from relprop.propagation.call.ids import start
from relprop.propagation.call.linear_call import LinearCall
from relprop.propagation.call.operation_call import Here
from relprop.propagation.call.relus import follow_masks, of_relu
from relprop.propagation.call.returned import Where
from relprop.propagation.facts.graph import Reach
from relprop.propagation.facts.inheritance import note_inherited
from relprop.propagation.facts.operation import Holds, Ids, Kind, Operation
from relprop.propagation.facts.origins import NOTHING, Source
from relprop.propagation.facts.token_ids import Lost, Moved, Once, Places, follow, look_up, note, note_computed
from relprop.propagation.run.behind_autograd import BehindAutograd
from relprop.propagation.run.filters import finished, finished_as_one
from relprop.propagation.run.ids_out_of_range import check_ids
from relprop.propagation.run.in_place import own_statistics, set_data, write, written_by
from relprop.propagation.run.overloads import by_python_name, name_of
from relprop.propagation.run.taps import looked_output, new_record, tapped_inputs
from relprop.propagation.run.transforms import hook_afterwards, refuse_gradient, run_transformed, transforming
from relprop.propagation.run.without_gradient import Cuts, makes_constants
from relprop.trees import map_tensors, tensors_in

_SIGMOIDS = ("sigmoid", "expit", "hardsigmoid")

_UNINITIALISED = {
    torch.empty,
    torch.empty_like,
    torch.empty_strided,
    torch.empty_permuted,
    Tensor.new_empty,
    Tensor.new_empty_strided,
}
"""What returns whatever lay in memory, to be written over: zeros in the meantime, which no count takes for a value."""

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
Function = Callable[..., Any]

_push_hooks: Function = torch._C._autograd._push_saved_tensors_default_hooks
_pop_hooks: Function = torch._C._autograd._pop_saved_tensors_default_hooks
_SET_DATA: Function = Tensor.data.__set__  # type: ignore[attr-defined]  # a property


def remove_modes_left() -> None:
    """Take off this thread the modes that an interrupt has left."""
    modes = _get_current_function_mode_stack()
    if any(isinstance(mode, RelevanceMode) and mode.presence.over for mode in modes):
        for _ in modes:
            _pop_mode()
        for mode in modes:
            if not (isinstance(mode, RelevanceMode) and mode.presence.over):
                _push_mode(mode)


class RelevanceMode(TorchFunctionMode):
    """Runs the operations of one call by the rules, on the thread that entered it.

    Attributes:
        refused: the error that a function ended in: of one that is a TypeError an operator of Python's (``a * b``)
            makes an error of its own.
    """

    def __init__(self, call: Call, presence: Presence) -> None:
        super().__init__()
        self.call, self.presence = call, presence
        self.cuts = Cuts(call)
        self.refused: RelpropError | None = None
        self.behind = BehindAutograd(call)

    def forget(self) -> None:
        """Let go of the error that a function ended in, which holds what ran, and this mode in turn."""
        self.refused = None

    def __torch_function__(self, func: Function, types: Any, args: Args = (), kwargs: Kwargs | None = None) -> Any:
        if current() is not self.call:
            return func(*args, **(kwargs or {}))  # another attribution runs inside this one
        if transforming():
            try:
                return run_transformed(self.call, func, args, kwargs or {})
            except RelpropError as error:
                self.refused = error
                raise
        # Above any hooks of the model's own: nothing is recomputed, and what is saved may be written over. An interrupt
        # may come when a call returns, so that nothing may stand between ``try`` and the call.
        pack, unpack = self.call.known.saving.pack, self.call.known.saving.unpack
        try:
            _push_hooks(pack, unpack)
            return self.run(func, args, kwargs or {})
        except RelpropError as error:
            self.refused = error
            raise
        finally:
            _pop_hooks()

    def run(self, func: Function, args: Args, kwargs: Kwargs) -> Any:
        """Run one function call of the model."""
        call = self.call
        func, args, kwargs = by_python_name(func, args, kwargs)
        refuse_gradient(call, func, args, kwargs)
        row = call.operations.get(func)
        if row is None and func == _SET_DATA:
            return set_data(self, *args)
        if row is not None:
            if row.ids is Ids.LOOKS_UP:
                check_ids(row.entering[0], args, kwargs, call.place)
            if row.updates is not None:
                args, kwargs = own_statistics(call, row.updates, args, kwargs)
        if not call.known.protected.untouched:
            args, kwargs = map_tensors(call.known.protected.current, (args, kwargs))
        written = written_by(row, func, args, kwargs)
        if written:
            return write(self, row, func, args, kwargs, written)
        active = self.active(args, kwargs)
        if any(ids.any_hot for ids in call.known.tokens):
            args, kwargs = self._with_vectors(row, args, kwargs, active)
            active = self.active(args, kwargs)
        if not active and not self._looks_up_tokens(row, args, kwargs):
            found = self.follow(row, func, args, kwargs)
            out = func(*args, **kwargs)
            if self.behind.follows or not torch.is_grad_enabled():
                out = self._read_back(row, func, args, kwargs, out)
            out = self._note_ids(row, func, active, found, out)
            out = self._taken_by_ids(row, func, args, kwargs, found, out)
            self.note_constants(row, func, (args, kwargs), out)
            if call.known.formulas.exist and row is not None:  # what divides goes on as a constant
                call.known.formulas.follow(row.image, func, args, kwargs, active, out)
        elif func is Tensor.register_hook and call.way.explains and not call.outside_model:
            return hook_afterwards(call, *args)
        else:
            cuts = self.cuts.among(self._taken(row, (args, kwargs))) if self.cuts.exist else []
            if self.behind.has_read and (back := self.behind.come_back(args, kwargs, active)) is not None:
                cuts.append(back)
            found = self.follow(row, func, args, kwargs, active)
            out = self._explain(row, func, args, kwargs, active)
            out = self._note_ids(row, func, active, found, out)
            if cuts:
                self.cuts.name(cuts, out)
        if func in _UNINITIALISED:
            out.zero_()
        if call.known.origins.has_masks:
            follow_masks(call, row, args, out)
        return out

    def note_constants(self, row: Operation | None, func: Function, given: Any, made: Any) -> None:
        """Remember what a call without relevance was made of."""
        if not self.call.ended:
            self._note_weights(given, made)
            recording = torch.is_grad_enabled()
            if (self.cuts.exist or not recording) and not makes_constants(row):
                self.cuts.note(name_of(func), self._taken(row, given), made, recording)

    def _taken(self, row: Operation | None, given: Any) -> list[Tensor]:
        """Return the arguments of which a call takes more than the shape or the type."""
        tensors = tensors_in(given)
        return tensors[:1] if row is not None and row.kind is Kind.VIEW else tensors

    def _note_weights(self, given: Any, made: Any) -> None:
        """Remember of the constants that a call makes whether they come from the model alone or from data.

        In a product of matrices the ones are weights, the others are not.
        """
        call, tensors = self.call, tensors_in(given)
        origins = call.known.origins
        if any(map(origins.is_data, tensors)):
            for tensor in tensors_in(made):
                origins.note_data(tensor)
            return
        own = [
            call.known.protected.holds(tensor) or origins.is_weight(tensor) or isinstance(tensor, nn.Parameter)
            for tensor in tensors
        ]
        if any(own):
            alone = all(own) and not any(origins.source(tensor) is Source.MODEL_AND_MORE for tensor in tensors)
            for tensor in tensors_in(made):
                origins.note_weight(tensor, alone)

    def active(self, args: Args, kwargs: Kwargs) -> list[Tensor]:
        """Return the arguments that depend on the explained input."""
        call, active = self.call, []
        if call.ended:
            return []
        if not torch.is_grad_enabled():
            call.without_gradient = True
            return []
        for tensor in tensors_in((args, kwargs)):
            if tensor.grad_fn is not None:
                if call.active_seen(tensor):
                    active.append(tensor)
            elif call.known.graph.active(tensor):
                active.append(tensor)
        return active

    def _looks_up_tokens(self, row: Operation | None, args: Args, kwargs: Kwargs) -> bool:
        """Say whether a call embeds token ids that are explained."""
        tokens = self.call.known.tokens
        if not tokens or self.call.ended or not torch.is_grad_enabled():
            return False
        return (
            row is not None
            and (row.ids is Ids.LOOKS_UP or row.composite)
            and any(
                ids.holds(tensor) or ids.mask(tensor) is not None
                for ids in tokens
                for tensor in tensors_in((args, kwargs))
            )
        )

    def follow(
        self, row: Operation | None, func: Function, args: Args, kwargs: Kwargs, active: Sequence[Tensor] = ()
    ) -> list[Moved]:
        """Return where the ids go that a call moves or changes; of floating numbers, those that no layer has mixed."""
        tokens = self.call.known.tokens
        if self.call.ended or (active and not any(ids.holds(tensor) for ids in tokens for tensor in active)):
            return []
        if row is not None and row.composite:
            return []  # the operations that it is made of say it
        name = name_of(func) if row is None else row.name
        return follow(tokens, func, row, name, args, kwargs)

    def _note_ids(
        self, row: Operation | None, func: Function, active: list[Tensor], found: Sequence[Moved], out: Any
    ) -> Any:
        """Note where the ids are that a call has made; return what it made."""
        tokens = self.call.known.tokens
        if found:
            out = list(out) if isinstance(out, Iterator) else out
            note(found, tokens, out)
            return iter(out) if func is Tensor.__iter__ else out
        if active and row is not None and row.ids is Ids.COPIES:
            note_computed(tokens, out, row.name)
        return out

    def _taken_by_ids(
        self, row: Operation | None, func: Function, args: Args, kwargs: Kwargs, found: Sequence[Moved], out: Any
    ) -> Any:
        """Return what a call took from a table: from what the model owns activity starts there, as at an embedding."""
        call = self.call
        if row is None or not call.known.tokens or call.ended or not torch.is_grad_enabled():
            return out
        vectors, others = self._vectors(row, args, kwargs)
        if vectors and isinstance(out, Tensor) and self._choose_rows(row, vectors, others):
            every = [(ids, ids.places(vectors[0])) for ids in call.known.tokens if ids.hot(vectors[0])]
            return start(call, row.name, out, [(ids, Once(partial(_of_vectors, places))) for ids, places in every])
        taken = None if found else look_up(call.known.tokens, func, row, args, kwargs)
        if taken is None or taken.table.dtype == torch.bool:
            return out
        if taken.table.is_floating_point() and self._is_weight(taken.table):
            return start(call, row.name, out, [(moved.tokens, moved.places(0, out)) for moved in taken.places])
        if not call.known.origins.is_data(taken.table):  # other ids, or one-hot vectors
            hot = taken.table.is_floating_point()
            note([replace(moved, hot=hot) for moved in taken.places], call.known.tokens, out)
        return out

    def _is_weight(self, tensor: Tensor) -> bool:
        """Say whether a constant is the model's own."""
        known = self.call.known
        return isinstance(tensor, nn.Parameter) or known.protected.holds(tensor) or known.origins.is_weight(tensor)

    def _vectors(self, row: Operation | None, args: Args, kwargs: Kwargs) -> tuple[list[Tensor], list[Tensor]]:
        """Return which arguments of a call are one-hot vectors of ids, and which are not."""
        every = [ids for ids in self.call.known.tokens if ids.any_hot]
        given = tensors_in((args, kwargs)) if every and row is not None else []
        hot = [x for x in given if x.is_floating_point() and any(ids.hot(x) for ids in every)]
        return hot, [x for x in given if not any(x is vector for vector in hot)]

    def _choose_rows(self, row: Operation, vectors: list[Tensor], others: list[Tensor]) -> bool:
        """Say whether a product of one-hot vectors with a weight is an embedding of their ids: every one chooses a row.

        A product that adds a bias, or vectors of several ids joined, is a linear layer.
        """
        if row.name not in ("matmul", "linear") or (len(vectors), len(others)) != (1, 1):
            return False
        x, weight = vectors[0], others[0]
        if weight.dim() != 2 or not self._is_weight(weight):
            return False
        try:
            found = [ids.places(x)() for ids in self.call.known.tokens if ids.hot(x)]
        except Lost:
            return False
        ones = bool((((x == 0) | (x == 1)).all(-1) & (x.sum(-1) == 1)).all())
        return ones and all(bool((places == places[..., :1]).all()) for places in found)

    def _with_vectors(
        self, row: Operation | None, args: Args, kwargs: Kwargs, active: list[Tensor]
    ) -> tuple[Args, Kwargs]:
        """Let activity start at one-hot vectors of ids, where a call multiplies them by weights or joins them."""
        call = self.call
        hot, others = self._vectors(row, args, kwargs)
        if not hot or row is None or call.ended or not torch.is_grad_enabled():
            return args, kwargs
        if active:
            begins = row.ids is Ids.MOVES
        else:
            multiplies = (Holds.LINEAR in row.holds or row.name == "mul") and bool(others)
            begins = multiplies and all(map(self._is_weight, others)) and not self._choose_rows(row, hot, others)
        if not begins:
            return args, kwargs

        def begin(x: Tensor) -> Tensor:
            if not any(x is vector for vector in hot):
                return x
            every = call.known.tokens
            return start(call, "one_hot", x, [(ids, ids.places(x)) for ids in every if ids.hot(x)])

        swapped: tuple[Args, Kwargs] = map_tensors(begin, (args, kwargs))
        return swapped

    def _explain(self, row: Operation | None, func: Function, args: Args, kwargs: Kwargs, active: list[Tensor]) -> Any:
        """Run a call with active arguments by the rule of its operation."""
        operation = self.call.way.row(row, func) if active else row  # token ids are found by the rules' own
        if operation is None or operation.kind in (Kind.CONSTANT, Kind.UNKNOWN):
            return self._unknown(row, func, args, kwargs, active)
        return self.explain_as(operation, func, args, kwargs, active)

    def explain_as(self, operation: Operation, func: Function, args: Args, kwargs: Kwargs, active: list[Tensor]) -> Any:
        call = self.call
        here = Here(call, func, operation.name, operation.kind)
        if operation.composite:
            if call.way.plain and not call.options.measuring and operation.ids is not Ids.LOOKS_UP:
                out = func(*args, **kwargs)
                self.reached(out)
                return out
            return self._explain_parts(operation, here, args, kwargs)
        if operation.kind is not Kind.LINEAR:  # which must know its layer to choose
            here.choose()
        plain = operation.kind is Kind.VIEW and here.choice.filter is None  # which loses nothing
        if call.trace.recording and not (call.options.measuring and plain):
            here.record = here.account = new_record(here, active)
            here.show_rule()
        given = args, kwargs
        kept = operation.keeps(call.known.origins, active, args, kwargs) if active and call.way.explains else NOTHING
        looking = call.options.looking and not plain
        if looking or (call.options.measuring and here.record is not None):
            args, kwargs = tapped_inputs(here, args, kwargs, active)
        taken = [found for x in active if (found := call.known.origins.of(x).linear_call) is not None]
        here.mode = self
        out = operation.handler(here, *args, **kwargs)
        here.mode = None
        if here.kept is not None:
            kept = here.kept
        if kept is not NOTHING or here.factors is not None:
            note_inherited(call.known.origins, out, kept, active, here.factors)
        if taken and not here.folds:
            self._consume(operation, here, taken, out)
        if call.known.formulas.exist:
            call.known.formulas.follow(operation.image, func, *given, active, out)
        here.given = {}  # the taps keep this call of the operation, and must not keep its arguments
        if here.record is not None or here.choice.filter is not None or here.filters:
            out = finished(here, out, args, kwargs, given, operation.deterministic)
        if looking:
            out = looked_output(here, out)
        for watch in here.watchers:
            watch(out)
        self.reached(out, active)
        if call.way.explains and (here.kind is Kind.SOFTMAX or here.operation in _SIGMOIDS):
            self._note_squashed(here, active, out)
        return out

    def _note_squashed(self, here: Here, active: list[Tensor], out: Tensor) -> None:
        """Remember a softmax or a sigmoid of what a linear map makes, in case it is what is explained."""
        call = self.call
        if active and here.choice.filter is None and call.known.graph.reach(active[0]) is Reach.BEYOND_LINEAR:
            linear_call = call.known.origins.of(active[0]).linear_call
            layer = "" if linear_call is None else linear_call.where.name
            name = "softmax" if here.kind is Kind.SOFTMAX else "sigmoid"
            call.squashed[out.grad_fn] = Where(name, *call.place), layer

    def _explain_parts(self, operation: Operation, here: Here, args: Args, kwargs: Kwargs) -> Any:
        """Run an operation that is made of others; a filter that stands there acts on all of it, and not inside."""
        call = self.call
        here.choose()
        around, parts_of = call.around, call.trace.parts_of
        if here.choice.filter is not None:
            call.around = (*around, here.choice.filter)
        call.trace.parts_of = (*parts_of, operation.name)
        try:
            with self:
                out = operation.handler(here, *args, **kwargs)
        finally:
            call.around, call.trace.parts_of = around, parts_of
        return finished_as_one(here, out, args, kwargs)

    def _consume(self, operation: Operation, here: Here, taken: list[LinearCall], out: Any) -> None:
        """Tell the linear calls that made the arguments whether a ReLU takes their output, where it goes no further."""
        relu = (
            operation.rectifies is of_relu
            and (here.rule is None or here.rule.exact_by_autograd)
            and here.choice.filter is None
        )
        moved = self.call.known.origins.of(out).linear_call if isinstance(out, Tensor) else None
        for linear_call in taken:
            if linear_call is not moved:
                linear_call.consumers.append(relu)

    def _unknown(self, row: Operation | None, func: Function, args: Args, kwargs: Kwargs, active: list[Tensor]) -> Any:
        """Run a function that no rule covers; it is named where relevance passes it."""
        call = self.call
        out = func(*args, **kwargs)
        made, name = tensors_in(out), name_of(func)
        carries = any(call.known.graph.active(tensor) for tensor in made)
        if not carries and (makes_constants(row) or not any(_holds_numbers(tensor) for tensor in made)):
            self.reached(out, active)
            if not made:
                return self.behind.read(func, name, out)
            return out  # a query, a comparison, an index: nothing of it is a function of the input that has a slope
        for tensor in active:
            linear_call = call.known.origins.of(tensor).linear_call
            if linear_call is not None:
                linear_call.consumers.append(False)
        here, given = Here(call, func, name, Kind.UNKNOWN), (args, kwargs)
        here.choose()
        covered = here.choice.filter is not None and here.choice.filter.blocks
        if call.way.explains and not covered:
            why = "has no rule in relprop; plain autograd carries its relevance. relprop.operation can give it one."
            call.coverage.uncovered(name, why if carries else "has no derivative; no relevance passes it.")
        if call.trace.recording:
            here.record = here.account = new_record(here, active)
            here.show_rule()
            here.record.covered = covered
        if call.options.looking or call.options.measuring:
            args, kwargs = tapped_inputs(here, args, kwargs, active)
            out = func(*args, **kwargs)
        if here.record is not None or here.choice.filter is not None:
            out = finished(here, out, args, kwargs, given, known=False)
            self.reached(out)
        return looked_output(here, out) if call.options.looking else out

    def reached(self, out: Any, active: Sequence[Tensor] = ()) -> None:
        """Walk the nodes that a seen call made, so that an unseen one will be noticed; what has none is data."""
        for tensor in tensors_in(out):
            if not self.call.known.graph.active(tensor):
                self.call.known.origins.note_data(tensor)
                if active:
                    self.behind.note_detached(active, tensor)

    def _read_back(self, row: Operation | None, func: Function, args: Args, kwargs: Kwargs, out: Any) -> Any:
        """Follow what is read, and made, of values of the input without a gradient."""
        if self.behind.has_read and (back := self.behind.come_back(args, kwargs, [])) is not None:
            self.cuts.begin(back, out)
        given = tensors_in((args, kwargs))
        if not torch.is_grad_enabled() and not self.call.ended:
            self.behind.note_detached([x for x in given if self.call.known.graph.active(x)], out)
        if row is not None and row.ids is Ids.COPIES:
            self.behind.note_copied(given, out)
        return self.behind.read_array(name_of(func), given, out)


def _of_vectors(places: Places) -> Tensor:
    """Return the positions of ids, of those in their one-hot vectors."""
    return places()[..., 0]


def _holds_numbers(tensor: Tensor) -> bool:
    """Say whether the entries of a tensor can change gradually."""
    return tensor.is_floating_point() or tensor.is_complex() or tensor.is_quantized
