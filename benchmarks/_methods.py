"""The methods that are compared, each as a callable `(x, target) -> relevance` inside a context."""

from __future__ import annotations

import copy
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from _torchvision import import_torchvision

Attribute = Callable[[Tensor, int], Tensor]

# Pixels are standard normal: nearly all lie within these.
LOW, HIGH = -4.0, 4.0


class Unavailable(Exception):
    """A method that cannot run here, and why."""


@dataclass(frozen=True)
class Method:
    """How to prepare a method for a model, and whether its relevance should sum to the output."""

    prepare: Callable[[nn.Module], AbstractContextManager[Attribute]]
    conserves: bool = True


def prepare(method: Method, model: nn.Module) -> AbstractContextManager[Attribute]:
    """Enter to get the callable; leave to take what a library put on the model off again."""
    return method.prepare(model)


def gradient(model: nn.Module) -> AbstractContextManager[Attribute]:
    """The plain gradient by the input."""

    def attribute(x: Tensor, target: int) -> Tensor:
        x = x.detach().clone().requires_grad_()
        (result,) = torch.autograd.grad(model(x)[:, target].sum(), x)
        return result

    return nullcontext(attribute)


def relprop(rules: str, **bounds: float) -> Callable[[nn.Module], AbstractContextManager[Attribute]]:
    """A preset of this package."""

    def prepare(model: nn.Module) -> AbstractContextManager[Attribute]:
        library = _library("relprop")
        chosen = library.Rules.preset(rules, **bounds) if bounds else rules
        return nullcontext(library.LRP(model, chosen).attribute)

    return prepare


def captum_lrp(model: nn.Module) -> AbstractContextManager[Attribute]:
    """Captum's LRP, which is epsilon on every layer unless modules are given rules."""
    library = _library("captum.attr")
    # It stores activations and rules on modules, and leaves them there if it fails: a copy, same parameters.
    copied = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})

    def attribute(x: Tensor, target: int) -> Tensor:
        leaf = x.detach().clone().requires_grad_()  # else it warns
        result: Tensor = library.LRP(copied).attribute(leaf, target=target)
        return result.detach()

    return nullcontext(attribute)


def captum_input_x_gradient(model: nn.Module) -> AbstractContextManager[Attribute]:
    """Captum's InputXGradient."""
    library = _library("captum.attr")

    def attribute(x: Tensor, target: int) -> Tensor:
        leaf = x.detach().clone().requires_grad_()  # else it warns
        result: Tensor = library.InputXGradient(model).attribute(leaf, target=target)
        return result.detach()

    return nullcontext(attribute)


def zennit(composite: str, **options: Any) -> Callable[[nn.Module], AbstractContextManager[Attribute]]:
    """A composite of Zennit, with the canonizer of the network's family."""

    @contextmanager
    def prepare(model: nn.Module) -> Iterator[Attribute]:
        attribution = _library("zennit.attribution")
        chosen = _composite(composite, canonizers=_canonizers(model), **options)
        with attribution.Gradient(model, chosen) as attributor:

            def attribute(x: Tensor, target: int) -> Tensor:
                def seed(output: Tensor) -> Tensor:
                    kept = torch.zeros_like(output)
                    kept[:, target] = output[:, target].detach()
                    return kept

                x = x.detach().clone().requires_grad_()
                return attributor(x, seed)[1].detach()  # type: ignore[no-any-return]

            yield attribute

    return prepare


def _composite(name: str, **options: Any) -> Any:
    composites = _library("zennit.composites")
    if name != "Epsilon":
        return getattr(composites, name)(**options)
    rules, types = _library("zennit.rules"), _library("zennit.types")
    layers = [*composites.layer_map_base(), (types.Linear, rules.Epsilon()), (types.Convolution, rules.Epsilon())]
    return composites.LayerMapComposite(layers, **options)


def _canonizers(model: nn.Module) -> list[Any]:
    import_torchvision()
    library = _library("zennit.torchvision")
    family = type(model).__name__
    known = {"VGG": "VGGCanonizer", "ResNet": "ResNetCanonizer"}
    return [getattr(library, known[family])()] if family in known else [library.SequentialMergeBatchNorm()]


def _library(name: str) -> Any:
    if importlib.util.find_spec(name.split(".")[0]) is None:
        raise Unavailable("not installed")
    return importlib.import_module(name)


METHODS: dict[str, Method] = {
    "gradient": Method(gradient, conserves=False),
    "relprop epsilon": Method(relprop("epsilon")),
    "relprop epsilon_gamma": Method(relprop("epsilon_gamma")),
    "relprop epsilon_plus": Method(relprop("epsilon_plus")),
    "relprop epsilon_alpha2_beta1": Method(relprop("epsilon_alpha2_beta1")),
    "relprop zplus": Method(relprop("zplus")),
    "relprop alpha2_beta1": Method(relprop("alpha2_beta1")),
    "relprop epsilon_gamma_box": Method(relprop("epsilon_gamma_box", low=LOW, high=HIGH)),
    "captum InputXGradient": Method(captum_input_x_gradient),
    "captum LRP (epsilon)": Method(captum_lrp),
    "zennit Epsilon": Method(zennit("Epsilon")),
    "zennit EpsilonPlus": Method(zennit("EpsilonPlus")),
    "zennit EpsilonAlpha2Beta1": Method(zennit("EpsilonAlpha2Beta1")),
    "zennit EpsilonGammaBox": Method(zennit("EpsilonGammaBox", low=LOW, high=HIGH)),
}
