"""What every test starts from: one thread, fixed seeds, no network, and CUDA only where there is CUDA."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Generator

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch and NumPy are imported
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # timm: a download becomes an error

import numpy as np
import pytest
import torch

from tests.ids import name_of, rules_in, unnamed
from tests.quick import MOST, TRACED, left_out

collect_ignore = ["typing_cases.py"]  # read by mypy; what it defines is not to be known to other tests

# pytest-xdist runs a process for each core; more threads than that only slow each other down.
torch.set_num_threads(1)


def _seed() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - what scikit-learn draws from
    torch.default_generator.manual_seed(0)  # torch.manual_seed takes 3 ms to note seeds for devices that are not there
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(0)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start each test, and the fixtures made for it alone, from the same random numbers."""
    _seed()


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> None:
    """Seed each shared fixture too: which test makes it first depends on how tests were distributed."""
    if fixturedef.scope != "function":
        _seed()


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name what pytest would number."""
    return name_of(val, argname)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the garbage collector off some twenty thousand cases, which took it half a second each time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_configure(config: pytest.Config) -> None:
    # Reports are compared under epsilons that are large enough to be seen; what tests the warning records it.
    config.addinivalue_line("filterwarnings", "ignore::relprop.StabilizerWarning")


@pytest.hookimpl(tryfirst=True)  # before -m and -k leave out cases
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """See that every case has a name, and mark what is not to run everywhere."""
    cases = [(item.nodeid, item.callspec) for item in items if hasattr(item, "callspec")]
    if nameless := [name for name, case in cases if unnamed(case.id, case.params)]:
        listed = "\n  ".join(nameless)
        raise pytest.UsageError(f"give these cases names, by pytest.param(..., id=...) or ids=...:\n  {listed}")
    traced = config.pluginmanager.hasplugin("_cov")
    for item in left_out(items, TRACED if traced else MOST):
        item.add_marker(pytest.mark.slow)
    for item in items:
        if isinstance(item, pytest.Function):
            item.extra_keyword_matches.update(rules_in(item.function.__code__))  # for -k
        # Tracing takes nearly as long as running, and the quick tests reach what coverage asks for.
        if traced and item.get_closest_marker("slow") and not item.get_closest_marker("traced"):
            item.add_marker(pytest.mark.no_cover)
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
