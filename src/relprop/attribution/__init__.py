"""One small class a method, all on the pipeline of :class:`relprop.attribution.base.Attribution`."""

from relprop.attribution.base import Attribution
from relprop.attribution.contract import Contract, Method
from relprop.attribution.deep_taylor import DeepTaylor
from relprop.attribution.gradient import Gradient, GradientXInput
from relprop.attribution.lrp import LRP

__all__ = ["LRP", "Attribution", "Contract", "DeepTaylor", "Gradient", "GradientXInput", "Method"]
