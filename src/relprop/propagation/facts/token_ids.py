"""Ids: which tensors hold the ids of an explained input, and from which of its positions each entry was taken.

Relevance is read at the output of what looks the ids up, and given back to their positions. A model may move its ids
before: reverse, slice, gather, join, pad or repeat them; whatever it does is done to the positions too. It may change
them entry by entry, by offsets or arithmetic: they keep their places. The ids of a matrix of floating point numbers are
the columns that are cast to integers: there the positions are worked out when something looks them up, and not before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.utils.weak import WeakTensorKeyDictionary

from relprop.propagation.facts.operation import Ids, Operation
from relprop.trees import tensors_in

T = TypeVar("T")

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
Function = Callable[..., Any]

WRITE = "were moved by a write into a view"


class Lost(Exception):
    """Raised where positions are asked for that nothing follows; says what became of the ids."""


@dataclass(frozen=True)
class Root:
    """Where activity starts: the edge at which the coefficient arrives, and the value that it belongs to.

    Attributes:
        places: for every id that was looked up its position in the input, counted from 1, and 0 where it is none of
            the input's; None where it was looked up as it is, and at the input itself.
    """

    edge: GradientEdge
    value: Tensor
    places: Tensor | None = None

    def placed(self, relevance: Tensor, shape: torch.Size) -> Tensor:
        """Return the relevance of ids that were looked up, at their positions in an input of this shape.

        What one id looked up stands in the dimensions behind those of the ids.
        """
        dims = len(shape) if self.places is None else self.places.dim()
        whole = relevance if relevance.dim() == dims else relevance.flatten(dims).sum(-1)
        if self.places is None:
            return whole
        found = torch.zeros(shape.numel() + 1, dtype=whole.dtype, device=whole.device)
        places = self.places.to(whole.device).flatten()
        return found.index_add(0, places, whole.flatten())[1:].reshape(shape)


class Once(Generic[T]):
    """What is worked out once, when it is asked for, or never can be."""

    def __init__(self, make: Callable[[], T] | None, lost: str = "") -> None:
        self._make, self.lost = make, lost
        self._found: T | None = None

    @property
    def follows(self) -> bool:
        """Say whether it can be found."""
        with suppress(Lost):
            self()
        return not self.lost

    def __call__(self) -> T:
        """Return what was found.

        Raises:
            Lost: where nothing follows it.
        """
        if self._make is not None:
            make, self._make = self._make, None
            try:
                with torch.no_grad(), torch._C.DisableTorchFunction():
                    self._found = make()
            except Lost as lost:
                self.lost = str(lost)
        if self.lost:
            raise Lost(self.lost)
        return cast(T, self._found)


Places: TypeAlias = "Once[Tensor]"
"""The positions of the ids in a tensor, of its shape, or of a shape that broadcasts to it."""


@dataclass(frozen=True)
class _Holder:
    """What is known of a tensor that holds ids, or their one-hot vectors (``hot``), while its version is this one."""

    version: int
    places: Places
    hot: bool


class Tokens:
    """An input, explained at the outputs of what looks its entries up, and if it holds floating numbers at itself too.

    Attributes:
        given: the tensor that the model is given.
        roots: from where activity starts: the input itself, if it has coefficients, and what was looked up.
        alone: its relevance is that of what is looked up and nothing else, so that none must get lost.
    """

    def __init__(self, given: Tensor, root: Root | None = None, alone: bool = True) -> None:
        self.given, self.alone = given, alone
        self.roots: list[Root] = [] if root is None else [root]
        self.every: Places = Once(lambda: _counted(given))
        self._holders: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._masks: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._ever: set[int] = set()  # which says at once that a tensor holds none
        self.any_hot = False
        self.note(given, self.every)

    def note(self, tensor: Tensor, places: Places, hot: bool = False) -> None:
        """Remember a tensor that holds ids, or their one-hot vectors, and at which positions these stood."""
        self.any_hot |= hot
        self._ever.add(id(tensor))
        if tensor.is_contiguous() and not places.lost:  # so that whatever is a view of the one is a view of the other
            given, places = places, Once(lambda: given().contiguous())
        self._holders[tensor] = _Holder(_version(tensor), places, hot)

    def note_mask(self, tensor: Tensor, places: Places) -> None:
        """Remember a tensor that says something of ids, each in its place: a constant until it is looked up."""
        self._masks[tensor] = _Holder(_version(tensor), places, hot=False)

    def mask(self, tensor: Tensor) -> Places | None:
        """Return the positions of the ids of which a tensor says something; None where it says nothing of them."""
        holder: _Holder | None = self._masks.get(tensor) if len(self._masks) else None
        return None if holder is None or holder.version != _version(tensor) else holder.places

    def forget(self, tensor: Tensor) -> None:
        """Note that a tensor holds other numbers now."""
        if len(self._masks):
            self._masks.pop(tensor, None)
        if self.holds(tensor):
            del self._holders[tensor]

    def passes(self, new: Tensor, old: Tensor) -> None:
        """Note that a tensor now holds what another one does."""
        holder: _Holder | None = self._holders.get(old) if self.holds(old) else None
        if holder is None:
            self.forget(new)
        else:
            self.note(new, holder.places, holder.hot)

    def holds(self, tensor: Tensor) -> bool:
        """Say whether a tensor holds ids."""
        return id(tensor) in self._ever and tensor in self._holders

    def hot(self, tensor: Tensor) -> bool:
        """Say whether a tensor holds one-hot vectors of ids."""
        holder: _Holder | None = self._holders.get(tensor) if self.any_hot else None
        return holder is not None and holder.hot

    def places(self, tensor: Tensor) -> Places:
        """Return the positions of the ids in a tensor."""
        holder: _Holder = self._holders[tensor]
        return holder.places if holder.version == _version(tensor) else _lost(WRITE)

    def clear(self) -> None:
        """Let go of all tensors."""
        self._holders, self._masks = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()
        self.roots.clear()


def _counted(given: Tensor) -> Tensor:
    order = torch.arange(1, given.numel() + 1, device=given.device).reshape(given.shape)
    return torch.empty_like(given, dtype=torch.int64, requires_grad=False).copy_(order)  # with the strides of the ids


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _lost(why: str) -> Places:
    return Once(None, why)


# Through what moves ids --------------------------------------------------------------------------

_NAMED = {"input", "tensors", "other", "value", "src", "source", "x", "self"}


@dataclass(frozen=True)
class Moved:
    """The positions of ids in the tensors that a call makes, by the place of the tensor among these.

    Attributes:
        hot: they are one-hot vectors.
        mask: they say something of ids.
    """

    tokens: Tokens
    places: Callable[[int, Tensor], Places]
    hot: bool = False
    mask: bool = False


def follow(
    every: Sequence[Tokens],
    func: Function,
    row: Operation | None,
    name: str,
    args: Args,
    kwargs: Kwargs,
) -> list[Moved]:
    """Return where the ids among the arguments of a call go; to be asked before it writes over its arguments.

    What moves ids is called on the positions too, with zeros in the place of all values that are no ids.

    Args:
        every: the inputs whose ids may be among the arguments.
        func, args, kwargs: the call.
        row: of its operation; None for one of which nothing is known.
        name: what the operation is called.
    """
    does = Ids.COMPUTES if row is None else row.ids
    if does in (Ids.NONE, Ids.LOOKS_UP):
        return []
    moving = row is not None and does in (Ids.COPIES, Ids.MOVES)
    values: Any = (args, kwargs)
    if moving and row is not None:
        values = [*(args[at] for at in row.entering if at < len(args)), *(kwargs.get(key) for key in _NAMED)]
    given = tensors_in(values)
    holding = [(tokens, holders) for tokens in every if (holders := [x for x in given if tokens.holds(x)])]
    if does is Ids.CHANGES and len(holding) > 1:
        known = [why for tokens, holders in holding for x in holders if (why := tokens.places(x).lost)]
        lost = _lost(known[0] if known else f"{name} made of the ids of two inputs")
        return [Moved(tokens, _all(lost)) for tokens, _ in holding]
    if row is not None and not holding and (masks := _masks(every, func, row, given, args, kwargs)):
        return masks
    if does is Ids.MOVES and not holding:
        return _vectors(every, name, args, kwargs)
    found: list[Moved] = []
    for tokens, holders in holding:
        hot = any(map(tokens.hot, holders))
        if does is Ids.COPIES:
            found.append(Moved(tokens, _all(tokens.places(holders[0])), hot))
        elif does is Ids.CHANGES:
            found.append(Moved(tokens, _changed([tokens.places(x) for x in holders], name), hot))
        elif does is Ids.MOVES and row is not None:
            found.append(Moved(tokens, _moved(tokens, func, row.entering, args, kwargs), hot))
        elif does is Ids.ONE_HOT:
            found.append(Moved(tokens, _one_hot(tokens.places(holders[0])), hot=True))
        elif does is Ids.COMPARES:
            if len(holders) == 1 and len(holding) == 1 and holders[0].dtype != torch.bool:
                vectors = len(given) == 2 and name.strip("_") == "eq"
                places = _changed([tokens.places(holders[0])], name)
                found.append(Moved(tokens, places, hot=vectors, mask=not vectors))
        else:
            why = next((why for x in holders if (why := tokens.places(x).lost)), "")
            new = f"were moved by {name}" if does is Ids.LOSES else f"{name} made of others"
            found.append(Moved(tokens, _all(_lost(why or new))))
    return found


def note(found: Sequence[Moved], every: Sequence[Tokens], made: Any) -> None:
    """Note on what a call made, or wrote, where the ids in it stood; it holds no others."""
    for index, tensor in enumerate(tensors_in(made)):
        for tokens in every:
            tokens.forget(tensor)
        for moved in found:
            places = moved.places(index, tensor)
            # What a layer makes of floating numbers is no column: most of a network, of which nothing is kept.
            if moved.mask:
                moved.tokens.note_mask(tensor, places)
                continue
            mixed = places.lost and tensor.is_floating_point() and moved.tokens.given.is_floating_point()
            if not mixed and (moved.hot or tensor.dtype != torch.bool):
                moved.tokens.note(tensor, places, moved.hot)


# What is looked up by ids ------------------------------------------------------------------------


@dataclass(frozen=True)
class LookUp:
    """What a call takes from a table by ids: ``W[ids]``, ``index_select``, ``gather``, ``take``."""

    table: Tensor
    places: list[Moved]


def look_up(every: Sequence[Tokens], func: Function, row: Operation, args: Args, kwargs: Kwargs) -> LookUp | None:
    """Return what a call takes from a table by ids; None where it takes nothing so.

    The call is made on a table of numbers instead, in which position ``p`` of the dimension that is looked through
    holds ``p``, with the positions of the ids in their place.
    """
    signature = _INDEXED.get(row.name)
    if signature is None:
        return None
    named = dict(zip(signature, args, strict=False)) | kwargs
    table = named.get(signature[0])
    if not isinstance(table, Tensor) or any(tokens.holds(table) for tokens in every):
        return None
    index = named.get("indices", named.get("index"))
    items = index if isinstance(index, tuple) else (index,)
    found: list[Moved] = []
    for tokens in every:
        at = [
            k
            for k, x in enumerate(items)
            if isinstance(x, Tensor) and x.dtype != torch.bool and not tokens.hot(x) and _said(tokens, x) is not None
        ]
        if len(at) > 1:
            found.append(Moved(tokens, _all(_lost(f"{row.name} made of several ids"))))
        elif at:
            dim = _dimension(items, at[0], table.dim()) if row.name == "__getitem__" else named.get("dim")
            found.append(Moved(tokens, _looked_up(tokens, func, named, signature, table.shape, dim, items[at[0]])))
    return LookUp(table, found) if found else None


def _said(tokens: Tokens, tensor: Tensor) -> Places | None:
    """Return the positions of ids, or of the ids of which a tensor says something."""
    return tokens.places(tensor) if tokens.holds(tensor) else tokens.mask(tensor)


_INDEXED = {
    "__getitem__": ("self", "index"),
    "index_select": ("input", "dim", "index"),
    "gather": ("input", "dim", "index"),
    "take_along_dim": ("input", "indices", "dim"),
    "take": ("input", "index"),
}
"""What takes entries of its first argument by an index, with the names of its arguments."""


def _dimension(items: tuple[Any, ...], at: int, dims: int) -> int:
    """Return which dimension of a table the item at a position of an index goes through."""

    def goes(item: Any) -> int:
        if item is None or isinstance(item, bool) or item is Ellipsis:
            return 0
        return item.dim() if isinstance(item, Tensor) and item.dtype == torch.bool else 1

    before = items[:at]
    if any(item is Ellipsis for item in before):
        return dims - sum(map(goes, items[at:]))
    return sum(map(goes, before))


def _looked_up(
    tokens: Tokens,
    func: Function,
    named: Kwargs,
    signature: tuple[str, ...],
    shape: torch.Size,
    dim: int | None,
    ids: Tensor,
) -> Callable[[int, Tensor], Places]:
    count, places = tokens.given.numel() + 1, _said(tokens, ids)
    assert places is not None

    def numbers(device: torch.device) -> Tensor:
        order = torch.arange(count, device=device)
        if dim is None:
            return order
        wide = list(shape)
        wide[dim] = count
        return order.reshape([-1 if k == dim % len(shape) else 1 for k in range(len(shape))]).expand(wide)

    def put(value: Any, new: Tensor) -> Any:
        return tuple(put(x, new) for x in value) if isinstance(value, tuple) else new if value is ids else value

    def find() -> Tensor:
        new = places().expand(ids.shape)
        values = [put(named[key], new) for key in signature[1:] if key in named]
        found: Tensor = func(numbers(new.device), *values)
        return found

    made = Once(find)
    if not tokens.given.is_floating_point():
        with suppress(Lost):
            made()
    return _all(made)


def note_computed(every: Sequence[Tokens], made: Any, name: str) -> None:
    """Note that a call cast to integers what a model computed of the input: no position follows these."""
    for tensor in tensors_in(made):
        if not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool):
            for tokens in every:
                tokens.note(tensor, _lost(f"{name} made of computed numbers"))


def _all(places: Places) -> Callable[[int, Tensor], Places]:
    """Return the same positions for all that a call makes."""
    return lambda index, tensor: places


def _changed(given: Sequence[Places], name: str) -> Callable[[int, Tensor], Places]:
    """Return the positions of what was changed entry by entry: those of the ids, broadcast."""

    def changed(index: int, tensor: Tensor) -> Places:
        shape = tensor.shape

        def find() -> Tensor:
            first, *more = [places() for places in given]
            for other in more:
                first, other = torch.broadcast_tensors(first, other.to(first.device))
                if bool(((first != other) & (first != 0) & (other != 0)).any()):
                    raise Lost(f"{name} made of several ids")
                first = torch.where(first == 0, other, first)
            try:
                return first.expand(shape)
            except RuntimeError:
                raise Lost(f"{name} made of others") from None

        return Once(find)

    return changed


def _one_hot(places: Places) -> Callable[[int, Tensor], Places]:
    """Return the positions in one-hot vectors: in all entries of one that of its id."""

    def one_hot(index: int, tensor: Tensor) -> Places:
        shape = tensor.shape
        return Once(lambda: places().unsqueeze(-1).expand(shape))

    return one_hot


def _masks(
    every: Sequence[Tokens], func: Function, row: Operation, given: list[Tensor], args: Args, kwargs: Kwargs
) -> list[Moved]:
    """Return the positions in what a call makes of nothing but what says something of ids.

    With other numbers that is no more of one id each: the places of words, counted in a mask, are nobody's.
    """
    found = []
    for tokens in every:
        said = [places for x in given if (places := tokens.mask(x)) is not None]
        if not said:
            continue
        alone = len(said) == len(given)
        if row.ids is Ids.COPIES:
            found.append(Moved(tokens, _all(said[0]), mask=True))
        elif row.ids is Ids.MOVES and len(row.entering) == 1 and tokens.mask(given[0]) is not None:
            found.append(Moved(tokens, _moved(tokens, func, row.entering, args, kwargs), mask=True))
        elif alone and (row.ids is Ids.CHANGES or row.name in ("where", "logical_and", "logical_or", "logical_not")):
            found.append(Moved(tokens, _changed(said, row.name), mask=True))
        elif row.ids is Ids.ONE_HOT:
            found.append(Moved(tokens, _one_hot(said[0]), hot=True))
    return found


def _vectors(every: Sequence[Tokens], name: str, args: Args, kwargs: Kwargs) -> list[Moved]:
    """Return the positions in one-hot vectors that a number is scattered into: ``zeros.scatter(1, ids, 1)``."""
    named = dict(zip(("input", "dim", "index", "src"), args, strict=False)) | kwargs
    table, dim, index = (named.get(key) for key in ("input", "dim", "index"))
    if name != "scatter" or isinstance(named.get("src"), Tensor) or not isinstance(index, Tensor):
        return []
    assert isinstance(table, Tensor)
    assert isinstance(dim, int)
    shape = table.shape

    def scattered(places: Places) -> Places:
        def find() -> Tensor:
            found = places().expand(index.shape)
            if index.shape[dim] == 1:
                return found.expand(shape)
            return torch.zeros(shape, dtype=torch.int64, device=index.device).scatter(dim, index, found)

        return Once(find)

    return [Moved(ids, _all(scattered(ids.places(index))), hot=True) for ids in every if ids.holds(index)]


def _moved(
    tokens: Tokens, func: Function, entering: tuple[int, ...], args: Args, kwargs: Kwargs
) -> Callable[[int, Tensor], Places]:
    """Return the positions in what a call makes that moves ids: those that it makes of the positions."""
    given = [
        _placed(tokens, value, len(entering) > 1) if at in entering else _kept(value) for at, value in enumerate(args)
    ]
    named = {
        key: _placed(tokens, value, len(entering) > 1) if key in _NAMED else _kept(value)
        for key, value in kwargs.items()
    }

    def find() -> list[Tensor]:
        return tensors_in(func(*map(_value, given), **{key: _value(value) for key, value in named.items()}))

    made = Once(find)
    if not tokens.given.is_floating_point():
        with suppress(Lost):
            made()  # before anybody writes over what it was made of

    def moved(index: int, tensor: Tensor) -> Places:
        return Once(lambda: made()[index])

    return moved


def _placed(tokens: Tokens, value: Any, masks: bool) -> Any:
    """Return positions in the place of ids, and zeros in that of all other numbers; truth values may be ``masks``."""
    if isinstance(value, (list, tuple)):
        return type(value)(_placed(tokens, item, masks) for item in value)
    if isinstance(value, Tensor):
        if value.dtype == torch.bool and (masks or not (tokens.holds(value) or tokens.mask(value))):
            return _kept(value)
        if tokens.holds(value):
            return tokens.places(value)
        if (said := tokens.mask(value)) is not None:
            return said
        return torch.zeros((), dtype=torch.int64, device=value.device).expand(value.shape)
    return 0 if isinstance(value, (int, float)) else value


def _kept(value: Any) -> Any:
    """Return an argument as it is; of a tensor what tells whether it still is."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_kept, value)) if type(value) in (list, tuple) else value
    if not isinstance(value, Tensor):
        return value
    version = _version(value)

    def find() -> Tensor:
        if _version(value) != version:
            raise Lost(WRITE)
        return value

    return Once(find)


def _value(given: Any) -> Any:
    """Return what stands in the place of an argument."""
    if isinstance(given, (list, tuple)):
        return type(given)(map(_value, given)) if type(given) in (list, tuple) else given
    if isinstance(given, Once):
        found: Tensor = given()
        return found.view_as(found)  # the call may change its shape in place
    return given
