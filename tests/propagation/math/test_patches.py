"""Patches: what each unit of a linear layer saw, against every patch written out in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from relprop.propagation.math import linear_map as geometries
from relprop.propagation.math.linear_map import Convolution, Dense, Geometry
from relprop.propagation.math.patches import patches
from tests.attribution.patterns.test_pattern_fit import LAYERS, layer_and_data, materialised


def geometry_of(layer: nn.Module) -> Geometry:
    if isinstance(layer, nn.Linear):
        return Dense()
    padding, extra = layer.padding, ()
    if padding == "same":
        padding, extra = geometries.same_padding(layer.kernel_size, layer.dilation)
    more = layer.output_padding if layer.transposed else (0,) * len(layer.stride)
    return Convolution(layer.stride, padding, layer.dilation, layer.groups, layer.transposed, more, extra)


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("name", LAYERS)
def test_patches_are_what_the_units_saw(name: str) -> None:
    layer, x = layer_and_data(name)
    geometry, z = geometry_of(layer), layer(x).detach()
    samples = len(geometry.by_unit(z))
    chosen = torch.randperm(samples, generator=torch.Generator().manual_seed(0))[: max(3, samples // 2)]
    found = patches(geometry, x, z, layer.weight.detach(), chosen)
    expected, _ = materialised(layer, x)
    np.testing.assert_array_equal(found, expected[chosen])
