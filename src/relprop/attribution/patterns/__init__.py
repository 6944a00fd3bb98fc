"""Patterns: the signal that each unit looks for, estimated from data, and the methods that show it."""

from relprop.attribution.patterns.pattern_methods import PatternAttribution, PatternNet
from relprop.attribution.patterns.quality import SignalQuality
from relprop.attribution.patterns.store import Pattern, Patterns

__all__ = ["Pattern", "PatternAttribution", "PatternNet", "Patterns", "SignalQuality"]
