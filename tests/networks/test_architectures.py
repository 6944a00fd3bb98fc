"""Architectures whose parts meet: whole maps of the network as users write it against the same network unrolled."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import LRP
from tests.models import settle
from tests.unrolled import RULES, Share, assert_close, check, conv, dense, each_rule, explain, passing, random, weigh


def half(x: Tensor) -> Tensor:
    """A factor of a product of two: it receives half of the product's relevance."""
    return (x + x.detach()) / 2


def folded(share: Share, layer: Any, norm: Any, x: Tensor) -> Tensor:
    """A convolution, transposed or not, and the batch norm behind it, as one linear map."""
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    transposed = isinstance(layer, nn.ConvTranspose2d)
    weight = layer.weight * (scale[None, :, None, None] if transposed else scale[:, None, None, None])
    bias = -norm.running_mean if layer.bias is None else layer.bias - norm.running_mean
    run: Any = F.conv_transpose2d if transposed else F.conv2d
    return share(lambda a, w, b: run(a, w, b, layer.stride, layer.padding), x, weight, bias * scale + norm.bias)


# U-Net -------------------------------------------------------------------------------------------


class Double(nn.Sequential):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__(
            nn.Conv2d(inside, outside, 3, padding=1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(inplace=True),
            nn.Conv2d(outside, outside, 3, padding=1),
            nn.ReLU(inplace=True),
        )


class UNet(nn.Module):
    """[N, 2, 8, 8] to [N, 3, 8, 8]: two levels down, two up, skips by concatenation (Ronneberger et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([Double(2, 3), Double(3, 4)])
        self.bottom = Double(4, 5)
        self.up = nn.ModuleDict(
            {"1": nn.ConvTranspose2d(5, 4, 2, stride=2), "0": nn.ConvTranspose2d(4, 3, 2, stride=2)}
        )
        self.norms = nn.ModuleDict({"1": nn.BatchNorm2d(4), "0": nn.BatchNorm2d(3)})
        self.merge = nn.ModuleDict({"1": Double(8, 4), "0": Double(6, 3)})
        self.out = nn.Conv2d(3, 3, 1)
        settle(self)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bottom(x)
        for level in self.up:
            x = torch.relu_(self.norms[level](self.up[level](x)))
            x = self.merge[level](torch.cat([skips.pop(), x], dim=1))
        return self.out(x)  # type: ignore[no-any-return]


@each_rule
def test_a_u_net(rule: str) -> None:
    model: Any = UNet()

    def double(share: Share, block: Any, x: Tensor) -> Tensor:
        return conv(share, block[3], folded(share, block[0], block[1], x).relu()).relu()

    def reference(share: Share, x: Tensor) -> Tensor:
        high = double(share, model.down[0], x)
        low = double(share, model.down[1], F.max_pool2d(high, 2))
        x = double(share, model.bottom, F.max_pool2d(low, 2))
        for level, skip in (("1", low), ("0", high)):
            x = folded(share, model.up[level], model.norms[level], x).relu()
            x = double(share, model.merge[level], torch.cat([skip, x], 1))
        return conv(share, model.out, x)

    check(model, reference, random(2, 2, 8, 8), rule=rule)


def test_a_u_net_at_a_pixel_and_over_a_class() -> None:
    """A pixel's map, summed over the pixels that a mask chooses, is the map of the sum over the mask."""
    model, x = UNet(), random(2, 2, 8, 8)
    chosen = [(1, 2, 3), (1, 5, 0), (1, 7, 7)]
    pixels = LRP(model).attribute_targets(x, chosen)
    mask = torch.zeros(8, 8, dtype=torch.bool)
    for _, row, column in chosen:
        mask[row, column] = True
    assert_close(pixels.sum(0), LRP(model).attribute(x, lambda out: out[:, 1, mask].sum(1)))


# Siamese -----------------------------------------------------------------------------------------


class Siamese(nn.Module):
    """Two images through one trunk; what is explained is a distance of their embeddings."""

    def __init__(self, distance: str) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 5)
        )
        self.head, self.distance = nn.Linear(5, 2), distance
        settle(self)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        u, v = self.trunk(left), self.trunk(right)
        if self.distance == "absolute":  # Koch et al. 2015
            return self.head(torch.abs(u - v))  # type: ignore[no-any-return]
        if self.distance == "squared":
            return ((u - v) ** 2).sum(dim=1, keepdim=True)
        if self.distance == "euclidean":
            return torch.sqrt(torch.square(u - v).sum(dim=1, keepdim=True))
        return (u * v).sum(dim=1, keepdim=True)


@each_rule
@pytest.mark.parametrize("distance", ["absolute", "squared", "euclidean", "product"])
def test_a_siamese_network(distance: str, rule: str) -> None:
    model: Any = Siamese(distance)

    def reference(share: Share, left: Tensor, right: Tensor) -> Tensor:
        def trunk(x: Tensor) -> Tensor:
            h = F.max_pool2d(folded(share, model.trunk[0], model.trunk[1], x).relu(), 2)
            return dense(share, model.trunk[5], h.flatten(1))

        u, v = trunk(left), trunk(right)
        if distance == "absolute":
            return dense(share, model.head, passing(torch.abs, u - v))
        if distance == "product":
            return (half(u) * half(v)).sum(1, keepdim=True)
        squares = passing(torch.square, u - v).sum(1, keepdim=True)
        return squares if distance == "squared" else passing(torch.sqrt, squares)

    check(model, reference, random(3, 1, 6, 6), random(3, 1, 6, 6, seed=1), rule=rule)


# Attention pooling -------------------------------------------------------------------------------


class Bag(nn.Module):
    """[N, K, 6] to [N, 2]: gated attention over the instances of a bag (Ilse et al. 2018, equation 9)."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(6, 5), nn.ReLU())
        self.v, self.u, self.w = nn.Linear(5, 4), nn.Linear(5, 4), nn.Linear(4, 1)
        self.classify, self.spelling = nn.Linear(5, 2), spelling
        settle(self)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        score = self.w(torch.tanh(self.v(h)) * torch.sigmoid(self.u(h)))
        if self.spelling == "matmul":
            pooled = torch.matmul(F.softmax(score.transpose(1, 2), dim=2), h).squeeze(1)
        elif self.spelling == "einsum":
            pooled = torch.einsum("nk,nkd->nd", score.squeeze(2).softmax(1), h)
        elif self.spelling == "bag by bag":
            pooled = torch.cat([torch.mm(torch.softmax(s.t(), 1), one) for s, one in zip(score, h, strict=True)])
        else:
            pooled = (torch.softmax(score, dim=1) * h).sum(dim=1)
        return self.classify(pooled)  # type: ignore[no-any-return]


@each_rule
@pytest.mark.parametrize("spelling", ["matmul", "einsum", "bag by bag", "sum"])
def test_attention_pooling_over_instances(spelling: str, rule: str) -> None:
    model: Any = Bag(spelling)

    def reference(share: Share, x: Tensor) -> Tensor:
        h = dense(share, model.embed[0], x).relu()
        gate = torch.sigmoid(dense(share, model.u, h)).detach()  # signal takes all
        score = dense(share, model.w, passing(torch.tanh, dense(share, model.v, h), 1.0) * gate)
        weights = torch.softmax(score, 1)  # its own derivative: the Taylor expansion of Achtibat et al. 2024
        return dense(share, model.classify, (half(weights) * half(h)).sum(1))

    check(model, reference, random(3, 4, 6), rule=rule)


# Gates -------------------------------------------------------------------------------------------


class GatedCNN(nn.Module):
    """[N, 3, 9] to [N, 2]: gated linear units over time (Dauphin et al. 2017)."""

    def __init__(self, residual: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv1d(3, 8, 3, padding=1), nn.Conv1d(4, 8, 3, padding=1)])
        self.head, self.residual = nn.Linear(4, 2), residual
        settle(self)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            signal, gate = layer(x).chunk(2, dim=1)
            h = signal * torch.sigmoid(gate)
            x = h + x if self.residual and h.shape == x.shape else h
        return self.head(x.mean(dim=2))  # type: ignore[no-any-return]


@each_rule
@pytest.mark.parametrize("residual", [False, True])
def test_a_gated_cnn(residual: bool, rule: str) -> None:
    model: Any = GatedCNN(residual)

    def reference(share: Share, x: Tensor) -> Tensor:
        for position, layer in enumerate(model.layers):
            z = share(lambda a, w, b: F.conv1d(a, w, b, padding=1), x, layer.weight, layer.bias)
            h = z[:, :4] * torch.sigmoid(z[:, 4:]).detach()
            x = h + x if residual and position else h
        return dense(share, model.head, x.mean(2))

    check(model, reference, random(3, 3, 9), rule=rule)


class SqueezeExcite(nn.Module):
    """[N, 2, 6, 6] to [N, 3]: a residual block whose channels are gated by what they hold (Hu et al. 2018)."""

    def __init__(self, gate: nn.Module, functional: bool) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.body = nn.Conv2d(4, 4, 3, padding=1)
        self.squeeze, self.excite = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)
        self.gate, self.functional, self.head = gate, functional, nn.Linear(4, 3)
        settle(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)), inplace=True)
        h = self.body(x)
        pooled = h.mean((2, 3), keepdim=True) if self.functional else F.adaptive_avg_pool2d(h, 1)
        gate = self.gate(self.excite(F.relu(self.squeeze(pooled))))
        h = h.mul(gate.expand_as(h)) if self.functional else gate * h
        return self.head(F.relu(h + x).mean((2, 3)))  # type: ignore[no-any-return]


@each_rule
@pytest.mark.parametrize("gate", [nn.Sigmoid(), nn.Hardsigmoid()], ids=["sigmoid", "hardsigmoid"])
@pytest.mark.parametrize("functional", [False, True])
def test_a_squeeze_and_excitation_block(gate: nn.Module, functional: bool, rule: str) -> None:
    model: Any = SqueezeExcite(gate, functional)

    def reference(share: Share, x: Tensor) -> Tensor:
        x = folded(share, model.stem, model.norm, x)
        x = x.relu()
        body = model.body
        h = share(lambda a, w, b: F.conv2d(a, w, b, padding=1), x, body.weight, body.bias)
        with torch.no_grad():
            weight = gate(model.excite(F.relu(model.squeeze(h.mean((2, 3), keepdim=True)))))
        return dense(share, model.head, (h * weight + x).relu().mean((2, 3)))

    check(model, reference, random(2, 2, 6, 6), rule=rule)


# Dense connections, early exits, loops -----------------------------------------------------------


class Block(nn.Module):
    """Takes a list of tensors (torchvision's DenseNet), or several by keyword."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.layer = nn.BatchNorm1d(width), nn.Linear(width, 3)

    def forward(self, parts: list[Tensor], *, scale: float = 1.0, also: Tensor | None = None) -> Tensor:
        h = torch.cat(parts if also is None else [*parts, also], dim=1)
        return self.layer(F.relu(self.norm(h))) * scale  # type: ignore[no-any-return]


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(4), Block(7), Block(14)])
        settle(self)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x]
        parts.append(self.blocks[0](parts))
        parts.append(self.blocks[1](parts=parts, scale=2.0))
        return self.blocks[2](parts[:2], also=torch.cat(parts, 1)[:, 3:], scale=-0.5)  # type: ignore[no-any-return]


@each_rule
def test_modules_that_take_lists_and_keywords(rule: str) -> None:
    model: Any = Dense()

    def block(share: Share, layer: Any, h: Tensor, scale: float = 1.0) -> Tensor:
        norm, scaled = layer.norm, copy.deepcopy(layer.layer)
        for parameter in scaled.parameters():
            parameter.data.mul_(scale)  # a number is part of the layer that it scales
        h = (h - norm.running_mean) / torch.sqrt(norm.running_var + norm.eps) * norm.weight + norm.bias
        return dense(share, scaled, h.relu())

    def reference(share: Share, x: Tensor) -> Tensor:
        one = block(share, model.blocks[0], x)
        two = block(share, model.blocks[1], torch.cat([x, one], 1), 2.0)
        whole = torch.cat([x, one, two], 1)
        return block(share, model.blocks[2], torch.cat([x, one, whole[:, 3:]], 1), -0.5)

    check(model, reference, random(3, 4), rule=rule)


class Adaptive(nn.Module):
    """As many steps as the values ask for, and a head for each."""

    def __init__(self) -> None:
        super().__init__()
        self.step, self.heads = nn.Linear(4, 4), nn.ModuleList([nn.Linear(4, 3) for _ in range(4)])
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(4)) for _ in range(4)])
        self.steps = -1
        settle(self)

    def forward(self, x: Tensor) -> Tensor:
        taken = 0
        while taken < 3 and x.abs().sum() < 11.0:
            x = x + self.step(x).relu() * self.scales[taken]
            taken += 1
            if bool((self.heads[taken](x).softmax(1).max(1).values > 0.999).all()):
                break
        self.steps = taken
        return self.heads[taken](x)  # type: ignore[no-any-return]


@each_rule
@pytest.mark.parametrize(("size", "steps"), [(0.1, 3), (1.0, 2), (9.0, 0)])
def test_loops_and_exits_that_depend_on_the_values(size: float, steps: int, rule: str) -> None:
    model, x = Adaptive(), size * random(3, 4)
    model(x)
    assert model.steps == steps

    def reference(share: Share, x: Tensor) -> Tensor:
        for scale in list(model.scales)[:steps]:
            x = x + dense(share, model.step, x).relu() * scale.detach()
        return dense(share, model.heads[steps], x)

    check(model, reference, x, rule=rule)


@each_rule
def test_one_head_of_several_outputs(rule: str) -> None:
    """Outputs in a mapping; what only another head uses has no part in the relevance."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Linear(4, 5)
            self.heads = nn.ModuleDict({"age": nn.Linear(5, 1), "kind": nn.Linear(5, 3)})
            settle(self)

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Any]:
            h = self.trunk(x).relu()
            return {"names": ["age", "kind"], "all": {"age": self.heads["age"](h), "kind": self.heads["kind"](h + y)}}

    model: Any = Heads()
    x, y = random(3, 4), random(3, 5, seed=1)
    found = LRP(model, RULES[rule][0]).attribute((x, y), lambda out: weigh(out["all"]["kind"]))

    def reference(share: Share, x: Tensor, y: Tensor) -> Tensor:
        return dense(share, model.heads["kind"], dense(share, model.trunk, x).relu() + y)

    for one, other in zip(found, explain(reference, rule, x, y), strict=True):
        assert_close(one, other)
    alone = LRP(model, RULES[rule][0]).attribute(x, lambda out: out["all"]["age"], y)
    expected = explain(
        lambda share, x: dense(share, model.heads["age"], dense(share, model.trunk, x).relu()) / random(1, seed=9),
        rule,
        x,
    )
    assert_close(alone, expected[0])
