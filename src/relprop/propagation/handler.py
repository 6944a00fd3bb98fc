"""Moved to :mod:`relprop.operations`."""

from relprop.propagation._moved import moved

__getattr__ = moved(__name__, Here="relprop.operations")
