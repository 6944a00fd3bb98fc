"""Methods with a backward of their own for the ReLU: deconvolution and guided backprop."""

from relprop.attribution.rectifiers.methods import Deconvolution, GuidedBackprop

__all__ = ["Deconvolution", "GuidedBackprop"]
