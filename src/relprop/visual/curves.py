"""Curves over samples: the mean, and how far samples spread around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from relprop.errors import InputError
from relprop.visual.figures import SMALL, _finish, _pyplot, is_math, printable, write_names
from relprop.visual.maps import Array, Values, named, to_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Spread: TypeAlias = Literal["error", "deviation", "quartiles"] | None
SPREADS = {
    "error": "mean ± standard error",
    "deviation": "mean ± standard deviation",
    "quartiles": "median and quartiles",
    None: "mean",
}
MARKED = 25  # up to so many points are marked one by one


def curves(
    values: Mapping[str, Values] | Mapping[str, Mapping[str, Values]],
    steps: Values | Sequence[float] | Sequence[str] | None = None,
    *,
    spread: Spread = "error",
    xlabel: str = "",
    ylabel: str = "",
    title: str | None = None,
    path: str | Path | None = None,
) -> Figure:
    """Draw curves of several methods with their spread over samples, in one panel or in several beside one another.

    Definition: the line is the mean over samples, or the median with ``spread="quartiles"``, which the axis names.

    Args:
        values: from a name to ``[N, L]``, N samples of L points, as ``Curve.scores`` and ``Randomisation.similarity``;
            or from the title of a panel to such a mapping: panels share the vertical axis, and a name has its colour
            in all of them.
        steps: the place of each point on the horizontal axis, ``[L]``, or words to write under them; 0, 1, ... without.
        spread: ``"error"`` (of the mean), ``"deviation"``, ``"quartiles"`` or None: the band around the line.
        xlabel, ylabel: written at the axes.
        title: written above the figure.
        path: save a picture there, make its folder where missing, and close the figure.

    Returns: the matplotlib figure.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InputError: curves that are not ``[N, L]`` of one L, another number of steps, an unknown spread, or no curve.
        InputTypeError: not tensors or arrays of a real dtype, or no mapping.

    >>> import matplotlib; matplotlib.use("Agg")
    >>> figure = curves({"a": np.random.default_rng(0).random((5, 9)), "b": np.zeros((3, 9))}, xlabel="step")
    >>> len(figure.axes[0].lines)
    2
    """
    if spread not in SPREADS:
        raise InputError(f"spread is {spread!r}; expected one of {tuple(SPREADS)}")
    panels = _panels(values)
    lengths = {each.shape[1] for panel in panels.values() for each in panel.values()}
    if len(lengths) != 1:
        raise InputError(f"curves have {sorted(lengths)} points; expected the same number in all")
    places, words = _places(steps, lengths.pop())
    names = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    figure = _pyplot().figure(figsize=(1.6 + 3.2 * len(panels), 3.2), layout="constrained")
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for number, (ax, (head, panel)) in enumerate(zip(row, panels.items(), strict=True)):
        for name, each in panel.items():
            _line(ax, places, each, names.index(name), spread)
        ax.set_title(printable(head), fontsize=SMALL + 2, parse_math=False)
        ax.set_xlabel(printable(xlabel), fontsize=SMALL + 1, parse_math=is_math(xlabel))
        ax.tick_params(labelsize=SMALL)
        if words is not None:
            ax.set_xticks(places, words, rotation=45, ha="right", parse_math=False)
        if number == 0:
            label = f"{printable(ylabel)}\n({SPREADS[spread]})".strip()
            ax.set_ylabel(label, fontsize=SMALL + 1, parse_math=is_math(label))
    lines = {str(line.get_label()): line for ax in row for line in ax.lines}
    keys = [str(number) for number in range(len(names))]
    legend = figure.legend([lines[key] for key in keys], keys, loc="outside right upper", fontsize=SMALL)
    write_names(legend, names)
    if title is not None:
        figure.suptitle(printable(title), parse_math=is_math(title))
    return _finish(figure, path)


def _panels(values: Any) -> dict[str, dict[str, Array]]:
    """Return the panels: a mapping of curves is one without a title."""
    outer = named(values, "values")
    nested = [isinstance(each, Mapping) for each in outer.values()]
    if any(nested) and not all(nested):
        raise InputError("values holds both curves and panels of curves; expected one or the other")
    panels: dict[str, Any] = dict(outer) if nested[0] else {"": outer}
    return {
        head: {name: _curve(each, name) for name, each in named(panel, "values").items()}
        for head, panel in panels.items()
    }


def _curve(values: Values, name: str) -> Array:
    array = to_array(values, f"values[{name!r}]")
    if array.ndim != 2:
        raise InputError(
            f"values[{name!r}] has shape {array.shape}; expected [N, L], the points of every sample's curve"
        )
    return array


def _places(steps: Any, length: int) -> tuple[Array, list[str] | None]:
    """Return where the points stand, and the words under them, if any."""
    if steps is None:
        return np.arange(length, dtype=np.float64), None
    if len(steps) != length:
        raise InputError(f"{len(steps)} steps were given for curves of {length} points; expected one for each")
    if isinstance(steps, Sequence) and any(isinstance(step, str) for step in steps):
        return np.arange(length, dtype=np.float64), [printable(step) for step in steps]
    return to_array(steps if not isinstance(steps, Sequence) else np.asarray(steps), "steps"), None


def _line(ax: Axes, places: Array, each: Array, number: int, spread: Spread) -> None:
    color = f"C{number}"
    if spread == "quartiles":
        low, middle, high = np.quantile(each, (0.25, 0.5, 0.75), axis=0)
    else:
        middle = each.mean(axis=0)
        # One sample has no deviation.
        width = each.std(axis=0, ddof=1) if len(each) > 1 and spread is not None else np.zeros(each.shape[1])
        width = width / np.sqrt(len(each)) if spread == "error" else width
        low, high = middle - width, middle + width
    ax.plot(
        places, middle, color=color, label=str(number), linewidth=1.4, marker="." if len(places) <= MARKED else None
    )
    if spread is not None:
        ax.fill_between(places, low, high, color=color, alpha=0.2, linewidth=0)
