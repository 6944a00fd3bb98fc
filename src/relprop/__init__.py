"""relprop explains the predictions of PyTorch models by relevance propagation."""

from relprop.attribution import LRP, Attribution, Contract, DeepTaylor, Gradient, GradientXInput, Method
from relprop.conservation import Account, ConservationReport
from relprop.errors import (
    BackwardHookWarning,
    CompiledModelWarning,
    ConservationError,
    DeepTaylorWarning,
    InputError,
    InputTypeError,
    MissingExtraError,
    ModelError,
    NumericalError,
    RelpropError,
    RelpropWarning,
    RuleError,
    TargetError,
    TargetIndexError,
    TargetTypeError,
    TrainingModeWarning,
    UncoveredOperationError,
    UncoveredOperationWarning,
)
from relprop.inputs import Keywords
from relprop.rules import Plan, Rules

__version__ = "0.1.0"

__all__ = [
    "LRP",
    "Account",
    "Attribution",
    "BackwardHookWarning",
    "CompiledModelWarning",
    "ConservationError",
    "ConservationReport",
    "Contract",
    "DeepTaylor",
    "DeepTaylorWarning",
    "Gradient",
    "GradientXInput",
    "InputError",
    "InputTypeError",
    "Keywords",
    "Method",
    "MissingExtraError",
    "ModelError",
    "NumericalError",
    "Plan",
    "RelpropError",
    "RelpropWarning",
    "RuleError",
    "Rules",
    "TargetError",
    "TargetIndexError",
    "TargetTypeError",
    "TrainingModeWarning",
    "UncoveredOperationError",
    "UncoveredOperationWarning",
]
