"""One small class a method, all on the pipeline of :class:`relprop.attribution.base.Attribution`."""

from relprop.attribution.backward_variants import Deconvolution, GuidedBackprop
from relprop.attribution.base import Attribution
from relprop.attribution.baselines import Input, Random
from relprop.attribution.contract import Contract, Method
from relprop.attribution.deep_taylor import DeepTaylor
from relprop.attribution.excitation import ContrastiveExcitationBackprop, ExcitationBackprop
from relprop.attribution.gradient import Gradient, GradientXInput, Sensitivity
from relprop.attribution.lrp import LRP
from relprop.attribution.methods import explain, methods
from relprop.attribution.pattern_quality import SignalQuality
from relprop.attribution.pattern_store import Pattern, Patterns
from relprop.attribution.patterns import PatternAttribution, PatternNet

__all__ = [
    "LRP",
    "Attribution",
    "Contract",
    "ContrastiveExcitationBackprop",
    "Deconvolution",
    "DeepTaylor",
    "ExcitationBackprop",
    "Gradient",
    "GradientXInput",
    "GuidedBackprop",
    "Input",
    "Method",
    "Pattern",
    "PatternAttribution",
    "PatternNet",
    "Patterns",
    "Random",
    "Sensitivity",
    "SignalQuality",
    "explain",
    "methods",
]
