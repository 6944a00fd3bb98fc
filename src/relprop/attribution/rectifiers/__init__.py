"""Methods with a backward of their own for the ReLU: deconvolution and guided backprop."""

from relprop.attribution.rectifiers.deconvolution import Deconvolution
from relprop.attribution.rectifiers.guided_backprop import GuidedBackprop

__all__ = ["Deconvolution", "GuidedBackprop"]
