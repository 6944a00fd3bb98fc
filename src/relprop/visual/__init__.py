"""Drawing relevance: one heat map, inputs beside the maps of several methods, the maps of every layer, and box plots.

The functions take tensors or arrays and know nothing of models or rules. They need matplotlib
(``pip install relprop[visual]``), which is imported when something is drawn and not before.
"""

from relprop.visual.boxes import boxes
from relprop.visual.figures import grid, heatmap, layers
from relprop.visual.maps import channel_sum, symmetric_scale

__all__ = ["boxes", "channel_sum", "grid", "heatmap", "layers", "symmetric_scale"]
