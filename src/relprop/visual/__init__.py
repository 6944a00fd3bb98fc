"""Drawing relevance: one heat map, inputs beside the maps of several methods, the maps of every layer, curves,
box plots, and a film.

The functions take tensors or arrays and know nothing of models or rules. They need matplotlib
(``pip install relprop[visual]``), which is imported when something is drawn and not before.
"""

from relprop.visual.animation import animation
from relprop.visual.boxes import boxes
from relprop.visual.curves import curves
from relprop.visual.figures import grid, heatmap, layers
from relprop.visual.maps import channel_sum, symmetric_scale

__all__ = [
    "animation",
    "boxes",
    "channel_sum",
    "curves",
    "grid",
    "heatmap",
    "layers",
    "symmetric_scale",
]
