"""Networks of other shapes than a chain, whole maps against references that share no code with the package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.attribution.models import settle
from tests.propagation.unrolled import Share, check, conv, dense, passing, random


def up(share: Share, layer: Any, a: Tensor) -> Tensor:
    """A transposed convolution of a reference."""
    return share(lambda x, w, b: F.conv_transpose2d(x, w, b, layer.stride, layer.padding), a, layer.weight, layer.bias)


def halves(first: Tensor, second: Tensor, product: Callable[[Tensor, Tensor], Tensor] = torch.mul) -> Tensor:
    """A product of which each factor has half of the relevance."""
    a, b = first.detach(), second.detach()
    slopes = product(first, b) + product(a, second)
    return product(a, b) + (slopes - slopes.detach()) / 2


# ------------------------------------------------------------------------------------------------------ images


class UNet(nn.Module):
    """[N, 2, 8, 8] to [N, 2, 8, 8]: two levels down and up, with concatenated skips."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.bottom = nn.Conv2d(4, 5, 3, padding=1)
        self.up2, self.up1 = nn.ConvTranspose2d(5, 4, 2, stride=2), nn.ConvTranspose2d(4, 3, 2, stride=2)
        self.join2, self.join1 = nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(6, 2, 1)
        settle(self)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.down1(x))
        second = F.relu(self.down2(F.max_pool2d(first, 2)))
        bottom = F.relu(self.bottom(F.max_pool2d(second, 2)))
        h = F.relu(self.join2(torch.cat([second, self.up2(bottom)], 1)))
        return self.join1(torch.cat([first, self.up1(h)], 1))  # type: ignore[no-any-return]


def test_u_net() -> None:
    """The target weighs every pixel of the output map."""
    model = UNet()

    def reference(share: Share, x: Tensor) -> Tensor:
        first = conv(share, model.down1, x).relu()
        second = conv(share, model.down2, F.max_pool2d(first, 2)).relu()
        bottom = conv(share, model.bottom, F.max_pool2d(second, 2)).relu()
        h = conv(share, model.join2, torch.cat([second, up(share, model.up2, bottom)], 1)).relu()
        return conv(share, model.join1, torch.cat([first, up(share, model.up1, h)], 1))

    check(model, reference, random(2, 2, 8, 8))


class Squeeze(nn.Module):
    """[N, 2, 6, 6] to [N, 3]: a squeeze-and-excitation block in a residual network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.narrow, self.widen, self.head = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1), nn.Linear(4, 3)
        settle(self)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.stem(x))
        out = self.body(h)
        scale = torch.sigmoid(self.widen(F.relu(self.narrow(F.adaptive_avg_pool2d(out, 1)))))
        return self.head(F.relu(h + out * scale).mean((2, 3)))  # type: ignore[no-any-return]


def test_squeeze_and_excitation() -> None:
    model = Squeeze()

    def reference(share: Share, x: Tensor) -> Tensor:
        h = conv(share, model.stem, x).relu()
        out = conv(share, model.body, h)
        scale = torch.sigmoid(model.widen(F.relu(model.narrow(out.mean((2, 3), keepdim=True))))).detach()
        return dense(share, model.head, (h + out * scale).relu().mean((2, 3)))

    check(model, reference, random(2, 2, 6, 6))


class Gated(nn.Module):
    """[N, 2, 12] to [N, 3]: gated convolutions over a sequence, one by ``F.glu``, one by hand, one of tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(2, 8, 3, padding=1), nn.Conv1d(4, 8, 3, padding=2, dilation=2)
        self.signal, self.gate = nn.Conv1d(4, 4, 1), nn.Conv1d(4, 4, 1)
        self.head = nn.Linear(4, 3)
        settle(self)

    def forward(self, x: Tensor) -> Tensor:
        h = F.glu(self.first(x), 1)
        a, b = self.second(h).chunk(2, 1)
        h = h + torch.sigmoid(b) * a
        return self.head((torch.tanh(self.signal(h)) * self.gate(h).sigmoid()).mean(2))  # type: ignore[no-any-return]


def test_gated_convolutions() -> None:
    model = Gated()

    def line(share: Share, layer: Any, a: Tensor) -> Tensor:
        return share(lambda x, w, b: F.conv1d(x, w, b, 1, layer.padding, layer.dilation), a, layer.weight, layer.bias)

    def reference(share: Share, x: Tensor) -> Tensor:
        a, b = line(share, model.first, x).split(4, 1)
        h = a * torch.sigmoid(b).detach()
        a, b = line(share, model.second, h).split(4, 1)
        h = h + a * torch.sigmoid(b).detach()
        signal = passing(torch.tanh, line(share, model.signal, h))
        return dense(share, model.head, (signal * torch.sigmoid(model.gate(h)).detach()).mean(2))

    check(model, reference, random(2, 2, 12))


# --------------------------------------------------------------------------------------------- sets and pairs


class Siamese(nn.Module):
    """Two [N, 4] to [N, 2]: one trunk for both, a head on how far apart they come out."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5)), nn.Linear(5, 2)
        settle(self)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head((self.trunk(x) - self.trunk(y)).abs())  # type: ignore[no-any-return]


def test_siamese_network() -> None:
    model = Siamese()

    def reference(share: Share, x: Tensor, y: Tensor) -> Tensor:
        ends = [dense(share, model.trunk[2], dense(share, model.trunk[0], one).relu()) for one in (x, y)]
        return dense(share, model.head, (ends[0] - ends[1]).abs())

    check(model, reference, random(3, 4), random(3, 4, seed=1))


class MultipleInstance(nn.Module):
    """[N, K, 4] to [N, 3]: gated attention pooling over the instances of a bag (Ilse et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.signal, self.gate, self.score = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 1)
        settle(self)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.trunk(x))
        scores = self.score(torch.tanh(self.signal(h)) * torch.sigmoid(self.gate(h)))
        return self.head((torch.softmax(scores, 1).mT @ h).squeeze(1))  # type: ignore[no-any-return]


def test_attention_pooling() -> None:
    model = MultipleInstance()

    def reference(share: Share, x: Tensor) -> Tensor:
        h = dense(share, model.trunk, x).relu()
        signal = passing(torch.tanh, dense(share, model.signal, h))
        scores = dense(share, model.score, signal * torch.sigmoid(model.gate(h)).detach())
        return dense(share, model.head, halves(torch.softmax(scores, 1).mT, h, torch.matmul).squeeze(1))

    check(model, reference, random(2, 5, 4))


# ------------------------------------------------------------------------------------ loops, exits, several outputs


class Unrolled(nn.Module):
    """[N, 4] to ([N, 3], [N, 3]): one layer used until it has run often enough, an early and a late exit."""

    def __init__(self) -> None:
        super().__init__()
        self.step, self.early, self.late = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 3)
        settle(self)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        states = [x]
        while len(states) < 4:
            states.append(F.relu(self.step(states[-1])) + states[-1] / 2)
        return {"early": self.early(states[1]), "logits": self.late(torch.stack(states, 1).sum(1))}


@pytest.mark.parametrize("exit_", ["early", "logits"])
def test_loops_and_exits(exit_: str) -> None:
    model = Unrolled()

    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x)[exit_]  # type: ignore[no-any-return]

    def reference(share: Share, x: Tensor) -> Tensor:
        one = dense(share, model.step, x).relu() + x / 2
        if exit_ == "early":
            return dense(share, model.early, one)
        two = dense(share, model.step, one).relu() + one / 2
        three = dense(share, model.step, two).relu() + two / 2
        return dense(share, model.late, x + one + two + three)

    check(Chosen(), reference, random(3, 4))
