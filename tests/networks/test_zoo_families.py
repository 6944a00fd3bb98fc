"""Of every family of networks one, under the checks of `make zoo`; and its page, against the list it is made from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from benchmarks._zoo_operations import words
from torch import Tensor

from relprop.operations import folding
from relprop.rules import AttnLRP, Norm, SignalTakesAll, Uniform, WinnerTakesAll
from tests.networks import zoo

PAGE = Path(__file__).resolve().parents[2] / "docs" / "zoo.md"

CHECKED = {
    "torchvision": words(
        """
        resnet18 googlenet squeezenet1_1 shufflenet_v2_x0_5 mobilenet_v3_small mnasnet0_5 efficientnet_b0 regnet_y_400mf
        convnext_tiny swin_t swin_v2_t vit_b_32 lraspp_mobilenet_v3_large deeplabv3_mobilenet_v3_large swin3d_t mc3_18
        """
    ),
    "timm": words(
        """
        resnet10t resnext26ts skresnet18 ecaresnet26t legacy_seresnet18 resnest14d regnety_002 resnetv2_18 repvgg_a0
        mobileone_s1 gernet_s tinynet_e mobilenetv3_small_050 lcnet_035 ghostnet_050 repghostnet_050 dla46x_c dpn48b
        ese_vovnet19b_slim_dw cs3darknet_s cspnext_tiny nf_regnet_b0 convnext_zepto_rms convnextv2_atto
        edgenext_xx_small poolformer_s12 mobilevit_xxs mobilevitv2_050 efficientvit_b0 hgnetv2_b0 iformer_t
        cpubone_nano mambaout_femto pvt_v2_b0 starnet_s050 test_vit beit_base_patch16_224 resmlp_12_224 gmlp_ti16_224
        mixer_s32_224 eva02_tiny_patch14_224 vit_tiny_patch16_dinov3_qkvb vit_relpos_small_patch16_224
        samvit_base_patch16_224 naflexvit_so150m2_patch16_reg1_gap qwen3_vit_88m cait_xxs24_224
        deit_tiny_distilled_patch16_224 convit_tiny pit_ti_224 levit_128s tnt_s_legacy_patch16_224 swinv2_cr_tiny_224
        twins_svt_small hiera_tiny_224 mvitv2_tiny xcit_nano_12_p16_224 botnet26t_256 lambda_resnet26t
        """
    ),
    "transformers": words(
        """
        ViTForImageClassification DeiTForImageClassification BeitForImageClassification
        Dinov2WithRegistersForImageClassification CLIPForImageClassification SiglipForImageClassification
        SwinForImageClassification Swinv2ForImageClassification HieraForImageClassification
        ConvNextForImageClassification ConvNextV2ForImageClassification FocalNetForImageClassification
        LevitForImageClassification PvtForImageClassification SegformerForSemanticSegmentation
        PoolFormerForImageClassification SwiftFormerForImageClassification MobileViTV2ForImageClassification
        MobileNetV1ForImageClassification ResNetForImageClassification RegNetForImageClassification
        PPLCNetForImageClassification
        """
    ),
}
NAMES = [f"{library}/{name}" for library, names in CHECKED.items() for name in names]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_is_right_or_named(name: str) -> None:
    zoo.library(name.split("/")[0])
    from benchmarks._zoo_checks import check
    from benchmarks._zoo_entries import ZOO

    entry = next(entry for entry in ZOO if entry.name == name)
    result = check(entry)
    assert not result.faults()
    assert not result.uncovered
    row = rows()[entry.title]
    assert row[1] == "-"
    assert math.isclose(float(row[2]), result.delta, rel_tol=1e-2, abs_tol=1e-9), "make zoo writes the page anew"


def rows() -> dict[str, list[str]]:
    """The lines of the page's tables, by the name of the network."""
    found: dict[str, list[str]] = {}
    library = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        library = line.removeprefix("## ") if line.startswith("## ") else library
        if line.startswith("| ") and not line.startswith(("| network", "| ---")):
            cells = line.removeprefix("| ").removesuffix(" |").split(" | ")
            name = cells[0].removesuffix(" \\*")
            found[f"{library}/{name}"] = cells
    return found


def test_the_page_has_every_network_and_no_failure() -> None:
    from benchmarks._zoo_entries import ZOO

    assert list(rows()) == [entry.title for entry in ZOO]
    text = PAGE.read_text(encoding="utf-8")
    assert f"{len(ZOO)} of {len(ZOO)} networks pass every check" in text
    assert "Failing" not in text


# Each check can fail -----------------------------------------------------------------------------


def averaged(self: object, flow: object, a: Tensor, out: Tensor, average: Callable[[Tensor], Tensor]) -> Tensor:
    return average(a)


def whole(self: object, counts: Sequence[int], gates: Sequence[bool]) -> tuple[float, ...]:
    return (1.0,) * len(counts)


BROKEN = {
    "attention": ("timm/test_vit", AttnLRP, "shares", lambda self, *active: (0.0, 0.0, 1.0, 0.0), "from surrogate"),
    "products": ("timm/starnet_s050", Uniform, "shares", whole, "of the output is unexplained"),
    "products in attention": ("timm/test_vit", AttnLRP, "shares", lambda self, *active: (1.0,) * 4, "is unexplained"),
    "gates": ("timm/lcnet_035", SignalTakesAll, "shares", Uniform.shares, "differs from surrogate"),
    "norms": ("timm/test_vit", Norm, "denominator", lambda self, flow, x: x, "of the output is unexplained"),
    "size": ("timm/starnet_s050", Uniform, "shares", lambda self, counts, gates: (50.5, -49.5), "sum |R| is"),
    "batch norm": ("timm/resnet10t", folding, "_may_fold", lambda *args: False, "differs from the fused copy"),
    "max pooling": ("timm/resnet10t", WinnerTakesAll, "pooled", averaged, "Gradient x Input"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", list(BROKEN))
def test_a_mistake_is_found(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo.library("timm")
    from benchmarks._zoo_checks import check
    from benchmarks._zoo_entries import ZOO

    name, holder, attribute, broken, expected = BROKEN[case]
    monkeypatch.setattr(holder, attribute, broken)
    result = check(next(entry for entry in ZOO if entry.name == name))
    assert expected in " ".join(result.faults())


@pytest.mark.slow
def test_a_failure_is_a_line_of_the_table() -> None:
    zoo.library("timm")
    from benchmarks._zoo_checks import check
    from benchmarks._zoo_models import Entry
    from benchmarks._zoo_table import summary, table

    result = check(Entry("timm/test_vit", (63, 63)))
    assert result.faults() == [result.error]
    assert "failed" in table([result])
    assert summary([result]) == "0 of 1 networks pass every check. Failing: timm/test_vit."
