"""Linear calls as units with patterns: which parameter a call uses, what it saw, and how its coefficient passes.

A method of patterns differentiates a network as it is, but for its linear calls. They are the same calls in all
spellings, with batch norm folded, as rules see them; a :class:`Visit` gives each a linear_call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from relprop.propagation.call.call import Call
from relprop.propagation.call.linear_call import LinearCall
from relprop.propagation.call.operation_call import Here
from relprop.propagation.call.relus import comparisons, rectified, rectifiers
from relprop.propagation.call.way import Choice, Way
from relprop.propagation.facts.operation import Handler, Holds, Ids, Kind, Operation, Table
from relprop.propagation.facts.saved import Saved
from relprop.propagation.math.linear_map import Geometry, LinearMap
from relprop.trees import tensors_in

Backward = Callable[["UnitCall", Tensor], Tensor]
"""From a linear call and the weight of its map to the weight that its coefficient passes back through."""


class _Plain:
    """What stands at a linear call in the place of a rule: the call itself says how the coefficient passes."""

    reaches_zeros = False
    exact_by_autograd = False


class UnitCall(LinearCall):
    """One linear call whose rows are units.

    Attributes:
        unit: the key of its patterns: the parameter, its orientation, and the batch norm folded in.
        weight_name: the name of the parameter, where its weight is one.
        saw: its input and its output, where they are recorded.
    """

    def __init__(
        self,
        visit: Visit,
        geometry: Geometry,
        a: Tensor,
        parameters: tuple[Tensor | None, ...],
        unit: str,
        weight_name: str,
    ) -> None:
        super().__init__(visit.call, Choice(_Plain()), geometry, a, parameters)
        self.visit, self.unit, self.weight_name = visit, unit, weight_name
        self.saw: tuple[Saved, Saved] | None = None

    @property
    def rectified(self) -> bool:
        """A ReLU takes the output."""
        return any(self.consumers)

    @property
    def used(self) -> bool:
        """Something takes the output besides a batch norm that was folded."""
        return not self.superseded or bool(self.consumers)

    def effective(self) -> tuple[Tensor, Tensor | None]:
        """Return the weight and bias of the map, with its batch norm."""
        return self.geometry.folded(*self.parameters)  # type: ignore[arg-type]  # there is a weight

    def folded(self, parameters: tuple[Tensor | None, ...], by: Tensor | None) -> LinearCall:
        assert self.a is not None
        norm = self.visit.names.of(by)[0].removesuffix(".running_mean")
        unit = f"{self.unit} with {norm or 'batch norm'}"
        return UnitCall(self.visit, self.geometry, self.a, parameters, unit, self.weight_name)

    def ran(self, z: Tensor) -> None:
        if self.visit.recording:
            assert self.a is not None
            saving = self.call.known.saving
            self.saw = saving.save(self.a.detach()), saving.save(z.detach())

    def coefficient(self, layer: LinearMap, a: Tensor, z: Tensor, c: Tensor, node: Any) -> Tensor:
        c = c.to(a.dtype)
        return layer.transpose(c, self.visit.backward(self, layer.weight))

    def release(self) -> None:
        super().release()
        self.saw = None


class Names:
    """The parameters and buffers of a model by where they lie, so that a view of one is known too."""

    def __init__(self, model: nn.Module) -> None:
        self._by_storage: dict[tuple[int, str], list[tuple[Any, str, Tensor]]] = {}
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.layout == torch.strided:
                self._by_storage.setdefault(_storage(tensor), []).append((tensor.storage_offset(), name, tensor))
        for held in self._by_storage.values():
            held.sort(key=lambda entry: entry[0])

    def of(self, tensor: Tensor | None) -> tuple[str, str]:
        """Return the name of the parameter that a tensor is or lies in, and which view of it; empty where none."""
        if tensor is None or tensor.layout != torch.strided or tensor.numel() == 0:
            return "", ""
        held = [entry for entry in self._by_storage.get(_storage(tensor), ()) if entry[0] <= tensor.storage_offset()]
        for _, name, known in held:
            if _placed(known) == _placed(tensor):
                return name, ""
        if not held:
            return "", ""
        start, name, known = held[-1]
        if tensor.dim() == known.dim() == 2 and _placed(known.mT) == _placed(tensor):
            return name, ".T"
        return name, f"[{tensor.storage_offset() - start}:{'x'.join(map(str, tensor.shape))}]"


def _storage(tensor: Tensor) -> tuple[int, str]:
    return tensor.untyped_storage().data_ptr(), str(tensor.device)


def _placed(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.storage_offset(), tensor.shape, tensor.stride()


class Visit(Way):
    """The linear calls of one forward pass: each is a layer of units, and all else as autograd has it.

    Attributes:
        call: the call that it is part of.
        backward: what a coefficient passes back through.
        recording: what the calls see is kept, for :meth:`units` to give.
        unknown: the products with parameters that have no units, and so no patterns.
    """

    def __init__(self, call: Call, names: Names, backward: Backward, recording: bool = False) -> None:
        self.call, self.names, self.backward, self.recording = call, names, backward, recording
        self.unknown: list[str] = []
        self._computed: dict[str, list[Tensor]] = {}
        self._views = WeakTensorKeyDictionary()
        self.table = _table(self)
        call.way = self

    def linear_call(
        self, here: Here, geometry: Geometry, a: Tensor, parameters: tuple[Tensor | None, ...]
    ) -> LinearCall | None:
        """Return what stands at a linear call, where its rows are units."""
        weight = parameters[0]
        assert weight is not None
        if not geometry.has_units or weight.is_complex() or a.is_complex():
            self._name(here)
            return None
        name, view = self.names.of(weight)
        unit = name + view
        if not name:
            unit = self._computed_unit(here.call, weight)
        if getattr(geometry, "transposed", False):
            unit += " transposed"
        return UnitCall(self, geometry, a, parameters, unit, "" if view else name)

    def _computed_unit(self, call: Call, weight: Tensor) -> str:
        """Return the key of a weight that the model computes, as a parametrized one: one for all calls that use it."""
        place = call.place[0]
        known = self._computed.setdefault(place, [])
        for number, other in enumerate(known):
            if other.shape == weight.shape and torch.equal(other, weight):
                return f"{place}#{number}"
        known.append(weight.detach())
        return f"{place}#{len(known) - 1}"

    def close(self) -> None:
        self.table = None

    def units(self) -> list[UnitCall]:
        """Return the linear calls whose output was used."""
        return [
            linear_call
            for linear_call in self.call.linear_calls
            if isinstance(linear_call, UnitCall) and linear_call.used
        ]

    def relu(self, here: Here, *args: Any, **kwargs: Any) -> Any:
        """What may be a ReLU, differentiated as it is; where it is one it tells the call whose output it takes."""
        h = rectified(here, args, kwargs)
        linear_call = None if h is None else self._made(h)
        if linear_call is not None:
            linear_call.consumers.append(True)
        return here.func(*args, **kwargs)

    def product(self, handler: Handler, here: Here, *args: Any, **kwargs: Any) -> Any:
        """What multiplies an active factor by a weight and by something else, so that the weight has no units."""
        factors = tensors_in((args, kwargs))
        weights = [x for x in factors if self.names.of(x)[0] or here.call.known.origins.is_weight(x)]
        if weights and len(factors) - len(weights) > 1:
            self._name(here)
        return handler(here, *args, **kwargs)

    def _name(self, here: Here) -> None:
        """Note a product with a parameter that has no units."""
        self.unknown.append(f"{here.operation} in {here.call.place[0] or type(self.call.model).__name__!r}")

    def view(self, here: Here, input: Any, *args: Any, **kwargs: Any) -> Any:
        """What moves values, or drops some: a ReLU behind it is one of the call before it."""
        linear_call = self._made(input) if isinstance(input, Tensor) else None
        out = here.func(input, *args, **kwargs)
        if linear_call is not None:
            for tensor in tensors_in(out):
                self._views[tensor] = (tensor._version, linear_call)
        return out

    def _made(self, tensor: Tensor) -> LinearCall | None:
        """Return the linear call whose output a tensor is, or is a view or copy of."""
        linear_call = self.call.known.origins.of(tensor).linear_call
        if linear_call is None:
            version, seen = self._views.get(tensor, (tensor._version, None))
            linear_call = seen if version == tensor._version else None
        return linear_call


def _table(visit: Visit) -> Table:
    """Return the table of one forward pass: linear calls as units, all else as autograd has it."""

    def dropout(here: Here, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
        out = here.func(input, p, training)
        return out if training else visit.view(replace(here, func=lambda x: out), input)

    operations = visit.call.operations
    return {
        **{function: _seen(visit, row, dropout) for function, row in operations.items() if row.kind is Kind.VIEW},
        **{function: replace(row, handler=visit.relu) for function, row in rectifiers(operations)},
        **dict(comparisons(operations)),
        **{function: row for function, row in operations.items() if Holds.LINEAR in row.holds},
        **{
            function: replace(operations[function], handler=partial(visit.product, operations[function].handler))
            for function in (F.bilinear, torch.einsum)
        },
    }


def _seen(visit: Visit, row: Operation, dropout: Handler) -> Operation:
    """Return the row of what moves values, behind which a ReLU is still that of the call before it."""
    if row.ids is Ids.LOOKS_UP:
        return row
    return replace(row, handler=dropout if Holds.CHANCE in row.holds else visit.view)
