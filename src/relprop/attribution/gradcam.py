"""Class activation maps: the channels of a layer, weighted by their mean gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional as F

from relprop.arguments import takes
from relprop.attribution.base import Attribution
from relprop.attribution.contract import Contract, Method
from relprop.attribution.options import ForwardOptions, maps
from relprop.attribution.rectifiers.guided_backprop import GuidedBackprop
from relprop.errors import InputError, near
from relprop.inputs import as_inputs, as_layers
from relprop.propagation.call.call import Call
from relprop.targets import Target

if TYPE_CHECKING:
    from typing_extensions import Unpack


class LayerGradCam(Method, name="layer_grad_cam"):
    """The channels of a layer, each weighted by its mean gradient, and added.

    Definition: ``R_p = sum_k a_kp mean_q(df/da_kq)`` at position p, over the channels k (dimension 1) and the positions
    q (all dimensions behind it) of the output a of a layer; with ``relu_attributions=True`` its positive part, as in
    the paper.
    Conserves: nothing, but where only a global mean and a linear layer follow, less the bias; there is no delta.

    Args:
        model: any ``nn.Module``.
        layer: the name of a module that is called once, or the module; the last convolution, usually.

    Raises:
        InputError: where the model has no such module.
        InputTypeError: for what is neither a name nor a module.
    Source: Selvaraju et al. 2017 (arXiv:1610.02391).

    >>> import torch
    >>> layers = torch.nn.Conv2d(1, 3, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(108, 2)
    >>> model, x = torch.nn.Sequential(*layers), torch.randn(5, 1, 8, 8)
    >>> LayerGradCam(model, "0").attribute(x, target=1).shape
    torch.Size([5, 1, 6, 6])
    """

    contract = Contract("1", "relevance")

    def __init__(self, model: nn.Module, layer: str | nn.Module) -> None:
        super().__init__(model)
        self.layer = _name(self.model, layer)

    @takes
    def attribute(
        self,
        inputs: Any,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        relu_attributions: bool = False,
        attr_dim_summation: bool = True,
        interpolate_mode: str | None = None,
        create_graph: bool = False,
        return_convergence_delta: bool = False,
        **options: Unpack[ForwardOptions],
    ) -> Tensor | Any:
        """Return the map of the layer.

        Args:
            inputs, target, additional_forward_args, options: see :meth:`Attribution.attribute`.
            relu_attributions: set what is negative to zero.
            attr_dim_summation: False leaves the channels apart.
            interpolate_mode: None returns the map in the size of the layer; a mode of
                ``torch.nn.functional.interpolate``, such as ``"bilinear"``, in the size of every input.
            create_graph: make the map part of a graph, so that a loss on it can be differentiated.
            return_convergence_delta: refused, for there is none.

        Returns:
            ``[N, 1, ...]``, or ``[N, C, ...]`` without summation, where ``...`` are the dimensions of the layer's
            output behind its channels; with ``interpolate_mode`` one for every input, of its size behind its channels.

        Raises:
            InputError: where the layer is called never or more than once, has no channels, or its positions have not
                as many dimensions as the input's where it is resized; and for another ``interpolate_mode``.
            RelpropError: what every method raises.
        """
        if return_convergence_delta:
            self.require_completeness()
        given = as_inputs(inputs)
        found = _ActivationTimesMeanGradient(self.model).attribute_layers(
            inputs, self.layer, target, additional_forward_args, create_graph=create_graph, **options
        )[self.layer]
        if isinstance(found, tuple):
            raise InputError(
                f"Module {self.layer!r} is called {len(found)} times, and a class activation map is that of one call. "
                "Choose another layer."
            )
        if attr_dim_summation:
            found = found.sum(1, keepdim=True)
        if relu_attributions:
            found = found.clamp(min=0)
        if interpolate_mode is None:
            return found
        return given.packed([resized(found, x, interpolate_mode) for x in given.tensors])


class _ActivationTimesMeanGradient(Attribution):
    """``a_kp mean_q(df/da_kq)`` of a layer."""

    contract = Contract("1", "relevance")

    def result(self, call: Call, x: Tensor, c: Tensor) -> Tensor:
        if x.dim() < 2:
            raise InputError(f"The layer returns a tensor of shape {tuple(x.shape)}, which has no channels.")
        return x * (c.flatten(2).mean(2).reshape(*c.shape[:2], *(1,) * (c.dim() - 2)) if c.dim() > 2 else c)


class GuidedGradCam(Method, name="guided_grad_cam"):
    """Guided backprop, weighted by the class activation map of a layer.

    Definition: the map of :class:`GuidedBackprop` times the positive part of that of :class:`LayerGradCam`, resized to
    the input.
    Conserves: nothing; it is a coefficient, weighted, and there is no delta.

    Args:
        model: any ``nn.Module``; guided backprop is defined for ReLU networks.
        layer: the name of a module that is called once, or the module; the last convolution, usually.

    Raises:
        InputError: where the model has no such module.
        InputTypeError: for what is neither a name nor a module.
    Source: Selvaraju et al. 2017 (arXiv:1610.02391).

    >>> import torch
    >>> layers = torch.nn.Conv2d(1, 3, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(108, 2)
    >>> model, x = torch.nn.Sequential(*layers), torch.randn(5, 1, 8, 8)
    >>> GuidedGradCam(model, "0").attribute(x, target=1).shape
    torch.Size([5, 1, 8, 8])
    """

    contract = Contract("1", "coefficient")

    def __init__(self, model: nn.Module, layer: str | nn.Module) -> None:
        super().__init__(model)
        self.layer = _name(self.model, layer)

    @maps
    def attribute(
        self,
        inputs: Any,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        interpolate_mode: str = "nearest",
        create_graph: bool = False,
        return_convergence_delta: bool = False,
        **options: Unpack[ForwardOptions],
    ) -> Any:
        """Return the weighted map of every input.

        Args:
            inputs, target, additional_forward_args, options: see :meth:`Attribution.attribute`.
            interpolate_mode: how the map of the layer is resized: a mode of ``torch.nn.functional.interpolate``.
            create_graph: make the map part of a graph, so that a loss on it can be differentiated.
            return_convergence_delta: refused, for there is none.

        Returns:
            a tensor or a tuple of tensors, of the structure, shapes, dtypes and device of ``inputs``.

        Raises:
            InputError: as :meth:`LayerGradCam.attribute`.
            RelpropError: what every method raises.
        """
        if return_convergence_delta:
            self.require_completeness()
        given = as_inputs(inputs)
        cam = LayerGradCam(self.model, self.layer).attribute(
            inputs,
            target,
            additional_forward_args,
            relu_attributions=True,
            interpolate_mode=interpolate_mode,
            create_graph=create_graph,
            **options,
        )
        guided = GuidedBackprop(self.model).attribute(
            inputs, target, additional_forward_args, create_graph=create_graph, **options
        )
        pairs = zip(given.aligned(guided, "The map"), given.aligned(cam, "The map"), strict=True)
        return given.packed([None if part is None else part * weight for part, weight in pairs])


def resized(found: Tensor, x: Tensor, mode: str) -> Tensor:
    """Return a map ``[N, C, ...]`` in the size that an input has behind its channels.

    Raises:
        InputError: for a mode that does not fit, or another number of dimensions.
    """
    if x.dim() != found.dim() or not 3 <= x.dim() <= 5:
        raise InputError(
            f"A map of shape {tuple(found.shape)} cannot be resized to an input of shape {tuple(x.shape)}: both need "
            "one to three dimensions behind their channels. Choose a layer with positions like the input's."
        )
    modes = ("nearest", "nearest-exact", "area", *_MODES[x.dim()])
    if mode not in modes:
        raise InputError(f"interpolate_mode must be one of {modes}, got {mode!r}.{near(str(mode), modes)}")
    return F.interpolate(found, x.shape[2:], mode=mode)


_MODES = {3: ("linear",), 4: ("bilinear", "bicubic"), 5: ("trilinear",)}


def _name(model: nn.Module, layer: Any) -> str:
    """Return the name of a layer.

    Raises:
        InputTypeError, InputError: where it is none of the model.
    """
    if isinstance(layer, nn.Module):
        names = tuple(name for name, module in model.named_modules() if module is layer)
        if not names:
            raise InputError(f"{type(layer).__name__} is no module of {type(model).__name__}.")
    else:
        names = as_layers(model, (layer,))
    return names[0]
