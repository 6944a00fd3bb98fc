"""Excitation backprop: of what is added up, only what excites shares."""

from relprop.attribution.excitation.methods import ContrastiveExcitationBackprop, ExcitationBackprop

__all__ = ["ContrastiveExcitationBackprop", "ExcitationBackprop"]
