"""Every method by its name: what there is, and `explain`, which makes and runs one."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, TypeVar, overload

from torch import Tensor, nn

from relprop.arguments import Registered
from relprop.attribution.base import Attribution
from relprop.attribution.contract import Contract, Method
from relprop.errors import MethodError, UnknownMethodError, near
from relprop.tables import html_table, text_table
from relprop.targets import Target

MethodName = Literal[
    "combined", "contrastive_excitation_backprop", "deconvolution", "deep_lift", "deep_lift_shap",
    "deep_taylor", "excitation_backprop", "feature_ablation", "gradient", "gradient_shap", "gradient_x_input",
    "guided_backprop", "guided_grad_cam", "input", "integrated_gradients", "kernel_shap", "layer_grad_cam",
    "lrp", "noise_tunnel", "occlusion", "pattern_attribution", "pattern_net", "random", "sensitivity",
    "shapley_value_sampling", "simple_taylor", "smoothgrad", "smoothgrad_squared", "translated", "vargrad",
]  # fmt: skip
"""The names of relprop's own methods, one by one, for editors and type checkers; yours are ``Registered``."""

Chosen: TypeAlias = MethodName | Registered | type[Method]
T = TypeVar("T")


@dataclass(frozen=True)
class Listed:
    """One method, as :func:`methods` lists it.

    Attributes:
        name: by which :func:`explain` knows it.
        method: the class.
        summary: the first line of its docstring.
        takes: what it is made from: ``"model"``, or ``"method"`` (or ``"methods"``) for what wraps another.
        defaults: the options of its constructor, as they are written in Python.
        contract: what it declares of itself; None where that follows from the method that it wraps.
        source: where it was published, from its docstring.
    """

    name: str
    method: type[Method]
    summary: str
    takes: str
    defaults: str
    contract: Contract | None
    source: str

    def __str__(self) -> str:
        contract = self.contract
        lines = {
            "name": self.name,
            "class": self.method.__name__,
            "what": self.summary,
            "takes": self.takes,
            "defaults": self.defaults,
            "seed": contract.seed if contract else _INHERITED,
            "output": contract.output if contract else _INHERITED,
            "sums to": contract.sums_to if contract else _INHERITED,
            "where": contract.conditions if contract else "",
            "source": self.source,
        }
        return "\n".join(f"{title:<8}  {cell}" for title, cell in lines.items() if cell)

    def cells(self) -> tuple[str, ...]:
        """Return the cells of its line in a table, which cites the source by its authors alone."""
        contract = self.contract
        said = (contract.seed, contract.output, contract.sums_to) if contract else (_INHERITED,) * 3
        return self.name, self.summary, self.defaults, *said, re.split(r" \(|[,;]", self.source)[0]


_INHERITED = "as what it wraps"
_HEADER = ("name", "what", "defaults", "seed", "output", "sums to", "source")


class Methods(Mapping[str, Listed]):
    """Every method that has a name. Prints as a table; the values are :class:`Listed`.

    Names are looked up whatever their case and punctuation: ``"GradientXInput"`` is ``"gradient_x_input"``.
    """

    def __init__(self, known: Mapping[str, type[Method]]) -> None:
        self._known = {name: _listed(name, known[name]) for name in sorted(known)}
        self._plain = {_plain(name): name for name in self._known}

    def __getitem__(self, name: str) -> Listed:
        plain = _plain(str(name))
        if plain not in self._plain:
            close = difflib.get_close_matches(plain, self._plain, n=3, cutoff=0.5)
            hint = f" Did you mean {' or '.join(repr(self._plain[match]) for match in close)}?" if close else ""
            raise UnknownMethodError(f"No method is named {name!r}.{hint} Known: {', '.join(self._known)}.")
        return self._known[self._plain[plain]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return plain data, fit for JSON."""
        return {
            name: {
                **vars(listed),
                "method": listed.method.__name__,
                "contract": None if listed.contract is None else asdict(listed.contract),
            }
            for name, listed in self.items()
        }

    def __str__(self) -> str:
        return text_table(_HEADER, [listed.cells() for listed in self.values()])

    def _repr_html_(self) -> str:
        return html_table(_HEADER, [listed.cells() for listed in self.values()])


def methods() -> Methods:
    """Return every method by its name: one line, defaults, contract and source.

    A method of your own is among them as soon as its class has a name: see :class:`relprop.Method`.

    >>> print(methods()["gradient_x_input"])
    name      gradient_x_input
    class     GradientXInput
    what      The gradient times the input.
    takes     model
    seed      1
    output    relevance
    sums to   f
    where     linear maps, ReLU, LeakyReLU and max pooling, without biases
    source    Shrikumar et al. 2016 (arXiv:1605.01713).
    """
    return Methods(Method.named)


@overload
def explain(
    model: nn.Module,
    inputs: T,
    target: Target = None,
    method: Chosen = "lrp",
    *,
    over: Any = None,
    return_convergence_delta: Literal[True],
    **options: Any,
) -> tuple[T, Tensor]: ...
@overload
def explain(
    model: nn.Module,
    inputs: Any,
    target: Target = None,
    method: Chosen = "lrp",
    *,
    over: Any = None,
    return_convergence_delta: bool,
    **options: Any,
) -> Any: ...
@overload
def explain(
    model: nn.Module, inputs: T, target: Target = None, method: Chosen = "lrp", *, over: Any = None, **options: Any
) -> T: ...
def explain(
    model: nn.Module,
    inputs: Any,
    target: Target = None,
    method: Chosen = "lrp",
    *,
    over: Any = None,
    **options: Any,
) -> Any:
    """Return the attribution of every input, by the method of a name.

    ``explain(model, x, 3, "lrp", rules="zplus", return_convergence_delta=True)`` is
    ``LRP(model, rules="zplus").attribute(x, 3, return_convergence_delta=True)``.

    Args:
        model: any ``nn.Module``.
        inputs, target: as those of ``attribute``.
        method: a name (see :func:`methods`; case and punctuation do not matter), or the class of a method.
        over: for a method that wraps another, that other: a name, a class, or a method that was made from a model; or a
            list of them, where it wraps several.
        options: those that the constructor of the method takes go there, the others to ``attribute``. What neither
            takes goes to the method that is wrapped. An option that is itself called ``method`` or ``over`` is written
            with an underscore behind it: ``method_="riemann_trapezoid"``.

    Returns:
        what ``attribute`` of the method returns.

    Raises:
        MethodError: for a name or an option that is not known, or for ``over`` where it is missing or has no place.
        RelpropError: what the method raises.

    >>> import torch
    >>> model = torch.nn.Linear(2, 1)
    >>> _ = model.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
    >>> explain(model, torch.tensor([[1.0, 2.0]]), method="gradient_x_input")
    tensor([[ 3., -2.]])
    """
    kind = kind_of(method)
    left = {name.removesuffix("_"): value for name, value in options.items()}
    made, inner = _make(kind, model, over, left)
    taken, open_ended = _parameters(kind, "attribute")
    if open_ended:  # what it does not know by name it hands on
        taken |= _parameters(type(inner) if isinstance(inner, Method) else Attribution, "attribute")[0]
    unknown = [name for name in left if name not in taken]
    if unknown:
        known = sorted({*_options(kind), *taken} - {"inputs", "target"})
        raise MethodError(
            f"{kind.__name__} takes no option {unknown[0]!r}.{near(unknown[0], known)} "
            f"It takes {', '.join(known) or 'no options'}."
        )
    try:
        inspect.signature(made.attribute).bind(inputs, target=target, **left)
    except TypeError as error:
        raise MethodError(f"{kind.__name__} cannot run: {error}. It takes {', '.join(taken)}.") from None
    return made.attribute(inputs, target=target, **left)


def kind_of(method: Any) -> type[Method]:
    """Return the class of a method from its name, or the class itself.

    Raises:
        MethodError: for a name that is not known, and for anything else.
    """
    if isinstance(method, str):
        return methods()[method].method
    if isinstance(method, type) and issubclass(method, Method):
        return method
    raise MethodError(f"A method is given by its name or its class, got {method!r}.")


def _make(
    kind: type[Method], model: nn.Module, over: Any, options: dict[str, Any]
) -> tuple[Method, Method | list[Method] | None]:
    """Return a method and what it wraps; the options that go into their constructors are taken out."""
    own = {name: options.pop(name) for name in _options(kind) if name in options}
    inner: Method | list[Method] | None = None
    if _takes(kind) == "model":
        if over is not None:
            raise MethodError(f"{kind.__name__} wraps no other method, so `over` has no place; got {over!r}.")
    elif over is None:
        raise MethodError(f"{kind.__name__} wraps another method: say which, such as over='gradient'.")
    elif isinstance(over, (list, tuple)):
        inner = [_made(item, model, {}) for item in over]
    else:
        inner = _made(over, model, options)
    source = model if inner is None else inner
    try:
        inspect.signature(kind).bind(source, **own)
    except TypeError as error:
        raise MethodError(
            f"{kind.__name__} cannot be made: {error}. It takes {_defaults(kind) or 'no options'}."
        ) from None
    return kind(source, **own), inner  # type: ignore[arg-type]


def _made(over: Any, model: nn.Module, options: dict[str, Any]) -> Method:
    """Return what is to be wrapped: as it was made, or made now."""
    return over if isinstance(over, Method) else _make(kind_of(over), model, None, options)[0]


def _listed(name: str, method: type[Method]) -> Listed:
    text = inspect.cleandoc(method.__doc__ or "")  # its own: that of its base is of another method
    contract = inspect.getattr_static(method, "contract", None)
    source = _SOURCE.search(text)
    return Listed(
        name,
        method,
        text.partition("\n")[0],
        _takes(method),
        _defaults(method),
        contract if isinstance(contract, Contract) else None,
        " ".join(source[1].split()) if source else "",
    )


def _takes(method: type[Method]) -> str:
    """Return what a method is made from: the first parameter of its constructor."""
    parameters = _parameters(method, "__init__")[0].values()
    return next((p.name for p in parameters if p.kind is not p.KEYWORD_ONLY), "model")


def _defaults(method: type[Method]) -> str:
    """Return the options of the constructor as they are written in Python."""
    parameters = _parameters(method, "__init__")[0]
    return ", ".join(str(parameters[name].replace(annotation=inspect.Parameter.empty)) for name in _options(method))


def _options(method: type[Method]) -> list[str]:
    """Return the names of the options of the constructor."""
    return [name for name in _parameters(method, "__init__")[0] if name != _takes(method)]


def _parameters(method: type[Method], function: str) -> tuple[dict[str, inspect.Parameter], bool]:
    """Return what a function of a method takes by name, and whether it takes anything else too.

    What ``**kwargs`` takes is what the class above takes, where that has the function.
    """
    found: dict[str, inspect.Parameter] = {}
    for parent in method.__mro__:
        if function not in vars(parent):
            continue
        parameters = list(inspect.signature(vars(parent)[function]).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                found.setdefault(parameter.name, parameter)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return found, False
    return found, True


def _plain(name: str) -> str:
    """Return a name without case and punctuation."""
    return re.sub(r"[\W_]", "", name.lower())


_SOURCE = re.compile(r"^Source: (.+?)(?:\n\s*\n|\Z)", re.MULTILINE | re.DOTALL)
