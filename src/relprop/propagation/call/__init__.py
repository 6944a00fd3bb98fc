"""The state of one attribution: what it was asked, what rules see, what is named, what is recorded."""

from relprop.propagation._moved import moved

__getattr__ = moved(__name__, Call="relprop")
