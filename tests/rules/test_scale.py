"""Stabilizers have no unit: relevance scales with the activations, and no sample or position sees another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import LRP, Rules
from relprop.rules import (
    AlphaBeta,
    Contrast,
    Epsilon,
    Gamma,
    Relative,
    RescaledExcitation,
    Rule,
    ZBox,
    ZPlus,
)
from relprop.rules.presets import PRESETS
from tests.models import settle

ABSOLUTE = [name for name in PRESETS if name.startswith("preset_")]
"""Whose epsilon is 0.1 in the unit of the outputs: that of iNNvestigate."""
NAMES = [name for name in PRESETS if name not in ABSOLUTE]


def preset(name: str, scale: float = 1.0) -> Rules:
    """A preset, with bounds that grow with the input."""
    bounded = name.endswith(("_box", "_bounded"))
    return Rules.preset(name, **({"low": -4.0 * scale, "high": 4.0 * scale} if bounded else {}))  # type: ignore[arg-type]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def off(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest entry."""
    largest = expected.abs().max()
    return float((found - expected).abs().max() / torch.where(largest > 0, largest, 1.0))


# R(s x) = s R(x) -----------------------------------------------------------------------------------------


def without_biases() -> nn.Sequential:
    return settle(
        nn.Sequential(
            nn.Conv2d(2, 6, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 6, 3, bias=False), nn.ReLU(),
            nn.Flatten(), nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False),
        )
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1e8])
def test_relevance_is_homogeneous(name: str, scale: float) -> None:
    model, x = without_biases(), drawn(2, 2, 8, 8)
    expected = LRP(model, preset(name)).attribute(x, 1)
    assert off(LRP(model, preset(name, scale)).attribute(x * scale, 1) / scale, expected) < 1e-12


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_relevance_is_homogeneous_in_float32(name: str, scale: float) -> None:
    model, x = without_biases().float(), drawn(2, 2, 8, 8).float()
    expected = LRP(model, preset(name)).attribute(x, 1)
    assert off(LRP(model, preset(name, scale)).attribute(x * scale, 1) / scale, expected) < 1e-3


@pytest.mark.parametrize("name", ABSOLUTE[:2])
def test_an_epsilon_that_has_a_unit_is_not(name: str) -> None:
    model, x = without_biases(), drawn(2, 2, 8, 8)
    assert off(LRP(model, preset(name)).attribute(x * 1e-8, 1) / 1e-8, LRP(model, preset(name)).attribute(x, 1)) > 0.1


def test_what_a_stabilizer_of_the_papers_means_has_stayed() -> None:
    layer = nn.Linear(2, 1, bias=False, dtype=torch.float64)
    layer.weight.data = torch.tensor([[3.0, -1.0]], dtype=torch.float64)
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    assert off(LRP(layer, Epsilon(0.5)).attribute(x), torch.tensor([[3.0, -2.0]]).double() / 1.5) < 1e-15


# A network as deep as they come ------------------------------------------------------------------------------


# alpha-beta conserves only where both signs occur, epsilon_ignore_bias gives a fifth of all relevance to its epsilon.
CONSERVING = [name for name in NAMES if "alpha2" not in name and name != "epsilon_ignore_bias"]


@pytest.mark.parametrize("name", CONSERVING)
def test_fifty_convolutions_as_pytorch_initialises_them_conserve(name: str) -> None:
    """Activations fade by 1e-20 on the way."""
    torch.manual_seed(0)
    blocks = [part for _ in range(50) for part in (nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.ReLU())]
    model = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(144, 2, bias=False)).double()
    x = drawn(1, 4, 6, 6)
    share = float(LRP(model, preset(name)).attribute(x, 0).sum() / model(x)[0, 0].detach())
    assert abs(share - 1) < 1e-3


# Nothing sees another ------------------------------------------------------------------------------------------

SCALES = torch.tensor([1.0, 1e-6, 1e5], dtype=torch.float64)


class Block(nn.Module):
    """Attention and a feed-forward part, with residual sums, over ``[N, T, F]`` or, inside, ``[T, N, F]``."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=batch_first)
        self.first, self.second, self.head = nn.Linear(6, 12), nn.Linear(12, 6), nn.Linear(6, 3)
        self.norm, self.batch_first = nn.LayerNorm(6), batch_first

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.batch_first else x.transpose(0, 1)
        h = h + self.attention(h, h, h, need_weights=False)[0]
        h = h + self.second(torch.relu(self.first(self.norm(h))))
        h = h if self.batch_first else h.transpose(0, 1)
        out: Tensor = self.head(h.mean(1))
        return out


class Recurrent(nn.Module):
    """A recurrent layer whose steps come first, or the batch."""

    def __init__(self, kind: Any, batch_first: bool) -> None:
        super().__init__()
        self.layer, self.head, self.batch_first = kind(6, 5, batch_first=batch_first), nn.Linear(5, 3), batch_first

    def forward(self, x: Tensor) -> Tensor:
        if self.batch_first:
            return self.head(self.layer(x)[0][:, -1])  # type: ignore[no-any-return]
        return self.head(self.layer(x.transpose(0, 1))[0][-1])  # type: ignore[no-any-return]


class Products(nn.Module):
    """Linear maps that are no layers: products of matrices on either side, einsum, tensordot."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.left = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(4, 4))
        self.last = nn.Parameter(torch.randn(5, 4, 3))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.left @ torch.einsum("ntf,fg->ntg", x, self.mix))
        return torch.tensordot(h.mT, self.last, 2)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "cnn": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)), (2, 6, 6)),
    "transformer, batch first": (lambda: Block(True), (4, 6)),
    "transformer, sequence first": (lambda: Block(False), (4, 6)),
    "lstm, batch first": (lambda: Recurrent(nn.LSTM, True), (4, 6)),
    "lstm, sequence first": (lambda: Recurrent(nn.LSTM, False), (4, 6)),
    "gru, sequence first": (lambda: Recurrent(nn.GRU, False), (4, 6)),
    "products": (Products, (4, 6)),
}


@pytest.mark.parametrize("name", [*NAMES, *ABSOLUTE[:2]])
@pytest.mark.parametrize("kind", MODELS)
def test_samples_of_very_different_scale_are_explained_as_alone(kind: str, name: str) -> None:
    make, shape = MODELS[kind]
    torch.manual_seed(1)
    model = settle(make())
    x = drawn(3, *shape) * SCALES.reshape(3, *(1,) * len(shape))
    rules = preset(name, 1e6)
    together = LRP(model, rules).attribute(x, 1)
    for n in range(3):
        assert off(together[n : n + 1], LRP(model, rules).attribute(x[n : n + 1], 1)) < 1e-12


class Causal(nn.Module):
    """A causal language model in small: every position is explained by what stands before it."""

    def __init__(self, inner: int = 6) -> None:
        super().__init__()
        self.queries, self.keys, self.values = (nn.Linear(6, inner) for _ in range(3))
        self.out, self.first, self.second = nn.Linear(inner, 6), nn.Linear(6, 9), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.queries(x), self.keys(x), self.values(x)
        h = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        out: Tensor = self.second(torch.relu(self.first(h)))
        return out


@pytest.mark.parametrize("name", NAMES)
def test_one_long_forward_explains_as_its_prefixes(name: str) -> None:
    """What follows a position changes nothing, be it of another scale by far."""
    model, x = settle(Causal()), drawn(2, 5, 6)
    x[:, 3:] *= 1e6
    rules = preset(name, 1e7)
    for length in (1, 3):
        whole = LRP(model, rules).attribute(x, (length - 1, 2))
        prefix = LRP(model, rules).attribute(x[:, :length], (length - 1, 2))
        assert off(whole[:, :length], prefix) < 1e-12


# By hand -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule",
    [
        Gamma(0.5),
        AlphaBeta(),
        ZPlus(),
        Contrast(),
        RescaledExcitation(0.5),
        ZBox(-4.0, 4.0),
        Epsilon(0.1, relative=True),
    ],
    ids=repr,
)
def test_a_stabilizer_is_a_share_of_the_size_over_the_channels(rule: Rule) -> None:
    """Multiplying one output channel alone changes what stabilizes the others; another position changes nothing."""
    strong: Any = rule if isinstance(rule, Epsilon) else type(rule)(**{**vars(rule), "stabilizer": 0.1})
    conv = settle(nn.Conv1d(4, 3, 1))
    x = drawn(1, 4, 4)

    def explained(y: Tensor) -> Tensor:
        return LRP(conv, strong).attribute(y, lambda out: out[:, 0, 0])

    elsewhere = x.clone()
    elsewhere[:, :, 1:] *= 1e3
    assert off(explained(elsewhere), explained(x)) < 1e-15
    before = explained(x)
    with torch.no_grad():
        conv.weight[2] *= 100
    assert off(explained(x), before) > 1e-3


def test_a_stabilizer_of_ones_own_may_have_none_or_one() -> None:
    class Own(ZPlus):
        def stabilize(self, layer: Any, z: Tensor) -> Any:
            return Relative(layer.per_channel([0.1, 0.2, 0.3], z))

    conv, x = settle(nn.Conv1d(4, 3, 1, bias=False)), drawn(2, 4, 4)
    found = LRP(conv, Own()).attribute(x * 1e-5, lambda out: out.sum((1, 2))) / 1e-5
    assert off(found, LRP(conv, Own()).attribute(x, lambda out: out.sum((1, 2)))) < 1e-12
