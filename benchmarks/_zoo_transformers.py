"""The vision models of transformers in the zoo: few and narrow layers, each kind of them at least once."""

from __future__ import annotations

from typing import Any

from benchmarks._zoo_models import Entry

_PLAIN: dict[str, Any] = {
    "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96,
    "image_size": 64, "patch_size": 16,
}  # fmt: skip
_DINO = {key: value for key, value in _PLAIN.items() if key != "intermediate_size"}
_STAGES = {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 2, 2, 1]}
_WINDOWS = {"image_size": 64, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
_PYRAMID = {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4]}

_LATENTS: dict[str, Any] = {
    "num_latents": 8, "d_latents": 32, "num_self_attends_per_block": 2, "num_self_attention_heads": 4,
    "num_cross_attention_heads": 1,
}  # fmt: skip
_CLASSIFIERS: dict[str, dict[str, Any]] = {
    "ViTForImageClassification": _PLAIN,
    "DeiTForImageClassification": _PLAIN,
    "DeiTForImageClassificationWithTeacher": _PLAIN,
    "BeitForImageClassification": _PLAIN,
    "Data2VecVisionForImageClassification": _PLAIN,
    "ViTMSNForImageClassification": _PLAIN,
    "IJepaForImageClassification": _PLAIN,
    "Dinov2ForImageClassification": _DINO,
    "Dinov2WithRegistersForImageClassification": _DINO,
    "CLIPForImageClassification": {"vision_config": _PLAIN},
    "SiglipForImageClassification": {"vision_config": _PLAIN},
    "MetaClip2ForImageClassification": {"vision_config": _PLAIN},
    "PerceiverForImageClassificationFourier": _LATENTS,
    "PerceiverForImageClassificationLearned": {**_LATENTS, "image_size": 64},
    "PerceiverForImageClassificationConvProcessing": _LATENTS,
    "SwinForImageClassification": _WINDOWS,
    "Swinv2ForImageClassification": _WINDOWS,
    "DonutSwinForImageClassification": _WINDOWS,
    "HieraForImageClassification": {
        "image_size": [64, 64], "embed_dim": 24, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 4],
    },
    "ConvNextForImageClassification": _STAGES,
    "ConvNextV2ForImageClassification": _STAGES,
    "FocalNetForImageClassification": {"image_size": 64, "embed_dim": 24},
    "CvtForImageClassification": {"embed_dim": [16, 32, 48], "num_heads": [1, 2, 3], "depth": [1, 2, 3]},
    "LevitForImageClassification": {
        "image_size": 64, "hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4], "depths": [2, 2, 2],
    },
    "LevitForImageClassificationWithTeacher": {
        "image_size": 64, "hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4], "depths": [2, 2, 2],
    },
    "PvtForImageClassification": {**_PYRAMID, "image_size": 64},
    "PvtV2ForImageClassification": {**_PYRAMID, "image_size": 64},
    "SegformerForImageClassification": _PYRAMID,
    "PoolFormerForImageClassification": _STAGES,
    "SwiftFormerForImageClassification": {"image_size": 64, "depths": [1, 1, 2, 1], "embed_dims": [16, 24, 32, 48]},
    "MobileViTForImageClassification": {"image_size": 64},
    "MobileViTV2ForImageClassification": {"image_size": 64, "width_multiplier": 0.5},
    "MobileNetV1ForImageClassification": {"depth_multiplier": 0.25},
    "MobileNetV2ForImageClassification": {"depth_multiplier": 0.35},
    "EfficientNetForImageClassification": {"width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640},
    "ResNetForImageClassification": {"hidden_sizes": [32, 48, 64, 96], "depths": [1, 1, 2, 1]},
    "RegNetForImageClassification": {"hidden_sizes": [32, 48, 64, 96], "depths": [1, 1, 2, 1], "groups_width": 16},
    "BitForImageClassification": {"hidden_sizes": [128, 128, 128, 256], "depths": [1, 1, 2, 1]},
    "HGNetV2ForImageClassification": {},
    "PPLCNetForImageClassification": {},
    "TextNetForImageClassification": {},
}  # fmt: skip

TRANSFORMERS = [
    *(Entry(f"transformers/{name}", options={"num_labels": 10, **options}) for name, options in _CLASSIFIERS.items()),
    Entry("transformers/ViTForImageClassification", options={**_PLAIN, "attention": "eager"}, note="eager attention"),
    Entry("transformers/SegformerForSemanticSegmentation", options=_PYRAMID, explains="pixel"),
    Entry("transformers/MobileViTForSemanticSegmentation", options={"image_size": 64}, explains="map"),
]
