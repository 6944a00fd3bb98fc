"""The networks whose maps are kept: of every family one, small and quick, and together all operations of the zoo.

Where a network amplifies rounding so far that sums in another order already change a map by 1e-12, another one stands
for it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from tests.networks.zoo import randomize
from torch import Tensor, nn

from benchmarks import _zoo_models as zoo
from benchmarks._torchvision import import_torchvision
from benchmarks._zoo_entries import ZOO
from benchmarks._zoo_operations import words
from relprop import Keywords


@dataclass(frozen=True)
class Case:
    """A network in float64 and eval mode, and what is explained of it."""

    model: nn.Module
    inputs: Any
    target: Any
    keywords: Mapping[str, Tensor] = field(default_factory=dict)


def random(*shape: int, seed: int = 1) -> Tensor:
    """Return normal numbers, float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Vision: of the zoo -------------------------------------------------------------------------------

_VISION = words(
    """
    torchvision/vgg11_bn torchvision/resnet18 torchvision/densenet121 torchvision/googlenet torchvision/squeezenet1_0
    torchvision/shufflenet_v2_x0_5 torchvision/mobilenet_v3_small torchvision/efficientnet_b0 torchvision/mc3_18
    torchvision/lraspp_mobilenet_v3_large torchvision/swin_v2_t timm/regnety_002 timm/resnetv2_50x1_bit timm/skresnet18
    timm/convnext_zepto_rms timm/gmlp_ti16_224 timm/starnet_s050 timm/convit_tiny timm/xcit_nano_12_p16_224
    timm/levit_128s timm/mvitv2_tiny timm/samvit_base_patch16_224 timm/volo_d1_224 timm/lambda_resnet26t
    transformers/HieraForImageClassification transformers/SiglipForImageClassification
    """
)


def from_zoo(entry: zoo.Entry) -> Case:
    """Return a network of the zoo, with its image and the class of the highest score."""
    model, x = zoo.build(entry), zoo.image(entry)
    zoo.settle(model, x)
    return Case(model, x, zoo.target_of(entry, model, x)[0])


# Text and sound: transformers ---------------------------------------------------------------------

_TEXT: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 32,
}  # fmt: skip
_DECODER: dict[str, Any] = {**_TEXT, "num_key_value_heads": 2, "use_cache": False}
_IDS = torch.tensor([[3, 17, 5, 22, 9, 1, 30, 12]])
_TRANSFORMERS: dict[str, dict[str, Any]] = {
    "BertForSequenceClassification": _TEXT,
    "DebertaV2ForSequenceClassification": {**_TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "GPT2LMHeadModel": {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32},
    "BloomForCausalLM": {"vocab_size": 40, "hidden_size": 32, "n_layer": 2, "n_head": 4, "use_cache": False},
    "LlamaForCausalLM": _DECODER,
    "MixtralForCausalLM": {**_DECODER, "num_local_experts": 3, "experts_implementation": "eager"},
    "T5ForConditionalGeneration": {
        "vocab_size": 40, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
    },
    "MambaForCausalLM": {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "Wav2Vec2ForSequenceClassification": {
        **_TEXT, "conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2,
        "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16,
    },
}  # fmt: skip


def from_transformers(architecture: str) -> Case:
    """Return a model of transformers: the class 1 it gives a sequence, or its last prediction of token 7."""
    import_torchvision()  # before transformers, which imports it itself
    cls = getattr(importlib.import_module("transformers"), architecture)
    torch.manual_seed(0)
    model = randomize(cls(cls.config_class(**_TRANSFORMERS[architecture])).double()).eval()
    if "Classification" in architecture:
        return Case(model, random(1, 400) if "Wav" in architecture else _IDS, 1)
    decoder = {"decoder_input_ids": torch.tensor([[0, 4]])} if "Conditional" in architecture else {}
    return Case(model, _IDS, lambda out: out.logits[:, -1, 7], decoder)


# Recurrent networks, graphs, and what the others lack ---------------------------------------------


class Recurrent(nn.Module):
    """[N, T, 6] to [N, 3]: an LSTM both ways, a GRU and a plain recurrence over it, and cells in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(10, 6, batch_first=True)
        self.rnn = nn.RNN(10, 6, batch_first=True, nonlinearity="relu")
        self.lstm_cell, self.gru_cell, self.rnn_cell = nn.LSTMCell(12, 5), nn.GRUCell(5, 5), nn.RNNCell(5, 5)
        self.head = nn.Linear(17, 3)

    def forward(self, x: Tensor) -> Tensor:
        both, _ = self.lstm(x)
        sequence = torch.cat([self.gru(both)[0], self.rnn(both)[0]], dim=2)
        h, c, g, r = (x.new_zeros(len(x), 5) for _ in range(4))
        for step in sequence.unbind(1):
            h, c = self.lstm_cell(step, (h, c))
            g = self.gru_cell(h, g)
            r = self.rnn_cell(g, r)
        return self.head(torch.cat([sequence.mean(1), r], dim=1))  # type: ignore[no-any-return]


_EDGES = torch.tensor([[0, 1, 1, 2, 3, 3, 4, 0, 5, 2], [1, 0, 2, 1, 2, 4, 3, 4, 0, 5]])


class Messages(nn.Module):
    """Nodes [V, 4] and features of edges [E, 2] to [1, 3]: a message for every edge, added up where it arrives."""

    def __init__(self) -> None:
        super().__init__()
        self.message = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 6))
        self.update = nn.ModuleList([nn.Linear(10, 6), nn.Linear(12, 6)])
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = _EDGES
        sent = self.message(torch.cat([x[target], x.index_select(0, source), edges], dim=1))
        received = x.new_zeros(len(x), 6).index_add(0, target, sent)
        x = F.relu(self.norm(self.update[0](torch.cat([x, received], dim=1))))
        received = torch.zeros_like(x).scatter_add(0, target[:, None].expand(-1, 6), x[source])
        x = F.relu(self.update[1](torch.cat([x, received], dim=1)))
        return self.head(x.sum(0, keepdim=True))  # type: ignore[no-any-return]


class GraphAttention(nn.Module):
    """Nodes [V, 4] to [V, 3]: neighbours by attention over edges, then by a sparse matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.sending, self.receiving = nn.Parameter(torch.empty(6, 1)), nn.Parameter(torch.empty(6, 1))
        self.register_buffer("matrix", torch.sparse_coo_tensor(_EDGES, torch.ones(_EDGES.shape[1]), (6, 6)).double())

    def forward(self, x: Tensor) -> Tensor:
        source, target = _EDGES
        h = self.project(x)
        score = F.leaky_relu((h @ self.sending)[source] + (h @ self.receiving)[target], 0.2).exp()
        total = h.new_zeros(len(h), 1).index_add(0, target, score)
        h = torch.zeros_like(h).index_add(0, target, score / total[target] * h[source])
        return self.head(torch.sparse.mm(self.matrix, F.elu(h)))  # type: ignore[no-any-return]


class UNet(nn.Module):
    """[N, 2, 16, 16] to [N, 3, 16, 16]: down and up again, with padding and norms of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(6), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1, groups=2), nn.GroupNorm(2, 8), nn.LeakyReLU(0.2))
        self.bottom = nn.Sequential(nn.Conv2d(8, 8, 4, padding="same", dilation=2), nn.InstanceNorm2d(8, affine=True))
        self.up = nn.Sequential(nn.ConvTranspose2d(8, 6, 2, stride=2), nn.BatchNorm2d(6), nn.PReLU(6))
        self.merge = nn.Sequential(nn.Conv2d(12, 6, 3, padding=1, padding_mode="circular"), nn.Softplus())
        self.out = nn.Conv2d(6, 3, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        high = self.stem(x)
        low = F.max_pool2d(self.down(high), 3, stride=2, padding=1)
        deep = F.silu(self.bottom(F.avg_pool2d(low, 2)))
        low = low + F.interpolate(deep, scale_factor=2, mode="bilinear", align_corners=False)
        low = F.dropout2d(low + F.adaptive_max_pool2d(low, 1).expand_as(low), training=self.training)
        return self.out(self.merge(torch.cat([self.up(low), high], dim=1)))  # type: ignore[no-any-return]


class Elementary(nn.Module):
    """[N, 8] to [N, 3]: functions of one number, products, quotients and reductions that few networks call."""

    FUNCTIONS: tuple[Callable[[Tensor], Tensor], ...] = (
        torch.tanh, torch.sigmoid, torch.exp, torch.cos, torch.sin, torch.square, torch.abs, torch.erf, torch.atan,
        F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.softplus, F.softsign, F.logsigmoid, F.relu6, F.hardswish,
        F.hardsigmoid, F.hardtanh, F.tanhshrink, F.hardshrink, F.softshrink, lambda x: F.gelu(x, approximate="tanh"),
        lambda x: torch.log1p(x.square()), lambda x: torch.sqrt(x.square() + 1), lambda x: x.clamp(-0.5, 0.7),
        lambda x: x.pow(3), lambda x: torch.softmax(x, 1), lambda x: torch.log_softmax(x, 1), lambda x: x.cumsum(1),
        lambda x: torch.where(x > 0, x, 0.1 * x), lambda x: torch.maximum(x, x.roll(1, 1)), lambda x: x.sort(1).values,
        lambda x: x / (1 + x.norm(dim=1, keepdim=True)), lambda x: x / (x.std(1, keepdim=True) + 1),
        lambda x: F.normalize(x, dim=1), lambda x: x - x.mean(1, keepdim=True), lambda x: x * x.amax(1, keepdim=True),
        lambda x: x + x.logsumexp(1, keepdim=True), lambda x: x + x.prod(1, keepdim=True), lambda x: x * x.roll(1, 1),
        lambda x: F.glu(torch.cat([x, x], 1)), lambda x: x * torch.tanh(x) * x.flip(1),
        lambda x: torch.addcmul(x, x, x.flip(1)), lambda x: torch.einsum("ni,nj->nij", x, x).mean(2),
        lambda x: x / torch.linalg.vector_norm(x, dim=1, keepdim=True), lambda x: F.rms_norm(x, (6,)),
        lambda x: F.max_pool1d(x.repeat(1, 2), 2), lambda x: F.avg_pool1d(x.repeat_interleave(2, 1), 2),
        lambda x: torch.sigmoid(x)[:, :, None].matmul(x[:, None]).mean(2), lambda x: x[:, :1].expand(-1, 6).type_as(x),
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 6) for _ in self.FUNCTIONS)
        self.bilinear, self.head = nn.Bilinear(6, 6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = [function(layer(x)) for function, layer in zip(self.FUNCTIONS, self.layers, strict=True)]
        pooled = torch.stack(found, dim=2).mean(2)
        return self.head(pooled + self.bilinear(found[0], found[1]))  # type: ignore[no-any-return]


def own(build: Callable[[], nn.Module], inputs: Any, target: Any) -> Case:
    """Return a network of this file."""
    torch.manual_seed(0)
    return Case(randomize(build().double()).eval(), inputs, target)


def _all() -> dict[str, Callable[[], Case]]:
    entries = {entry.name: entry for entry in reversed(ZOO)}  # the first of those that bear a name
    return {
        **{name: partial(from_zoo, entries[name]) for name in _VISION},
        **{f"transformers/{name}": partial(from_transformers, name) for name in _TRANSFORMERS},
        "recurrent": partial(own, Recurrent, random(2, 7, 6), 1),
        "messages on a graph": partial(own, Messages, Keywords(x=random(6, 4), edges=random(10, 2, seed=2)), 1),
        "graph attention": partial(own, GraphAttention, random(6, 4), lambda out: out[:, 1]),
        "u-net": partial(own, UNet, random(2, 2, 16, 16), (1, 7, 8)),
        "elementary": partial(own, Elementary, random(3, 8), 1),
    }


NETWORKS = _all()
