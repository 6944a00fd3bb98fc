"""One forward pass by the rules of a call, and the backward that carries the coefficients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from relprop.errors import InputError, ModelError, RelpropError
from relprop.inputs import Given, eager
from relprop.presence import Presence
from relprop.propagation.call.call import Call
from relprop.propagation.call.current import foremost
from relprop.propagation.call.trace import Record, total
from relprop.propagation.call.way import Zeros
from relprop.propagation.facts.graph import nodes_above, nodes_before_last, nodes_below
from relprop.propagation.facts.protection import Attributes
from relprop.propagation.facts.saved import Saved
from relprop.propagation.facts.token_ids import Root, Tokens
from relprop.propagation.math.zero_coefficients import ZeroCoefficients, finite
from relprop.propagation.run.explained_output import Reading, Readings, name_probabilities
from relprop.propagation.run.function_mode import RelevanceMode, remove_modes_left
from relprop.propagation.run.module_hooks import ModuleHooks
from relprop.trees import tensors_in

ChannelMask = Callable[[Tensor], Tensor]
Parts: TypeAlias = "list[tuple[Tensor, Tensor | None]]"
Of: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""From a value and its coefficient to an attribution."""


@dataclass
class Passage:
    """One output of an observed module: the edges at which its coefficient arrives, each with its value.

    A convolution whose batch norm was folded has two: the pair's output, and the plain one that other consumers see.
    """

    edges: list[GradientEdge] = field(default_factory=list)
    values: list[Saved] = field(default_factory=list)


@dataclass
class Forward:
    """A forward pass that was run by the rules of a call, from which maps are read.

    Attributes:
        call: its state.
        inputs: what is explained.
        output: what the model returned.
        starts: for every input, where its coefficients arrive: there, and at the embeddings that consume it.
        selected: what is explained, for every target.
        seeds: the coefficients that the backward of every target begins with.
        passages: by module name, the outputs that were asked for, in call order.
        references: for every target, what its difference from is explained; empty where it is explained itself.
        held: the nodes of the inputs on which something depends that the rules hold constant.
    """

    call: Call
    inputs: Given
    output: Any = None
    starts: list[Tokens] = field(default_factory=list)
    selected: list[Tensor] = field(default_factory=list)
    seeds: list[Tensor] = field(default_factory=list)
    passages: dict[str, list[Passage]] = field(default_factory=dict)
    references: list[Tensor] = field(default_factory=list)
    held: set[Any] = field(default_factory=set)

    def explained(self, target: int) -> Tensor:
        """Return the relevance at the top, ``[N]``: the explained output times the coefficient that it begins with."""
        value = self.selected[target] - self.references[target] if self.references else self.selected[target]
        return value * self.seeds[target] if self.seeds else value

    def maps(self, target: int, of: Of, retain_graph: bool = False, embedded: bool = True) -> list[Tensor | None]:
        """Return what a method makes of the coefficients of every input, from the backward of one target.

        Args:
            target: the position of the target.
            of: from a value and its coefficient to the attribution, of the shape of the value.
            retain_graph: more backwards follow.
            embedded: floating numbers that come to be ids receive what their embeddings do: shares of the output, but
                no slopes.

        Returns:
            a map for every input: None for what the target does not depend on, among the tensors of a structure.

        Raises:
            InputError: where the target does not depend on an input.
        """
        roots, _ = self.coefficients(target, retain_graph)
        self.call.reading_input = True
        found = [self._map(position, parts, of, embedded) for position, parts in enumerate(roots)]
        if all(part is None for part in found):
            raise InputError("The explained output does not depend on any of the inputs.")
        return found

    def layer_maps(self, target: int, of: Of) -> dict[str, tuple[Tensor, ...]]:
        """Return what a method makes of the coefficients at the observed modules: by name, in call order.

        Raises:
            InputError: where the output of a module does not depend on the input.
        """
        _, passages = self.coefficients(target, retain_graph=False)
        for name, observed in passages.items():
            if not all(observed):
                raise InputError(f"The output of module {name!r} does not depend on the input.")
        return {name: tuple(self._total(parts, of) for parts in observed) for name, observed in passages.items()}

    def _map(self, position: int, parts: Parts, of: Of, embedded: bool) -> Tensor | None:
        """Return the map of one input."""
        if not embedded and self.inputs.tensors[position].is_floating_point():
            parts = [(value, c if at == 0 else None) for at, (value, c) in enumerate(parts)]
        start, x, alone = self.starts[position], self.inputs.tensors[position], len(self.starts) == 1
        held = any(root.edge.node in self.held for root in start.roots)
        if all(c is None for _, c in parts) and not held:
            if self.inputs.samples is None:  # a structure holds what it holds
                return None
            name = "the input" if alone else f"input {position}"
            raise InputError(f"The explained output does not depend on {name}.")
        return self._at_positions(start, x, parts, of)

    def _at_positions(self, tokens: Tokens, x: Tensor, parts: Parts, of: Of) -> Tensor:
        """Return the map of an input, from its own and those of its embeddings."""
        first = parts[0][0].detach()
        total = torch.zeros(x.shape, dtype=first.dtype, device=first.device)
        with torch.set_grad_enabled(self.call.options.create_graph):
            for root, (value, c) in zip(tokens.roots, parts, strict=True):
                if c is not None:
                    total = total + root.placed(of(value, c), x.shape).to(total)
        return total

    def _total(self, parts: Parts, of: Of) -> Tensor:
        """Return the map of one tensor, summed over the edges at which its coefficient arrived."""
        total = torch.zeros_like(parts[0][0].detach())
        with torch.set_grad_enabled(self.call.options.create_graph):
            for value, c in parts:
                if c is not None:
                    total = total + of(value, c)
        return total

    def coefficients(self, target: int, retain_graph: bool) -> tuple[list[Parts], dict[str, list[Parts]]]:
        """Run the backward of one target.

        Returns:
            for every input, and for every observed output of a module, the values at its edges, each with the
            coefficient that arrived (None where none did).
        """
        call, output = self.call, self.selected[target]
        if call.way.explains and call.way.last is not None:
            _, call.before_last = nodes_before_last([output])
        if call.way.zeros is not Zeros.NOWHERE and not call.passed_whole:
            below = nodes_below([output], _reaches_zeros)
            call.below_zeros = {node.below_mark for node in below if hasattr(node, "below_mark")}
        if call.above is not None:
            call.above.clear()  # of another target
        inputs = [root.edge for start in self.starts for root in start.roots]
        layers = [edge for passages in self.passages.values() for passage in passages for edge in passage.edges]
        # Before torch 2.9 an edge whose node does not run, as that of a layer that is folded, ends the process.
        runs = nodes_above(output) if layers else None
        asked = [edge for edge in (*inputs, *layers) if runs is None or edge.node in runs]
        seed = self.seeds[target] if self.seeds else torch.ones_like(output)
        more = call.options.create_graph
        options: dict[str, bool] = {"retain_graph": retain_graph or more, "create_graph": more, "allow_unused": True}
        try:
            with ZeroCoefficients() if call.options.looking else nullcontext():  # type: ignore[no-untyped-call]
                given = iter(torch.autograd.grad(output, asked, seed, **options) if asked else ())
        except RuntimeError as error:
            if "derivative for" not in str(error):
                raise
            raise ModelError(
                f"PyTorch has no derivative of something between the input and the explained output ({error}), so that "
                "nothing passes it. Write it otherwise (an assignment for a Tensor.set_), or set a filter such as "
                "Detach at it."
            ) from error
        left = iter([next(given) if runs is None or edge.node in runs else None for edge in (*inputs, *layers)])
        # What is infinite and has a coefficient was named by then; what has none has no relevance.
        value = finite if call.options.looking else lambda x: x
        roots = [[(value(root.value), next(left)) for root in start.roots] for start in self.starts]
        passages = {
            name: [[(value(saved.tensor), next(left)) for saved in passage.values] for passage in observed]
            for name, observed in self.passages.items()
        }
        return roots, passages


def _reaches_zeros(node: Any) -> bool:
    """Say whether the rule at the node of a linear map, or of a sum, gives relevance to inputs of zero."""
    place = getattr(node, "linear_call", None) or getattr(node, "sum_call", None)
    rule = None if place is None else place.rule_at(node)
    return rule is not None and bool(rule.reaches_zeros)


def forward(
    call: Call,
    inputs: Given,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    targets: Sequence[Reading] = (),
    layers: Sequence[str] = (),
    condition: Mapping[str, ChannelMask] | None = None,
) -> Forward:
    """Run the model on copies of the inputs, and select what is explained.

    Args:
        call: the state of the call.
        inputs: what is explained: floating tensors, or integers that an embedding consumes.
        args, kwargs: further arguments of the model.
        targets: from the model's output, or that of a module, to one number per sample.
        layers: modules whose outputs are observed.
        condition: by module name, the mask of its output through which relevance flows on.
    """
    passed = Forward(call, inputs)
    condition = dict(condition or {})
    first, named = inputs.arguments([_given(passed, value) for value in inputs.tensors])
    twice = sorted(named.keys() & (kwargs or {}).keys())
    if twice:
        raise InputError(f"{', '.join(map(repr, twice))} is given twice: as an input and in forward_kwargs.")

    def observe(name: str, output: Any) -> None:
        called.add(name)
        if name in condition:
            _condition(call, name, output, condition[name])
        if name in layers:
            _observe(passed, name, output)

    called: set[str] = set()
    readings = Readings(call, targets)
    presence = Presence()
    remove_modes_left()
    try:
        with ExitStack() as stack:
            stack.enter_context(Attributes(call.model, presence))
            stack.enter_context(ModuleHooks(call.model, call, presence, {*layers, *condition}, observe, readings))
            stack.enter_context(eager())
            stack.enter_context(foremost(call, presence))
            mode = stack.enter_context(RelevanceMode(call, presence))
            stack.callback(mode.forget)
            try:
                passed.output = call.model(*first, *args, **named, **(kwargs or {}))
            except RelpropError:
                raise
            except Exception as error:
                if mode.refused is not None and "unsupported operand" in str(error):
                    raise mode.refused from None
                _check_tokens(passed, inputs, error)
                _check_device(call.model, error)
                raise
            passed.selected = readings.finish(passed.output)
            mode.behind.finish()
    except StopIteration as error:  # which would end the generators that clean up behind the call
        raise ModelError(
            "The model, or the callable that is its target, raised StopIteration: an iterator in it has no more "
            "values. Make the iterator anew in every call, or give next() a default."
        ) from error
    finally:
        presence.over = True
    for selected in passed.selected:
        name_probabilities(call, selected)
    _check_tokens(passed, inputs, None)
    for name in condition:
        if name not in called:
            raise InputError(f"Module {name!r} was not called in this forward pass, so no relevance passes it.")
    return passed


def _given(passed: Forward, value: Tensor) -> Tensor:
    """Return what the model is given for an input, and note where its coefficient arrives."""
    call = passed.call
    if value.is_floating_point():
        root = call.root(value, call.options.create_graph and value.requires_grad)
        tokens = Tokens(root, Root(get_gradient_edge(root), value), alone=False)
        call.known.tokens.append(tokens)
        passed.starts.append(tokens)
        return root
    tokens = Tokens(value.clone(), alone=passed.inputs.samples is not None)
    call.known.tokens.append(tokens)
    passed.starts.append(tokens)
    return tokens.given


def _check_tokens(passed: Forward, inputs: Given, error: Exception | None) -> None:
    """Raise where integers were given to be explained and no embedding took them."""
    if inputs.samples is None:  # a structure holds indices and masks too
        return
    for position, start in enumerate(passed.starts):
        if not start.roots:
            name = f"Input {position}" if len(passed.starts) > 1 else "The input"
            raise InputError(_not_embedded(passed.call, name, inputs.tensors[position].dtype)) from error


def _not_embedded(call: Call, name: str, dtype: torch.dtype) -> str:
    """Say what is wrong with integers that no embedding took, and what to give instead."""
    if dtype in (torch.uint8, torch.int8):
        return (
            f"{name} has dtype {dtype}, and no embedding of the model looked its entries up. If they are the pixels of "
            "an image and no token ids, convert it to floating point numbers first: x.float()."
        )
    hint = " A part of the model runs under torch.no_grad or inference_mode." if call.without_gradient else ""
    return (
        f"{name} holds integers ({dtype}), and no embedding of the model consumed them. Ids are explained where "
        "nn.Embedding or F.embedding looks them up, weight[ids] or index_select takes rows of a parameter or buffer, "
        "or a weight multiplies their one-hot vectors; otherwise call F.embedding(ids, weight). Or give floating point "
        f"numbers, such as the embedded tokens.{hint}"
    )


def _check_device(model: nn.Module, error: Exception) -> None:
    """Say what is wrong where a forward pass failed because the model holds no numbers."""
    found = next((name for name, parameter in model.named_parameters() if parameter.is_meta), None)
    if found is not None and "meta" in str(error):
        raise ModelError(
            f"Parameter {found!r} is on the meta device and holds no numbers. Load the model's weights first "
            "(model.to_empty(device=...), then load_state_dict)."
        ) from error


def _observe(passed: Forward, name: str, output: Any) -> None:
    """Note where the coefficient of a module's output arrives."""
    call = passed.call
    passage = Passage()
    passed.passages.setdefault(name, []).append(passage)

    def watch(tensor: Tensor) -> None:
        if call.known.graph.active(tensor):
            passage.edges.append(get_gradient_edge(tensor))
            passage.values.append(call.known.saving.save(tensor if call.options.create_graph else tensor.detach()))

    _watch(call, _first_tensor(name, output), watch)


def _condition(call: Call, name: str, output: Any, mask: ChannelMask) -> None:
    """Let relevance flow on through the chosen channels of a module's output only."""
    record = None
    if call.options.measuring:
        record = Record(name, type(call.place[1]).__name__, "condition", "condition", "condition")
        call.trace.records.append(record)

    def watch(tensor: Tensor) -> None:
        if not call.known.graph.active(tensor):
            return
        factor = mask(tensor)
        value = call.known.saving.save(tensor.detach()) if record is not None else None

        def keep(c: Tensor) -> Tensor:
            if not call.explaining:
                return c
            if record is not None and value is not None:
                out = total(call.relevance(value.tensor.double(), c.double()))
                into = total(call.relevance(value.tensor.double(), (c * factor).double()))
                record.receive(out)
                record.send(into)
                record.absorb({"condition": out - into})
            return c * factor

        tensor.register_hook(keep)

    tensor, origins = _first_tensor(name, output), call.known.origins
    origin = origins.of(tensor)
    if origin.linear_call is not None and not (origin.linear_call.plain and origin.moves == ()):
        origins.forget_linear_call(tensor)  # it stands behind the layer: nothing is folded past it
    _watch(call, tensor, watch)


def _first_tensor(name: str, output: Any) -> Tensor:
    """Return the first tensor of what a module returned."""
    tensors = tensors_in(output)
    if not tensors:
        raise InputError(
            f"Module {name!r} returned {type(output).__name__}, which holds no tensor to read relevance at."
        )
    return tensors[0]


def _watch(call: Call, tensor: Tensor, watch: Callable[[Tensor], None]) -> None:
    """Show a tensor to a watcher, and what stands for it where something is folded into the call that made it."""
    origin = call.known.origins.of(tensor)
    if origin.linear_call is not None:
        origin.linear_call.watchers.append((origin.moves, watch))
    watch(tensor)
