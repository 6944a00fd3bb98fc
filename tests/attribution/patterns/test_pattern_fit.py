"""Fitted patterns against NumPy on materialised patches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from relprop import PatternNet
from relprop.attribution.patterns import fit as pattern_fit
from tests.attribution.patterns.pattern_reference import conv_patches, sums, transposed_patches, unit_rows

REGIONS = ("linear", "relu+", "relu-")
LAYERS = {
    "linear": (lambda: nn.Linear(5, 4), (7, 5)),
    "linear over time": (lambda: nn.Linear(5, 4), (7, 3, 5)),
    "conv": (lambda: nn.Conv2d(3, 4, 3), (5, 3, 6, 7)),
    "strided and padded": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (5, 4, 7, 8)),
    "grouped and dilated": (lambda: nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2), (5, 4, 6, 6)),
    "depthwise": (lambda: nn.Conv2d(3, 6, 2, groups=3), (5, 3, 5, 5)),
    "1d": (lambda: nn.Conv1d(2, 3, 4, stride=3, padding=2), (6, 2, 11)),
    "3d": (lambda: nn.Conv3d(2, 3, 2, padding=1), (3, 2, 3, 3, 4)),
    "same, even kernel": (lambda: nn.Conv1d(2, 3, 4, padding="same"), (6, 2, 9)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1), (5, 4, 4, 3)),
    "transposed and grouped": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, dilation=2, groups=2), (5, 4, 3, 3)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(2, 3, 4, stride=3, padding=1), (6, 2, 5)),
}


def layer_and_data(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    make, shape = LAYERS[name]
    layer = make().double()
    return layer, torch.randn(shape, dtype=torch.float64) + 0.3


def materialised(layer: nn.Module, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return every patch, ``[samples, groups, inputs]``, and the weight by unit."""
    weight = layer.weight.detach().numpy()
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, 1, x.shape[-1]).numpy(), weight
    stride, dilation = layer.stride[0], layer.dilation[0]
    if layer.transposed:
        patches = transposed_patches(
            x.numpy(), layer.kernel_size, stride, layer.padding[0], layer.output_padding[0], dilation, layer.groups
        )
    elif layer.padding == "same":
        given = np.pad(x.numpy(), [(0, 0), (0, 0), (1, 2)])
        patches = conv_patches(given, layer.kernel_size, stride, 0, dilation, layer.groups)
    else:
        patches = conv_patches(x.numpy(), layer.kernel_size, stride, layer.padding[0], dilation, layer.groups)
    return patches, unit_rows(weight, layer.groups, layer.transposed)


def by_unit(layer: nn.Module, direction: Tensor) -> np.ndarray:
    transposed = getattr(layer, "transposed", False)
    return unit_rows(direction.numpy(), getattr(layer, "groups", 1), transposed)


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("name", LAYERS)
def test_every_sum_and_pattern_is_that_of_the_definition(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = layer_and_data(name)
    fits = []
    make = pattern_fit._Fit
    monkeypatch.setattr(pattern_fit, "_Fit", lambda estimator: fits.append(make(estimator)) or fits[0])
    method = PatternNet(layer).fit(x.split(2))
    (found,) = fits[0].sums.values()
    (pattern,) = method.patterns.values()
    patches, w = materialised(layer, x)
    bias = layer.bias.detach().numpy()

    z = np.stack([patches[:, u * patches.shape[1] // len(w)] @ w[u] + bias[u] for u in range(len(w))], 1)
    computed = layer(x).detach()
    own = computed if isinstance(layer, nn.Linear) else computed.movedim(1, -1)
    np.testing.assert_allclose(own.reshape(-1, len(w)), z, rtol=1e-10, atol=1e-12)  # the reference is the layer
    assert found.samples == len(patches)
    np.testing.assert_allclose(found.z, z.sum(0), rtol=1e-10, atol=1e-10)
    for region in REGIONS:
        expected = sums(patches, w, bias, region)
        moments = found.moments(region)
        np.testing.assert_array_equal(moments.n, expected.n)
        np.testing.assert_allclose(moments.x, expected.x, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(moments.zx, expected.zx, rtol=1e-10, atol=1e-10)
        a = by_unit(layer, pattern.directions[region])
        np.testing.assert_allclose(a, expected.pattern, rtol=1e-9, atol=1e-11)
        assert not pattern.missing[region].any()
        np.testing.assert_allclose((w * a).sum(1), 1.0, rtol=1e-9)  # w'a = 1


@pytest.mark.parametrize("name", ["linear", "strided and padded", "transposed and grouped"])
@pytest.mark.parametrize("estimator", ["linear", "relu+", "relu+-"])
def test_batches_of_any_size_give_the_patterns_of_one(name: str, estimator: str) -> None:
    layer, x = layer_and_data(name)
    (whole,) = PatternNet(layer).fit([x], estimator).patterns.values()
    (streamed,) = PatternNet(layer).fit([x[:1], (x[1:4], "label"), [x[4:]]], estimator).patterns.values()
    assert list(whole.directions) == list(REGIONS[: ["linear", "relu+", "relu+-"].index(estimator) + 1])
    for region, direction in whole.directions.items():
        torch.testing.assert_close(streamed.directions[region], direction, rtol=1e-11, atol=1e-13)


def test_an_unbatched_image_counts_as_one() -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.conv(image).sum() for image in x])

    torch.manual_seed(0)
    model, x = One().double(), torch.randn(4, 2, 5, 5, dtype=torch.float64)
    (pooled,) = PatternNet(model).fit([x]).patterns.values()
    (batched,) = PatternNet(model.conv).fit([x]).patterns.values()
    torch.testing.assert_close(pooled.directions, batched.directions, rtol=1e-11, atol=1e-13)


def test_sums_are_in_float64_whatever_the_model_is_in() -> None:
    layer, x = layer_and_data("linear")
    x = torch.cat([x + 1000.0] * 3)  # a large mean, which single precision would not survive
    with torch.no_grad():  # in eighths, so that the layer's own output is exact on every processor
        x = (8 * x).round() / 8
        for parameter in layer.parameters():
            parameter.copy_((8 * parameter).round() / 8)
    (single,) = PatternNet(layer.float()).fit(x.float().split(2), "linear").patterns.values()
    rows = layer.weight.detach().double()
    z = layer(x.float()).detach().double()
    x = x.float().double()
    q = z.mT @ x / len(x) - z.mean(0)[:, None] * x.mean(0)
    assert single.directions["linear"].dtype == torch.float32
    torch.testing.assert_close(
        single.directions["linear"].double(), q / (rows * q).sum(1, keepdim=True), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("mean", [0.0, 4.0])
def test_the_toy_of_the_paper(mean: float) -> None:
    """x = (s + d, d) and w = (1, -1): the signal lies along (1, 0), the distractor along (1, 1)."""
    random = torch.Generator().manual_seed(0)
    signal, distractor = torch.randn(2, 200_000, generator=random, dtype=torch.float64)
    x = torch.stack([signal + distractor + mean, distractor + mean], 1)
    model = nn.Linear(2, 1, bias=False).double()
    model.weight.data = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    (pattern,) = PatternNet(model).fit(x.split(50_000)).patterns.values()
    expected = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(pattern.directions["linear"], expected, rtol=0, atol=0.01)
    # With E[z] = 0, a+ = E+[x s] / E+[s^2], to which the distractor adds its mean times E+[s] / E+[s^2].
    shifted = expected + mean * (2 / torch.pi) ** 0.5
    torch.testing.assert_close(pattern.directions["relu+"], shifted, rtol=0, atol=0.03 if mean else 0.01)


def test_units_without_a_pattern_are_zero_and_reported() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU()).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2, 3], [1, 1, 1], [0, 0, 0], [3, 2, 1]]))
        model[0].bias.copy_(torch.tensor([0.0, -100.0, 1.0, 100.0]))  # varies, never on, constant, never off
    x = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    method = PatternNet(model)
    with pytest.warns(match=r"2 of '0\.weight'"):
        method.fit([x])
    assert method.patterns.degenerate == {"0.weight": {"linear": [2], "relu+": [1, 2], "relu-": [2, 3]}}
    pattern = method.patterns["0.weight"]
    for region, units in method.patterns.degenerate["0.weight"].items():
        assert (pattern.directions[region] == 0).all(1).nonzero().flatten().tolist() == units
    assert "2 (relu+)" in str(method.patterns)


def test_a_constant_input_has_no_pattern() -> None:
    """What rounding leaves of its variance is no variance."""
    torch.manual_seed(0)
    model = nn.Linear(6, 4).double()
    with pytest.warns(match=r"4 of 'weight'"):
        method = PatternNet(model).fit([torch.rand(1, 6, dtype=torch.float64).expand(67, 6)] * 3, "linear")
    assert not method.patterns["weight"].directions["linear"].any()
