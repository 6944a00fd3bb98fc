"""Figures of relevance: blue is negative, white is zero, red is positive, and every scale is written down.

Figures made without ``path`` belong to ``matplotlib.pyplot``, so notebooks and ``plt.show()`` display them;
with ``path`` they are saved and closed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from relprop.errors import InputError, InputTypeError, MissingExtraError
from relprop.visual.maps import (
    Array,
    Values,
    batch,
    channel_sum,
    check_quantile,
    named,
    picture,
    symmetric_scale,
    unit_map,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from matplotlib.legend import Legend

Normalize: TypeAlias = Literal["map", "row", "all"] | float
COLORS = "bwr"
PANEL = 1.3  # inches, the side of one panel
SMALL = 7  # points, the size of the notes under a panel


def heatmap(
    relevance: Values,
    ax: Axes | None = None,
    *,
    scale: float | None = None,
    title: str | None = None,
    colorbar: bool = True,
) -> AxesImage:
    """Draw one sample's relevance as a heat map centred on zero.

    Definition: the colour at ``(y, x)`` stands for ``sum_c R[c, y, x]``, from ``-scale`` (blue) over 0
    (white) to ``+scale`` (red).

    Args:
        relevance: one sample, ``[C, H, W]``, ``[1, C, H, W]`` or ``[H, W]``, of any real dtype and device.
        ax: the axes to draw into; a new pyplot figure without it.
        scale: where the colours end, in units of relevance; the map's largest absolute value without it.
        title: written above the map.
        colorbar: add a colour bar that shows the scale; without it, the scale is written under the map.

    Returns: the matplotlib image; its figure is ``.figure``.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InputError: another shape, entries that are not finite, or a scale that is not positive.
        InputTypeError: not a tensor or array of a real dtype.

    >>> import matplotlib; matplotlib.use("Agg")
    >>> import torch
    >>> image = heatmap(torch.tensor([[[0.5, -2.0]], [[1.0, 0.0]]]), title="target 3")
    >>> image.get_clim()
    (-2.0, 2.0)
    """
    values = channel_sum(relevance)
    limit = symmetric_scale(values) if scale is None else _positive(scale, "scale")
    if ax is None:
        ax = _pyplot().figure(layout="constrained").add_subplot()
    image = _draw(ax, values, limit)
    if title is not None:
        ax.set_title(printable(title), parse_math=is_math(title))
    if colorbar:
        bar = ax.get_figure(root=True).colorbar(image, ax=ax, shrink=0.8)  # type: ignore[union-attr]
        bar.set_label(f"relevance, ±{limit:.3g}")
    else:
        ax.set_xlabel(f"scale ±{limit:.3g}", fontsize=SMALL)
    return image


def grid(
    inputs: Values,
    relevances: Mapping[str, Values],
    *,
    labels: Sequence[str] | None = None,
    normalize: Normalize = "map",
    quantile: float = 1.0,
    title: str | None = None,
    path: str | Path | None = None,
) -> Figure:
    """Set inputs beside their heat maps: a row for each sample, a column for each method, one colour bar.

    Definition: map ``M = sum_c R`` is drawn as ``M / s`` between -1 and 1, with ``s`` by ``normalize``:
    ``"map"``, its own largest ``|M|``, written under the map; ``"row"`` and ``"all"``, the largest of its
    row or of the figure. A number is the scale itself, in units of relevance. The colour bar says which.

    Args:
        inputs: ``[N, C, H, W]`` or ``[N, H, W]``; three channels are shown as colours, others as grey.
        relevances: from a method's name to relevance ``[N, C, H, W]`` or ``[N, H, W]``; the spatial size may
            differ from that of the inputs.
        labels: one for each sample, written at the left.
        normalize: ``"map"``, ``"row"``, ``"all"`` or a positive number. Only ``"row"``, ``"all"`` and a
            number let methods be compared in size; methods whose units differ (a gradient, a relevance)
            need ``"map"``.
        quantile: take this quantile of ``|M|`` in place of the largest; what lies above it saturates.
        title: written above the figure.
        path: save a picture there, make its folder where missing, and close the figure.

    Returns: the matplotlib figure.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InputError: shapes or numbers of samples that do not fit, entries that are not finite, a scale that
            is not positive, a quantile outside (0, 1].
        InputTypeError: not tensors or arrays of a real dtype, or no mapping.

    >>> import matplotlib; matplotlib.use("Agg")
    >>> import torch
    >>> x = torch.rand(2, 1, 8, 8)
    >>> figure = grid(x, {"input": x, "minus input": -x}, labels=["a", "b"], normalize="all")
    >>> len(figure.axes)  # two rows of three panels, and the colour bar
    7
    """
    images = batch(inputs, "inputs", dims=(3, 4))
    columns = {
        name: [channel_sum(sample) for sample in batch(each, f"relevances[{name!r}]", len(images), (3, 4))]
        for name, each in named(relevances, "relevances").items()
    }
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    scales = _scales(rows, normalize, quantile)
    labels = _labels(labels, len(images))
    figure, panels = _panels(len(rows), len(columns) + 1, title)
    for n, (row, image) in enumerate(zip(rows, images, strict=True)):
        _draw_input(panels[n][0], picture(image), "input" if n == 0 else "")
        panels[n][0].set_ylabel(labels[n], fontsize=SMALL + 1, parse_math=False)
        for ax, name, values, scale in zip(panels[n][1:], columns, row, scales[n], strict=True):
            _draw(ax, values / scale, 1.0)
            if n == 0:
                ax.set_title(printable(name), fontsize=SMALL + 1, parse_math=False)
            if normalize == "map":
                ax.set_xlabel(f"±{scale:.2g}", fontsize=SMALL)
    _bar(figure, panels, normalize, quantile)
    return _finish(figure, path)


def layers(
    relevances: Mapping[str, Values | Sequence[Values]],
    inputs: Values | None = None,
    *,
    labels: Sequence[str] | None = None,
    normalize: Normalize = "map",
    quantile: float = 1.0,
    columns: int = 8,
    title: str | None = None,
    path: str | Path | None = None,
) -> Figure:
    """Show the relevance at every layer, as ``attribute_layers`` returns it, in the mapping's order.

    Definition: a layer's map is drawn as ``M / s`` between -1 and 1, where ``M`` sums relevance over all
    dimensions but the last two; units without a place in space are folded row by row into a rectangle.
    Under each panel stand the sum of its relevance, which conservation keeps from layer to layer, and,
    with ``normalize="map"``, its ``s``.

    Args:
        relevances: from a layer's name to relevance ``[N, ...]``, or to a tuple of those where a module runs
            more than once.
        inputs: ``[N, C, H, W]`` or ``[N, H, W]``, drawn before the layers.
        labels: one for each sample, written at the left of its first row.
        normalize: the scale ``s``, as in ``grid``; a row here is all the panels of one sample.
        quantile: as in ``grid``.
        columns: panels in a row before it wraps.
        title: written above the figure.
        path: save a picture there, make its folder where missing, and close the figure.

    Returns: the matplotlib figure.

    Raises:
        InputError: ``columns`` below 1, and as ``grid``.
        InputTypeError, MissingExtraError: as ``grid``.

    >>> import matplotlib; matplotlib.use("Agg")
    >>> import torch
    >>> figure = layers({"conv": torch.rand(1, 4, 6, 6), "dense": torch.rand(1, 10)})
    >>> [ax.get_title() for ax in figure.axes]
    ['conv\\n4 x 6 x 6', 'dense\\n10 units', '']
    """
    if columns < 1:
        raise InputError(f"columns is {columns}; expected at least 1")
    given = list(named(relevances, "relevances").items())
    arrays = {given[0][0]: batch(given[0][1], f"relevances[{given[0][0]!r}]")}
    samples = len(arrays[given[0][0]])
    arrays |= {name: batch(each, f"relevances[{name!r}]", samples) for name, each in given[1:]}
    images = None if inputs is None else batch(inputs, "inputs", samples, (3, 4))
    maps = [[unit_map(each[n]) for each in arrays.values()] for n in range(samples)]
    scales = _scales(maps, normalize, quantile)
    labels = _labels(labels, samples)

    lead = int(images is not None)
    columns = min(columns, lead + len(arrays))
    lines = math.ceil((lead + len(arrays)) / columns)
    spare = lines * columns - lead - len(arrays)
    figure, panels = _panels(samples * lines, columns, title)
    for n in range(samples):
        last = panels[(n + 1) * lines - 1]
        while len(last) > columns - spare:
            last.pop().remove()
        axes = [ax for line in panels[n * lines : (n + 1) * lines] for ax in line]
        axes[0].set_ylabel(labels[n], fontsize=SMALL + 1, parse_math=False)
        if images is not None:
            _draw_input(axes[0], picture(images[n]), "input\n" + _size(images[n]))
        for ax, (name, each), values, scale in zip(axes[lead:], arrays.items(), maps[n], scales[n], strict=True):
            _draw(ax, values / scale, 1.0)
            ax.set_title(f"{printable(name)}\n{_size(each[n])}", fontsize=SMALL, parse_math=False)
            note = f"sum {each[n].sum():.3g}" + (f", ±{scale:.2g}" if normalize == "map" else "")
            ax.set_xlabel(note, fontsize=SMALL)
    _bar(figure, panels, normalize, quantile)
    return _finish(figure, path)


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise MissingExtraError(
            "relprop.visual draws with matplotlib, which is not installed; pip install relprop[visual]"
        ) from error
    return plt


def printable(text: Any) -> str:
    """Return what a name looks like: as it is, but for control characters and the like, which are spelled out."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in str(text))


def is_math(text: Any) -> bool:
    """Say whether a title can be read as matplotlib's mathtext; names are no formulas, whatever they hold."""
    from matplotlib.mathtext import MathTextParser

    try:
        MathTextParser("path").parse(printable(text))
    except ValueError:
        return False
    return True


def write_names(legend: Legend, names: Sequence[str]) -> None:
    """Write names into a legend as they are: it reads formulas, and leaves out what begins with an underscore."""
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(printable(name))


def _draw(ax: Axes, values: Array, limit: float) -> AxesImage:
    image = ax.imshow(values, cmap=COLORS, vmin=-limit, vmax=limit, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    return image


def _draw_input(ax: Axes, image: Array, title: str) -> None:
    ax.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_title(title, fontsize=SMALL + 1 if "\n" not in title else SMALL)


def _panels(rows: int, columns: int, title: str | None) -> tuple[Figure, list[list[Axes]]]:
    size = (columns * PANEL + 1.0, rows * (PANEL + 0.25) + (0.5 if title is None else 0.8))
    figure = _pyplot().figure(figsize=size, layout="constrained")
    if title is not None:
        figure.suptitle(printable(title), fontsize=SMALL + 3, parse_math=is_math(title))
    return figure, figure.subplots(rows, columns, squeeze=False).tolist()


def _bar(figure: Figure, panels: list[list[Axes]], normalize: Normalize, quantile: float) -> None:
    """One colour bar for all panels, whose label says what the colours mean."""
    largest = "max |relevance|" if quantile == 1 else f"the {quantile:.4g} quantile of |relevance|"
    label = {
        "map": f"relevance / {largest} of its map (± under it)",
        "row": f"relevance / {largest} of its sample",
        "all": f"relevance / {largest} of the figure",
    }.get(str(normalize), f"relevance / {normalize}")
    axes = [ax for row in panels for ax in row]
    image = next(each for ax in reversed(axes) for each in ax.images)
    bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01, aspect=30)
    bar.set_label(label, fontsize=SMALL + 1)
    bar.ax.tick_params(labelsize=SMALL)


def _finish(figure: Figure, path: str | Path | None) -> Figure:
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160)
        _pyplot().close(figure)
    return figure


def _scales(rows: list[list[Array]], normalize: str | float, quantile: float) -> list[list[float]]:
    """One scale for every map, by the stated normalisation."""
    check_quantile(quantile)
    if normalize == "map":
        return [[symmetric_scale(each, quantile=quantile) for each in row] for row in rows]
    if normalize == "row":
        return [[symmetric_scale(*row, quantile=quantile)] * len(row) for row in rows]
    if normalize == "all":
        one = symmetric_scale(*(each for row in rows for each in row), quantile=quantile)
    elif isinstance(normalize, str):
        raise InputError(f"normalize is {normalize!r}; expected 'map', 'row', 'all' or a positive number")
    else:
        one = _positive(normalize, "normalize")
    return [[one] * len(row) for row in rows]


def _positive(value: float, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise InputTypeError(f"{name} is a {type(value).__name__}; expected a number")
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{name} is {value}; expected a positive, finite number")
    return float(value)


def _labels(labels: Sequence[str] | None, samples: int) -> list[str]:
    if labels is None:
        return [""] * samples
    if len(labels) != samples:
        raise InputError(f"{len(labels)} labels were given for {samples} samples; expected one for each")
    return [printable(label) for label in labels]


def _size(sample: Array) -> str:
    if sample.ndim <= 1:
        return "1 unit" if sample.size == 1 else f"{sample.size} units"
    return " x ".join(str(length) for length in sample.shape)
