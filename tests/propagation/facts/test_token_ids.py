"""Token ids: relevance of a token is that of its embedding, summed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relprop import LRP, Gradient, GradientXInput
from tests.models import close, gradient, settle


class Text(nn.Module):
    """Token ids [N, T] to two scores; `body` takes what the embedding gives."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6, **options)
        self.conv = nn.Conv1d(6, 5, 3, padding=1)
        self.head = nn.Linear(5, 2)

    def forward(self, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        return self.body(self.embedding(ids) + (0.0 if positions is None else positions))

    def body(self, embedded: Tensor) -> Tensor:
        h = torch.relu(self.conv(embedded.mT))
        out: Tensor = self.head(h.mean(2))
        return out


class Body(nn.Module):
    """The same network from the embedded tokens on."""

    def __init__(self, text: Text) -> None:
        super().__init__()
        self.text = text

    def forward(self, embedded: Tensor) -> Tensor:
        return self.text.body(embedded)


IDS = torch.tensor([[1, 4, 4, 0, 9], [10, 2, 0, 3, 1]])


@pytest.mark.parametrize("rules", ["lrp0", "epsilon", "epsilon_gamma", "zplus", "alpha2_beta1", "flat"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_token_ids(rules: str, dtype: torch.dtype) -> None:
    model, ids = settle(Text()), IDS.to(dtype)
    found, delta = LRP(model, rules).attribute(ids, 0, return_convergence_delta=True)
    assert found.shape == (2, 5)
    embedded = model.embedding(ids).detach()
    expected, other = LRP(Body(model), rules).attribute(embedded, 0, return_convergence_delta=True)
    close(found, expected.sum(2))
    assert float((delta - other).abs().max()) <= 1e-10 * float(found.abs().max())


def test_token_ids_by_the_gradient() -> None:
    model = settle(Text())
    embedded = model.embedding(IDS).detach()
    expected = gradient(lambda leaf: model.body(leaf)[:, 0], embedded)
    close(Gradient(model).attribute(IDS, 0), expected.sum(2))
    close(GradientXInput(model).attribute(IDS, 0), (embedded * expected).sum(2))
    close(Gradient(model, form="squared").attribute(IDS, 0), expected.square().sum(2))


def test_padding_and_a_frozen_embedding() -> None:
    model = settle(Text(padding_idx=0))
    with torch.no_grad():
        model.embedding.weight[0] = 0.0
    model.embedding.weight.requires_grad_(False)
    found = LRP(model, "epsilon").attribute(IDS, 1)
    assert bool((found[IDS == 0] == 0).all())  # an embedding of zero has nothing to be relevant
    assert bool((found[IDS != 0] != 0).all())


def test_token_ids_beside_floating_numbers() -> None:
    model, positions = settle(Text()), torch.randn(2, 5, 6, dtype=torch.float64)
    found = LRP(model, "lrp0").attribute((IDS, positions), 1)
    embedded = model.embedding(IDS).detach()
    expected = gradient(lambda leaf: model.body(leaf + positions)[:, 1], embedded)
    close(found[0], (embedded * expected).sum(2))
    close(found[1], positions * expected)


def test_embedded_tokens_that_the_model_writes_to() -> None:
    class Adds(Text):
        def forward(self, ids: Tensor, positions: Tensor | None = None) -> Tensor:
            h = self.embedding(ids)
            h += positions
            h.mul_(2)
            return self.body(h)

    model, positions = settle(Adds()), torch.randn(5, 6, dtype=torch.float64)
    embedded = model.embedding(IDS).detach()
    expected = gradient(lambda leaf: model.body(2 * (leaf + positions))[:, 1], embedded)
    close(Gradient(model).attribute(IDS, 1, positions), expected.sum(2))
    close(LRP(model, "lrp0").attribute(IDS, 1, positions), (embedded * expected).sum(2))


def test_token_ids_that_are_copied_moved_and_looked_up_twice() -> None:
    class Twice(Text):
        def forward(self, ids: Tensor, positions: Tensor | None = None) -> Tensor:
            ids = ids.to(torch.int64).contiguous().clone()
            return self.body(self.embedding(ids) + 2 * self.embedding(ids.view(2, 5)))

    model = settle(Twice())
    embedded = model.embedding(IDS).detach()
    expected = gradient(lambda leaf: model.body(3 * leaf)[:, 1], embedded)
    close(LRP(model, "lrp0").attribute(IDS, 1), (embedded * expected).sum(2))


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_bag_of_words(mode: str) -> None:
    """Every token has the relevance of its row in the bag."""

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag = nn.EmbeddingBag(11, 6, mode=mode)
            self.head = nn.Linear(6, 2)

        def forward(self, ids: Tensor) -> Tensor:
            out: Tensor = self.head(self.bag(ids))
            return out

    model = settle(Bag())
    share = 1 if mode == "sum" else 1 / IDS.shape[1]
    expected = share * model.bag.weight[IDS] @ model.head.weight[1]
    close(LRP(model, "lrp0").attribute(IDS, 1), expected.detach())


def test_token_ids_made_under_inference_mode() -> None:
    text = settle(Text())
    expected = LRP(text).attribute(IDS, 1, torch.ones(5, 6).double())
    with torch.inference_mode():
        ids, positions = IDS.clone(), torch.ones(5, 6).double()
        assert torch.equal(LRP(text).attribute(ids, 1, positions), expected)
