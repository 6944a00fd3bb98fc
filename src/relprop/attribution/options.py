"""What ``attribute`` takes and returns, written once for all methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import (
    Annotated,
    Any,
    Concatenate,
    Literal,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypedDict,
    TypeVar,
    cast,
    overload,
)

from torch import Tensor

from relprop.arguments import Default, takes

Condition: TypeAlias = "Mapping[str, Sequence[int]] | None"
T = TypeVar("T")
P = ParamSpec("P")


class ForwardOptions(TypedDict, total=False):
    """What every method takes by keyword.

    Args:
        forward_kwargs: keyword arguments of the model, not explained. Default: None.
    """

    forward_kwargs: Annotated[Mapping[str, Any] | None, Default(None)]


class Options(ForwardOptions, total=False):
    """What a method that differentiates takes by keyword: :class:`ForwardOptions` and two more.

    Args:
        condition: by the name of a module, the channels (dimension 1 of its output, or of the first tensor it returns)
            through which relevance flows on; all others are blocked. Default: None.
        create_graph: make the attribution part of a graph, so that a loss on it can be differentiated. The derivative
            sees the network as it is, not the rules. Default: False.
    """

    condition: Annotated[Condition, Default(None)]
    create_graph: Annotated[bool, Default(False)]


class PerturbationOptions(ForwardOptions, total=False):
    """What a method that perturbs the input takes by keyword: :class:`ForwardOptions` and two more.

    Args:
        internal_batch_size: the most samples in one pass; None: one change for the whole batch a pass. (Captum's
            ``perturbations_per_eval=k`` is ``internal_batch_size=k * N``.) Default: None.
        progress: show a progress bar, by tqdm. Default: False.
    """

    internal_batch_size: Annotated[int | None, Default(None)]
    progress: Annotated[bool, Default(False)]


class Maps(Protocol[P]):
    """What returns maps: a tensor for a tensor, a tuple for several, and else the structure of the inputs."""

    @overload
    def __call__(self, inputs: Tensor, *args: P.args, **options: P.kwargs) -> Tensor: ...
    @overload
    def __call__(self, inputs: list[Tensor], *args: P.args, **options: P.kwargs) -> tuple[Tensor, ...]: ...
    @overload
    def __call__(self, inputs: T, *args: P.args, **options: P.kwargs) -> T: ...


class MapsAndDelta(Protocol[P]):
    """What returns maps as :class:`Maps` does, and with ``return_convergence_delta=True`` a pair of these and delta."""

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, inputs: Tensor, *args: Any, return_convergence_delta: Literal[True], **options: Any
    ) -> tuple[Tensor, Tensor]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, inputs: list[Tensor], *args: Any, return_convergence_delta: Literal[True], **options: Any
    ) -> tuple[tuple[Tensor, ...], Tensor]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, inputs: T, *args: Any, return_convergence_delta: Literal[True], **options: Any
    ) -> tuple[T, Tensor]: ...
    @overload
    def __call__(self, inputs: Any, *args: Any, return_convergence_delta: bool, **options: Any) -> Any: ...
    @overload
    def __call__(self, inputs: Tensor, *args: P.args, **options: P.kwargs) -> Tensor: ...
    @overload
    def __call__(self, inputs: list[Tensor], *args: P.args, **options: P.kwargs) -> tuple[Tensor, ...]: ...
    @overload
    def __call__(self, inputs: T, *args: P.args, **options: P.kwargs) -> T: ...


def maps(attribute: Callable[Concatenate[Any, Any, P], Any]) -> Maps[P]:
    """Type what returns maps, and let it take its options."""
    return cast("Maps[P]", takes(attribute))


def maps_and_delta(attribute: Callable[Concatenate[Any, Any, P], Any]) -> MapsAndDelta[P]:
    """Type what returns maps, or maps and delta, and let it take its options."""
    return cast("MapsAndDelta[P]", takes(attribute))
