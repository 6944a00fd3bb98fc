"""Ids that an embedding is given: where it has no row for one, what PyTorch says names neither."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from relprop.errors import InputError


def check_ids(at: int, args: tuple[Any, ...], kwargs: dict[str, Any], place: tuple[str, nn.Module | None]) -> None:
    """Raise where an embedding is given ids that it has no row for; it takes them ``at`` this position.

    Raises:
        InputError: naming the module, its rows and the ids.
    """
    ids = args[at] if len(args) > at else kwargs.get("input", kwargs.get("indices"))
    table = args[1 - at] if len(args) > 1 - at else kwargs.get("weight")
    if not isinstance(ids, Tensor) or not isinstance(table, Tensor) or ids.is_meta or not ids.numel():
        return
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= len(table):
        name, module = place
        where = f"Module {name!r} ({type(module).__name__})" if name else "An embedding"
        raise InputError(
            f"{where} has {len(table)} rows and was given ids from {low} to {high}; ids must lie between 0 and "
            f"{len(table) - 1}, those of baselines too."
        )
