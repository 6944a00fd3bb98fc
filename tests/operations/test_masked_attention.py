"""Attention with masks, in its spellings, against the map of the same tokens without any padding."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import LRP, Rules
from relprop.operations import attention
from relprop.rules import TaylorSoftmax
from tests.compare import distance
from tests.models import settle

LENGTH, WIDTH, PADDED = 5, 4, 2
PRESETS: dict[str, Any] = {
    name: name for name in ("epsilon_gamma", "attnlrp", "cp_lrp", "epsilon_plus_flat", "wsquare")
} | {"taylor": Rules.preset("lrp0").set(F.scaled_dot_product_attention, TaylorSoftmax(), optional=True)}

# fmt: off
FILLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "masked_fill": lambda scores, mask: scores.masked_fill(~mask, -math.inf),
    "where": lambda scores, mask: torch.where(mask, scores, -math.inf),
    "add": lambda scores, mask: scores + minus_infinity(mask),
    "baddbmm": lambda scores, mask: torch.baddbmm(
        minus_infinity(mask)[None], scores.flatten(0, 1), torch.eye(len(mask)).to(scores).repeat(2 * len(scores), 1, 1)
    ).view_as(scores),
}
SOFTMAX: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "softmax": lambda scores, mask: scores.softmax(-1),
    "softmax nan_to_num": lambda scores, mask: scores.softmax(-1).nan_to_num(0.0),
    "softmax masked_fill": lambda scores, mask: scores.softmax(-1).masked_fill(~mask, 0.0),
    "exp": lambda scores, mask: by_hand((scores - scores.amax(-1, keepdim=True)).exp()),
    "exp nan_to_num": lambda scores, mask: by_hand((scores - scores.amax(-1, keepdim=True)).exp()).nan_to_num(0.0),
    "exp of log_softmax": lambda scores, mask: scores.log_softmax(-1).exp(),
}
# fmt: on


def minus_infinity(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -math.inf)


def by_hand(images: Tensor) -> Tensor:
    return images / images.sum(-1, keepdim=True)


class Eager(nn.Module):
    """Products of matrices, and a softmax that is masked and spelled in one of many ways."""

    def __init__(self, fill: str, softmax: str) -> None:
        super().__init__()
        self.fill, self.softmax = FILLS[fill], SOFTMAX[softmax]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return self.softmax(self.fill(q @ k.mT / math.sqrt(2), mask), mask) @ v


class Kernel(nn.Module):
    """``F.scaled_dot_product_attention``."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        if self.kind == "grouped":
            return F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], mask, enable_gqa=True)
        return F.scaled_dot_product_attention(q, k, v, minus_infinity(mask) if self.kind == "float" else mask)


class Attends(nn.Module):
    """One attention of two heads with a residual sum, read at one position."""

    def __init__(self, kernel: nn.Module) -> None:
        super().__init__()
        self.kernel, self.out, self.head = kernel, nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.maps = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor, position: int) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (2, -1)).transpose(1, 2) for layer in self.maps)
        y = x + self.out(self.kernel(q, k, v, mask).transpose(1, 2).flatten(2))
        return self.head(torch.relu(y[:, position]))  # type: ignore[no-any-return]


class Multihead(nn.Module):
    """``nn.MultiheadAttention``, which asks for weights by default."""

    def __init__(self, need_weights: bool, kind: str) -> None:
        super().__init__()
        self.need_weights, self.kind = need_weights, kind
        self.attention, self.head = nn.MultiheadAttention(WIDTH, 2, batch_first=True), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, mask: Tensor, position: int) -> Tensor:
        masks: dict[str, Any] = {"attn_mask": minus_infinity(mask) if self.kind == "float" else ~mask}
        if self.kind == "keys":
            masks = {"key_padding_mask": ~mask[-1].expand(len(x), -1)}
        y = x + self.attention(x, x, x, need_weights=self.need_weights, **masks)[0]
        return self.head(torch.relu(y[:, position]))  # type: ignore[no-any-return]


MODELS: dict[str, Callable[[], nn.Module]] = {
    **{f"sdpa {kind}": (lambda kind=kind: Attends(Kernel(kind))) for kind in ("bool", "float", "grouped")},
    **{
        f"{fill} {softmax}": (lambda fill=fill, softmax=softmax: Attends(Eager(fill, softmax)))
        for fill in FILLS
        for softmax in SOFTMAX
    },
    **{
        f"multihead {kind} need_weights={need}": (lambda need=need, kind=kind: Multihead(need, kind))
        for need in (True, False)
        for kind in ("bool", "float", "keys")
    },
}


@pytest.mark.parametrize("name", list(MODELS))
def test_padding_changes_nothing(name: str) -> None:
    """The tokens have the relevance that they have alone, padding has none, and the report holds."""
    model, draw, held = settle(MODELS[name]()), random.Random(name), 0
    x = torch.randn(2, LENGTH, WIDTH, dtype=torch.float64)
    for side, causal in itertools.product(("left", "right"), (True, False)):
        own = slice(PADDED, None) if side == "left" else slice(0, LENGTH - PADDED)
        mask = torch.zeros(LENGTH, LENGTH, dtype=torch.bool)
        mask[:, own] = True
        mask = mask.tril() if causal else mask
        given = {"mask": mask, "position": LENGTH - 1 if side == "left" else LENGTH - PADDED - 1}
        alone = {"mask": mask[own, own], "position": -1}
        if not model(x, **given).isfinite().all():
            continue  # there is nothing to explain
        preset = draw.choice(list(PRESETS))
        expected, held = torch.zeros_like(x), held + 1
        expected[:, own] = LRP(model, PRESETS[preset]).attribute(x[:, own], 1, forward_kwargs=alone)
        found = LRP(model, PRESETS[preset]).attribute(x, 1, forward_kwargs=given)
        assert distance(found, expected) < 1e-10, f"{side}, causal={causal}, {preset}"
        LRP(model, PRESETS[preset]).report(x, 1, forward_kwargs=given).check(1e-6)
    assert held > 1


class Block(nn.Module):
    """A layer of a decoder as Llama has it: RMS norms, rotary embeddings, a gated network, attention by the kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.RMSNorm(8), nn.RMSNorm(8)
        self.maps = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(4))
        self.gate, self.up, self.down = nn.Linear(8, 12, False), nn.Linear(8, 12, False), nn.Linear(12, 8, False)

    def forward(self, x: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        y = self.before(x)
        q, k, v = (layer(y).unflatten(-1, (2, -1)).transpose(1, 2) for layer in self.maps[:3])
        angles = (positions[:, None, :, None] * torch.tensor([1.0, 0.3])).to(x.dtype).repeat(1, 1, 1, 2)
        q, k = (t * angles.cos() + torch.cat([-t[..., 2:], t[..., :2]], -1) * angles.sin() for t in (q, k))
        x = x + self.maps[3](F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))
        y = self.between(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.blocks = nn.Embedding(20, 8), nn.ModuleList([Block(), Block()])
        self.norm, self.head = nn.RMSNorm(8), nn.Linear(8, 20, bias=False)

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        length = ids.shape[1]
        mask = attention_mask.bool()[:, None, None] & torch.ones(length, length, dtype=torch.bool).tril()
        positions, x = (attention_mask.cumsum(1) - 1).clamp(min=0), self.embedding(ids)
        for block in self.blocks:
            x = block(x, mask, positions)
        return self.head(self.norm(x))[:, -1]  # type: ignore[no-any-return]


@pytest.mark.parametrize("preset", ["attnlrp", "cp_lrp", "epsilon_gamma", "epsilon_plus_flat", "wsquare"])
def test_a_batch_of_a_decoder_padded_on_the_left(preset: str) -> None:
    """Each sample of the batch has the map that it has alone and unpadded; in bfloat16 to one part in 20."""
    model = settle(Decoder())
    ids, mask = torch.tensor([[0, 0, 5, 7, 3], [2, 9, 4, 1, 6]]), torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    found = LRP(model, preset).attribute(ids, 4, forward_kwargs={"attention_mask": mask})
    expected = torch.zeros_like(found)
    for row, start in ((0, 2), (1, 0)):
        given = {"attention_mask": mask[row : row + 1, start:]}
        expected[row, start:] = LRP(model, preset).attribute(ids[row : row + 1, start:], 4, forward_kwargs=given)
    assert distance(found, expected) < 1e-10
    LRP(model, preset).report(ids, 4, forward_kwargs={"attention_mask": mask}).check(1e-6)
    if preset == "attnlrp":
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 5e-2)):
            lower = LRP(model.to(dtype), preset).attribute(ids, 4, forward_kwargs={"attention_mask": mask})
            assert (lower[0, :2] == 0).all()
            assert distance(lower.double(), expected) < tolerance


class Translates(nn.Module):
    """``nn.TransformerDecoder`` over a memory, both of which end in padding."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(8, 2, 12, 0.0, batch_first=True, norm_first=norm_first)
        self.decoder, self.head = nn.TransformerDecoder(layer, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor, memory: Tensor, padded: Tensor, padded_memory: Tensor) -> Tensor:
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        masks = {"tgt_key_padding_mask": padded, "memory_key_padding_mask": padded_memory}
        return self.head(self.decoder(x, memory, tgt_mask=future, **masks)[:, 1])  # type: ignore[no-any-return]


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("preset", ["attnlrp", "epsilon_gamma", "epsilon_plus_flat"])
def test_a_transformer_decoder_with_padded_keys(preset: str, norm_first: bool) -> None:
    """Padding of the sequence and of the memory changes nothing, and has no relevance."""
    model = settle(Translates(norm_first))
    x, memory = torch.randn(1, 4, 8, dtype=torch.float64), torch.randn(1, 5, 8, dtype=torch.float64)
    padded = torch.arange(4)[None] >= 2, torch.arange(5)[None] >= 3
    found = LRP(model, preset).attribute((x, memory), 1, padded)
    alone = LRP(model, preset).attribute((x[:, :2], memory[:, :3]), 1, (padded[0][:, :2], padded[1][:, :3]))
    for mine, theirs in zip(found, alone, strict=True):
        assert distance(mine, F.pad(theirs, (0, 0, 0, mine.shape[1] - theirs.shape[1]))) < 1e-10
    LRP(model, preset).report((x, memory), 1, padded).check(1e-6)


class Inspects(TaylorSoftmax):
    """A rule of one's own, which looks at the probabilities."""

    def probabilities(self, flow: Any, p: Tensor) -> Tensor:
        seen.append(p.shape)
        return p


seen: list[torch.Size] = []


def test_the_kernel_does_it_where_nothing_else_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """AttnLRP and CP-LRP keep no scores in single precision; a rule that looks at the probabilities is given them."""
    model, x = settle(Attends(Kernel("bool"))).float(), torch.randn(2, LENGTH, WIDTH)
    given = {"mask": torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril(), "position": 2}

    def refused(*args: Any, **kwargs: Any) -> Tensor:
        raise AssertionError("a softmax was computed")

    with monkeypatch.context() as patch:
        patch.setattr(attention, "_softmax", refused)
        for preset in ("attnlrp", "cp_lrp", "epsilon_gamma"):
            LRP(model, preset).attribute(x, 1, forward_kwargs=given)
    seen.clear()
    rules = Rules.preset("attnlrp").set(F.scaled_dot_product_attention, Inspects())
    LRP(model, rules).attribute(x, 1, forward_kwargs=given)
    assert seen == [(2, 2, LENGTH, LENGTH)]
