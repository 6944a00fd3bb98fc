"""The networks of the zoo: of every family the smallest member, and the smallest input that runs."""

from __future__ import annotations

from typing import Any

from benchmarks._zoo_models import Entry
from benchmarks._zoo_operations import words
from benchmarks._zoo_transformers import TRANSFORMERS

QUIET = {"init_weights": False}  # without it googlenet and inception_v3 warn that their default will change

TORCHVISION = [
    Entry("torchvision/alexnet"),
    Entry("torchvision/vgg11", (32, 32)),
    Entry("torchvision/vgg11_bn", (32, 32)),
    Entry("torchvision/vgg16", (32, 32)),
    Entry("torchvision/resnet18"),
    Entry("torchvision/resnet50"),
    Entry("torchvision/resnext50_32x4d"),
    Entry("torchvision/wide_resnet50_2"),
    Entry("torchvision/densenet121"),
    Entry("torchvision/inception_v3", (80, 80), QUIET),
    Entry("torchvision/googlenet", (64, 64), QUIET),
    Entry("torchvision/squeezenet1_0"),
    Entry("torchvision/squeezenet1_1"),
    Entry("torchvision/shufflenet_v2_x0_5"),
    Entry("torchvision/mobilenet_v2"),
    Entry("torchvision/mobilenet_v3_small"),
    Entry("torchvision/mobilenet_v3_large"),
    Entry("torchvision/mnasnet0_5"),
    Entry("torchvision/efficientnet_b0"),
    Entry("torchvision/efficientnet_v2_s"),
    Entry("torchvision/regnet_x_400mf"),
    Entry("torchvision/regnet_y_400mf"),
    Entry("torchvision/convnext_tiny"),
    Entry("torchvision/maxvit_t", (224, 224)),
    Entry("torchvision/swin_t"),
    Entry("torchvision/swin_v2_t"),
    Entry("torchvision/vit_b_16", (32, 32), {"image_size": 32}),
    Entry("torchvision/vit_b_32", (64, 64), {"image_size": 64}),
    *(
        Entry(f"torchvision/{name}", (64, 64), {"weights_backbone": None}, explains)
        for name in ("deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "fcn_resnet50", "lraspp_mobilenet_v3_large")
        for explains in ("pixel", "map")
    ),
    Entry("torchvision/r3d_18", (4, 32, 32)),
    Entry("torchvision/mc3_18", (4, 32, 32)),
    Entry("torchvision/r2plus1d_18", (4, 32, 32)),
    Entry("torchvision/swin3d_t", (4, 32, 32)),
    Entry("torchvision/s3d", (14, 224, 224)),
]

# Where a family starts large, its smallest member with fewer layers.
_IMG = {"img_size": 64}
_TIMM: dict[str, tuple[int, dict[str, Any]]] = {
    "beit_base_patch16_224": (64, {**_IMG, "depth": 2, "embed_dim": 96, "num_heads": 3}),
    "resmlp_12_224": (64, _IMG),
    "gmlp_ti16_224": (64, _IMG),
    "mixer_s32_224": (64, _IMG),
    "eva02_tiny_patch14_224": (56, {"img_size": 56, "depth": 4}),
    "vit_tiny_patch16_224": (64, _IMG),
    "vit_tiny_patch16_dinov3_qkvb": (64, {**_IMG, "depth": 4}),
    "vit_relpos_small_patch16_224": (64, {**_IMG, "depth": 4}),
    "vit_tiny_r_s16_p8_224": (64, {**_IMG, "depth": 4}),
    "samvit_base_patch16_224": (
        64,
        {**_IMG, "depth": 2, "embed_dim": 96, "num_heads": 3, "window_size": 2, "global_attn_indexes": (1,)},
    ),
    "naflexvit_so150m2_patch16_reg1_gap": (64, {"depth": 2}),
    "qwen3_vit_88m": (64, {"depth": 2}),
    "gemma4_vit_167m": (64, {"depth": 2, "embed_dim": 96, "num_heads": 3}),
    "deepseek_vit_412m": (56, {"depth": 2, "embed_dim": 128, "num_heads": 2}),
    "cait_xxs24_224": (64, {**_IMG, "depth": 4}),
    "deit_tiny_patch16_224": (64, _IMG),
    "deit_tiny_distilled_patch16_224": (64, {**_IMG, "depth": 4}),
    "deit3_small_patch16_224": (64, {**_IMG, "depth": 4}),
    "convit_tiny": (64, _IMG),
    "crossvit_tiny_240": (240, {}),
    "coat_tiny": (64, _IMG),
    "coatnet_pico_rw_224": (64, _IMG),
    "maxvit_pico_rw_256": (64, _IMG),
    "efficientformer_l1": (224, {}),
    "efficientformerv2_s0": (224, {}),
    "efficientvit_m0": (224, {}),
    "gcvit_xxtiny": (224, {}),
    "hiera_tiny_224": (64, _IMG),
    "hieradet_small": (64, {}),
    "levit_128s": (64, _IMG),
    "levit_conv_128s": (64, _IMG),
    "mvitv2_tiny": (64, _IMG),
    "nest_tiny": (224, {}),
    "pit_ti_224": (64, _IMG),
    "sequencer2d_s": (64, _IMG),
    "swiftformer_xs": (224, {}),
    "swin_tiny_patch4_window7_224": (64, {**_IMG, "window_size": 4}),
    "swinv2_tiny_window8_256": (64, _IMG),
    "swinv2_cr_tiny_224": (64, _IMG),
    "tiny_vit_5m_224": (64, {}),
    "tnt_s_legacy_patch16_224": (64, {**_IMG, "depth": 3}),
    "twins_svt_small": (64, _IMG),
    "twins_pcpvt_small": (64, _IMG),
    "visformer_tiny": (64, _IMG),
    "vitamin_small_224": (64, _IMG),
    "volo_d1_224": (64, _IMG),
    "xcit_nano_12_p16_224": (64, _IMG),
    "botnet26t_256": (64, _IMG),
    "halonet26t": (256, {}),
    "lambda_resnet26t": (64, {}),
    "bat_resnext26ts": (256, {}),
    "lambda_resnet26rpt_256": (64, _IMG),
    "csatv2": (128, {}),
    "nasnetalarge": (64, {"stem_size": 12, "channel_multiplier": 2, "num_features": 192}),
    "pnasnet5large": (96, {}),
    "inception_v3": (96, {}),
    "inception_v4": (96, {}),
    "inception_resnet_v2": (96, {}),
    "vgg11": (32, {}),
}

_TIMM_64 = words(
    """
    resnet10t resnext26ts skresnet18 ecaresnet26t seresnet33ts gcresnet33ts legacy_seresnet18 res2net50_14w_8s
    resnest14d rexnet_100 regnetx_002 regnety_002 regnetz_005 regnetv_040 resnetv2_18 resnetv2_50x1_bit
    mobileone_s1 repvgg_a0 gernet_s mixnet_s efficientnet_lite0 tf_efficientnet_b0 mobilenetv2_035 mnasnet_small
    tinynet_e fbnetc_100 mobilenetv3_small_050 mobilenetv4_conv_small_035 mobilenetv4_hybrid_medium lcnet_035
    lcnetv2_small hardcorenas_a ghostnet_050 ghostnetv2_100 ghostnetv3_050 repghostnet_050 repvit_m0_9 densenet121
    dpn48b dla46x_c hrnet_w18_small selecsls42b ese_vovnet19b_slim_dw cs3darknet_s cspresnet50 darknet53
    cspnext_tiny nf_regnet_b0 nf_resnet26 dm_nfnet_f0 eca_nfnet_l0 tresnet_m xception41 legacy_xception
    convnext_atto convnext_zepto_rms convnextv2_atto convmixer_768_32 edgenext_xx_small fasternet_t0 fastvit_t8
    inception_next_atto rdnet_tiny poolformer_s12 poolformerv2_s12 caformer_s18 convformer_s18 mobilevit_xxs
    mobilevitv2_050 efficientvit_b0 focalnet_tiny_srf davit_tiny hgnet_tiny hgnetv2_b0 iformer_t cpubone_nano
    efficientvim_m1 lowformer_b0 mambaout_femto nextvit_small pvt_v2_b0 pvt_v2_b2_li shvit_s1 starnet_s050
    test_vit
    """
)

TIMM = [
    *(Entry(f"timm/{name}") for name in _TIMM_64),
    *(Entry(f"timm/{name}", (side, side), options) for name, (side, options) in _TIMM.items()),
]

ZOO = [*TORCHVISION, *TIMM, *TRANSFORMERS]
