"""AttnLRP on transformers that chain products, against the gradient of a surrogate that is written from the paper.

Cross-attention whose queries start from constants, routers, gated units and gated convolutions: there the preset
`attnlrp`, whose rule is `Equal`, and relprop's own `Uniform` part. Weights are random and all runs in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from benchmarks._zoo_surrogate import EqualSurrogate
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from relprop import LRP, Rules
from tests.models import DTYPE
from tests.networks import zoo
from tests.networks.zoo import difference
from tests.unrolled import random

TOLERANCE = 1e-9
ATTENTION = ("eager", "sdpa")


@dataclass(frozen=True)
class Case:
    """A network of transformers.

    Attributes:
        model, config: the names of their classes.
        options: of the configuration.
        shapes: of what is explained.
        run: calls the model.
        attention: the ways of computing attention that it has.
        chained: products are factors of products in it, so that Uniform explains it otherwise.
    """

    model: str
    config: str
    options: dict[str, Any]
    shapes: Sequence[tuple[int, ...]]
    run: Callable[..., Tensor]
    attention: Sequence[str] = ATTENTION
    chained: bool = True


def decoder(name: str, chained: bool = True, attention: Sequence[str] = ATTENTION, **options: Any) -> Case:
    """A language model, explained at its embeddings by the logits of the last position."""
    common = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "intermediate_size": 24, "vocab_size": 30, "max_position_embeddings": 32,
    }  # fmt: skip

    def run(model: Any, x: Tensor) -> Tensor:
        logits: Tensor = model(inputs_embeds=x, use_cache=False).logits
        return logits[:, -1]

    return Case(f"{name}ForCausalLM", f"{name}Config", {**common, **options}, [(2, 5, 16)], run, attention, chained)


T5 = {
    "vocab_size": 20, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2,
    "feed_forward_proj": "gated-gelu",
}  # fmt: skip
SWITCH = {
    "num_experts": 3, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "encoder_sparse_step": 1,
    "decoder_sparse_step": 1,
}  # fmt: skip
Q_FORMER = {
    "vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "encoder_hidden_size": 12, "cross_attention_frequency": 1,
}  # fmt: skip
BACKBONE = {
    "embedding_size": 8, "hidden_sizes": [8, 8, 12, 16], "depths": [1, 1, 1, 1], "layer_type": "basic",
    "out_features": ["stage4"],
}  # fmt: skip
DETR = {
    "use_timm_backbone": False, "backbone": None, "use_pretrained_backbone": False, "d_model": 16,
    "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "num_queries": 5, "num_labels": 4,
}  # fmt: skip
PERCEIVER = {
    "num_latents": 6, "d_latents": 16, "num_self_attends_per_block": 2, "num_self_attention_heads": 2,
    "num_cross_attention_heads": 1, "image_size": 8, "num_labels": 5,
}  # fmt: skip
ROUTED = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {
    "num_key_value_heads": 2, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "n_group": 2,
    "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
    "v_head_dim": 8, "qk_nope_head_dim": 8,
}  # fmt: skip
FOCAL = {
    "image_size": 32, "embed_dim": 8, "depths": [1, 1], "num_labels": 5, "focal_levels": [2, 2], "focal_windows": [3, 3]
}  # fmt: skip

IDS = torch.tensor([[1, 2, 3]] * 2)


def queries() -> Tensor:
    return random(1, 3, 16, seed=5).expand(2, 3, 16)


CASES = {
    "t5": Case(
        "T5ForConditionalGeneration", "T5Config", T5, [(2, 5, 16), (2, 4, 16)],
        lambda m, x, y: m(inputs_embeds=x, decoder_inputs_embeds=y, use_cache=False).logits[:, -1], chained=False,
    ),
    "t5's decoder": Case(
        "T5ForConditionalGeneration", "T5Config", T5, [(2, 5, 16)],
        lambda m, x: m(inputs_embeds=x, decoder_input_ids=IDS, use_cache=False).logits[:, -1],
    ),
    "switch transformers": Case(
        "SwitchTransformersForConditionalGeneration", "SwitchTransformersConfig", {**T5, **SWITCH}, [(2, 5, 16)],
        lambda m, x: m(inputs_embeds=x, decoder_input_ids=IDS, use_cache=False).logits[:, -1], ("eager",),
    ),
    "detr": Case(
        "DetrForObjectDetection", "DetrConfig", DETR, [(1, 3, 64, 64)],
        lambda m, x: m(pixel_values=x).logits[:, 1], ("eager",),
    ),
    "perceiver": Case(
        "PerceiverForImageClassificationLearned", "PerceiverConfig", PERCEIVER, [(2, 3, 8, 8)],
        lambda m, x: m(pixel_values=x).logits, ("eager",), chained=False,
    ),
    "q-former of blip-2": Case(
        "Blip2QFormerModel", "Blip2QFormerConfig", Q_FORMER, [(2, 5, 12)],
        lambda m, x: m(query_embeds=queries(), encoder_hidden_states=x).last_hidden_state[:, 1], ("eager",),
        chained=False,
    ),
    "q-former of instructblip": Case(
        "InstructBlipQFormerModel", "InstructBlipQFormerConfig", Q_FORMER, [(2, 3, 16), (2, 5, 12)],
        lambda m, q, x: m(
            input_ids=IDS, query_embeds=q, encoder_hidden_states=x, attention_mask=torch.ones(2, 6)
        ).last_hidden_state[:, 1],
        ("eager",), chained=False,
    ),
    "llama": decoder("Llama", chained=False),
    "mixtral": decoder("Mixtral", **LOCAL),
    "olmoe": decoder("Olmoe", **ROUTED),
    "qwen2 moe": decoder("Qwen2Moe", shared_expert_intermediate_size=8, decoder_sparse_step=1, **ROUTED),
    "qwen3 moe": decoder("Qwen3Moe", head_dim=8, norm_topk_prob=True, **ROUTED),
    "granite moe": decoder("GraniteMoe", **LOCAL),
    "phi moe": decoder("Phimoe", **LOCAL),
    "deepseek v3": decoder("DeepseekV3", **LATENT),
    "gpt-oss": decoder("GptOss", attention=("eager",), head_dim=8, **LOCAL),
    "lfm2": decoder("Lfm2", layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
    "lfm2 moe": decoder("Lfm2Moe", layer_types=["conv", "full_attention"], num_dense_layers=1, **ROUTED),
    "focalnet": Case(
        "FocalNetForImageClassification", "FocalNetConfig", FOCAL, [(2, 3, 32, 32)],
        lambda m, x: m(pixel_values=x).logits, ("eager",),
    ),
}  # fmt: skip
NAMES = [(name, attention) for name, case in CASES.items() for attention in case.attention]


class Doubles(TorchFunctionMode):
    """Lets a model stay in double precision where it asks for single."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        func = torch.Tensor.double if func is torch.Tensor.float else func
        doubled = {name: DTYPE if value is torch.float32 else value for name, value in (kwargs or {}).items()}
        return func(*(DTYPE if x is torch.float32 else x for x in args), **doubled)


class Network(nn.Module):
    """A network of transformers as a function of what is explained, with weights that all matter."""

    def __init__(self, name: str, attention: str) -> None:
        super().__init__()
        library: Any = zoo.library("transformers")
        self.case = CASES[name]
        options = dict(self.case.options)
        if name == "detr":
            options["backbone_config"] = library.ResNetConfig(**BACKBONE)
        config = getattr(library, self.case.config)(**options)
        config._experts_implementation = "eager"
        self.model = getattr(library, self.case.model)(config)
        if name != "detr":
            self.model.set_attn_implementation(attention)
        else:
            config._attn_implementation = attention
        generator = torch.Generator().manual_seed(0)
        for title, parameter in self.model.named_parameters():
            size = 0.3 if parameter.dim() < 2 else 1.2 / math.sqrt(parameter.shape[-1])
            drawn = torch.randn(parameter.shape, generator=generator, dtype=DTYPE) * size
            parameter.data = drawn + float(parameter.dim() < 2 and "norm" in title and "bias" not in title)
        for title, buffer in self.model.named_buffers():
            if title.endswith("running_var"):
                buffer.data = torch.rand(buffer.shape, generator=generator, dtype=DTYPE) + 0.5
        self.double().eval()

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.case.run(self.model, *inputs)


def first(output: Tensor) -> Tensor:
    return output.flatten(1)[:, 1]


def surrogate(model: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Input times the gradient of what the surrogate makes of a model."""
    model.requires_grad_(False)
    leaves = [x.clone().requires_grad_() for x in inputs]
    mode = EqualSurrogate()
    with mode:
        output = first(model(*(leaf * 1.0 for leaf in leaves)))
    assert torch.allclose(output, first(model(*inputs)), rtol=1e-9), "the surrogate has another value"
    gradients = torch.autograd.grad(output.sum(), leaves)
    assert not mode.unknown
    return [x * c for x, c in zip(inputs, gradients, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "attention"), NAMES)
def test_it_is_attnlrp(name: str, attention: str) -> None:
    model, case = Network(name, attention), CASES[name]
    inputs = tuple(random(*shape, seed=seed) for seed, shape in enumerate(case.shapes))
    with Doubles():
        found, uniform = (
            LRP(model, Rules.preset(preset, epsilon=0.0)).attribute(inputs, first) for preset in ("attnlrp", "epsilon")
        )
        expected = surrogate(model, inputs)
    assert max(map(difference, found, expected)) <= TOLERANCE
    if case.chained:  # else this network could not tell the two rules for products apart
        assert max(map(difference, uniform, expected)) > 1e-2
