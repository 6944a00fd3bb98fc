"""Networks rewritten so that they compute the same function: copies to test an explanation against."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.nn.utils.parametrize import is_parametrized

from relprop.errors import InputError, InputTypeError, ModelError, near
from relprop.metrics._checked import allowed, copied, in_precision, tensor_output
from relprop.metrics._explain import checked_input, generator
from relprop.metrics._randomised import run

LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# What may stand between two linear layers: channel by channel, and f(s a) = s f(a) for s > 0.
BETWEEN = (
    nn.ReLU, nn.LeakyReLU, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Flatten,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip


def rewrites(
    model: nn.Module,
    x: Tensor,
    chains: Sequence[Sequence[str]] | None = None,
    *,
    seed: int = 0,
    tolerance: float | None = None,
) -> dict[str, nn.Module]:
    """Return copies of a model that are built differently and compute the same function.

    Definition: with ``a = relu(W x + b)`` between two linear layers and ``V`` the second one's weight,

    - ``"split"``: the layer of ReLUs in two, ``relu(z) = relu(z / 4) + relu(3 z / 4)``, ``V`` twice;
    - ``"permuted"``: the units in another order;
    - ``"scaled"``: unit k times ``s_k``, drawn from [1/2, 2] (uniform logarithm), its column of ``V`` by ``1 / s_k``;
    - ``"fused"``: batch norm folded into the linear layer before it (only where there is one);
    - ``"identity"``: a linear layer without bias whose weight is the identity, before the second layer.

    Each copy rewrites all chains at once. The model itself is left as it is.

    Args:
        model: in evaluation mode where it has batch norm.
        x: ``[N, ...]``, on which each copy is verified.
        chains: dotted names, ``(first, second)`` or ``(first, batch norm, second)``: linear layers or convolutions
            without groups, between which everything works channel by channel and is positively homogeneous (ReLU,
            LeakyReLU, pooling, dropout, flatten). Without it, those in every ``nn.Sequential`` of the model.
        seed: of the permutation and the scales.
        tolerance: the largest difference of outputs that passes, relative to the largest output: 1e-4 by default, or
            half the digits of the dtype where that is more (3.5e-4 for float32, 0.03 for float16, 0.09 for bfloat16).

    Raises:
        InputError: no chain, a name that does not exist, or a copy whose outputs differ (more than such steps stands
            between the layers of a chain, or what the first returns goes elsewhere, too); one sample for batch norm in
            training mode; a tolerance that is negative or not finite.
        InputTypeError: a seed that is no integer, chains that are no list.
        ModelError: a layer that is not of these types or is parametrized; a model that cannot be copied, or returns
            no tensor.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> list(rewrites(model, torch.rand(3, 4)))
    ['split', 'permuted', 'scaled', 'identity']
    """
    x = checked_input(x)
    original = copied(model, "rewrites")
    if chains is not None and (isinstance(chains, str) or not isinstance(chains, Sequence)):
        raise InputTypeError(f"chains is {chains!r}; expected a list of tuples of names, [('layer1', 'layer2'), ...]")
    found = list(_found(model)) if chains is None else [_named(model, tuple(names)) for names in chains]
    if not found:
        for name, module in model.named_modules():
            _not_parametrized(name, module)
        raise InputError(
            "no nn.Sequential of the model holds two linear layers with only ReLU, pooling and the like between them; "
            "name them: chains=[('layer1', 'layer2'), ...]"
        )
    for chain in found:
        _check_norm(model, chain)
    steps: dict[str, Step] = {"split": _split, "permuted": _permuted, "scaled": _scaled}
    if any(chain.norm for chain in found):
        steps["fused"] = _fused
    steps["identity"] = _with_identity
    expected = tensor_output(model, run(original, x), "rewrites")
    made: dict[str, nn.Module] = {}
    with torch.no_grad():
        for name, step in steps.items():
            rewritten = copy.deepcopy(model)
            source = generator(seed)
            for chain in found:
                step(rewritten, chain, source)
            _verify(name, found, expected, rewritten, x, tolerance)
            made[name] = rewritten
    return made


@dataclass(frozen=True)
class _Chain:
    """The names of two linear layers and of the batch norm between them, if any."""

    first: str
    second: str
    norm: str | None = None

    def __str__(self) -> str:
        return " - ".join(name for name in (self.first, self.norm, self.second) if name is not None)


Step: TypeAlias = Callable[[nn.Module, _Chain, torch.Generator], None]


def _found(model: nn.Module) -> Iterator[_Chain]:
    """Find chains in the outermost ``nn.Sequential`` containers."""
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if _is_sequential(module) and not name.startswith(inside):
            inside += (f"{name}." if name else "",)
            yield from _in_sequence(list(_leaves(name, module)))


def _in_sequence(leaves: Sequence[tuple[str, nn.Module]]) -> Iterator[_Chain]:
    first: tuple[str, nn.Module] | None = None
    norm: str | None = None
    for before, (name, module) in pairwise([("", nn.Identity()), *leaves]):
        if type(module) in LINEAR:
            if first is not None and _fits(first[1], module):
                yield _Chain(first[0], name, norm)
            first, norm = (name, module), None
        elif type(module) in NORM and first is not None and before[0] == first[0]:
            norm = name
        elif type(module) not in BETWEEN:
            first = None


def _leaves(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield what runs one after the other in a (nested) ``nn.Sequential``."""
    if not _is_sequential(module):
        yield name, module
        return
    for inner, child in module.named_children():
        yield from _leaves(f"{name}.{inner}" if name else inner, child)


def _is_sequential(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _named(model: nn.Module, names: tuple[str, ...]) -> _Chain:
    """Return the chain a user names, its layers checked."""
    if len(names) not in (2, 3):
        raise InputError(
            f"a chain names {len(names)} modules, {names}; expected (first, second) or (first, norm, second)"
        )
    known = dict(model.named_modules())
    for name in names:
        if name not in known:
            raise InputError(f"the model has no module {name!r}.{near(name, known)}")
    first, second = known[names[0]], known[names[-1]]
    for name, module, kinds in (
        (names[0], first, LINEAR),
        (names[-1], second, LINEAR),
        *((name, known[name], NORM) for name in names[1:-1]),
    ):
        _not_parametrized(name, module)
        if type(module) not in kinds:
            raise ModelError(
                f"module {name!r} is a {type(module).__name__}; expected one of "
                f"{', '.join(kind.__name__ for kind in kinds)}, itself and not a subclass, whose weight is its own"
            )
    if not _fits(first, second):
        raise ModelError(
            f"{names[0]!r}, {first}, does not feed {names[-1]!r}, {second}: expected layers without groups, the second "
            f"with as many inputs as the first has outputs, or a multiple (after flatten)"
        )
    return _Chain(names[0], names[-1], names[1] if len(names) == 3 else None)


def _not_parametrized(name: str, module: nn.Module) -> None:
    if is_parametrized(module) and isinstance(module, (*LINEAR, *NORM)):
        own = next(iter(cast(Any, module).parametrizations))
        raise ModelError(
            f"module {name!r} is parametrized: its {own!r} is computed and cannot be rewritten; expected parameters of "
            f"its own: torch.nn.utils.parametrize.remove_parametrizations(module, {own!r}) on a copy of the model"
        )


def _check_norm(model: nn.Module, chain: _Chain) -> None:
    if chain.norm is None:
        return
    norm = cast(Any, model.get_submodule(chain.norm))
    if norm.training or norm.running_mean is None:
        raise InputError(
            f"batch norm {chain.norm!r} normalises by its batch, so it cannot be fused; expected a model in evaluation "
            f"mode, with running statistics: model.eval()"
        )


def _fits(first: nn.Module, second: nn.Module) -> bool:
    ungrouped = all(getattr(layer, "groups", 1) == 1 for layer in (first, second))
    units, inputs = _weight(first).shape[0], _weight(second).shape[1]
    return ungrouped and (units == inputs or (isinstance(second, nn.Linear) and inputs % units == 0))


def _split(model: nn.Module, chain: _Chain, generator: torch.Generator) -> None:
    units = torch.arange(_units(model, chain))
    quarter = torch.full((len(units),), 0.25, dtype=torch.float64)
    _rewire(model, chain, units.repeat(2), torch.cat([quarter, 3 * quarter]), torch.ones(2 * len(units)))


def _permuted(model: nn.Module, chain: _Chain, generator: torch.Generator) -> None:
    units = torch.randperm(_units(model, chain), generator=generator)
    _rewire(model, chain, units, torch.ones(len(units)), torch.ones(len(units)))


def _scaled(model: nn.Module, chain: _Chain, generator: torch.Generator) -> None:
    units = torch.arange(_units(model, chain))
    scale = 4 ** (torch.rand(len(units), generator=generator, dtype=torch.float64) - 0.5)
    _rewire(model, chain, units, scale, 1 / scale)


def _fused(model: nn.Module, chain: _Chain, generator: torch.Generator) -> None:
    if chain.norm is None:
        return
    first, norm = model.get_submodule(chain.first), model.get_submodule(chain.norm)
    fuse = fuse_linear_bn_eval if isinstance(first, nn.Linear) else fuse_conv_bn_eval
    _place(model, chain.first, cast(Any, fuse)(first.eval(), norm))
    _place(model, chain.norm, nn.Identity())


def _with_identity(model: nn.Module, chain: _Chain, generator: torch.Generator) -> None:
    second = model.get_submodule(chain.second)
    old = _weight(second)
    kernel = (1,) if old.dim() > 2 else ()
    made = nn.utils.skip_init(type(second), old.shape[1], old.shape[1], *kernel, bias=False)  # takes no random numbers
    weight = torch.eye(old.shape[1], dtype=old.dtype, device=old.device)
    cast(Any, made).weight = nn.Parameter(weight.view(weight.shape + (1,) * (old.dim() - 2)))
    _place(model, chain.second, nn.Sequential(made, second).train(second.training))


def _rewire(model: nn.Module, chain: _Chain, units: Tensor, up: Tensor, down: Tensor) -> None:
    """Give the second layer ``down`` times the first one's units, which are ``up`` times the old ``units``."""
    first, second = cast(Any, model.get_submodule(chain.first)), cast(Any, model.get_submodule(chain.second))
    old = _weight(first)
    units = units.to(old.device)
    up, down = (factor.to(old.device, torch.float64) for factor in (up, down))  # rounded once, by _set
    scale = torch.ones_like(up) if chain.norm is not None else up  # batch norm would undo it before itself
    each = old.shape[0]
    _set(first, "weight", scale.view(-1, *(1,) * (old.dim() - 1)) * old[units], old.dtype)
    if first.bias is not None:
        _set(first, "bias", scale * first.bias[units], old.dtype)
    _resize(first, ("out_features", "out_channels"), len(units))
    if chain.norm is not None:
        _rewire_norm(cast(Any, model.get_submodule(chain.norm)), units, up, old.dtype)
    taken = _weight(second)  # after flatten a unit has several inputs, one behind the other
    columns = taken.reshape(taken.shape[0], each, -1, *taken.shape[2:])[:, units]
    columns = columns * down.view(1, -1, *(1,) * (columns.dim() - 2))
    _set(second, "weight", columns.reshape(taken.shape[0], -1, *taken.shape[2:]), taken.dtype)
    _resize(second, ("in_features", "in_channels"), second.weight.shape[1])


def _rewire_norm(norm: Any, units: Tensor, up: Tensor, dtype: torch.dtype) -> None:
    dtype = dtype if norm.weight is None else norm.weight.dtype
    weight = torch.ones(norm.num_features).to(up) if norm.weight is None else norm.weight
    bias = torch.zeros_like(weight) if norm.bias is None else norm.bias
    _set(norm, "weight", up * weight[units], dtype)
    _set(norm, "bias", up * bias[units], dtype)
    if norm.running_mean is not None:
        norm.running_mean, norm.running_var = norm.running_mean[units], norm.running_var[units]
    norm.affine, norm.num_features = True, len(units)


def _units(model: nn.Module, chain: _Chain) -> int:
    return _weight(model.get_submodule(chain.first)).shape[0]


def _weight(layer: nn.Module) -> Tensor:
    return cast(Tensor, layer.weight).detach()


def _set(module: nn.Module, name: str, value: Tensor, dtype: torch.dtype) -> None:
    setattr(module, name, nn.Parameter(value.detach().to(dtype).contiguous()))


def _resize(layer: nn.Module, names: tuple[str, str], size: int) -> None:
    for name in names:
        if hasattr(layer, name):
            setattr(layer, name, size)


def _place(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)


def _verify(
    name: str, chains: Sequence[_Chain], expected: Tensor, rewritten: nn.Module, x: Tensor, tolerance: float | None
) -> None:
    """Raise unless the copy returns what the model does."""
    try:
        found = tensor_output(rewritten, run(copy.deepcopy(rewritten), x), "rewrites")
        apart = float((found.double() - expected.double()).abs().max())
        share = allowed(tolerance, 1e-4, expected.dtype, x.dtype)
        if apart <= share * float(expected.double().abs().max()):
            return
        what = f"differs from the model by {apart:.3g} on x (tolerance {share:g} of the largest output)"
    except RuntimeError as error:
        what = f"does not run ({str(error).splitlines()[0]})"
    raise InputError(
        f"the copy {name!r} {what}: between the layers of a chain stands something that does not work channel by "
        f"channel, is not positively homogeneous or is random, or what the first returns goes elsewhere, too; chains: "
        f"{', '.join(map(str, chains))}{in_precision(expected.dtype)}"
    )
