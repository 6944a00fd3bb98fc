"""Declarative cases: every linear layer with its configurations, every rule with its parameters.

Both are plain data. `LayerCase.build` makes the layer; `RuleCase` gives a rule's name in the reference and
its keywords, and a test turns the name into whichever rule it needs, the reference's or the package's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

DTYPE = torch.float64


@dataclass(frozen=True)
class LayerCase:
    """A linear layer, its keywords and the shape of its input with the batch dimension."""

    name: str
    kind: Callable[..., nn.Module]
    arguments: tuple[Any, ...]
    shape: tuple[int, ...]
    keywords: dict[str, Any] = field(default_factory=dict)

    def build(self, bias: bool, dtype: torch.dtype = DTYPE) -> nn.Module:
        """The layer with weights of both signs, the same at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(len(self.name) + 7)
            layer = self.kind(*self.arguments, bias=bias, **self.keywords).to(dtype)
            for parameter in layer.parameters():
                nn.init.normal_(parameter, std=0.5)
        return layer


@dataclass(frozen=True)
class RuleCase:
    """A rule by its name in the reference, with its keywords."""

    rule: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        shown = (f"{key}={_show(value)}" for key, value in self.options.items())
        return f"{self.rule}({', '.join(shown)})"


def _show(value: Any) -> str:
    if isinstance(value, Tensor):
        return "tensor"
    return getattr(value, "__name__", str(value))


def _conv(name: str, arguments: tuple[Any, ...], size: tuple[int, ...], **keywords: Any) -> LayerCase:
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(size) - 1]
    return LayerCase(f"conv{len(size)}d-{name}", kind, arguments, (2, arguments[0], *size), keywords)


def _transposed(name: str, arguments: tuple[Any, ...], size: tuple[int, ...], **keywords: Any) -> LayerCase:
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[len(size) - 1]
    return LayerCase(f"transposed{len(size)}d-{name}", kind, arguments, (2, arguments[0], *size), keywords)


LAYERS: list[LayerCase] = [
    LayerCase("linear", nn.Linear, (7, 5), (3, 7)),
    LayerCase("linear-one-output", nn.Linear, (6, 1), (2, 6)),
    LayerCase("linear-3d-input", nn.Linear, (6, 5), (2, 4, 6)),
    LayerCase("linear-4d-input", nn.Linear, (4, 3), (2, 2, 3, 4)),
    _conv("plain", (3, 4, 3), (8,)),
    _conv("stride-padding", (3, 4, 3), (8,), stride=2, padding=1),
    _conv("stride-skips-inputs", (2, 3, 2), (9,), stride=3),
    _conv("padding-beyond-kernel", (2, 3, 2), (5,), padding=3),
    _conv("dilation", (2, 4, 3), (9,), dilation=2, padding=2),
    _conv("groups", (4, 6, 3), (7,), groups=2),
    _conv("depthwise", (4, 8, 3), (6,), groups=4, padding=1),
    _conv("same-even", (2, 3, 4), (7,), padding="same"),
    _conv("same-even-dilated", (2, 3, 4), (9,), padding="same", dilation=3),
    _conv("valid", (2, 3, 4), (7,), padding="valid"),
    _conv("reflect", (2, 3, 4), (6,), padding=3, padding_mode="reflect"),
    _conv("reflect-same-even", (2, 3, 4), (7,), padding="same", padding_mode="reflect"),
    _conv("replicate", (2, 3, 3), (6,), padding=2, padding_mode="replicate", stride=2),
    _conv("circular", (2, 3, 3), (5,), padding=2, padding_mode="circular", dilation=2),
    _conv("plain", (3, 4, 3), (6, 5)),
    _conv("one-by-one", (3, 4, 1), (4, 4)),
    _conv("one-by-one-stride", (3, 4, 1), (5, 4), stride=2),
    _conv("uneven", (2, 3, (2, 3)), (6, 7), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
    _conv("groups", (4, 6, 3), (5, 5), groups=2, padding=1),
    _conv("depthwise-stride", (3, 3, 3), (6, 6), groups=3, stride=2, padding=1),
    _conv("same-even", (2, 3, (2, 4)), (5, 6), padding="same"),
    _conv("same-dilated", (2, 3, (3, 2)), (6, 6), padding="same", dilation=(2, 3)),
    _conv("reflect", (2, 3, 3), (5, 4), padding=(2, 1), padding_mode="reflect"),
    _conv("replicate-same-even", (2, 3, (2, 3)), (5, 4), padding="same", padding_mode="replicate"),
    _conv("replicate-groups", (4, 4, 3), (4, 4), padding=1, padding_mode="replicate", groups=2, stride=2),
    _conv("circular", (2, 3, 3), (4, 5), padding=(1, 2), padding_mode="circular", dilation=(1, 2)),
    _conv("plain", (2, 3, 2), (4, 3, 4)),
    _conv("uneven", (2, 3, (1, 2, 3)), (3, 4, 4), stride=(1, 2, 1), padding=(0, 1, 2), dilation=(1, 1, 2)),
    _conv("groups-same", (4, 2, (2, 3, 1)), (3, 3, 3), padding="same", groups=2),
    _conv("reflect", (2, 2, 2), (3, 3, 4), padding=(1, 0, 2), padding_mode="reflect"),
    _conv("replicate", (2, 2, 2), (3, 2, 3), padding=1, padding_mode="replicate", stride=2),
    _conv("circular", (2, 2, (2, 1, 2)), (3, 2, 3), padding=(1, 0, 1), padding_mode="circular"),
    _transposed("plain", (3, 4, 3), (5,)),
    _transposed("stride-output-padding", (3, 4, 3), (4,), stride=2, padding=1, output_padding=1),
    _transposed("stride-beyond-kernel", (2, 3, 2), (4,), stride=4, output_padding=2),
    _transposed("dilation-output-padding", (2, 3, 3), (4,), dilation=3, output_padding=2, padding=2),
    _transposed("groups", (4, 6, 3), (4,), groups=2, stride=2),
    _transposed("plain", (3, 4, 2), (3, 4)),
    _transposed(
        "uneven",
        (2, 3, (3, 2)),
        (3, 4),
        stride=(2, 1),
        padding=(1, 0),
        output_padding=(1, 1),
        dilation=(1, 2),
    ),
    _transposed("groups", (4, 6, 3), (3, 3), groups=2, stride=2, padding=1, output_padding=1),
    _transposed("depthwise", (3, 6, 2), (3, 3), groups=3),
    _transposed("plain", (2, 3, 2), (2, 3, 2)),
    _transposed("stride-groups", (4, 2, 2), (2, 2, 3), stride=(1, 2, 1), groups=2, output_padding=(0, 1, 0)),
]


def more_positive(w: Tensor) -> Tensor:
    """w + w+ / 3, the tutorial's gamma as a general rule."""
    return w + w.clamp(min=0) / 3


def away_from_zero(z: Tensor) -> Tensor:
    """z + 0.01 sign(z), the tutorial's epsilon as a general rule."""
    return z + torch.where(z < 0, -0.01, 0.01).to(z.dtype)


def unchanged(t: Tensor) -> Tensor:
    return t


# Inputs of the cases lie within these.
LOW, HIGH = -2.0, 2.5

RULES: list[RuleCase] = [
    RuleCase("lrp0"),
    RuleCase("epsilon"),
    RuleCase("epsilon", {"epsilon": 0.25}),
    RuleCase("epsilon", {"epsilon": 0.25, "bias": "ignore"}),
    RuleCase("epsilon", {"epsilon": 0.1, "relative": True}),
    RuleCase("epsilon", {"epsilon": 0.1, "relative": True, "bias": "ignore"}),
    RuleCase("gamma"),
    RuleCase("gamma", {"gamma": 0.1}),
    RuleCase("gamma", {"gamma": 10.0, "stabilizer": 0.0}),
    RuleCase("gamma", {"gamma": 0.5, "stabilizer": 0.1}),
    RuleCase("gamma", {"gamma": 0.25, "bias": "ignore"}),
    RuleCase("alpha_beta"),
    RuleCase("alpha_beta", {"alpha": 1.5, "beta": 0.5, "stabilizer": 0.0}),
    RuleCase("alpha_beta", {"alpha": 1.0, "beta": 0.0}),
    RuleCase("alpha_beta", {"alpha": 2.0, "beta": 1.0, "bias": "ignore"}),
    RuleCase("alpha_beta", {"alpha": 3.0, "beta": 2.0, "stabilizer": 0.1}),
    RuleCase("absolute_value"),
    RuleCase("absolute_value", {"bias": "ignore"}),
    RuleCase("contrast"),
    RuleCase("contrast", {"stabilizer": 0.0}),
    RuleCase("rescaled_excitation"),
    RuleCase("rescaled_excitation", {"gamma": 0.3}),
    RuleCase("rescaled_excitation", {"gamma": 1.0, "stabilizer": 0.0}),
    RuleCase("zplus"),
    RuleCase("zplus", {"bias": "ignore"}),
    RuleCase("zplus", {"stabilizer": 0.0}),
    RuleCase("zbox", {"low": LOW, "high": HIGH}),
    RuleCase("zbox", {"low": LOW, "high": HIGH, "stabilizer": 0.0}),
    RuleCase("wsquare"),
    RuleCase("wsquare", {"stabilizer": 0.0}),
    RuleCase("flat"),
    RuleCase("flat", {"stabilizer": 0.0}),
    RuleCase("rho", {"rho": more_positive, "incr": away_from_zero}),
    RuleCase("rho", {"rho": unchanged, "incr": unchanged}),
]


def signed(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = DTYPE) -> Tensor:
    """Entries of both signs between LOW and HIGH, about one in ten exactly zero."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=DTYPE).clamp(LOW, HIGH)
    x[torch.rand(shape, generator=generator) < 0.1] = 0.0
    return x.to(dtype)


def seed_like(out: Tensor, seed: int = 1) -> Tensor:
    """A derivative of the target by the output: one weight of either sign for every entry."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out.shape, generator=generator, dtype=DTYPE).to(out.dtype)


def layer_cases() -> Iterator[tuple[str, LayerCase, bool]]:
    """Every layer with and without bias."""
    for case in LAYERS:
        for bias in (True, False):
            yield f"{case.name}-{'bias' if bias else 'nobias'}", case, bias
