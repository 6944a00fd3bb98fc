"""Classification networks of torchvision and timm with random weights in which nothing is trivially zero."""

from __future__ import annotations

import importlib.util
import zlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from benchmarks._torchvision import import_torchvision
from torch import Tensor, nn

_SIDE = {"torchvision/vgg16": 32, "torchvision/vgg11_bn": 32}  # the others end in a map of 2 x 2 at 64 x 64


def library(name: str) -> ModuleType:
    """Import `torchvision` or `timm`; the test that asks is skipped where it is not installed."""
    if importlib.util.find_spec(name) is None or importlib.util.find_spec("torchvision") is None:
        pytest.skip(f"{name} is not installed: pip install 'relprop[zoo]'")
    torchvision = import_torchvision()
    return torchvision if name == "torchvision" else pytest.importorskip(name)


def build(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The network `"torchvision/resnet18"` or `"timm/regnetx_002"`, randomised, in eval mode."""
    source, _, architecture = name.partition("/")
    module = library(source)
    # Built without storage: drawing weights twice would be the slowest part of these tests.
    with torch.device("meta"):
        if source == "timm":
            model = module.create_model(architecture, pretrained=False)
        else:
            # Without this option googlenet warns that its default will change.
            options: dict[str, Any] = {"init_weights": False} if architecture == "googlenet" else {}
            model = module.models.get_model(architecture, weights=None, **options)
    assert isinstance(model, nn.Module)
    for buffer, _ in model.named_buffers():
        assert buffer.endswith(("running_mean", "running_var", "num_batches_tracked")), f"buffer {buffer} has no value"
    return randomize(model.to(dtype).to_empty(device="cpu"), seed=seed).eval()


def randomize(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """Draw all parameters and statistics, so that no bias is zero and no activation fades with depth.

    Weights of normalisation layers take both signs. (The initialisation that models bring zeroes the last
    normalisation of a block, ignores groups, and leaves batch norm the identity.)
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                bound = (6 / parameter[0].numel()) ** 0.5  # keeps the variance through a ReLU; quicker than a normal
                parameter.uniform_(-bound, bound, generator=generator)
            elif name.endswith("weight"):
                parameter.uniform_(0.5, 1.5, generator=generator)
                parameter[torch.rand(parameter.shape, generator=generator) < 0.25] *= -1
            else:
                parameter.normal_(0, 0.1, generator=generator)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.2, generator=generator)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith("num_batches_tracked"):
                buffer.zero_()
    return model


def images(name: str, *, batch: int = 2, seed: int = 1, scale: float = 1.0) -> Tensor:
    """Signed pixels, float64, of the smallest comfortable size."""
    side = _SIDE.get(name, 64)
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(batch, 3, side, side, generator=generator, dtype=torch.float64)


def targets(model: nn.Module, x: Tensor) -> Tensor:
    """The class of the highest score per sample (squeezenet's scores end in a ReLU: others may be zero)."""
    with torch.no_grad():
        prediction: Tensor = model(x).argmax(1)
    return prediction


def gradient_times_input(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """Gradient x Input by plain autograd."""
    leaf = x.detach().clone().requires_grad_()
    score = model(leaf * 1.0)[torch.arange(len(x)), target].sum()
    (gradient,) = torch.autograd.grad(score, leaf)
    return x * gradient


def difference(actual: Tensor, expected: Tensor) -> float:
    """The largest absolute difference, as a fraction of the expected map's largest absolute value."""
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    scale = expected.abs().max()
    assert torch.isfinite(scale) and scale > 0, "the reference is zero or not finite: it would prove nothing"
    return float((actual - expected).abs().max() / scale)


def fingerprint(model: nn.Module) -> dict[str, object]:
    """Everything an explanation must leave alone: bits, identity, flags, hooks and attributes of a model."""
    found: dict[str, object] = {"state_dict": tuple(model.state_dict())}
    for name, tensor in _tensors(model):
        bits = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        found[f"tensor {name}"] = (
            zlib.crc32(bits.data),
            id(tensor),
            tensor.data_ptr(),
            tensor._version,
            tensor.dtype,
            tuple(tensor.shape),
            tensor.requires_grad,
            tensor.grad is None,
        )
    for name, module in model.named_modules():
        found[f"module {name}"] = (
            type(module),
            module.training,
            tuple(sorted(vars(module))),
            tuple((key, len(value)) for key, value in sorted(vars(module).items()) if key.endswith("_hooks")),
        )
    return found


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
