"""One small class a method, all on the pipeline of :class:`relprop.attribution.base.Attribution`."""

from relprop.attribution.base import Attribution
from relprop.attribution.combined import Combined
from relprop.attribution.contract import Contract, Method
from relprop.attribution.deep_lift.deep_lift import DeepLift, DeepLiftShap
from relprop.attribution.deep_taylor import DeepTaylor
from relprop.attribution.excitation.excitation_backprop import ContrastiveExcitationBackprop, ExcitationBackprop
from relprop.attribution.expected import GradientShap
from relprop.attribution.gradcam import GuidedGradCam, LayerGradCam
from relprop.attribution.gradient import Gradient, GradientXInput, Sensitivity
from relprop.attribution.input_and_random import Input, Random
from relprop.attribution.lrp import LRP
from relprop.attribution.methods import explain, methods
from relprop.attribution.noise import NoiseTunnel, SmoothGrad, SmoothGradSquared, VarGrad
from relprop.attribution.paths import IntegratedGradients
from relprop.attribution.patterns.pattern_methods import PatternAttribution, PatternNet
from relprop.attribution.patterns.quality import SignalQuality
from relprop.attribution.patterns.store import Pattern, Patterns
from relprop.attribution.perturbation import FeatureAblation, Occlusion
from relprop.attribution.rectifiers.deconvolution import Deconvolution
from relprop.attribution.rectifiers.guided_backprop import GuidedBackprop
from relprop.attribution.shapley import KernelShap, ShapleyValueSampling
from relprop.attribution.simple_taylor import Expansion, SimpleTaylor
from relprop.attribution.translated import Translated

__all__ = [
    "LRP",
    "Attribution",
    "Combined",
    "Contract",
    "ContrastiveExcitationBackprop",
    "Deconvolution",
    "DeepLift",
    "DeepLiftShap",
    "DeepTaylor",
    "ExcitationBackprop",
    "Expansion",
    "FeatureAblation",
    "Gradient",
    "GradientShap",
    "GradientXInput",
    "GuidedBackprop",
    "GuidedGradCam",
    "Input",
    "IntegratedGradients",
    "KernelShap",
    "LayerGradCam",
    "Method",
    "NoiseTunnel",
    "Occlusion",
    "Pattern",
    "PatternAttribution",
    "PatternNet",
    "Patterns",
    "Random",
    "Sensitivity",
    "ShapleyValueSampling",
    "SignalQuality",
    "SimpleTaylor",
    "SmoothGrad",
    "SmoothGradSquared",
    "Translated",
    "VarGrad",
    "explain",
    "methods",
]
