"""Random programs that compute what is infinite or NaN and do not take it, against the same with safe numbers there.

A pole (a logarithm, a root, a quotient), what follows it in the branch, and the spelling of the choice are drawn at
random. The reference puts harmless numbers into the branch where it is not taken, so that nothing in it is infinite.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import LRP, Rules
from relprop.errors import NumericalError
from relprop.rules import ActivationRule, Flow, ZBox
from tests.checks import refuses
from tests.models import settle

Branch = Callable[[nn.ModuleDict, Tensor], Tensor]
Choice = Callable[[Tensor, Tensor, Tensor], Tensor]
FEATURES = 6


def entrywise(function: Callable[[Tensor], Tensor]) -> Branch:
    return lambda parts, x: function(x)


def attended(parts: nn.ModuleDict, x: Tensor) -> Tensor:
    q = parts["linear"](torch.log(x)).view(-1, 3, 2)
    return F.scaled_dot_product_attention(q, q, q).flatten(1)


def multihead(parts: nn.ModuleDict, x: Tensor) -> Tensor:
    q = torch.log(x).view(-1, 3, 2)
    return parts["attention"](q, q, q)[0].flatten(1)  # type: ignore[no-any-return]


def softmax_by_hand(parts: nn.ModuleDict, x: Tensor) -> Tensor:
    e = torch.exp(torch.log(x))
    return e / e.sum(1, keepdim=True)


def positive(x: Tensor) -> Tensor:
    return x > 0


def rows(x: Tensor) -> Tensor:
    return (x > 0).all(1, keepdim=True).expand_as(x)


# fmt: off
POLES: dict[str, tuple[Branch, Callable[[Tensor], Tensor]]] = {
    **{name: (entrywise(function), positive) for name, function in {
        "log": torch.log, "sqrt": torch.sqrt, "rsqrt": lambda x: x * torch.rsqrt(x),
        "log1p": lambda x: torch.log1p(4 * x - 1),
        "power": lambda x: x * x**-1.5, "root": lambda x: x**0.5, "acosh": lambda x: torch.acosh(x + 1),
        "by zero": lambda x: (x + 1) / (x > 0).to(x), "xlogy": lambda x: torch.xlogy(x, x),
        "logaddexp": lambda x: torch.logaddexp(torch.log(x), x),
    }.items()},
    "divided": (entrywise(lambda x: x.square() / x), lambda x: x != 0),
    "asin": (entrywise(torch.asin), lambda x: x.abs() < 1),
    "logit": (entrywise(lambda x: torch.logit(x / 3)), lambda x: (x > 0) & (x < 3)),
    "exp": (entrywise(lambda x: torch.exp(4000 * torch.relu(x))), lambda x: x <= 0),
    "sinh": (entrywise(lambda x: torch.sinh(4000 * torch.relu(x))), lambda x: x <= 0),
    **{f"{name} of rows": (branch, rows) for name, branch in {
        "cumprod": entrywise(lambda x: torch.cumprod(torch.log(x), 1)),
        "prod": entrywise(lambda x: x * torch.log(x).prod(1, keepdim=True)),
        "mean": entrywise(lambda x: torch.log(x) - torch.log(x).mean(1, keepdim=True)),
        "std": entrywise(lambda x: torch.log(x) / torch.log(x).std(1, keepdim=True)),
        "amax": entrywise(lambda x: torch.log(x) + torch.log(x).amax(1, keepdim=True)),
        "softmax": entrywise(lambda x: torch.log(x).softmax(1)),
        "log_softmax": entrywise(lambda x: torch.log(x).log_softmax(1)),
        "softmax by hand": softmax_by_hand,
        "softmax by hand of two logarithms": entrywise(
            lambda x: torch.exp(torch.log(x)) / torch.exp(torch.log(x)).sum(1, keepdim=True)
        ),
        "logsumexp": entrywise(lambda x: x + torch.logsumexp(torch.log(x), 1, keepdim=True)),
        "normalize": entrywise(lambda x: F.normalize(torch.log(x))),
        "layer_norm": entrywise(lambda x: F.layer_norm(torch.log(x), (FEATURES,))),
        "product": entrywise(lambda x: torch.log(x) * torch.log(x)[:, :1]),
        "sort": entrywise(lambda x: torch.log(x).sort(1)[0]),
        "cumsum": entrywise(lambda x: torch.log(x).cumsum(1)),
        "linear": lambda parts, x: parts["linear"](torch.log(x)),
        "linear relu linear": lambda parts, x: parts["other"](torch.relu(parts["linear"](torch.log(x)))),
        "conv": lambda parts, x: parts["conv"](torch.log(x)[:, None])[:, 0],
        "gru": lambda parts, x: parts["gru"](torch.log(x)[..., None])[0][..., 0],
        "scaled_dot_product_attention": attended,
        "multi_head_attention": multihead,
    }.items()},
}
AFTER: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda y: y, "tanh": torch.tanh, "gelu": F.gelu, "relu": torch.relu,
    "relu_": lambda y: F.relu_(y.clone()),
    "sigmoid": torch.sigmoid, "times tanh": lambda y: y * y.tanh(), "clamp": lambda y: y.clamp(-3, 3),
    "softplus": F.softplus, "elu": F.elu, "silu": F.silu,
}
# fmt: on


def filled_in_place(y: Tensor, other: Tensor, taken: Tensor) -> Tensor:
    y = y.clone()
    y.masked_fill_(~taken, 0.5)
    return y


def assigned(y: Tensor, other: Tensor, taken: Tensor) -> Tensor:
    out = other.clone()
    out[taken] = y[taken]
    return out


def overwritten(y: Tensor, other: Tensor, taken: Tensor) -> Tensor:
    out = y.clone()
    out[~taken] = other[~taken]
    return out


def zeroed(y: Tensor, other: Tensor, taken: Tensor) -> Tensor:
    out = y.clone()
    out[~taken] = 0.0
    return out


def put(y: Tensor, other: Tensor, taken: Tensor) -> Tensor:
    index = taken.nonzero(as_tuple=True)
    return torch.zeros_like(y).index_put(index, y[index])


def put_in_place(y: Tensor, other: Tensor, taken: Tensor) -> Tensor:
    index, out = taken.nonzero(as_tuple=True), other * 1.0
    out.index_put_(index, y[index])
    return out


CHOICES: dict[str, Choice] = {
    "where": lambda y, other, taken: torch.where(taken, y, other),
    "where not": lambda y, other, taken: torch.where(~taken, other, y),
    "where a number": lambda y, other, taken: torch.where(taken, y, 0.0),
    "Tensor.where": lambda y, other, taken: y.where(taken, other),
    "masked_fill": lambda y, other, taken: y.masked_fill(~taken, 0.0),
    "masked_fill_": filled_in_place,
    "set_item": assigned,
    "set_item of the rest": overwritten,
    "set_item of zeros": zeroed,
    "index_put": put,
    "index_put_": put_in_place,
    "masked_scatter": lambda y, other, taken: other.masked_scatter(taken, y[taken]),
    "masked_select": lambda y, other, taken: other * y.masked_select(taken).mean(),
    "index": lambda y, other, taken: other + y[taken].sum(),
    "nan_to_num": lambda y, other, taken: torch.where(taken, y, torch.nan).nan_to_num(0.0),
}
PRESETS: dict[str, Any] = {
    name: name
    for name in ("epsilon_gamma", "lrp0", "attnlrp", "cp_lrp", "epsilon_plus_flat", "wsquare", "alpha2_beta1")
} | {"zbox": ZBox(-3.0, 3.0)}


class Program(nn.Module):
    """A branch with a pole, chosen where it is finite; ``safe`` puts harmless numbers in where it is not."""

    def __init__(self, pole: str, after: str, choice: str, safe: bool) -> None:
        super().__init__()
        self.branch, self.taken = POLES[pole]
        self.after, self.choice, self.safe = AFTER[after], CHOICES[choice], safe
        self.parts = nn.ModuleDict(
            {
                "linear": nn.Linear(FEATURES, FEATURES),
                "other": nn.Linear(FEATURES, FEATURES),
                "conv": nn.Conv1d(1, 1, 3, padding=1),
                "gru": nn.GRU(1, 1, batch_first=True),
                "attention": nn.MultiheadAttention(2, 1, batch_first=True),
            }
        )
        self.hidden, self.out = nn.Linear(FEATURES, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        taken = self.taken(x)
        harmless = torch.linspace(0.1, 0.12, FEATURES, dtype=x.dtype)
        y = self.after(self.branch(self.parts, torch.where(taken, x, harmless) if self.safe else x))
        return self.out(torch.relu(self.hidden(self.choice(y, 0.5 * x, taken))))  # type: ignore[no-any-return]


def entries() -> Tensor:
    x = torch.randn(4, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[0], x[1, 2], x[2] = x[0].abs() + 0.1, 0.0, 0.0
    return x


@pytest.mark.parametrize("pole", list(POLES))
def test_a_branch_that_is_not_taken_receives_nothing(pole: str) -> None:
    """The map is that of harmless numbers in its place, and the report holds, whatever follows and chooses."""
    draw, x = random.Random(pole), entries()
    for _ in range(3):
        after, choice, preset = draw.choice(list(AFTER)), draw.choice(list(CHOICES)), draw.choice(list(PRESETS))
        drawn = f"{after}, {choice}, {preset}"
        model, safe = (settle(Program(pole, after, choice, safe)) for safe in (False, True))
        torch.testing.assert_close(model(x), safe(x))
        found, expected = (LRP(each, PRESETS[preset]).attribute(x, 1) for each in (model, safe))
        assert (found - expected).abs().max() <= 1e-10 * expected.abs().max(), drawn
        LRP(model, PRESETS[preset]).report(x, 1).check(1e-6)


def test_what_was_given_alone() -> None:
    """Of ``where(x > 0, log(x), 0)`` the positive entries have the relevance that they have without the others."""

    class Logarithm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x > 0, torch.log(x), 0.0).sum(1)

    class Alone(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.log(x).sum(1)

    x = torch.tensor([[-1.0, 4.0, 0.0, 0.5]], dtype=torch.float64)
    found = LRP(Logarithm()).attribute(x)
    expected = LRP(Alone()).attribute(x[:, 1::2])
    assert (found[:, ::2] == 0).all()
    torch.testing.assert_close(found[:, 1::2], expected)


@pytest.mark.parametrize("call", ["attribute", "attribute_layers", "attribute_targets", "create_graph", "delta"])
def test_in_every_call(call: str) -> None:
    """All that returns relevance takes the second look."""
    model, safe = (settle(Program("linear of rows", "gelu", "where", safe)) for safe in (False, True))
    x = entries()
    ways: dict[str, Callable[[LRP], Any]] = {
        "attribute": lambda lrp: lrp.attribute(x, 1),
        "attribute_layers": lambda lrp: lrp.attribute_layers(x, ["parts.linear", "hidden"], 1),
        "attribute_targets": lambda lrp: lrp.attribute_targets(x, [0, 2]),
        "create_graph": lambda lrp: lrp.attribute(x, 1, create_graph=True).detach(),
        "delta": lambda lrp: lrp.attribute(x, 1, return_convergence_delta=True),
    }
    found, expected = ways[call](LRP(model)), ways[call](LRP(safe))
    if call == "attribute_layers":
        assert found["parts.linear"].isfinite().all()
        found, expected = found["hidden"], expected["hidden"]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


class Tangent(ActivationRule):
    """Autograd's own backward, whose slope is infinite at a root of zero."""

    def surrogate(self, flow: Flow, z: Tensor, out: Tensor, quotient: Tensor) -> Tensor:
        return out


class Root(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sqrt(x - x.detach())


def test_the_first_call_that_makes_infinity_is_named() -> None:
    """By operation and module path, though others below it send on what is not finite too."""
    model = settle(nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.GELU(), Root()), nn.Tanh(), nn.Linear(4, 2)))
    rules = Rules().set(Root, Tangent())
    x = torch.randn(2, 3, dtype=torch.float64)
    for call in (LRP.attribute, LRP.report):
        with refuses(model, NumericalError, ValueError, "becomes NaN or infinite at 'sqrt' in module '1.1' (Root)"):
            call(LRP(model, rules), x, 0)


class Whole(ActivationRule):
    """The coefficient passes as it is."""

    def surrogate(self, flow: Flow, z: Tensor, out: Tensor, quotient: Tensor) -> Tensor:
        return z


class Logarithm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log(x - x.detach())


def test_infinity_that_counts_is_named() -> None:
    """The relevance of minus infinity with a coefficient is not finite, and the call that made it says so."""
    model = settle(nn.Sequential(nn.Linear(3, 4), Logarithm(), nn.Tanh(), nn.Linear(4, 2)))
    rules, x = Rules().set(nn.Tanh, Whole()), torch.randn(2, 3, dtype=torch.float64)
    with refuses(model, NumericalError, ValueError, "at 'log' in module '1' (Logarithm)", "8 of 8 entries", "count in"):
        LRP(model, rules).attribute(x, 0)


class Endless(LRP):
    """The backward begins with infinity."""

    def seed(self, output: Tensor) -> Tensor:
        return torch.full_like(output, torch.inf)


def test_infinity_that_no_call_made_is_named_otherwise() -> None:
    """What arrives and is infinite already was made by none of the calls, and the message says where to look."""
    model = settle(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    with refuses(model, NumericalError, ValueError, "that arrive at", "a method's seed"):
        Endless(model).attribute(torch.randn(2, 3, dtype=torch.float64), 0)
