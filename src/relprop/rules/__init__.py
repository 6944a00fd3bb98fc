"""The rules, the registry that says where they go, and the presets."""

from relprop.rules.attached import Attached
from relprop.rules.input import Flat, WSquare, ZBox
from relprop.rules.linear import Epsilon, Gamma, Rho, Zero
from relprop.rules.nonlinear import (
    CPLRP,
    AttnLRP,
    AveragePool,
    Norm,
    SignalTakesAll,
    TaylorSoftmax,
    Uniform,
    WinnerTakesAll,
)
from relprop.rules.plan import Plan
from relprop.rules.registry import Rules
from relprop.rules.rule import (
    ActivationRule,
    FilterRule,
    LinearRule,
    NormRule,
    PoolingRule,
    ProductRule,
    Rule,
    SoftmaxRule,
)
from relprop.rules.signed import AlphaBeta, Contrast, RescaledExcitation, ZPlus
from relprop.rules.universal import Block, Detach, Mask, Pass

__all__ = [
    "CPLRP",
    "ActivationRule",
    "AlphaBeta",
    "Attached",
    "AttnLRP",
    "AveragePool",
    "Block",
    "Contrast",
    "Detach",
    "Epsilon",
    "FilterRule",
    "Flat",
    "Gamma",
    "LinearRule",
    "Mask",
    "Norm",
    "NormRule",
    "Pass",
    "Plan",
    "PoolingRule",
    "ProductRule",
    "RescaledExcitation",
    "Rho",
    "Rule",
    "Rules",
    "SignalTakesAll",
    "SoftmaxRule",
    "TaylorSoftmax",
    "Uniform",
    "WSquare",
    "WinnerTakesAll",
    "ZBox",
    "ZPlus",
    "Zero",
]
