"""Relevance in motion: an input on its way, the heat maps that follow it, and curves beneath, as a GIF."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from relprop.errors import InputError
from relprop.visual.figures import PANEL, SMALL, _draw, _draw_input, _pyplot, is_math, printable, write_names
from relprop.visual.maps import Array, Values, batch, channel_sum, named, picture, symmetric_scale, to_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D


def animation(
    inputs: Values,
    relevances: Mapping[str, Values],
    path: str | Path,
    *,
    curves: Mapping[str, Values] | None = None,
    curves_label: str = "",
    fps: int = 15,
    title: str | None = None,
) -> Path:
    """Show what happens to explanations while one input moves, frame by frame, and save it as a GIF.

    Definition: map ``M = sum_c R`` is drawn as ``M / s`` between -1 (blue) and 1 (red), where ``s`` is the largest
    ``|M|`` of the method over all frames, written under its map: what flickers does so in the relevance.

    Args:
        inputs: one sample on its way, ``[T, C, H, W]`` or ``[T, H, W]``.
        relevances: from a method's name to its relevance, ``[T, C, H, W]`` or ``[T, H, W]``.
        path: where the GIF goes; its folder is made where missing.
        curves: from a name to ``[T]`` numbers, one a frame, or ``[T - 1]``, one for each step to the next frame: drawn
            beneath, with a line where the film is.
        curves_label: what the curves show.
        fps: frames in a second.
        title: written above.

    Returns: the path.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InputError: fewer than two frames, numbers of frames that do not fit, entries that are not finite, ``fps``
            below 1.
        InputTypeError: not tensors or arrays of a real dtype, or no mapping.

    >>> import matplotlib, tempfile; matplotlib.use("Agg")
    >>> import torch
    >>> x = torch.eye(4)[:, None]  # a dot that moves, four frames of 1 x 4 pixels
    >>> animation(x, {"itself": x}, Path(tempfile.mkdtemp()) / "dot.gif", curves={"sum": x.sum(dim=(1, 2))}).name
    'dot.gif'
    """
    images = batch(inputs, "inputs", dims=(3, 4))
    frames = len(images)
    if frames < 2:
        raise InputError(f"inputs hold {frames} frame; expected [T, C, H, W] or [T, H, W], at least two frames")
    maps = {
        name: [channel_sum(frame) for frame in batch(each, f"relevances[{name!r}]", frames, (3, 4))]
        for name, each in named(relevances, "relevances").items()
    }
    lines = {name: _curve(each, name, frames) for name, each in (curves or {}).items()}
    if fps < 1:
        raise InputError(f"fps is {fps}; expected at least 1 frame in a second")

    plt = _pyplot()
    from matplotlib.animation import PillowWriter

    columns = 1 + len(maps)
    size = (max(columns * (PANEL + 0.5), 4.0), PANEL + 0.8 + (1.5 if lines else 0.0) + (0.3 if title else 0.0))
    figure = plt.figure(figsize=size, layout="constrained")
    if title is not None:
        figure.suptitle(printable(title), fontsize=SMALL + 3, parse_math=is_math(title))
    spec = figure.add_gridspec(2 if lines else 1, columns, height_ratios=[1.2, 1] if lines else None)
    first = figure.add_subplot(spec[0, 0])
    pictures = [picture(image) for image in images]
    _draw_input(first, pictures[0], "input")
    shown = []
    for column, (name, each) in enumerate(maps.items(), start=1):
        ax = figure.add_subplot(spec[0, column])
        scale = symmetric_scale(*each)
        shown.append((_draw(ax, each[0] / scale, 1.0), [values / scale for values in each]))
        ax.set_title(printable(name), fontsize=SMALL + 1, parse_math=False)
        ax.set_xlabel(f"±{scale:.2g}", fontsize=SMALL)
    marker = _draw_curves(figure.add_subplot(spec[1, :]), lines, curves_label, frames) if lines else None

    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.canvas.draw()  # lay out once: panels stay where they are
    figure.set_layout_engine("none")
    writer = PillowWriter(fps=fps)
    with writer.saving(figure, str(target), dpi=100):
        for frame in range(frames):
            first.images[0].set_data(pictures[frame])
            for image, values in shown:
                image.set_data(values[frame])
            if marker is not None:
                marker.set_xdata([frame, frame])
            writer.grab_frame()
    plt.close(figure)
    return target


def _curve(values: Values, name: str, frames: int) -> Array:
    array = to_array(values, f"curves[{name!r}]")
    if array.shape not in ((frames,), (frames - 1,)):
        raise InputError(
            f"curves[{name!r}] has shape {array.shape}; expected one number a frame, [{frames}], or one for each step, "
            f"[{frames - 1}]"
        )
    return array


def _draw_curves(ax: Axes, lines: Mapping[str, Array], label: str, frames: int) -> Line2D:
    """Draw the curves and return the line that marks the frame."""
    for number, values in enumerate(lines.values()):
        ax.plot(np.arange(len(values)) + (frames - len(values)) / 2, values, label=str(number), linewidth=1)
    ax.set_xlim(0, frames - 1)
    ax.set_xlabel("frame", fontsize=SMALL)
    ax.set_ylabel(printable(label), fontsize=SMALL, parse_math=is_math(label))
    ax.tick_params(labelsize=SMALL)
    legend = ax.legend(fontsize=SMALL, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    write_names(legend, list(lines))
    marker: Line2D = ax.axvline(0, color="0.4", linewidth=0.8)
    return marker
