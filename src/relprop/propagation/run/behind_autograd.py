"""What a model does to tensors that depend on the input where autograd does not look: each is named once.

It writes into their memory (under ``no_grad``, through ``.data``, ``.detach()`` or a NumPy array), or reads numbers
(``.item()``, ``.tolist()``, ``float()``, ``.numpy()``) that come back in what it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from relprop.propagation.call.call import Call
from relprop.propagation.facts.saved import has_storage, storage_key
from relprop.propagation.run.without_gradient import Cut
from relprop.trees import tensors_in

_WRITES = "writes into a tensor that depends on the input"
_AS_IF = "relevance passes as if it had not. Write out of place, such as h = h.clamp(min=0)"
_READ = (
    "reads numbers of what depends on the input, and they come back in what the model computes: they count as "
    "constants, and their relevance is cut. Compute with tensors"
)
_READ_NUMBERS = f"{_READ}, or read from x.detach() where a constant is meant."
_READ_ARRAY = f"{_READ}."  # whose tensor is detached whether or not a constant is meant


class BehindAutograd:
    """What was read from, and written into, the tensors of one call where autograd does not look."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._shared: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # active, of which there is another view
        self._detached: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # the same without its past
        self._seen: list[_Seen] = []
        self._cut: Cut | None = None  # where numbers were read
        self._floats: set[float] = set()
        self._arrays = False

    @property
    def follows(self) -> bool:
        """Say whether anything of what depends on the input has been detached or read."""
        return self._cut is not None or bool(self._detached)

    # Writes ------------------------------------------------------------------------------------

    def note_detached(self, active: Sequence[Tensor], made: Any) -> None:
        """Note what a call made of active tensors without a gradient: it may share their memory."""
        for tensor in tensors_in(made):
            if not tensor.is_floating_point() or self._call.known.graph.active(tensor) or not has_storage(tensor):
                continue
            for source in active:
                if _share(source, tensor):
                    self._shared[source] = True
                    self._detached[tensor] = True

    def note_copied(self, given: list[Tensor], made: Any) -> None:
        """Note that what a call made are copies of what was detached."""
        if any(x in self._detached for x in given):
            for tensor in tensors_in(made):
                self._detached[tensor] = True

    def writing(self, written: list[Tensor]) -> list[Written]:
        """Return which tensors a call is about to write into that are, or share memory with, active ones unrecorded."""
        call = self._call
        seen = torch.is_grad_enabled() and not self._shared
        if seen or call.ended or not call.way.explains or call.outside_model:
            return []
        found = []
        for target in written:
            if call.known.graph.active(target):
                if not torch.is_grad_enabled():
                    found.append(Written(target, target.detach().clone(), "under torch.no_grad"))
            elif any(source is not target and _share(source, target) for source in self._shared):
                how = "through .data, .detach() or a view of these"
                found.append(Written(target, target.detach().clone(), how))
        return found

    def wrote(self, name: str, written: list[Written]) -> None:
        """Name what was written and is another value than before."""
        for each in written:
            if not _same(each.before, each.target):
                self._call.coverage.uncovered(name, f"{_WRITES} {each.how}, which autograd does not see; {_AS_IF}.")

    def replaced(self, target: Tensor) -> None:
        """Name the assignment of ``.data``, where the tensor is active."""
        call = self._call
        if call.way.explains and not call.outside_model and call.known.graph.active(target):
            why = f"{_WRITES} by assigning .data, which autograd does not see; {_AS_IF}."
            self._call.coverage.uncovered("data", why)

    def finish(self) -> None:
        """Name the tensors into whose memory a NumPy array was written."""
        for seen in self._seen:
            if seen.written:
                why = f"gives an array through which the model {_WRITES}; {_AS_IF}."
                self._call.coverage.uncovered("numpy", why, seen.place)
        self._seen.clear()

    # Numbers -----------------------------------------------------------------------------------

    @property
    def has_read(self) -> bool:
        """Say whether numbers were read from a tensor that depends on the input."""
        return self._cut is not None

    def read(self, func: Callable[..., Any], name: str, out: Any) -> Any:
        """Note numbers that were read from an active tensor, and return them as numbers that are followed."""
        numbers = list(_floats(out))
        if not numbers or not self._call.way.explains:
            return out
        self._cut = Cut(name, *self._call.place, (), _READ_NUMBERS)
        self._floats.update(x for x in numbers if x != round(x, 2))
        return out if func is Tensor.__float__ else _followed(out)

    def read_array(self, name: str, given: list[Tensor], out: Any) -> Any:
        """Note an array of what is no active tensor but holds the values of one."""
        sources = [x for x in given if x in self._detached]
        if not sources or not isinstance(out, np.ndarray) or not self._call.way.explains:
            return out
        self._seen.extend(_Seen.of(x, self._call.place) for x in sources)
        self._cut, self._arrays = Cut(name, *self._call.place, (), _READ_ARRAY), True
        return out.view(Numbers)

    def come_back(self, args: Any, kwargs: Any, active: list[Tensor]) -> Cut | None:
        """Return where the numbers were read that a call is given, if it is given any."""
        back = any(isinstance(x, Numbers) or _is_number(x, self._floats) for x in _leaves((args, kwargs)))
        if not back and self._arrays and active:
            back = any(self._of_an_array(x) for x in tensors_in((args, kwargs)))
        return self._cut if back else None

    def _of_an_array(self, x: Tensor) -> bool:
        """Say whether a constant lies in the memory of a NumPy array, and is neither the model's own nor given."""
        known = self._call.known
        return (
            has_storage(x)
            and x.device.type == "cpu"
            and x.is_floating_point()
            and not known.graph.active(x)
            and known.origins.source(x) is None
            and not known.protected.holds(x)
            and not x.untyped_storage().resizable()
        )


@dataclass(frozen=True)
class _Seen:
    """A tensor whose memory a NumPy array has, as it was."""

    tensor: Tensor
    values: Tensor
    version: int
    place: tuple[str, nn.Module | None]

    @classmethod
    def of(cls, tensor: Tensor, place: tuple[str, nn.Module | None]) -> _Seen:
        return cls(tensor, tensor.detach().clone(), tensor._version, place)

    @property
    def written(self) -> bool:
        """Say whether the values are others, and PyTorch wrote none of them."""
        return self.version == self.tensor._version and not _same(self.values, self.tensor)


class Written(NamedTuple):
    """A tensor that is written into where autograd does not look, with what it held before."""

    target: Tensor
    before: Tensor
    how: str


def _same(before: Tensor, now: Tensor) -> bool:
    return before.shape == now.shape and torch.equal(before.nan_to_num(), now.detach().nan_to_num())


def _share(one: Tensor, other: Tensor) -> bool:
    return has_storage(one) and has_storage(other) and storage_key(one) == storage_key(other)


class Numbers(np.ndarray[Any, Any]):
    """Numbers that were read from a tensor which depends on the input, and what is computed of them."""


class Number(float):
    """A number that was read from a tensor which depends on the input; what is computed of it is one too."""


def _arithmetic(name: str) -> Callable[..., Any]:
    plain = getattr(float, name)

    def method(self: Number, *others: Any) -> Any:
        found = plain(self, *others)
        return Number(found) if type(found) is float else found

    return method


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    for _side in ("__", "__r"):
        setattr(Number, f"{_side}{_name}__", _arithmetic(f"{_side}{_name}__"))
for _name in ("__neg__", "__pos__", "__abs__"):
    setattr(Number, _name, _arithmetic(_name))


def _followed(out: Any) -> Any:
    if isinstance(out, list):
        return [_followed(each) for each in out]
    return Number(out) if type(out) is float else out


def _floats(out: Any) -> Iterator[float]:
    """Yield the floating numbers in what a call returned: one, or nested lists of them."""
    if isinstance(out, list):
        for each in out:
            yield from _floats(each)
    elif type(out) is float:
        yield out


def _is_number(x: Any, values: set[float]) -> bool:
    return isinstance(x, Number) or (type(x) is float and x in values)


def _leaves(tree: Any) -> Iterator[Any]:
    """Yield what containers hold."""
    if isinstance(tree, (list, tuple)):
        for each in tree:
            yield from _leaves(each)
    elif isinstance(tree, dict):
        yield from _leaves(list(tree.values()))
    else:
        yield tree
