"""Networks of torchvision, timm and transformers with random weights in which nothing is trivially zero."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from tests.networks.zoo import randomize
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from benchmarks._torchvision import import_torchvision
from benchmarks._zoo_operations import words

Target = int | Callable[[Any], Tensor]


@dataclass(frozen=True)
class Entry:
    """One network of the zoo.

    Attributes:
        name: library and architecture, as `timm/regnetx_002`.
        size: of the input, without batch and channels.
        options: how the library is to build it.
        explains: "class", "pixel" (one pixel of a map of classes) or "map" (all pixels of one class).
        note: what tells it from another entry of that name.
    """

    name: str
    size: tuple[int, ...] = (64, 64)
    options: Mapping[str, Any] = field(default_factory=dict)
    explains: str = "class"
    note: str = ""

    @property
    def title(self) -> str:
        """The name, with what is explained unless that is a class, and the note."""
        more = [self.note] if self.note else [] if self.explains == "class" else [self.explains]
        return " ".join([self.name, *(f"({text})" for text in more)])


class _WithoutDrawing(TorchFunctionMode):
    """Gives the weights that a model draws their mean or lower bound, which is quicker: they will be drawn again."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0].fill_(args[1] if len(args) > 1 else 0.0)
        return func(*args, **(kwargs or {}))


def build(entry: Entry, *, seed: int = 0) -> nn.Module:
    """Return the network, randomised, in float64 and eval mode."""
    torchvision = import_torchvision()  # before timm and transformers, which import it themselves
    library, _, architecture = entry.name.partition("/")
    torch.manual_seed(seed)
    with _WithoutDrawing():
        if library == "torchvision":
            model = torchvision.models.get_model(architecture, weights=None, **entry.options)
        elif library == "timm":
            model = importlib.import_module("timm").create_model(architecture, pretrained=False, **entry.options)
        else:
            model = _transformer(architecture, dict(entry.options))
    assert isinstance(model, nn.Module)
    return randomize(model.double(), seed=seed).eval()


def settle(model: nn.Module, x: Tensor, *, seed: int = 2) -> nn.Module:
    """Draw the statistics of batch norms anew, about those of this input, so that nothing explodes or saturates."""
    generator = torch.Generator().manual_seed(seed)

    def draw(norm: _BatchNorm, args: tuple[Tensor, ...]) -> None:
        deviation = args[0].std()
        norm.get_buffer("running_mean").normal_(0, 0.2, generator=generator).mul_(deviation)
        norm.get_buffer("running_var").uniform_(0.5, 1.5, generator=generator).mul_(deviation**2)

    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    handles = [norm.register_forward_pre_hook(draw) for norm in norms]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return model


def _transformer(architecture: str, options: dict[str, Any]) -> Any:
    """Return a model of transformers from the configuration of its class with these options."""
    more = {"attn_implementation": options.pop("attention")} if "attention" in options else {}
    transformers = importlib.import_module("transformers")
    cls = getattr(transformers, architecture)
    return cls._from_config(cls.config_class(**options), **more)


def image(entry: Entry, *, seed: int = 1) -> Tensor:
    """Signed pixels of one image (or one clip), float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 3, *entry.size, generator=generator, dtype=torch.float64)


def scores(found: Any) -> Tensor:
    """Return the scores in what a model returned."""
    if isinstance(found, Mapping):
        found = next(found[name] for name in ("logits", "out", "last_hidden_state") if name in found)
    result: Tensor = found[0] if isinstance(found, tuple) else found
    return result


def target_of(entry: Entry, model: nn.Module, x: Tensor) -> tuple[Target, Callable[[Any], Tensor]]:
    """Return what is to be explained, as relprop takes it and as a function of what the model returned.

    It is the class of the highest score: others may be zero, where a network ends in a ReLU.
    """
    with torch.no_grad():
        returned = model(x)
    found = scores(returned)
    if entry.explains == "class":
        label = int(found.argmax())
        plain = isinstance(returned, Tensor) or "logits" in returned
        return label if plain else lambda out: scores(out)[:, label], lambda out: scores(out)[:, label]
    row, column = (length // 2 for length in found.shape[2:])
    label = int(found[0, :, row, column].argmax())
    here = found.argmax(1) == label

    def pixel(out: Any) -> Tensor:
        return scores(out)[:, label, row, column]

    def region(out: Any) -> Tensor:
        return torch.where(here, scores(out)[:, label], 0.0).sum((1, 2))

    score = pixel if entry.explains == "pixel" else region
    return score, score


_ADDED = frozenset(
    words(
        """
        pos_embed pos_embedding position_embeddings position_embedding pixel_pos patch_pos cls_token class_token
        class_embedding dist_token distillation_token reg_token register_tokens mask_token probe
        """
    )
)


def without_biases(model: nn.Module) -> nn.Module:
    """Set what a network adds to its activations to zero, in place: biases, means, embeddings of positions."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name or not _ADDED.isdisjoint(name.split(".")):
                parameter.zero_()
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.zero_()
    return model
