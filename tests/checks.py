"""What an error must look like, and what it must leave behind: nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack

from relprop import RelpropError
from tests.networks import zoo


@contextmanager
def refuses(model: nn.Module, error: type[RelpropError], built_in: type[Exception], *words: str) -> Iterator[None]:
    """The body raises this error with a message that holds every one of the words, and leaves nothing behind."""
    before = zoo.fingerprint(model)
    with pytest.raises(error) as caught:
        yield
    assert isinstance(caught.value, built_in)
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"
    nothing_left(model, before)


def nothing_left(model: nn.Module, before: dict[str, object]) -> None:
    """The model is what it was, and no mode is left on."""
    assert zoo.fingerprint(model) == before, "the call changed the model"
    assert not _get_current_function_mode_stack()
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
