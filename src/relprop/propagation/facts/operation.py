"""What an operation is: one row, whose columns say all that any part of relprop asks about it.

The rows stand in :mod:`relprop.operations`, each beside its handler. No column has a default: a row that says nothing
of one of them cannot be made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, Flag, StrEnum, auto
from typing import Any, Generic, TypeAlias, TypeVar

from torch import Tensor

from relprop.propagation.facts.inheritance import Keeps, keeps_nothing

Made = TypeVar("Made")
Function: TypeAlias = Callable[..., Any]
Handler: TypeAlias = Callable[..., Any]
"""Runs one call of an operation: ``handler(here, *args, **kwargs)``; see :class:`relprop.operations.Here`."""

Rectifies: TypeAlias = "Callable[..., Tensor | None]"
"""From a call, as a handler is given it, to the tensor whose ReLU it is; None for a call that is no ReLU."""

Updates: TypeAlias = "Callable[..., list[Tensor | None]]"
"""From the arguments of a call to those that it writes into."""


class Kind(StrEnum):
    """What an operation is to the rules: which of them can stand at it."""

    LINEAR = "linear"
    """A linear map with parameters."""
    BATCH_NORM = "batch_norm"
    """A batch norm, which may belong to the linear map before it."""
    ACTIVATION = "activation"
    """A function of one tensor, entry by entry."""
    POOLING = "pooling"
    """The largest of a window."""
    PRODUCT = "product"
    """Linear in each of several factors that may depend on the input."""
    GATE = "gate"
    """A product in which a gate multiplies what is none; a product comes to be one when it runs."""
    NORM = "norm"
    """What divides: a standard deviation, a norm, a denominator."""
    SOFTMAX = "softmax"
    """The probabilities of a softmax."""
    ATTENTION = "attention"
    """Two products with a softmax between them."""
    SUM = "sum"
    """It adds up; autograd's own backward is LRP-0, and a rule for linear maps may share among the terms."""
    SHIFT = "shift"
    """A constant is added, or a mean of the entries taken off; a sum comes to be one when it runs."""
    AFFINE = "affine"
    """``A x + b``, piecewise so, or homogeneous: it needs no rule, since autograd's own backward is right."""
    VIEW = "view"
    """It moves values, or drops some, and loses nothing."""
    COMPOSITE = "composite"
    """It is made of other operations, each with a rule of its own."""
    CONSTANT = "constant"
    """What has no slope: comparisons, integers, new tensors. No relevance passes, and none is lost."""
    UNKNOWN = "unknown"
    """What no rule covers, with a row or without."""
    UNSEEN = "unseen"
    """What no call that relprop sees has made."""


class Difference(Enum):
    """How DeepLIFT takes an operation; see :mod:`relprop.attribution.deep_lift.table` for what runs each."""

    AS_RULES = "as rules"
    """As the rules run it: it is opened into what it is made of, or draws what it drops, or looks vectors up."""
    UNCOVERED = "uncovered"
    """It has no multiplier: its gradient stands in for one, and it is named."""
    LINEAR = "linear"
    """``A x + b`` in all its active arguments together: autograd is right."""
    REPLACES = "replaces"
    """Its values are those of one argument alone; of another it takes the shape."""
    MOVES = "moves"
    """It moves values, and each keeps the terms that it was added up from."""
    AVERAGES = "averages"
    """Linear with weights that are not negative: what it does to terms it does to their sizes."""
    STEERED = "steered"
    """Linear in its active arguments, entry by entry, with a constant that the input may have decided."""
    KINKED = "kinked"
    """The secant of a function of one tensor that is defined everywhere, with kinks or without."""
    SMOOTH = "smooth"
    """The secant of a function of one tensor that is defined and smooth everywhere: near zero the mean derivative."""
    POLES = "poles"
    """The secant of a function of one tensor that is not defined everywhere."""
    SCALED = "scaled"
    """The secant of a function smooth but at zero, whose scale is that of its argument (logarithms, powers)."""
    STEPPED = "stepped"
    """The secant of a function made of steps, which need have no derivative."""
    SQUARE = "square"
    """The secant of ``x^2``, which is ``x + x'``."""
    SQUARE_ROOT = "square root"
    """The secant of ``sqrt(x)``, which is ``1 / (sqrt(x) + sqrt(x'))``."""
    INVERSE_ROOT = "inverse root"
    """The secant of ``1 / sqrt(x)``."""
    RECIPROCAL = "reciprocal"
    """The secant of ``1 / x``, which is ``-1 / (x x')``."""
    POWER = "power"
    """The secant of ``x^p`` for a constant ``p``, or of ``b^x`` for a constant ``b``."""
    REVERSED_POWER = "reversed power"
    """``POWER`` with the arguments in the order of ``Tensor.__rpow__``."""
    HARD_SIGMOID = "hard sigmoid"
    """``KINKED``, of ``hardsigmoid`` written out, since PyTorch's cannot be differentiated twice."""
    RRELU = "rrelu"
    """``KINKED``; slopes that are random while training are drawn once for both inputs."""
    ADD = "add"
    """``a + alpha b`` or ``a - alpha b``: a sum, to which the sizes of both terms add up."""
    REVERSED_SUBTRACT = "reversed subtract"
    """``b - alpha a``, such a sum too."""
    NEGATE = "negate"
    """``-x``."""
    MULTIPLY = "multiply"
    """``a b``: a product, or one factor times a constant."""
    DIVIDE = "divide"
    """``a / b``, explained as the product ``(a / b) b = a``; or one of them with a constant."""
    REVERSED_DIVIDE = "reversed divide"
    """``DIVIDE`` with the arguments in the order of ``Tensor.__rtruediv__``."""
    PRODUCT = "product"
    """Linear in each of two factors, of which both, or one, may be active; with terms that are added."""
    CONTRACTION = "contraction"
    """Linear in each of any number of factors, of which no more than two may be active."""
    DEGREE_TWO = "degree two"
    """A polynomial of second degree: the derivative halfway is exact."""
    DEVIATION = "deviation"
    """A standard deviation: a variance, and the secant of its root."""
    LAYER = "layer"
    """A linear or convolutional layer, which begins the terms that RevealCancel looks at apart."""
    MATMUL = "matmul"
    """A product of matrices, of two active factors, or of one and a constant, which is a layer."""
    ADDMM = "addmm"
    """``MATMUL`` and a term that is added."""
    BATCH_NORM = "batch norm"
    """``F.batch_norm``: by running statistics a constant factor, by those of the batch a normalisation."""
    TORCH_BATCH_NORM = "torch batch norm"
    """``BATCH_NORM`` with the arguments in the order of ``torch.batch_norm``."""
    LAYER_NORM = "layer norm"
    """Centring, squares, means, roots and quotients, step by step, over the last dimensions."""
    RMS_NORM = "rms norm"
    """The same without centring."""
    GROUP_NORM = "group norm"
    """As ``LAYER_NORM``, over groups of channels and their positions."""
    INSTANCE_NORM = "instance norm"
    """As ``LAYER_NORM``, over the positions of each channel; by running statistics it is affine."""
    NORM = "norm"
    """A sum of powers and a root; norms of matrices have no multiplier."""
    SOFTMAX = "softmax"
    """An exponential, a sum and a quotient, in logarithms."""
    LOG_SOFTMAX = "log softmax"
    """The scores less ``LOGSUMEXP``."""
    LOGSUMEXP = "logsumexp"
    """``log sum exp(x)``, by logarithmic means."""
    GLU = "glu"
    """``a sigmoid(b)`` of two halves: a secant and a product."""
    ATTENTION = "attention"
    """Two products with ``SOFTMAX`` between them."""
    LARGEST = "largest"
    """The largest entry of one tensor: the whole difference to one entry, the largest now, or the one of before."""
    SMALLEST = "smallest"
    """The smallest entry of one tensor, likewise."""
    LARGER = "larger"
    """The larger of two tensors, entry by entry."""
    SMALLER = "smaller"
    """The smaller of two tensors, entry by entry."""
    MAX_POOL_1D = "max pool 1d"
    """The largest entry of every window, of one dimension, as ``LARGEST``."""
    MAX_POOL_2D = "max pool 2d"
    """The largest entry of every window, of two dimensions, as ``LARGEST``."""
    MAX_POOL_3D = "max pool 3d"
    """The largest entry of every window, of three dimensions, as ``LARGEST``."""
    ADAPTIVE_MAX_POOL_1D = "adaptive max pool 1d"
    """The same of windows that follow from the size of the output, of one dimension."""
    ADAPTIVE_MAX_POOL_2D = "adaptive max pool 2d"
    """The same of windows that follow from the size of the output, of two dimensions."""
    ADAPTIVE_MAX_POOL_3D = "adaptive max pool 3d"
    """The same of windows that follow from the size of the output, of three dimensions."""
    POWER_POOL_1D = "power pool 1d"
    """A power, a mean over windows of one dimension, and a root."""
    POWER_POOL_2D = "power pool 2d"
    """A power, a mean over windows of two dimensions, and a root."""
    POWER_POOL_3D = "power pool 3d"
    """A power, a mean over windows of three dimensions, and a root."""


class Excitation(Enum):
    """How excitation backprop takes an operation: of what adds terms up, only the positive ones share."""

    AS_RULES = "as rules"
    """As LRP runs it."""
    ADD = "add"
    """``a + alpha b``, of two terms."""
    SUBTRACT = "subtract"
    """``a - alpha b``, of two terms."""
    REVERSED_SUBTRACT = "reversed subtract"
    """``b - alpha a``, of two terms."""
    INDEX_ADD = "index add"
    """``a`` with ``alpha b`` added in places."""
    AVERAGES = "averages"
    """It adds terms up with weights that are not negative."""
    SCATTERS = "scatters"
    """It puts values in places; where it adds them up there, or averages, it is a sum."""
    INTERPOLATES = "interpolates"
    """Means of neighbours, but for bicubic ones, whose weights have both signs."""


class Ids(Enum):
    """What an operation does with token ids; which arguments hold them, the column ``entering`` says."""

    NONE = "none"
    """Its output holds none: it answers with truth values, or takes no more than the shape."""
    COPIES = "copies"
    """The same entries at the same places, of another type or on another device."""
    MOVES = "moves"
    """Moves, drops, joins or repeats them, or fills other numbers in: what it does, it does to their positions too."""
    CHANGES = "changes"
    """Other numbers in their places, entry by entry: an offset, a multiple, a bound."""
    COMPUTES = "computes"
    """Makes numbers of several of them, which are nobody's: sums, counts, the place of the largest."""
    ONE_HOT = "one hot"
    """A vector for each, with a one in the place that it names."""
    COMPARES = "compares"
    """Says something of each, which is a mask; whether it is any of a list of numbers, which is a one-hot vector."""
    LOSES = "loses"
    """Moves them by their size, or by their place in memory, where no position follows them."""
    LOOKS_UP = "looks up"
    """Embeds them: relevance is read at its output."""


class Writes(Enum):
    """What an operation writes into its first argument; with ``out=`` and ``inplace=True`` any may write as well."""

    NOTHING = "nothing"
    """It returns what it computes."""
    VALUES = "values"
    """What the function ``pure`` of its row computes; without one, the function of its name without underscore."""
    FILLS = "fills"
    """Numbers throughout, which are nobody's; of a tensor that it is given, what ``pure`` computes."""
    RESHAPES = "reshapes"
    """Another shape, and no value."""


class Truth(Enum):
    """What an operation says about the sign of its argument, by which a ReLU is known that is written by masks."""

    NOTHING = "nothing"
    """Nothing that is followed."""
    ABOVE = "above"
    """Against zero: where its first argument is above."""
    BELOW = "below"
    """Against zero: where its first argument is below."""
    NEGATES = "negates"
    """Of a mask, where it is false."""
    KEEPS = "keeps"
    """The mask that it is given, of another type or on another device."""


class Image(Enum):
    """What an operation makes of an image of ``exp(z)``, by which a softmax is known that is written by hand."""

    NOTHING = "nothing"
    """Nothing that is followed."""
    MOVES = "moves"
    """Its entries moved, dropped or repeated: what it was, it is; whatever is known of other formulas too."""
    SUMS = "sums"
    """Sums of its entries."""
    NORM = "norm"
    """A norm, which is a sum of its entries where its power is 1."""
    KEEPS = "keeps"
    """An image still, with constants in places: bounds, what is filled in."""
    JOINS = "joins"
    """Entries of several, which are an image together."""
    ADDS = "adds"
    """With a constant an image still, with another of its degree too; ``1 + exp(z)`` is one of another base."""
    SUBTRACTS = "subtracts"
    """As ``ADDS`` for a constant; ``z`` less its logarithm is the logarithm of probabilities."""
    NEGATES = "negates"
    """Of a logarithm that of the inverse."""
    MULTIPLIES = "multiplies"
    """Entry by entry: by a constant an image still, by another a product, by a signal what divides may yet come to."""
    CONTRACTS = "contracts"
    """As ``MULTIPLIES``, and a sum."""
    DIVIDES = "divides"
    """Over a constant an image still; what is divided by it becomes its inverse."""
    INVERTS = "inverts"
    """Its inverse."""
    POWER = "power"
    """Raised to a number."""
    LOGARITHM = "logarithm"
    """Its logarithm, or of 1 and a single one (``log1p``)."""


class Holds(Flag):
    """What may run inside an operation and is looked for there, by methods that treat it by itself."""

    NOTHING = 0
    """None of these."""
    LINEAR = auto()
    """A linear map with parameters."""
    RELU = auto()
    """A ReLU that is a call of its own once the operation is opened."""
    CHANCE = auto()
    """Entries are dropped at random while training; else it is the same tensor once more."""


@dataclass(frozen=True)
class Operation:
    """One operation: what runs it, and what every part of relprop has to know of it; :func:`operation_of` finds it.

    Attributes:
        name: as plans and reports show it, and as a rule is set on it.
        kind: which rules serve it.
        handler: runs one call of it by the rule that was chosen.
        keeps: what its output keeps of what is known of its arguments: bounds, gates, factors.
        difference: how DeepLIFT takes it.
        excitation: how excitation backprop takes it.
        rectifies: finds the tensor whose ReLU a call is; None where no call of it is a ReLU.
        ids: what it does with token ids, and with columns of floating numbers that come to be ids.
        entering: the positions of the arguments whose values enter the output, of what moves ids or looks them up.
        image: what it makes of an image of an exponential.
        holds: what may run inside it.
        updates: finds the statistics that it updates beside what it returns; None where there are none.
        writes: what it writes into its first argument.
        pure: computes of the same arguments what it writes; None where it writes nothing or its name says it.
        truth: what it says about the sign of its argument.
        composite: it is made of other operations, each with a handler of its own; its handler calls them.
        deterministic: running it twice gives the same.
    """

    name: str
    kind: Kind
    handler: Handler
    keeps: Keeps
    difference: Difference
    excitation: Excitation
    rectifies: Rectifies | None
    ids: Ids
    entering: tuple[int, ...]
    image: Image
    holds: Holds
    updates: Updates | None
    writes: Writes
    pure: Function | None
    truth: Truth
    composite: bool
    deterministic: bool


Table: TypeAlias = Mapping[Any, Operation]
"""Rows by function."""


class Derived(Generic[Made]):
    """What a method makes of the rows, such as its own table: made once, and anew when the rows are others."""

    def __init__(self, make: Callable[[Table], Made]) -> None:
        self._make = make
        self._made: tuple[Table, Made] | None = None

    def __call__(self, operations: Table) -> Made:
        made = self._made
        if made is None or made[0] is not operations:
            made = self._made = operations, self._make(operations)
        return made[1]


def question(name: str, handler: Handler) -> Operation:
    """Return the row of what is asked of tensors, by a comparison: for methods that run it otherwise than torch.

    What it answers has no slope, so that nothing of its arguments is kept, shared or followed.
    """
    return Operation(
        name,
        Kind.AFFINE,
        handler,
        keeps=keeps_nothing,
        difference=Difference.LINEAR,
        excitation=Excitation.AS_RULES,
        rectifies=None,
        ids=Ids.NONE,
        entering=(),
        image=Image.NOTHING,
        holds=Holds.NOTHING,
        updates=None,
        writes=Writes.NOTHING,
        pure=None,
        truth=Truth.NOTHING,
        composite=False,
        deterministic=True,
    )
