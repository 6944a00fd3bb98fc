"""No figure of another test is open, and none stays open."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import pytest
from matplotlib import pyplot as plt


@pytest.fixture(autouse=True)
def no_window() -> Iterator[None]:
    with matplotlib.rc_context():
        plt.switch_backend("Agg")
        plt.close("all")
        yield
        plt.close("all")
