"""Simple Taylor decomposition: a first-order expansion of the whole output at a root point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from relprop.arguments import bar, positive_number, takes, whole_number
from relprop.attribution.baselines import as_baselines
from relprop.attribution.contract import Contract, Method
from relprop.attribution.gradient import Gradient
from relprop.attribution.options import ForwardOptions, maps_and_delta
from relprop.attribution.roots import Value, first_root, first_roots, limit, nearest_of, ray, segment
from relprop.errors import InputError, InputTypeError, NumericalError
from relprop.inputs import Given, as_inputs
from relprop.randomness import as_seed, draws
from relprop.tables import text_table
from relprop.targets import Target
from relprop.training import SameDraws

if TYPE_CHECKING:
    from typing_extensions import Unpack

RootSearch = Literal["nearest", "gradient", "segment"]


@dataclass(frozen=True)
class Expansion:
    """An expansion of every sample's output, ``f(x) = f(x~) + sum R + remainder``. Prints as a table.

    From :meth:`SimpleTaylor.expand`.

    Attributes:
        relevance: ``R = df/dx(x~) (x - x~)``, in the structure of the inputs.
        root: the root points ``x~``, in the structure of the inputs.
        output: ``f(x)``, ``[N]``.
        at_root: ``f(x~)``, ``[N]``: zero up to rounding.
        distance: ``|x - x~|``, ``[N]``, over all entries: an expansion at a root far away explains little.
        remainder: what terms of higher order hold, and R does not explain: ``f(x) - f(x~) - sum R``, ``[N]``.
    """

    relevance: Any
    root: Any
    output: Tensor
    at_root: Tensor
    distance: Tensor
    remainder: Tensor

    def __str__(self) -> str:
        columns = (
            self.output,
            self.at_root,
            self.output - self.at_root - self.remainder,
            self.remainder,
            self.distance,
        )
        rows = [(str(n), *(f"{float(value):.4g}" for value in row)) for n, row in enumerate(zip(*columns, strict=True))]
        return text_table(("sample", "f(x)", "f(root)", "sum R", "remainder", "distance"), rows)


class SimpleTaylor(Method, name="simple_taylor"):
    """The first-order terms of a Taylor expansion of the output at a root point near the input.

    Definition: ``R_i = df/dx_i(x~) (x_i - x~_i)`` with ``f(x~) = 0``. At a root on the kink of a ReLU the gradient is
    the limit from the input, ``x~ + t (x - x~)`` as ``t`` falls to 0. The root point, by ``root``: ``"nearest"``
    minimises ``|x - x~|`` under ``f(x~) = 0``, from the root along the gradient on (or from one that Newton's steps
    lead to) and from other ``starts`` around the input, each to a root that is nearest in its neighbourhood, and keeps
    the nearest of these: the more starts, the surer that no nearer one was missed; ``"gradient"`` is the first root on
    the line ``x - t sign(f) df/dx(x)``; ``"segment"`` the first one on the way from the input to a reference.
    Conserves: where ``f`` is linear between the root and the input; :meth:`expand` tells the remainder.

    Args:
        model: any ``nn.Module`` that treats every sample by itself.
        root: ``"nearest"``, ``"gradient"`` or ``"segment"``.
        n_steps: at how many points a path is looked at for a change of sign.
        reach: how far along the gradient to look, in units of the distance ``|f| / |df/dx|`` at which a linear
            function has its root.
        iterations: the most steps that ``"nearest"`` takes from each start.
        starts: how many more starts ``"nearest"`` takes than the root along the gradient: random directions and their
            opposites. Each costs as much as the first.
        seed: what the directions are drawn from, anew at every call; None is 0.

    Raises:
        InputError: for another ``root``, for no steps or iterations, for fewer than no starts, or where ``reach`` is no
            positive number.
        InputTypeError: for a seed that is no integer.
    Source: Montavon et al. 2017 (doi:10.1016/j.patcog.2016.11.008); Bach et al. 2015
        (doi:10.1371/journal.pone.0130140).

    >>> import torch
    >>> model = torch.nn.Linear(2, 1)
    >>> _ = model.weight.data.copy_(torch.tensor([[3.0, -1.0]])), model.bias.data.fill_(-1.0)
    >>> SimpleTaylor(model).attribute(torch.tensor([[4.0, 1.0]]))
    tensor([[9., 1.]])
    """

    contract = Contract("1", "relevance", "f", "where the output is linear between the root and the input")
    per_sample = ("baselines",)

    def __init__(
        self,
        model: nn.Module,
        root: RootSearch = "nearest",
        *,
        n_steps: int = 100,
        reach: float = 10.0,
        iterations: int = 50,
        starts: int = 8,
        seed: int | None = None,
    ) -> None:
        super().__init__(model)
        if root not in get_args(RootSearch):
            raise InputError(f"root must be one of {get_args(RootSearch)}, got {root!r}.")
        self.root, self.reach = root, positive_number("reach", reach)
        self.n_steps, self.iterations = whole_number("n_steps", n_steps), whole_number("iterations", iterations)
        self.starts, self.seed = whole_number("starts", starts, least=0), as_seed(seed)

    @maps_and_delta
    def attribute(
        self,
        inputs: Any,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        baselines: Any = None,
        progress: bool = False,
        return_convergence_delta: bool = False,
        **options: Unpack[ForwardOptions],
    ) -> Any:
        """Return the attribution of every input.

        Args:
            inputs: a tensor ``[N, ...]`` of floating point numbers, or a tuple of them.
            target, additional_forward_args, options: see :meth:`Attribution.attribute`.
            baselines: the reference that ``root="segment"`` searches towards: None (zero), a number, a tensor
                ``[N, ...]`` or ``[1, ...]``; for several inputs a tuple with one of these for each.
            progress: show a progress bar over the starts of ``root="nearest"``, by tqdm.
            return_convergence_delta: also return ``delta = f(x) - sum R``, ``[N]``.

        Returns:
            a tensor or a tuple of tensors, of the structure, shapes, dtypes and device of ``inputs``; with
            ``return_convergence_delta`` a pair of that and delta.

        Raises:
            InputError: where no root is found (along a gradient of zero there is none), for a structure of inputs, or
                for baselines of another shape or without ``root="segment"``.
            InputTypeError: for token ids.
            MissingExtraError: ``progress=True`` without tqdm.
            NumericalError: where the output is NaN or infinite. On the way to a root that only ends the way there.
            RelpropError: what every method raises.
        """
        found = self.expand(inputs, target, additional_forward_args, baselines=baselines, progress=progress, **options)
        if not return_convergence_delta:
            return found.relevance
        return found.relevance, found.at_root + found.remainder

    @takes
    def expand(
        self,
        inputs: Any,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        baselines: Any = None,
        progress: bool = False,
        **options: Unpack[ForwardOptions],
    ) -> Expansion:
        """Return the attribution with the root point, its distance, and what is left unexplained.

        Args:
            inputs, target, additional_forward_args, baselines, progress, options: see :meth:`attribute`.

        Raises:
            RelpropError: as :meth:`attribute`.

        >>> model = nn.Linear(2, 1)
        >>> _ = model.weight.data.copy_(torch.tensor([[3.0, -1.0]])), model.bias.data.fill_(-1.0)
        >>> print(SimpleTaylor(model).expand(torch.tensor([[4.0, 1.0]])))
        sample  f(x)  f(root)  sum R  remainder  distance
        ------  ----  -------  -----  ---------  --------
        0       10    0        10     0          3.162
        """
        given = as_inputs(inputs)
        _check(given)
        if baselines is not None and self.root != "segment":
            raise InputError(f"Only root='segment' searches towards baselines; root={self.root!r} has no use for them.")
        gradient, draws = Gradient(self.model), SameDraws(self.model, given.tensors)
        x = _joined(given.tensors)

        def value(rows: Tensor) -> Tensor:
            points = given.replaced(_split(rows, given))
            with draws.again():
                found = self.explained(points, target, additional_forward_args, **options)
            return found.to(rows.dtype)

        def slope(rows: Tensor) -> Tensor:
            within = value(rows).isfinite()[:, None]  # a search may leave the domain of the model
            points = given.replaced(_split(torch.where(within, rows, x), given))
            with draws.again():
                found = gradient.attribute(points, target, additional_forward_args, **options)
            return torch.where(within, _joined(given.aligned(found, "The gradient")), 0.0)

        with torch.no_grad():
            output = value(x)
            if not bool(output.isfinite().all()):
                raise NumericalError("The explained output is NaN or infinite; there is nothing to explain.")
            root = self._root(value, slope, x, output, given, baselines, progress)
            moved = x - root
            relevance = slope(limit(x, root)) * moved
            at_root = value(root)
        return Expansion(
            given.packed(_split(relevance, given)),
            given.packed(_split(root, given)),
            output,
            at_root,
            moved.norm(dim=1),
            output - at_root - relevance.sum(1),
        )

    def _root(
        self, value: Value, slope: Value, x: Tensor, output: Tensor, given: Given, baselines: Any, progress: bool
    ) -> Tensor:
        if self.root == "segment":
            path = segment(x, _joined(as_baselines(given, baselines)))
            t = first_root(value, path, output, torch.ones_like(output), self.n_steps)
            _check_found(t, "on the segment to the reference", "Choose a reference at which the sign is another.")
            return path(t[:, None])
        gradient = slope(x)
        steepness = gradient.norm(dim=1)
        if self.root == "gradient":
            flat = (steepness == 0) & (output != 0)
            _check_found(torch.where(flat, torch.nan, 0.0), "along the gradient, which is zero")
        steepness = torch.where(steepness == 0, 1.0, steepness)
        path = ray(x, -output.sign()[:, None] * gradient / steepness[:, None])
        far = self.reach * output.abs() / steepness
        t = first_root(value, path, output, far, self.n_steps)
        if self.root == "gradient":
            within = f"{self.reach:g} times the distance of a linear function's"
            _check_found(t, f"along the gradient within {within}", "Raise `reach`, or search by root='nearest'.")
            return path(t[:, None])
        root = path(t[:, None])
        if bool(t.isnan().any()):  # the gradient turns on the way: follow it
            turned = first_roots(value, slope, x, output, x, self.n_steps, self.iterations)
            root = torch.where(t.isnan()[:, None], turned, root)
        directions = bar(self._directions(x), progress, total=self.starts)
        root = nearest_of(value, slope, x, output, root, directions, self.n_steps, self.iterations)
        where = f"along the gradient, nor from any of {self.starts} other starts on"
        _check_found(root.sum(1), where)
        return root

    def _directions(self, x: Tensor) -> list[Tensor]:
        """Return random directions and their opposites, the same for every sample and at every call."""
        source = draws(self.seed, None)
        drawn = [source.normal(x[0]) for _ in range((self.starts + 1) // 2)]
        return [side for direction in drawn for side in (direction, -direction)][: self.starts]


def _check(given: Given) -> None:
    if given.samples is None:
        raise InputError("SimpleTaylor takes tensors [N, ...] or a tuple of them, and no inputs in a structure.")
    if not all(x.is_floating_point() for x in given.tensors):
        raise InputTypeError(
            "SimpleTaylor moves the inputs, and integers lie on no path. Explain the embedded tokens in their place."
        )


def _check_found(t: Tensor, where: str, advice: str = "Search on the segment to a reference, root='segment'.") -> None:
    """Raise where a root is missing."""
    missing = t.isnan().nonzero().flatten().tolist()
    if missing:
        listed = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        samples = f"sample{'s' if len(missing) > 1 else ''} {listed}"
        raise InputError(f"The output of {samples} has no root {where}: it keeps its sign there. {advice}")


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """Return all inputs in one row a sample, ``[N, D]``, in the widest of their types."""
    return torch.cat([tensor.detach().flatten(1) for tensor in tensors], 1)


def _split(rows: Tensor, given: Given) -> list[Tensor]:
    """Return rows as the inputs they were joined from."""
    sizes = [tensor[0].numel() for tensor in given.tensors]
    parts = rows.split(sizes, 1)
    return [part.reshape(x.shape).to(x.dtype) for part, x in zip(parts, given.tensors, strict=True)]
