"""Moved to :mod:`relprop.rules`."""

from relprop.propagation._moved import moved

__getattr__ = moved(__name__, LinearMap="relprop.rules")
