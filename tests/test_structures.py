"""Inputs in mappings, named tuples, dataclasses and lists, and by keyword: the maps of the same tensors as they are."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from relprop import (
    LRP,
    Gradient,
    GradientXInput,
    InputError,
    InputTypeError,
    Keywords,
    NumericalError,
    Rules,
)
from tests.checks import refuses
from tests.models import settle, vectors

METHODS = [Gradient, GradientXInput, LRP]


class Plain(nn.Module):
    """Three inputs [N, 4], [N, 5] and token ids [N, T], with a mask and a number, to [N, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.words = nn.Linear(4, 6), nn.Linear(5, 6), nn.Embedding(9, 6)
        self.head = nn.Linear(6, 3)
        settle(self)

    def forward(self, x: Tensor, y: Tensor, ids: Tensor, mask: Tensor, scale: float) -> Tensor:
        h = torch.relu(self.left(x)) + self.right(y).relu() * scale
        h = h + (self.words(ids) * mask.isfinite()[..., None]).mean(1)
        return self.head(h.relu())  # type: ignore[no-any-return]


class Point(NamedTuple):
    y: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Frozen:
    x: Tensor
    rest: Any
    ids: Tensor
    scale: float = 2.0
    label: str = "cat"
    made: int = field(default=1, init=False)


@dataclass(slots=True)
class Slotted:
    x: Tensor
    rest: Any
    ids: Tensor
    scale: float = 2.0

    def __post_init__(self) -> None:
        assert isinstance(self.x, Tensor), "a copy is not made anew"


class Encoded(UserDict):  # type: ignore[type-arg]
    """As the tokenizers of transformers return it."""

    def __getattr__(self, name: str) -> Any:
        return self.data[name]


X, Y = vectors(3), torch.randn(3, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
IDS = torch.tensor([[1, 2], [3, 3], [8, 0]])
MASK = torch.tensor([[0.0, -torch.inf]] * 3)
REST = {"y": Y, "mask": MASK}

# Every form is one argument; `parts` finds the tensors in it.
FORMS: dict[str, Any] = {
    "a dict": {"x": X, "rest": REST, "ids": IDS, "scale": 2.0, "label": None},
    "an ordered dict": OrderedDict(x=X, rest=REST, ids=IDS, scale=2.0),
    "a mapping of its own": Encoded(x=X, rest=REST, ids=IDS, scale=2.0),
    "a frozen dataclass": Frozen(X, REST, IDS),
    "a dataclass with slots": Slotted(X, Point(Y, MASK), IDS),
    "a dataclass that holds a list": Frozen(X, [Y, MASK], IDS),
    "a mapping that cannot be written": MappingProxyType({"x": X, "rest": REST, "ids": IDS, "scale": 2.0}),
}


def parts(batch: Any) -> tuple[Any, ...]:
    """x, y, ids, mask and scale of any of the forms."""

    def get(name: str) -> Any:
        return batch[name] if isinstance(batch, Mapping) else getattr(batch, name)

    rest = get("rest")
    y, mask = (rest["y"], rest["mask"]) if isinstance(rest, dict) else rest
    return get("x"), y, get("ids"), mask, get("scale")


class Batched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Plain()

    def forward(self, batch: Any) -> Any:
        out = self.inner(*parts(batch))
        if isinstance(batch, dict):
            batch["hidden"] = out  # the caller's own is not written to
        return {"logits": out}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", METHODS)
def test_one_argument_that_holds_tensors(form: str, method: Any) -> None:
    batch, model = FORMS[form], Batched()
    keys = sorted(batch) if isinstance(batch, Mapping) else None
    expected = method(model.inner).attribute((X, Y, IDS), 1, (MASK, 2.0))
    found = method(model).attribute(batch, 1)
    assert type(found) is (dict if form.endswith("written") else type(batch))
    x, y, ids, mask, scale = parts(found)
    for one, other in zip((x, y, ids), expected, strict=True):
        assert torch.equal(one, other)
    assert mask is None and scale == 2.0
    assert keys is None or sorted(batch) == keys
    several = method(model).attribute_targets(batch, [0, 1])
    assert torch.equal(parts(several)[2][1], expected[2])
    assert all(torch.equal(one, other) for one, other in zip(parts(batch)[:4], (X, Y, IDS, MASK), strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_what_else_can_be_asked(form: str) -> None:
    batch, model = FORMS[form], Batched()
    lrp, plain = LRP(model, "epsilon"), LRP(model.inner, "epsilon")
    _, delta = lrp.attribute(batch, [0, 1, 2], return_convergence_delta=True)
    _, other = plain.attribute((X, Y, IDS), [0, 1, 2], (MASK, 2.0), return_convergence_delta=True)
    assert delta.shape == (3,) and torch.equal(delta, other)
    assert torch.equal(lrp.report(batch, 1).delta, plain.report((X, Y, IDS), 1, (MASK, 2.0)).delta)
    layers = lrp.attribute_layers(batch, "inner.left", 1)["inner.left"]
    assert torch.equal(layers, plain.attribute_layers((X, Y, IDS), "left", 1, (MASK, 2.0))["left"])
    rows = Rules().plan(model, batch, 1).rows
    other_rows = Rules().plan(model.inner, (X, Y, IDS), 1, additional_forward_args=(MASK, 2.0)).rows
    assert [(row.operation, row.rule) for row in rows] == [(row.operation, row.rule) for row in other_rows]
    connected = lrp.attribute(batch, 1, create_graph=True)
    assert parts(connected)[0].requires_grad
    parts(connected)[1].square().sum().backward()
    assert model.inner.right.weight.grad is not None


def test_a_loss_reaches_the_inputs_in_a_container() -> None:
    x = X.clone().requires_grad_()
    model = Batched()
    LRP(model, "epsilon").attribute(Frozen(x, REST, IDS), 1, create_graph=True).x.square().sum().backward()
    other = X.clone().requires_grad_()
    relevance = LRP(model.inner, "epsilon").attribute((other, Y, IDS), 1, (MASK, 2.0), create_graph=True)
    relevance[0].square().sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, other.grad)


@pytest.mark.parametrize("method", METHODS)
def test_keywords(method: Any) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Plain()

        def forward(self, *, pixels: Tensor, rest: Any, input_ids: Tensor, scale: float = 1.0) -> Tensor:
            return self.inner(pixels, rest["y"], input_ids, rest["mask"], scale)  # type: ignore[no-any-return]

    model = Model()
    expected = method(model.inner).attribute((X, Y, IDS), 1, (MASK, 2.0))
    given = Keywords(input_ids=IDS, pixels=X, rest=REST)
    found = method(model).attribute(given, 1, forward_kwargs={"scale": 2.0})
    assert type(found) is Keywords and list(found) == ["input_ids", "pixels", "rest"]
    for one, other in zip((found["pixels"], found["rest"]["y"], found["input_ids"]), expected, strict=True):
        assert torch.equal(one, other)
    assert found["rest"]["mask"] is None


def test_keywords_behind_positional_arguments() -> None:
    model = Plain()
    expected = LRP(model).attribute((X, Y, IDS), 1, (MASK, 2.0))
    found = LRP(model).attribute((X, Keywords(ids=IDS, y=Y)), 1, forward_kwargs={"mask": MASK, "scale": 2.0})
    assert isinstance(found, tuple)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1]["y"], expected[1]) and torch.equal(found[1]["ids"], expected[2])
    with pytest.raises(InputError, match="'y' is given twice"):
        LRP(model).attribute((X, Keywords(ids=IDS, y=Y)), 1, forward_kwargs={"y": Y, "mask": MASK, "scale": 2.0})


def test_lists_as_arguments() -> None:
    """A list or tuple of lists: each is one argument; a named tuple is one argument by itself."""

    class Lists(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Plain()

        def forward(self, floats: Any, ids: Tensor) -> Tensor:
            return self.inner(floats[0], floats[1], ids, MASK, 2.0)  # type: ignore[no-any-return]

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Plain()

        def forward(self, point: Point) -> Tensor:
            return self.inner(X, point.y, IDS, point.mask, 2.0)  # type: ignore[no-any-return]

    expected = LRP(Plain()).attribute((X, Y, IDS), 1, (MASK, 2.0))
    for floats in ([X, Y], (X, Y)):
        (first, second), on_ids = LRP(Lists()).attribute((floats, IDS), 1)
        for one, other in zip((first, second, on_ids), expected, strict=True):
            assert torch.equal(one, other)
    found = LRP(Pair()).attribute(Point(Y, MASK), 1)
    assert isinstance(found, Point) and torch.equal(found.y, expected[1]) and found.mask is None


def test_what_the_output_does_not_depend_on_is_none() -> None:
    """A tensor in a container may be there for something else."""

    class First(nn.Module):
        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return batch["x"].relu()

    other = torch.ones(3, 2)
    batch = {"x": X, "unused": other, "labels": torch.arange(3), "index": torch.arange(2), "zero": torch.tensor(1.0)}
    found, delta = LRP(First()).attribute(batch, 1, return_convergence_delta=True)
    assert [name for name, value in found.items() if value is not None] == ["x"]
    assert delta.shape == (1,)  # the index has two rows: nothing says that rows are samples
    several = LRP(First()).attribute_targets({"x": X, "unused": other}, [0, 1])
    assert several["x"].shape == (2, 3, 4) and several["unused"] is None


def test_a_target_on_which_only_some_depend() -> None:
    class Two(nn.Module):
        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return torch.stack([batch["x"].relu().sum(1), batch["y"].relu().sum(1)], dim=1)

    found = LRP(Two()).attribute_targets({"x": X, "y": Y}, [lambda out: out[:, 0], lambda out: out[:, 1]])
    assert found["x"][1].abs().max() == 0 and torch.equal(found["x"][0], X.relu())
    assert found["y"][0].abs().max() == 0 and torch.equal(found["y"][1], Y.relu())


def test_containers_of_other_arguments_keep_their_type() -> None:
    """And tensors in them that were made under inference mode can be saved."""
    seen: list[Any] = []

    class Model(nn.Module):
        def forward(self, x: Tensor, extra: Any, *, more: Any) -> Tensor:
            seen.extend([extra, more])
            return x * extra.x + more["y"].sum()  # type: ignore[no-any-return]

    with torch.inference_mode():
        inside = torch.ones(3, 4, dtype=torch.float64)
    extra, more = Slotted(inside, None, IDS), Encoded(y=torch.ones(2), n=3)
    relevance = LRP(Model()).attribute(X, 1, extra, forward_kwargs={"more": more})
    assert torch.equal(relevance[:, 1], X[:, 1])
    assert type(seen[0]) is Slotted and not seen[0].x.is_inference() and extra.x is inside
    assert seen[1] is more


def test_ids_that_the_model_computes_with() -> None:
    """Masks and positions are made from token ids, beside the embedding that explains them."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places, self.head = nn.Embedding(9, 4), nn.Embedding(9, 4), nn.Linear(4, 2)
            settle(self)

        def forward(self, ids: Tensor) -> Tensor:
            mask = ids.ne(0).to(torch.float64) * (1 - (ids == 8).double())
            places = torch.cumsum((ids + 0 * ids.sum() > 0).long(), dim=1) * 1 + torch.zeros_like(ids)
            h = (self.words(ids) + self.places(places)) * mask[..., None]
            return self.head(h.sum(1))  # type: ignore[no-any-return]

    model = Positions()
    found = LRP(model, "lrp0").attribute(IDS, 1)
    keep = (IDS.ne(0) & IDS.ne(8)).double()
    assert torch.allclose(found, (model.words(IDS) @ model.head.weight[1]) * keep, rtol=1e-12, atol=0)
    in_dict = LRP(Unpacked(model), "lrp0").attribute({"input_ids": IDS, "attention_mask": IDS.ne(0).long()}, 1)
    assert torch.equal(in_dict["input_ids"], found) and in_dict["attention_mask"] is None


class Unpacked(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(batch["input_ids"])  # type: ignore[no-any-return]


# Errors ------------------------------------------------------------------------------------------


def test_containers_that_cannot_be_explained() -> None:
    model = Batched()
    frozen = Frozen(X / 0 * 0, REST, IDS)
    with refuses(model, NumericalError, ValueError, "(3, 4)", "NaN"):
        LRP(model).attribute(frozen, 1)
    with refuses(model, InputError, ValueError, "can be explained", "dict"):
        LRP(model).attribute({"x": "text", "flags": torch.ones(3) > 0}, 1)
    with refuses(model, InputTypeError, TypeError, "Input 1", "must be a tensor", "float"):
        LRP(model.inner).attribute((X, 2.0), 1)
    with refuses(model, InputTypeError, TypeError, "The input", "must be a tensor", "object"):
        LRP(model).attribute(object(), 1)
    with refuses(model, InputTypeError, TypeError, "The input", "must be a tensor", "type"):
        LRP(model).attribute(Frozen, 1)


def test_batches_that_differ_inside_a_container() -> None:
    """What a container holds need not have a batch in common."""

    class Pooled(nn.Module):
        def forward(self, graph: dict[str, Tensor]) -> Tensor:
            pooled = graph["nodes"].relu().sum(0) + graph["edges"].relu().sum(0)
            return pooled[None].expand(int(graph["graphs"]), -1)

    graph = {"nodes": vectors(5), "edges": vectors(7), "graphs": torch.tensor(5)}
    found, delta = LRP(Pooled()).attribute(graph, 1, return_convergence_delta=True)
    assert delta.shape == (1,) and abs(float(delta)) < 1e-12
    assert torch.allclose(found["nodes"], 5 * graph["nodes"].relu() * torch.tensor([0, 1, 0, 0]))
    with pytest.raises(InputError, match="Input 1 has a batch of 2, the first one of 3"):
        LRP(Batched()).attribute((X, Y[:2]), 1)
