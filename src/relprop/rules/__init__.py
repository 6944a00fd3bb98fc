"""The rules, the registry that says where they go, and the presets."""

import relprop.rules.presets  # noqa: F401 - fills Rules.presets
from relprop.propagation.call.flow import Flow
from relprop.propagation.math.linear_map import LinearMap
from relprop.propagation.math.numerics import quotient, safe, stabilize
from relprop.rules.attached import Attached
from relprop.rules.input import Flat, WSquare, ZBox
from relprop.rules.linear import Epsilon, Gamma, Rho, Zero
from relprop.rules.norms import Norm
from relprop.rules.plan import Plan
from relprop.rules.pooling import AveragePool, WinnerTakesAll
from relprop.rules.products import Equal, SignalTakesAll, Uniform
from relprop.rules.registry import Rules
from relprop.rules.relevance import Contributions, Distances, Group, Ones, Products, Relative, Weights
from relprop.rules.rule import (
    ActivationRule,
    FilterRule,
    GroupRule,
    LinearRule,
    NormRule,
    PoolingRule,
    ProductRule,
    Rule,
    SoftmaxRule,
)
from relprop.rules.signed import AbsoluteValue, AlphaBeta, Contrast, RescaledExcitation, ZPlus
from relprop.rules.softmax import CPLRP, AttnLRP, TaylorSoftmax
from relprop.rules.universal import Block, Detach, Mask, Pass

__all__ = [
    "CPLRP",
    "AbsoluteValue",
    "ActivationRule",
    "AlphaBeta",
    "Attached",
    "AttnLRP",
    "AveragePool",
    "Block",
    "Contrast",
    "Contributions",
    "Detach",
    "Distances",
    "Epsilon",
    "Equal",
    "FilterRule",
    "Flat",
    "Flow",
    "Gamma",
    "Group",
    "GroupRule",
    "LinearMap",
    "LinearRule",
    "Mask",
    "Norm",
    "NormRule",
    "Ones",
    "Pass",
    "Plan",
    "PoolingRule",
    "ProductRule",
    "Products",
    "Relative",
    "RescaledExcitation",
    "Rho",
    "Rule",
    "Rules",
    "SignalTakesAll",
    "SoftmaxRule",
    "TaylorSoftmax",
    "Uniform",
    "WSquare",
    "Weights",
    "WinnerTakesAll",
    "ZBox",
    "ZPlus",
    "Zero",
    "quotient",
    "safe",
    "stabilize",
]
