"""Excitation backprop: of what is added up, only what excites shares."""

from relprop.attribution.excitation.excitation_backprop import ContrastiveExcitationBackprop, ExcitationBackprop

__all__ = ["ContrastiveExcitationBackprop", "ExcitationBackprop"]
