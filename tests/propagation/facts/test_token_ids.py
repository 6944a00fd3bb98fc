"""Token ids: relevance of a token is that of its embedding, summed, and goes back to where a model took the id from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import LRP, DeepLift, Gradient, GradientXInput
from relprop.errors import InputError
from tests.models import close, gradient, settle
from tests.unrolled import assert_close, snapshot

# What a token receives -------------------------------------------------------------------------------


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


# Ids that a model moves before it embeds them --------------------------------------------------------


Moves = Callable[[Tensor], Tensor]

MOVED = torch.tensor([[1, 2, 3, 4], [5, 6, 2, 0], [7, 8, 1, 1], [3, 3, 3, 9]])
ORDER = torch.tensor([2, 0, 1, 1])
KEPT = torch.tensor([True, False, True, True])
PLACES = torch.tensor([[2, 2, 1], [0, 3, 3], [1, 0, 2], [3, 1, 0]])


class Sentence(nn.Module):
    """Ids [N, T] to [N, 2]: moved, embedded, mapped with a weight for every place."""

    def __init__(self, before: Moves | None = None, after: Moves | None = None, mapped: bool = True) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.words, self.hidden, self.last = nn.Embedding(10, 3), nn.Linear(3, 4), nn.Linear(4, 2)
        self.before, self.after = before, after
        self.double()

    def forward(self, ids: Tensor) -> Tensor:
        embedded = self.words(ids if self.before is None else self.before(ids))
        embedded = embedded if self.after is None else self.after(embedded)
        hidden = F.relu(self.hidden(embedded))
        order = torch.arange(1.0, hidden[0, ..., 0].numel() + 1, dtype=hidden.dtype)
        return self.last((hidden * order.reshape(*hidden.shape[1:-1], 1)).flatten(1, -2).sum(1))  # type: ignore[no-any-return]


def _gather(x: Tensor) -> Tensor:
    index = PLACES if x.dim() == 2 else PLACES[..., None].expand(-1, -1, x.shape[-1])
    return x.gather(1, index)


def _take_along(x: Tensor) -> Tensor:
    return torch.take_along_dim(x, PLACES if x.dim() == 2 else PLACES[..., None], 1)


# Each does to ids [4, 4] what it does to their embeddings [4, 4, 3].
BOTH: dict[str, Moves] = {
    "flip": lambda x: x.flip(1),
    "torch.flip": lambda x: torch.flip(input=x, dims=(1,)),
    "roll": lambda x: x.roll(1, 1),
    "indexed": lambda x: x[:, ORDER],
    "sliced": lambda x: x[:, 1:3],
    "every second, backwards": lambda x: x.flip(1)[:, ::2],
    "the last column": lambda x: x[:, -1:],
    "masked": lambda x: x[:, KEPT],
    "transposed, of a square batch": lambda x: x.transpose(0, 1),
    "permuted samples": lambda x: x[[2, 0, 3, 1]],
    "index_select": lambda x: x.index_select(1, ORDER),
    "gather": _gather,
    "take_along_dim": _take_along,
    "narrow": lambda x: x.narrow(1, 1, 2),
    "select": lambda x: x.select(1, 2).unsqueeze(1),
    "chunks, swapped": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "split by sizes": lambda x: torch.cat(x.split([1, 3], 1)[::-1], dim=1),
    "columns": lambda x: torch.stack(x.unbind(1)[::-1], 1),
    "rows": lambda x: torch.stack(list(x)),
    "expanded": lambda x: x.unsqueeze(1).expand(4, 2, *x.shape[1:]),
    "repeated": lambda x: x.repeat_interleave(2, 1),
    "tiled": lambda x: torch.cat([x, x.flip(1)], 1),
    "unsqueezed": lambda x: x.unsqueeze(2),
    "without gradients": lambda x: _without_gradients(x),
}  # fmt: skip
OF_IDS: dict[str, Moves] = {
    "another type": lambda x: x.int().long().to(torch.int32).type(torch.int64),
    "as data": lambda x: x.data,
    "copied": lambda x: x.clone().contiguous().detach().to(x.device),
    "reshaped": lambda x: x.reshape(-1).view(4, 4),
    "unsqueezed in place": lambda x: x.clone().unsqueeze_(1)[:, 0],
    "a list of words": lambda x: torch.stack([x[:, t] for t in range(4)], dim=1),
    "by rows": lambda x: torch.vstack(list(x)),
}  # fmt: skip


def _without_gradients(x: Tensor) -> Tensor:
    if x.is_floating_point():
        return x.flip(1)
    with torch.no_grad():
        return x.flip(1)


def own(shape: tuple[int, ...], value: int) -> Tensor:
    """Ids of the model's own."""
    return torch.full(shape, value)


def check_moves(moved: Sentence, expected: Sentence) -> None:
    for rules in ("lrp0", "epsilon_gamma", "flat"):
        with snapshot(moved):
            found = LRP(moved, rules).attribute(MOVED, target=1)
        assert_close(found, LRP(expected, rules).attribute(MOVED, target=1), rules)
        assert found.shape == MOVED.shape
    LRP(moved, "lrp0").report(MOVED, target=1).check(1e-10)


@pytest.mark.parametrize("case", BOTH)
def test_ids_and_their_embeddings_are_moved_alike(case: str) -> None:
    check_moves(Sentence(before=BOTH[case]), Sentence(after=BOTH[case]))


@pytest.mark.parametrize("case", OF_IDS)
def test_copies_of_ids(case: str) -> None:
    check_moves(Sentence(before=OF_IDS[case]), Sentence())


def test_reversed_ids_by_hand() -> None:
    words = nn.Embedding(10, 1).double()
    words.weight.data = torch.arange(10.0, dtype=torch.float64)[:, None]
    weights = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)

    class Weighed(nn.Module):
        def __init__(self, moves: Moves) -> None:
            super().__init__()
            self.words, self.moves = words, moves

        def forward(self, ids: Tensor) -> Tensor:
            return (self.words(self.moves(ids))[..., 0] * weights).sum(1)

    ids = torch.tensor([[1, 2, 3]])
    cases: list[tuple[Moves, list[float]]] = [
        (lambda x: x.flip(1), [100.0, 20.0, 3.0]),
        (lambda x: x.roll(1, 1), [10.0, 200.0, 3.0]),
        (lambda x: x.gather(1, torch.tensor([[2, 2, 2]])), [0.0, 0.0, 333.0]),
    ]
    for moves, expected in cases:
        assert LRP(Weighed(moves)).attribute(ids).tolist() == [expected]


# What the model adds of its own ------------------------------------------------------------------


def _shifted(ids: Tensor) -> Tensor:
    shifted = ids.new_zeros(ids.shape)
    shifted[:, 1:] = ids[:, :-1].clone()
    shifted[:, 0] = 2
    return shifted


def _written(ids: Tensor) -> Tensor:
    ids = ids.clone()
    ids[:, 1] = 5
    return ids


ADDED: dict[str, tuple[Moves, Callable[[nn.Embedding], Moves]]] = {
    "a word before": (
        lambda x: torch.cat([own((4, 1), 3), x], 1),
        lambda words: lambda h: torch.cat([words(own((4, 1), 3)), h], 1),
    ),
    "padded": (
        lambda x: F.pad(x, (1, 2), value=3),
        lambda words: lambda h: torch.cat([words(own((4, 1), 3)), h, words(own((4, 2), 3))], 1),
    ),
    "shifted": (
        _shifted,
        lambda words: lambda h: torch.cat([words(own((4, 1), 2)), h[:, :-1]], 1),
    ),
    "written": (
        _written,
        lambda words: lambda h: torch.cat([h[:, :1], words(own((4, 1), 5)), h[:, 2:]], 1),
    ),
    "where": (
        lambda x: torch.where(KEPT, x, 7),
        lambda words: lambda h: torch.where(KEPT[:, None], h, words(own((1, 1), 7))),
    ),
    "masked": (
        lambda x: x.masked_fill(~KEPT, 7),
        lambda words: lambda h: torch.where(KEPT[:, None], h, words(own((1, 1), 7))),
    ),
    "masked in place": (
        lambda x: x.clone().masked_fill_(~KEPT, 7),
        lambda words: lambda h: torch.where(KEPT[:, None], h, words(own((1, 1), 7))),
    ),
    "triangle": (
        lambda x: x.tril(),
        lambda words: lambda h: torch.where(torch.ones(4, 4).tril().bool()[..., None], h, words(own((1, 1), 0))),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ADDED)
def test_words_of_the_models_own_receive_nothing(case: str) -> None:
    before, after = ADDED[case]
    expected = Sentence()
    expected.after = after(expected.words)
    # Flat shares sums of zero among what is active, which the words in the same tensor are.
    for rules in ("lrp0", "epsilon_gamma"):
        found = LRP(Sentence(before), rules).attribute(MOVED, target=1)
        assert_close(found, LRP(expected, rules).attribute(MOVED, target=1), rules)
    report = LRP(Sentence(before), "lrp0").report(MOVED, target=1)
    report.check(1e-10)
    other = LRP(expected, "lrp0").report(MOVED, target=1)
    assert abs(report.absorbed["bias"] - other.absorbed["bias"]) < 1e-10


def test_ids_that_are_no_contiguous_tensor() -> None:
    moved = Sentence(lambda x: x.t().view(2, 8).view(4, 4).t().contiguous().view(2, 8).view(4, 4))
    found = LRP(moved, "lrp0").attribute(MOVED.t().contiguous().t(), target=1)
    assert_close(found, LRP(Sentence(), "lrp0").attribute(MOVED, target=1))


def test_two_inputs_joined_before_the_embedding() -> None:
    class Two(Sentence):
        def forward(self, ids: Tensor, more: Tensor) -> Tensor:
            return super().forward(torch.cat([more, ids], 1))

    ids, more = MOVED[:, :3], MOVED[:, 3:].flip(0)
    found = LRP(Two()).attribute((ids, more), target=1)
    whole = LRP(Sentence()).attribute(torch.cat([more, ids], 1), target=1)
    assert_close(found[0], whole[:, 1:])
    assert_close(found[1], whole[:, :1])
    LRP(Two()).report((ids, more), target=1).check(1e-10)


def test_a_model_that_embeds_several_segments() -> None:
    class Segments(Sentence):
        def forward(self, ids: Tensor) -> Tensor:
            h = self.words(ids) + self.words(ids.flip(1)) - self.words(ids[:, ORDER])
            return self.last(F.relu(self.hidden(h)).sum(1))  # type: ignore[no-any-return]

    class Once(Sentence):
        def forward(self, ids: Tensor) -> Tensor:
            e = self.words(ids)
            h = e + e.flip(1) - e[:, ORDER]
            return self.last(F.relu(self.hidden(h)).sum(1))  # type: ignore[no-any-return]

    assert_close(LRP(Segments()).attribute(MOVED, target=0), LRP(Once()).attribute(MOVED, target=0))
    assert_close(
        GradientXInput(Segments()).attribute(MOVED, target=0), GradientXInput(Once()).attribute(MOVED, target=0)
    )


def test_other_methods_and_several_targets() -> None:
    moved, expected = Sentence(BOTH["gather"]), Sentence(after=BOTH["gather"])
    assert_close(GradientXInput(moved).attribute(MOVED, 1), GradientXInput(expected).attribute(MOVED, 1))
    one, other = (DeepLift(model).attribute(MOVED, MOVED.flip(0), 1) for model in (moved, expected))
    assert_close(one, other)
    targets = [0, 1]
    assert_close(LRP(moved).attribute_targets(MOVED, targets), LRP(expected).attribute_targets(MOVED, targets))


def test_a_loss_on_the_relevance_of_moved_ids() -> None:
    moved, expected = Sentence(BOTH["indexed"]), Sentence(after=BOTH["indexed"])
    gradients = []
    for model in (moved, expected):
        relevance = LRP(model).attribute(MOVED, target=1, create_graph=True)
        loss = (relevance * torch.linspace(-1, 2, 16, dtype=torch.float64).reshape(4, 4)).square().sum()
        gradients.append(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


# What cannot be followed -------------------------------------------------------------------------


def _view_written(ids: Tensor) -> Tensor:
    ids = ids.clone()
    ids[:, 1].fill_(5)
    return ids


LOST: dict[str, tuple[Moves, str]] = {
    "sort": (lambda x: x.sort(1).values, "sort"),
    "topk": (lambda x: x.topk(2).values.flip(1), "topk"),
    "unique": (lambda x: x.unique().expand(4, -1), "unique"),
    "a write into a view": (_view_written, "a write into a view"),
}
COMPUTED: dict[str, Moves] = {
    "cumsum": lambda x: x.cumsum(1) % 10,
    "mul": lambda x: (x * x.flip(1)) % 10,
    "argsort": lambda x: torch.argsort(x),
}  # fmt: skip


@pytest.mark.parametrize("case", LOST)
def test_what_loses_positions_is_named(case: str) -> None:
    moves, name = LOST[case]
    with pytest.raises(InputError, match=f"moved by {name}"):
        LRP(Sentence(moves)).attribute(MOVED, target=1)


@pytest.mark.parametrize("name", COMPUTED)
def test_numbers_that_are_made_of_several_ids_are_named(name: str) -> None:
    """An embedding of what belongs to no single id is an error that says what made it."""
    with pytest.raises(InputError, match=f"that {name} made of"):
        LRP(Sentence(COMPUTED[name])).attribute(MOVED, target=1)


def test_other_numbers_are_no_ids() -> None:
    """What takes no more than the shape of ids, or counts truth values, holds none."""
    for function in (torch.zeros_like, lambda x: (x != 0).long().cumsum(1)):
        with pytest.raises(InputError, match="no embedding"):
            LRP(Sentence(function)).attribute(MOVED, target=1)
