"""Ids in disguise: columns of a float matrix that are cast, ids that are changed, weights chosen by ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import LRP, DeepLift, Gradient, GradientXInput, IntegratedGradients
from relprop.errors import InputError, UncoveredOperationWarning
from tests.models import close
from tests.propagation.facts.test_token_ids import MOVED, Sentence
from tests.unrolled import assert_close

# Ids that are changed entry by entry -----------------------------------------------------------------

Step = tuple[str, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor] | None]
TABLE = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 8, 0])
ORDER = torch.tensor([2, 0, 1, 1])

# Each with what it does to positions, if it moves any.
STEPS: list[Step] = [
    ("offsets", lambda x: (x + torch.arange(x.shape[-1])) % 10, None),
    ("multiples", lambda x: (3 * x - 1).remainder(10), None),
    ("in place", lambda x: x.clone().mul_(2).add_(1).remainder_(10), None),
    ("halves", lambda x: x // 2, None),
    ("clamped", lambda x: torch.clamp(x, 1, 7), None),
    ("largest", lambda x: torch.maximum(x, torch.tensor(2)).abs(), None),
    ("negative", lambda x: 9 - x, None),
    ("chosen", lambda x: torch.where(x > 4, x, 9 - x), None),
    ("bits", lambda x: (x ^ 1) & 7, None),
    ("twice", lambda x: (x + x) % 10, None),
    ("masked", lambda x: x * (x != 3), None),
    ("a table of ids", lambda x: TABLE[x], None),
    ("as numbers", lambda x: (x.double() * 1.0).round().long(), None),
    ("flipped", lambda x: x.flip(-1), lambda p: p.flip(-1)),
    ("ordered", lambda x: x[:, ORDER], lambda p: p[:, ORDER]),
    ("transposed", lambda x: x.t(), lambda p: p.t()),
    ("reshaped", lambda x: x.reshape(2, 8).roll(3, 1).view(4, 4), lambda p: p.reshape(2, 8).roll(3, 1).reshape(4, 4)),
    ("stacked", lambda x: torch.stack([x[:, k] for k in (3, 1, 1, 0)], 1), lambda p: p[:, [3, 1, 1, 0]]),
]  # fmt: skip


@pytest.mark.parametrize("seed", range(12), ids=lambda seed: f"program{seed}")
def test_programs_that_change_ids(seed: int) -> None:
    """Relevance of what is embedded after changes and moves in any order goes to where each id came from."""
    drawn = torch.randint(0, len(STEPS), (5,), generator=torch.Generator().manual_seed(seed)).tolist()

    def program(ids: Tensor) -> Tensor:
        for step in drawn:
            ids = STEPS[step][1](ids)
        return ids

    positions = torch.arange(16).reshape(4, 4)
    for step in drawn:
        moves = STEPS[step][2]
        positions = positions if moves is None else moves(positions)
    model = Sentence(program)
    embedded = model.words(program(MOVED)).detach()
    relevance = LRP(_Embedded(model), "epsilon_gamma").attribute(embedded, target=1).sum(-1)
    expected = torch.zeros(16, dtype=torch.float64)
    for place, part in zip(positions.flatten().tolist(), relevance.flatten(), strict=True):
        expected[place] += part
    found = LRP(model, "epsilon_gamma", strict=True).attribute(MOVED, target=1)
    assert_close(found, expected.reshape(4, 4), str([STEPS[step][0] for step in drawn]))
    LRP(model, "lrp0").report(MOVED, target=1).check(1e-10)


class _Embedded(nn.Module):
    """A sentence from its embedded words on."""

    def __init__(self, sentence: Sentence) -> None:
        super().__init__()
        self.rest = Sentence()
        self.rest.hidden, self.rest.last = sentence.hidden, sentence.last
        self.rest.words = nn.Identity()  # type: ignore[assignment]

    def forward(self, embedded: Tensor) -> Tensor:
        return self.rest(embedded)  # type: ignore[no-any-return]


def test_ids_of_two_inputs_that_are_added() -> None:
    """A number that two inputs have made is nobody's, which is said."""

    class Crossed(Sentence):
        def forward(self, ids: Tensor, more: Tensor) -> Tensor:
            return super().forward((ids + more) % 10)

    with pytest.raises(InputError, match="add made of the ids of two inputs"):
        LRP(Crossed()).attribute((MOVED, MOVED), target=1)


def test_masks_of_ids_stay_constants() -> None:
    """A mask of ids, one-hot vectors too, that multiplies hidden numbers is what a constant is."""

    class Masked(Sentence):
        def __init__(self, mask: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.mask = mask

        def forward(self, ids: Tensor) -> Tensor:
            return self.last(F.relu(self.hidden(self.words(ids) * self.mask(ids))).sum(1))  # type: ignore[no-any-return]

    for mask in (
        lambda ids: (ids != 1)[..., None].double(),
        lambda ids: F.one_hot(ids % 3, 3).double(),
        lambda ids: (ids[..., None] == torch.tensor([1, 2, 3])).double(),
    ):
        values = mask(MOVED)
        constant = Masked(lambda _, values=values: values)  # type: ignore[misc]
        assert_close(LRP(Masked(mask)).attribute(MOVED, target=1), LRP(constant).attribute(MOVED, target=1))


COMPARED: dict[str, Callable[[Tensor], Tensor]] = {
    "above": lambda x: (x > 3).long(),
    "between": lambda x: ((x > 1) & (x < 7)).int() * 2 + 1,
    "flipped": lambda x: (x != 3).flip(1).long().flip(1),
    "chosen": lambda x: torch.where(x == 2, 4, 7),
    "a table": lambda x: torch.tensor([5, 8])[(x >= 2).long()],
}  # fmt: skip


@pytest.mark.parametrize("name", COMPARED)
def test_comparisons_that_are_embedded(name: str) -> None:
    """What is said of an id and embedded is relevance of that id."""
    model = Sentence(COMPARED[name])
    embedded = model.words(COMPARED[name](MOVED)).detach()
    expected = LRP(_Embedded(model), "epsilon_gamma").attribute(embedded, target=1).sum(-1)
    assert_close(LRP(model, "epsilon_gamma", strict=True).attribute(MOVED, target=1), expected)


def test_positions_that_are_counted_in_masks_are_constants() -> None:
    """Places of words, counted in a mask of ids as RoBERTa does, are nobody's."""

    class Places(Sentence):
        def __init__(self, fixed: bool) -> None:
            super().__init__()
            self.fixed = fixed

        def forward(self, ids: Tensor) -> Tensor:
            mask = (MOVED if self.fixed else ids).ne(1).int()
            places = (mask.cumsum(1).type_as(mask) * mask).long() + 1
            return self.last(F.relu(self.hidden(self.words(ids) + self.words(places))).sum(1))  # type: ignore[no-any-return]

    found = LRP(Places(fixed=False), strict=True).attribute(MOVED, target=1)
    assert_close(found, LRP(Places(fixed=True)).attribute(MOVED, target=1))


def test_positions_that_are_counted_in_a_given_mask() -> None:
    """In a structure what is counted of integers is named where it is embedded, and the ids beside it are explained."""

    class Counts(Sentence):
        def forward(self, given: dict[str, Tensor]) -> Tensor:
            h = self.words(given["ids"]) + self.words(given["mask"].cumsum(1))
            return self.last(F.relu(self.hidden(h)).sum(1))  # type: ignore[no-any-return]

    with pytest.warns(UncoveredOperationWarning, match="numbers that cumsum made of others"):
        found = LRP(Counts()).attribute({"ids": MOVED, "mask": torch.ones_like(MOVED)}, target=1)
    assert found["mask"] is None
    assert found["ids"].shape == MOVED.shape


# Weights that ids choose ---------------------------------------------------------------------------

LookUp = Callable[[Any, Tensor], Tensor]
LOOK_UPS: dict[str, LookUp] = {
    "indexed": lambda s, x: s.weight[x],
    "indexed, and a slice": lambda s, x: s.weight[x, :],
    "indexed behind an ellipsis": lambda s, x: s.weight.t()[..., x].permute(1, 2, 0),
    "indexed twice": lambda s, x: s.weight[torch.arange(6)[x]],
    "index_select": lambda s, x: s.weight.index_select(0, x.flatten()).view(2, 3, 4),
    "gather": lambda s, x: s.weight.t()[None].expand(2, 4, 6).gather(2, x[:, None].expand(2, 4, 3)).mT,
    "take": lambda s, x: torch.take(s.weight, x[..., None] * 4 + torch.arange(4)),
    "take_along_dim": lambda s, x: torch.take_along_dim(s.weight, x.view(6, 1), dim=0).view(2, 3, 4),
    "one_hot, matmul": lambda s, x: F.one_hot(x, 6).double() @ s.weight,
    "one_hot, linear": lambda s, x: F.linear(F.one_hot(x, 6).to(s.weight.dtype), s.weight.t()),
    "compared": lambda s, x: (x[..., None] == torch.arange(6)).double() @ s.weight,
    "scattered": lambda s, x: torch.zeros(2, 3, 6).double().scatter_(2, x.unsqueeze(-1), 1) @ s.weight,
    "rows of an identity": lambda s, x: torch.eye(6).double()[x] @ s.weight,
    "two ways, joined": lambda s, x: torch.cat([F.one_hot(x[:, :1], 6).double() @ s.weight, s.weight[x[:, 1:]]], 1),
}  # fmt: skip


# Products that are linear layers by whatever rule stands there, of which LRP-0 is exact.
LAYERS: dict[str, LookUp] = {
    "one_hot, multiplied and summed": lambda s, x: (F.one_hot(x, 6).double()[..., None] * s.weight).sum(-2),
    "one_hot, einsum": lambda s, x: torch.einsum("ntc,cd->ntd", F.one_hot(x, 6).double(), s.weight),
    "one_hot, batched": lambda s, x: torch.bmm(F.one_hot(x, 6).double(), s.weight.expand(2, 6, 4)),
}  # fmt: skip


class Chooses(nn.Module):
    """Ids [2, 3] to two scores, by a weight [6, 4] of which they choose rows."""

    def __init__(self, look_up: LookUp) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.weight, self.look_up = nn.Parameter(torch.randn(6, 4)), look_up
        self.hidden, self.last = nn.Linear(4, 5), nn.Linear(5, 2)
        self.double()

    def forward(self, ids: Tensor) -> Tensor:
        hidden = F.relu(self.hidden(self.look_up(self, ids)) * torch.tensor([[1.0], [-2.0], [3.0]]).double())
        return self.last(hidden.sum(1))  # type: ignore[no-any-return]


CHOSEN = torch.tensor([[1, 5, 2], [0, 3, 3]])
EMBEDDED = Chooses(lambda s, x: F.embedding(x, s.weight))


@pytest.mark.parametrize("rules", ["lrp0", "epsilon_gamma", "zplus", "flat"])
@pytest.mark.parametrize("name", LOOK_UPS)
def test_rows_of_a_weight(name: str, rules: str) -> None:
    """However ids choose rows of a weight, they receive what they do at an embedding."""
    model = Chooses(LOOK_UPS[name])
    found = LRP(model, rules, strict=True).attribute(CHOSEN, target=1)
    assert_close(found, LRP(EMBEDDED, rules).attribute(CHOSEN, target=1))
    if rules == "lrp0":
        LRP(model, rules).report(CHOSEN, target=1).check(1e-10)
        method, other = GradientXInput(model), GradientXInput(EMBEDDED)
        assert_close(method.attribute(CHOSEN, target=1), other.attribute(CHOSEN, target=1))


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_one_hot_vectors(name: str) -> None:
    """A linear layer on one-hot vectors gives ids what LRP-0 gives their rows."""
    model = Chooses(LAYERS[name])
    assert_close(LRP(model, "lrp0", strict=True).attribute(CHOSEN, 1), LRP(EMBEDDED, "lrp0").attribute(CHOSEN, 1))
    LRP(model, "lrp0").report(CHOSEN, target=1).check(1e-10)


@pytest.mark.parametrize("name", ["indexed", "one_hot, matmul"])
def test_a_loss_on_the_relevance_of_chosen_rows(name: str) -> None:
    """Its gradient reaches the weight as from an embedding."""
    gradients = []
    for model in (Chooses(LOOK_UPS[name]), EMBEDDED):
        relevance = LRP(model).attribute(CHOSEN, target=1, create_graph=True)
        gradients.append(torch.autograd.grad(relevance.square().sum(), list(model.parameters()), allow_unused=True))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


# Columns of floating numbers -----------------------------------------------------------------------

X = torch.stack(
    [torch.tensor([0.0, 2, 1, 3, 2]), torch.linspace(-1, 2, 5), torch.tensor([4.0, 1, 0, 3, 4]), torch.ones(5) / 3], 1
).double()


class Table(nn.Module):
    """Two columns of categories and two of numbers, [N, 4], to two scores."""

    def __init__(self, read: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.one, self.two, self.both = nn.Embedding(5, 3), nn.Embedding(5, 3), nn.Embedding(10, 3)
        self.first, self.last, self.read = nn.Linear(8, 6), nn.Linear(6, 2), read
        self.both.weight.data = torch.cat([self.one.weight.data, self.two.weight.data])
        self.register_buffer("offsets", torch.tensor([0, 5]))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.read(self, x)))  # type: ignore[no-any-return]

    def joined(self, *parts: Tensor) -> Tensor:
        return self.first(torch.cat(parts, -1))  # type: ignore[no-any-return]


class FromVectors(nn.Module):
    """The same from the embedded columns on."""

    def __init__(self, table: Table) -> None:
        super().__init__()
        self.table = table

    def forward(self, one: Tensor, two: Tensor, numbers: Tensor) -> Tensor:
        return self.table.last(F.relu(self.table.joined(one, two, numbers)))  # type: ignore[no-any-return]


def _split(s: Table, x: Tensor) -> Tensor:
    one, a, two, b = x.split(1, 1)
    return s.joined(s.one(one.squeeze(1).long()), s.two(two[:, 0].long()), torch.cat([a, b], 1))


def _without_gradients(s: Table, x: Tensor) -> Tensor:
    with torch.no_grad():
        one, two = x[:, 0].long(), x[:, 2].long()
    return s.joined(s.one(one), s.two(two), x[:, 1::2])


def _written(s: Table, x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 2] = 4 - x[:, 2]
    x.mul_(1.0)
    return s.joined(s.one(x[:, 0].long()), s.two((4 - x[:, 2]).long()), x[:, 1::2])


READ: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "column by column": lambda s, x: s.joined(s.one(x[:, 0].long()), s.two(x[:, 2].long()), x[:, [1, 3]]),
    "other casts": lambda s, x: s.joined(
        s.one(x[:, 0].int()), s.two(x[..., 2].to(torch.int64)), torch.stack([x[:, 1], x[:, 3]], 1)
    ),
    "offsets": lambda s, x: s.joined(*s.both(x[:, [0, 2]].long() + s.offsets).unbind(1), x[:, 1::2]),
    "offsets before the cast": lambda s, x: s.joined(*s.both((x[:, ::2] + s.offsets).long()).unbind(1), x[:, 1::2]),
    "a loop": lambda s, x: s.joined(
        *(e(c) for e, c in zip((s.one, s.two), x.t()[::2].long(), strict=True)), x[:, 1::2]
    ),
    "rounded": lambda s, x: s.joined(
        s.one(x[:, 0].round().clamp(0, 4).long()), s.two(torch.floor(2 * x[:, 2] / 2 + 0.5).long()), x[:, 1::2]
    ),
    "split": _split,
    "detached": lambda s, x: s.joined(s.one(x.detach()[:, 0].long()), s.two(x.data[:, 2].long()), x[:, 1::2]),
    "without gradients": _without_gradients,
    "written": _written,
    "rows": lambda s, x: s.joined(torch.stack([s.one(r[0].long()) for r in x]), s.two(x[:, 2].long()), x[:, 1::2]),
    "a bag": lambda s, x: s.joined(
        F.embedding_bag(x[:, :1].long(), s.one.weight, mode="sum"), s.two(x[:, 2].long()), x[:, 1::2]
    ),
    "buckets": lambda s, x: s.joined(
        s.one(torch.bucketize(x[:, 0].contiguous(), torch.tensor([0.5, 1.5, 2.5]).double())),
        s.two(x[:, 2].long()),
        x[:, 1::2],
    ),
    "weights by ids": lambda s, x: s.joined(*s.both.weight[x[:, ::2].long() + s.offsets].unbind(1), x[:, 1::2]),
    "one-hot": lambda s, x: s.joined(
        F.one_hot(x[:, 0].long(), 5).double() @ s.one.weight, s.two(x[:, 2].long()), x[:, 1::2]
    ),
}


@pytest.mark.parametrize("method", ["lrp0", "epsilon_gamma", "zplus", "flat", "gradient_x_input", "deep_lift"])
@pytest.mark.parametrize("name", READ)
def test_columns_of_categories(name: str, method: str) -> None:
    """A column that is embedded receives what its embedding does, however it is read."""
    table = Table(READ[name])
    ones, twos, numbers = table.one.weight.detach(), table.two.weight.detach(), X[:, 1::2]
    given = ones[X[:, 0].long()], twos[X[:, 2].long()], numbers
    model = FromVectors(table)
    if method == "deep_lift":
        before = ones[:1].expand(5, 3), twos[:1].expand(5, 3), torch.zeros_like(numbers)
        found = DeepLift(table).attribute(X, torch.zeros_like(X), 1)
        one, two, rest = DeepLift(model).attribute(given, before, 1)
    elif method == "gradient_x_input":
        found, (one, two, rest) = GradientXInput(table).attribute(X, 1), GradientXInput(model).attribute(given, 1)
    else:
        found = LRP(table, method, strict=True).attribute(X, 1)
        one, two, rest = LRP(model, method).attribute(given, 1)
        LRP(table, method).report(X, 1).check(1e-9)
    close(found, torch.stack([one.sum(1), rest[:, 0], two.sum(1), rest[:, 1]], 1))


@pytest.mark.parametrize("seed", range(4), ids=lambda seed: f"columns{seed}")
def test_one_hot_columns_among_numbers(seed: int) -> None:
    """One-hot vectors that a linear layer takes beside numbers give their columns the relevance of their entries."""
    torch.manual_seed(seed)
    kinds = [int(kind) for kind in torch.randint(0, 5, (4,))]  # 0 or 1 is a number, else so many classes
    x = torch.stack([torch.randn(3) if kind < 2 else torch.randint(0, kind, (3,)).float() for kind in kinds], 1)
    x = torch.cat([x, torch.randn(3, 1)], 1).double()
    kinds.append(0)
    widths = [max(kind, 1) for kind in kinds]
    layer, last = nn.Linear(sum(widths), 6).double(), nn.Linear(6, 2).double()

    def vectors(x: Tensor) -> Tensor:
        parts = [
            x[:, j, None] if kind < 2 else F.one_hot(x[:, j].long(), kind).to(x.dtype) for j, kind in enumerate(kinds)
        ]
        return torch.cat(parts, 1)

    class Reads(nn.Module):
        def __init__(self, read: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.layer, self.last, self.read = layer, last, read

        def forward(self, x: Tensor) -> Tensor:
            return self.last(F.relu(self.layer(self.read(x))))  # type: ignore[no-any-return]

    for rules in ("lrp0", "epsilon_gamma", "zplus", "flat"):
        found = LRP(Reads(vectors), rules, strict=True).attribute(x, 1)
        entries = LRP(Reads(lambda x: x), rules).attribute(vectors(x), 1)
        close(found, torch.stack([part.sum(1) for part in entries.split(widths, 1)], 1))
        LRP(Reads(vectors), rules).report(x, 1).check(1e-9)


def test_columns_in_every_form_of_a_call() -> None:
    """Batches are their samples, targets and layers are those of single calls, and a loss reaches the embedding."""
    table = Table(READ["offsets"])
    lrp = LRP(table, "epsilon_gamma")
    whole = lrp.attribute(X, 1)
    close(torch.cat([lrp.attribute(x[None], 1) for x in X]), whole)
    close(lrp.attribute_targets(X, [1, 0])[0], whole)
    close(lrp.attribute(X.float().double(), 1, create_graph=True).detach(), whole)
    assert lrp.attribute_layers(X, ["both"], 1)["both"].shape == (5, 2, 3)
    relevance = LRP(table, "lrp0").attribute(X, 1, create_graph=True)
    (gradient,) = torch.autograd.grad(relevance[:, 0].sum(), [table.both.weight])
    assert bool((gradient[:5] != 0).any())
    low = table.to(torch.bfloat16)
    close(
        LRP(low, "lrp0").attribute(X.bfloat16(), 1).double(), LRP(Table(READ["offsets"]), "lrp0").attribute(X, 1), 0.05
    )


def test_gradients_of_columns() -> None:
    """A category has no slope: gradients, and what integrates them, leave its column at zero."""
    table = Table(READ["offsets"])
    for found in (Gradient(table).attribute(X, 1), IntegratedGradients(table).attribute(X, target=1, n_steps=4)):
        assert bool((found[:, ::2] == 0).all())
        assert bool((found[:, 1] != 0).all())


@pytest.mark.parametrize("name", ["sum", "argmax", "long"])
def test_computed_categories_are_named(name: str) -> None:
    """A category that several columns decide is named, and they receive nothing for it."""
    computes: dict[str, Callable[[Tensor], Tensor]] = {
        "sum": lambda x: x[:, ::2].long().sum(1).clamp(max=4),
        "argmax": lambda x: x.argmax(1),
        "long": lambda x: (x @ torch.ones(4, 1).double()).abs()[:, 0].clamp(max=4).long(),
    }
    table = Table(lambda s, x: s.joined(s.one(computes[name](x)), s.two(torch.ones(5).long()), x[:, 1::2]))
    with pytest.warns(UncoveredOperationWarning, match=f"numbers that {name} made of"):
        found = LRP(table, "lrp0").attribute(X, 1)
    assert bool((found[:, ::2] == 0).all())
