"""Box plots of what several estimators reach at every layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from relprop.errors import InputError
from relprop.visual.figures import SMALL, _finish, _pyplot, is_math, printable, write_names
from relprop.visual.maps import Array, Values, to_array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHADES = ("#9e9e9e", "#4c78a8", "#e07b39", "#59a14f", "#b279a2")
WIDTH = 0.8  # of the boxes of one layer together, where layers are 1 apart


def boxes(
    values: Mapping[str, Mapping[str, Values]],
    *,
    ylabel: str = "",
    title: str | None = None,
    limits: tuple[float, float] | None = None,
    path: str | Path | None = None,
) -> Figure:
    """Draw a box for every layer and estimator, such as the ``values`` of :class:`relprop.SignalQuality`.

    Definition: a box goes from the first to the third quartile, the line in it is the median, the whiskers reach to
    the furthest value within 1.5 times the height of the box, and every value beyond is a dot.

    Args:
        values: by layer and estimator, the values of its units, ``[units]``; every layer has the same estimators.
        ylabel: what the values are.
        title: written above the figure.
        limits: of the values; those of the data by default.
        path: where to save the figure, which is then closed.

    Returns: the matplotlib figure.

    Raises:
        InputError: where there is nothing to draw, layers differ in their estimators, or entries are not finite.
        InputTypeError: not tensors or arrays of a real dtype.
        MissingExtraError: matplotlib is not installed (``pip install relprop[visual]``).

    >>> import matplotlib; matplotlib.use("Agg")
    >>> import torch
    >>> figure = boxes({"conv": {"filter": torch.rand(8), "relu+": torch.rand(8)}}, ylabel="quality")
    >>> figure.axes[0].get_ylabel(), len(figure.axes[0].patches)
    ('quality', 2)
    """
    arrays: dict[str, dict[str, Array]] = {
        layer: {name: to_array(each, f"{layer}, {name}").ravel() for name, each in found.items()}
        for layer, found in values.items()
    }
    names = list(next(iter(arrays.values()), {}))
    if not names or any(
        list(found) != names or any(not len(each) for each in found.values()) for found in arrays.values()
    ):
        raise InputError("boxes needs at least one layer, and for every layer values of the same estimators.")
    plt = _pyplot()
    figure, ax = plt.subplots(figsize=(max(4.0, 1.1 * len(arrays) + 1.5), 3.6), layout="constrained")
    step = WIDTH / len(names)
    for position, name in enumerate(names):
        color = SHADES[position % len(SHADES)]
        drawn = ax.boxplot(
            [found[name] for found in arrays.values()],
            positions=[layer + (position - (len(names) - 1) / 2) * step for layer in range(len(arrays))],
            widths=0.8 * step,
            patch_artist=True,
            manage_ticks=False,
            medianprops={"color": "black"},
            boxprops={"facecolor": color, "linewidth": 0.8},
            flierprops={"marker": ".", "markersize": 4, "markerfacecolor": color, "markeredgecolor": color},
        )
        drawn["boxes"][0].set_label(str(position))
    words = [printable(layer).replace(" with ", "\nwith ") for layer in arrays]
    ax.set_xticks(range(len(arrays)), words, fontsize=SMALL, parse_math=False)
    ax.set_xlim(-0.5, len(arrays) - 0.5)
    for edge in range(1, len(arrays)):
        ax.axvline(edge - 0.5, color="0.9", linewidth=0.8, zorder=0)
    ax.set_ylabel(printable(ylabel), parse_math=is_math(ylabel))
    if limits is not None:
        ax.set_ylim(*limits)
    ax.spines[["top", "right"]].set_visible(False)
    legend = figure.legend(loc="outside upper right", ncols=len(names), frameon=False, fontsize=SMALL + 1)
    write_names(legend, names)
    if title is not None:
        figure.suptitle(printable(title), x=0.01, ha="left", fontsize=SMALL + 3, parse_math=is_math(title))
    return _finish(figure, path)
