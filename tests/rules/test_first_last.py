"""`first` and `last` follow the data: through branches, inputs, residual sums and heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import LRP, Rules
from relprop.rules import Epsilon, Flat, Gamma, ZPlus
from tests.models import close, images, mlp, residual, settle, vectors

PLAIN = Rules().set("*", "epsilon")
FIRST = PLAIN.first(Flat())


def first_layers(model: nn.Module, x: Any, **options: Any) -> list[str]:
    rows = FIRST.plan(model, x, **options).rows
    return [row.name for row in rows if row.rule == repr(Flat())]


def last_layers(model: nn.Module, x: Any, target: Any) -> list[str]:
    rows = PLAIN.last(Flat()).plan(model, x, target).rows
    return [row.name for row in rows if row.rule == repr(Flat())]


def by_name(names: list[str], rule: Any) -> Rules:
    rules = PLAIN
    for name in names:
        rules = rules.set(name, rule)
    return rules


class Net(nn.Module):
    """A network from a dictionary of layers and a function of them."""

    def __init__(self, forward: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.function = forward

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


def inception() -> Net:
    def forward(m: Any, x: Tensor) -> Tensor:
        pooled = F.avg_pool2d(F.pad(x, [1, 1, 1, 1]), 3, 1)
        parts = [m.one(x), m.five(torch.relu(m.three(x))), m.after_pool(pooled), m.normed(m.norm(x))]
        h = torch.relu(torch.cat(parts, 1))
        return m.head(m.mix(h).flatten(1))  # type: ignore[no-any-return]

    return Net(
        forward,
        one=nn.Conv2d(3, 2, 1),
        three=nn.Conv2d(3, 2, 1),
        five=nn.Conv2d(2, 2, 3, padding=1),
        after_pool=nn.Conv2d(3, 2, 1),
        norm=nn.BatchNorm2d(3),
        normed=nn.Conv2d(3, 2, 1),
        mix=nn.Conv2d(8, 2, 3),
        head=nn.Linear(32, 3),
    )


def residual_on_the_input() -> Net:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = torch.relu(m.conv(x) + x)  # what adds up has met a layer on one of its paths
        return m.head((m.second(h) + h).flatten(1))  # type: ignore[no-any-return]

    return Net(
        forward,
        conv=nn.Conv2d(3, 3, 3, padding=1),
        second=nn.Conv2d(3, 3, 3, padding=1),
        head=nn.Linear(108, 3),
    )


def dense_skip() -> Net:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = torch.relu(m.conv(x))
        late = m.late(x)  # runs later, but on the input itself
        return m.head(torch.cat([h, late, x], 1).flatten(1))  # type: ignore[no-any-return]

    return Net(forward, conv=nn.Conv2d(3, 2, 3, padding=1), late=nn.Conv2d(3, 2, 1), head=nn.Linear(252, 3))


FIRSTS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "sequence": (residual, ["stem"]),
    "inception stem": (inception, ["one", "three", "after_pool", "normed"]),
    "residual on the input": (residual_on_the_input, ["conv"]),
    "skip of the input": (dense_skip, ["conv", "late"]),
}


@pytest.mark.parametrize("name", list(FIRSTS))
def test_first(name: str) -> None:
    make, expected = FIRSTS[name]
    model, x = settle(make()), images()
    assert first_layers(model, x) == expected
    found = LRP(model, FIRST).attribute(x, 1)
    close(found, LRP(model, by_name(expected, Flat())).attribute(x, 1))


def test_first_through_every_kind_of_preparation() -> None:
    class Prepared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.head = nn.Linear(64, 2)
            self.mean = nn.Parameter(torch.randn(1, 3, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = (x - self.mean) / self.mean.exp()
            x = F.interpolate(x.flip(3), scale_factor=1.0)
            x = torch.stack([x[:, c] * 1.5 for c in range(3)], 1).contiguous()
            out: Tensor = self.head(torch.relu(self.conv(torch.tanh(x))).flatten(1))
            return out

    assert first_layers(settle(Prepared()), images()) == ["conv"]


def test_first_of_two_inputs() -> None:
    def forward(m: Any, image: Tensor, features: Tensor) -> Tensor:
        h = torch.relu(m.image(image)).flatten(1)
        return m.head(torch.cat([h, torch.relu(m.deep(torch.relu(m.features(features))))], 1))  # type: ignore[no-any-return]

    model = settle(
        Net(forward, image=nn.Conv2d(3, 2, 3), features=nn.Linear(4, 5), deep=nn.Linear(5, 5), head=nn.Linear(37, 3))
    )
    x, y = images(), vectors()
    assert first_layers(model, (x, y)) == ["image", "features"]
    found = LRP(model, FIRST).attribute((x, y), 1)
    expected = LRP(model, by_name(["image", "features"], Flat())).attribute((x, y), 1)
    for part, other in zip(found, expected, strict=True):
        close(part, other)
    # Where only one of them is explained, what the other goes through is no matter of relevance.
    assert first_layers(model, x, additional_forward_args=y) == ["image"]


def test_first_where_an_input_meets_the_layers_of_another() -> None:
    # The second input joins behind the first layer: the layer there has a path with and one without.
    def forward(m: Any, x: Tensor, y: Tensor) -> Tensor:
        return m.head(torch.relu(m.joint(torch.cat([torch.relu(m.one(x)), y], 1))))  # type: ignore[no-any-return]

    model = settle(Net(forward, one=nn.Linear(4, 4), joint=nn.Linear(8, 5), head=nn.Linear(5, 2)))
    assert first_layers(model, (vectors(), vectors(seed=1))) == ["one"]
    x = vectors()
    assert first_layers(model, (x, x)) == ["one"]


def test_first_of_token_ids() -> None:
    model = settle(nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 3), nn.ReLU(), nn.Linear(3, 2)))
    ids = torch.tensor([[0, 1, 2], [4, 4, 3]])
    assert first_layers(model, ids) == ["2"]
    close(LRP(model, FIRST).attribute(ids, 1), LRP(model, by_name(["2"], Flat())).attribute(ids, 1))


def test_first_folded_with_its_batch_norm() -> None:
    model, x = residual(), images()
    found = LRP(model, Rules.preset("epsilon_plus_flat")).attribute(x, 1)
    close(found, LRP(model, Rules.preset("epsilon_plus").set("stem", "flat")).attribute(x, 1))


def test_a_layer_used_twice_is_first_once() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(torch.relu(m.again(torch.relu(m.again(x)))))  # type: ignore[no-any-return]

    model, x = settle(Net(forward, again=nn.Linear(4, 4), head=nn.Linear(4, 2))), vectors()
    rows = [row for row in FIRST.plan(model, x).rows if row.kind == "linear"]
    assert [row.rule == repr(Flat()) for row in rows] == [True, False, False]
    twin = nn.Linear(4, 4).double()
    twin.load_state_dict(model.again.state_dict())  # type: ignore[union-attr]
    unrolled = nn.Sequential(model.again, nn.ReLU(), twin, nn.ReLU(), model.head)  # type: ignore[arg-type]
    close(LRP(model, FIRST).attribute(x, 1), LRP(unrolled, FIRST).attribute(x, 1))


def test_a_layer_that_reads_no_input_hides_nothing() -> None:
    # A layer on constants (a prompt, a position) passes nothing of the input.
    def forward(m: Any, x: Tensor) -> Tensor:
        constant = m.constant(torch.ones(1, 4, dtype=x.dtype))
        return m.head(torch.relu(m.first(x + constant)))  # type: ignore[no-any-return]

    model = settle(Net(forward, constant=nn.Linear(4, 4), first=nn.Linear(4, 4), head=nn.Linear(4, 2)))
    assert first_layers(model, vectors()) == ["first"]


# -------------------------------------------------------------------------------------------------- last


def two_heads() -> Net:
    def forward(m: Any, x: Tensor) -> Any:
        h = torch.relu(m.trunk(x))
        return m.short(h), m.top(torch.relu(m.middle(h)))

    return Net(forward, trunk=nn.Linear(4, 6), short=nn.Linear(6, 2), middle=nn.Linear(6, 5), top=nn.Linear(5, 2))


def ends_in_a_sum() -> Net:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = torch.relu(m.trunk(x))
        return m.left(h) + torch.tanh(m.right(h)) * 2.0  # type: ignore[no-any-return]

    return Net(forward, trunk=nn.Linear(4, 6), left=nn.Linear(6, 3), right=nn.Linear(6, 3))


@pytest.mark.filterwarnings("ignore::relprop.ProbabilityWarning")  # the softmax is the tail
def test_last_of_a_sequence_with_a_tail() -> None:
    model = settle(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), nn.Softmax(1)))
    assert last_layers(model, vectors(), 1) == ["2"]
    with torch.no_grad():
        assert LRP(model, PLAIN.last(Flat())).attribute(vectors(), 1).shape == (2, 4)


@pytest.mark.parametrize(
    ("pick", "expected"),
    [
        (lambda out: out[0][:, 1], ["short"]),
        (lambda out: out[1][:, 0], ["top"]),
        (lambda out: out[0][:, 1] - out[1][:, 0], ["short", "top"]),
    ],
    ids=["short", "deep", "contrast"],
)
def test_last_of_two_heads(pick: Any, expected: list[str]) -> None:
    model, x = settle(two_heads()), vectors()
    assert last_layers(model, x, pick) == expected
    close(LRP(model, PLAIN.last(Gamma())).attribute(x, pick), LRP(model, by_name(expected, Gamma())).attribute(x, pick))


def test_last_of_a_sum() -> None:
    model, x = settle(ends_in_a_sum()), vectors()
    assert last_layers(model, x, 1) == ["left", "right"]
    close(
        LRP(model, PLAIN.last(ZPlus())).attribute(x, 1),
        LRP(model, by_name(["left", "right"], ZPlus())).attribute(x, 1),
    )


def test_last_with_a_residual_around_it() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = torch.relu(m.trunk(x))
        return m.head(h) + h  # type: ignore[no-any-return]

    model, x = settle(Net(forward, trunk=nn.Linear(4, 4), head=nn.Linear(4, 4))), vectors()
    # The trunk has a path past the head, and one through it: it is not the last.
    assert last_layers(model, x, 1) == ["head"]
    close(LRP(model, PLAIN.last(ZPlus())).attribute(x, 1), LRP(model, by_name(["head"], ZPlus())).attribute(x, 1))


def test_last_folded_with_its_batch_norm() -> None:
    model = settle(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), nn.BatchNorm1d(3)))
    x = vectors()
    assert last_layers(model, x, 1) == ["2"]
    close(LRP(model, PLAIN.last(ZPlus())).attribute(x, 1), LRP(model, by_name(["2"], ZPlus())).attribute(x, 1))


def test_last_gives_relevance_to_zeros() -> None:
    # The rule is known only in the backward, and yet units of zero below must be ready for it.
    model, x = mlp(), vectors(6)
    rules = PLAIN.last(Flat())
    at_units = LRP(model, rules).attribute_layers(x, "3", 1)["3"]
    with torch.no_grad():
        close(at_units, model(x)[:, 1:2].expand(6, 5) / 5, 1e-5)
    close(LRP(model, rules).attribute(x, 1), LRP(model, by_name(["4"], Flat())).attribute(x, 1))


def test_first_and_last_are_the_same_layer() -> None:
    model, x = settle(nn.Linear(4, 3)), vectors()
    close(LRP(model, PLAIN.last(ZPlus()).first(Epsilon(0.5))).attribute(x, 1), LRP(model, Epsilon(0.5)).attribute(x, 1))
    close(LRP(model, PLAIN.first(Epsilon(0.5)).last(ZPlus())).attribute(x, 1), LRP(model, ZPlus()).attribute(x, 1))


def test_last_is_not_resolved_without_a_target() -> None:
    rows = PLAIN.last(ZPlus()).plan(mlp(), vectors()).rows
    assert all(row.rule != repr(ZPlus()) for row in rows)


def test_last_in_attach() -> None:
    model, x = settle(two_heads()), vectors()
    leaf = x.clone().requires_grad_()
    rules = PLAIN.first(Flat())
    with rules.attach(model) as attached:
        out = model(leaf)
    (c,) = torch.autograd.grad(out[1][:, 0].sum(), leaf)
    attached.finish()
    close(x * c, LRP(model, rules).attribute(x, lambda out: out[1][:, 0]))
