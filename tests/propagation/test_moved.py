"""Names that the documentation taught from modules that are gone still stand there, and say where to."""

from __future__ import annotations

import importlib
import sys
import warnings

import pytest

from relprop import MovedWarning

OLD = {
    "relprop.propagation.handler.Here": "relprop.operations",
    "relprop.propagation.operations.Operation": "relprop.operations",
    "relprop.propagation.operations.functions_named": "relprop.operations",
    "relprop.propagation.layer.LinearMap": "relprop.rules",
    "relprop.propagation.numerics.safe": "relprop.rules",
    "relprop.propagation.numerics.stabilize": "relprop.rules",
    "relprop.propagation.numerics.quotient": "relprop.rules",
    "relprop.propagation.call.Call": "relprop",
}


@pytest.mark.parametrize("path", OLD)
def test_an_old_path_warns_once(path: str) -> None:
    old, _, name = path.rpartition(".")
    module, now = importlib.import_module(old), importlib.import_module(OLD[path])
    sys.modules[old].__dict__.pop(name, None)
    with pytest.warns(MovedWarning, match=f"from {OLD[path]} import {name}") as caught:
        found = getattr(module, name)
    assert found is getattr(now, name)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert getattr(module, name) is found


def test_what_never_stood_there_is_an_error() -> None:
    with pytest.raises(AttributeError, match=r"relprop\.propagation\.layer.*no attribute 'Gamma'"):
        _ = importlib.import_module("relprop.propagation.layer").Gamma
