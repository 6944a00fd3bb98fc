"""What every operation is: one row each, declared beside its handler; and how to declare your own."""

from relprop.operations.activations import elementwise
from relprop.operations.own import operation
from relprop.operations.rows import functions_named
from relprop.operations.table import operation_of, operations
from relprop.propagation.call.operation_call import Here, native
from relprop.propagation.facts.operation import (
    Difference,
    Excitation,
    Holds,
    Ids,
    Image,
    Kind,
    Operation,
    Truth,
    Writes,
)

__all__ = [
    "Difference",
    "Excitation",
    "Here",
    "Holds",
    "Ids",
    "Image",
    "Kind",
    "Operation",
    "Truth",
    "Writes",
    "elementwise",
    "functions_named",
    "native",
    "operation",
    "operation_of",
    "operations",
]
