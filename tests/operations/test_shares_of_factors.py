"""Every function that multiplies: n active factors receive 1/n each, and a loss on that has the true derivative."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import LRP
from tests.models import close

Function = Callable[..., Tensor]
MATRICES = ((2, 3), (3, 4), (4, 2))
HALF, THIRD, QUARTER = 1 / 2, 1 / 3, 1 / 4


def bilinear(a: Tensor, b: Tensor) -> Tensor:
    kernel = torch.linspace(-1, 1, 60, dtype=a.dtype).cos().reshape(5, 3, 4)
    return F.bilinear(a[None], b[None], kernel)


# A function, the shapes of what it takes, and which share of its relevance each term's factor receives.
PRODUCTS: dict[str, tuple[Function, Sequence[tuple[int, ...]], Sequence[float]]] = {
    "mul": (torch.mul, [(3,), (3,)], [HALF] * 2),
    "outer": (torch.outer, [(3,), (4,)], [HALF] * 2),
    "ger": (torch.ger, [(3,), (4,)], [HALF] * 2),
    "kron": (torch.kron, [(2, 3), (3, 2)], [HALF] * 2),
    "inner": (torch.inner, [(3, 4), (2, 4)], [HALF] * 2),
    "dot": (torch.dot, [(4,), (4,)], [HALF] * 2),
    "vdot": (torch.vdot, [(4,), (4,)], [HALF] * 2),
    "vecdot": (torch.linalg.vecdot, [(3, 4), (3, 4)], [HALF] * 2),
    "cross": (torch.linalg.cross, [(3,), (3,)], [HALF] * 2),
    "tensordot": (lambda a, b: torch.tensordot(a, b, 2), [(2, 3, 4), (3, 4, 2)], [HALF] * 2),
    "bilinear": (bilinear, [(3,), (4,)], [HALF] * 2),
    "matmul": (torch.matmul, [(2, 3), (3, 4)], [HALF] * 2),
    "bmm": (torch.bmm, [(2, 3, 4), (2, 4, 2)], [HALF] * 2),
    "mv": (torch.mv, [(3, 4), (4,)], [HALF] * 2),
    "chain": (lambda a, b, c: a @ b @ c, MATRICES, [THIRD] * 3),
    "chain from the right": (lambda a, b, c: a @ (b @ c), MATRICES, [THIRD] * 3),
    "multi_dot": (lambda *each: torch.linalg.multi_dot(each), MATRICES, [THIRD] * 3),
    "einsum of two": (lambda a, b: torch.einsum("ij,kj->ik", a, b), [(2, 3), (4, 3)], [HALF] * 2),
    "einsum of three": (lambda *each: torch.einsum("ij,jk,kl->il", *each), MATRICES, [THIRD] * 3),
    "einsum of four": (lambda *each: torch.einsum("ij,jk,kl,l->i", *each), (*MATRICES, (2,)), [QUARTER] * 4),
    "two and two": (lambda a, b, c, d: (a * b) * (c * d), [(3,)] * 4, [QUARTER] * 4),
    "one by one": (lambda a, b, c, d: a * (b * (c * d)), [(3,)] * 4, [QUARTER] * 4),
    "prod": (lambda a: torch.prod(a, 0), [(4, 3)], [QUARTER]),
    "prod of all": (torch.prod, [(4,)], [QUARTER]),
    "cumprod": (lambda a: torch.cumprod(a, 0)[-1], [(4, 3)], [QUARTER]),
    "det": (torch.det, [(3, 3)], [THIRD]),
    "matrix_power": (lambda a: torch.linalg.matrix_power(a, 3), [(3, 3)], [THIRD]),
    "addcmul": (torch.addcmul, [(3,)] * 3, [1, HALF, HALF]),
    "addmv": (torch.addmv, [(3,), (3, 4), (4,)], [1, HALF, HALF]),
    "addmm": (torch.addmm, [(2, 4), (2, 3), (3, 4)], [1, HALF, HALF]),
    "addr": (torch.addr, [(3, 4), (3,), (4,)], [1, HALF, HALF]),
    "baddbmm": (torch.baddbmm, [(2, 3, 4), (2, 3, 5), (2, 5, 4)], [1, HALF, HALF]),
    "addbmm": (torch.addbmm, [(3, 4), (2, 3, 5), (2, 5, 4)], [1, HALF, HALF]),
}


class Of(nn.Module):
    """A function of one sample, weighted up to one number ``[1]``."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        out = self.function(*(x[0] for x in inputs)).flatten()
        return (out * torch.arange(1, len(out) + 1, dtype=out.dtype).cos()).sum()[None]


def drawn(shapes: Sequence[tuple[int, ...]]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(1, *shape, generator=generator, dtype=torch.float64) for shape in shapes)


@pytest.mark.parametrize("name", PRODUCTS)
def test_every_factor_receives_its_share(name: str) -> None:
    function, shapes, shares = PRODUCTS[name]
    model, inputs = Of(function), drawn(shapes)
    leaves = [x.clone().requires_grad_() for x in inputs]
    gradients = torch.autograd.grad(model(*leaves), leaves)
    found = LRP(model, "lrp0").attribute(inputs)
    for part, x, gradient, share in zip(found, inputs, gradients, shares, strict=True):
        close(part, share * x * gradient)


def _set(h: Tensor, g: Tensor) -> None:
    h[2:] = g[2:]


def _copied(h: Tensor, g: Tensor) -> None:
    h[2:].copy_(g[2:])


def _scaled(h: Tensor, g: Tensor) -> None:
    h[2:] *= 2


def _scaled_as_another_shape(h: Tensor, g: Tensor) -> None:
    h.view(2, 2).mul_(2)


def _zeroed(h: Tensor, g: Tensor) -> None:
    h[2:].zero_()


@pytest.mark.parametrize("write", [_set, _copied, _scaled, _scaled_as_another_shape, _zeroed])
def test_a_write_into_a_view_keeps_the_count_of_the_whole(write: Callable[[Tensor, Tensor], None]) -> None:
    """What is written into a part of a product is that of as many factors, or a constant, and so is the whole."""

    def function(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        h = a * b
        write(h, b * a)
        return h * c

    inputs = drawn([(4,)] * 3)
    leaves = [x.clone().requires_grad_() for x in inputs]
    gradients = torch.autograd.grad(Of(function)(*leaves), leaves)
    found = LRP(Of(function), "lrp0").attribute(inputs)
    for part, x, gradient in zip(found, inputs, gradients, strict=True):
        close(part, THIRD * x * gradient)


def test_a_write_into_a_view_keeps_a_gate() -> None:
    """What is scaled in part opens and shuts still, and receives nothing."""

    def function(a: Tensor, b: Tensor) -> Tensor:
        gate = torch.sigmoid(a)
        gate[2:] *= 0.5
        return gate * b

    signal, gate = (x for x in drawn([(4,), (4,)]))
    found = LRP(Of(function), "lrp0").attribute((gate, signal))
    assert float(found[0].abs().max()) == 0.0


def test_lerp_is_the_product_that_it_is_short_for() -> None:
    inputs = drawn([(3,)] * 3)
    found = LRP(Of(torch.lerp), "lrp0").attribute(inputs)
    start, end, weight = (x[0] for x in inputs)
    c = torch.arange(1, 4, dtype=torch.float64).cos()
    move = c * weight * (end - start)  # the relevance of w (e - s), half of it of w and half of e - s
    expected = (c * start - HALF * c * weight * start, HALF * c * weight * end, HALF * move)
    for part, reference in zip(found, expected, strict=True):
        close(part[0], reference)


NORMS: dict[str, Function] = {
    "normalize": lambda x: F.normalize(x, dim=0),
    "local_response_norm": lambda x: F.local_response_norm(x[None, :, None], 3)[0, :, 0],
    "rms_norm": lambda x: F.rms_norm(x, (5,)),
    "by a norm": lambda x: x / torch.linalg.vector_norm(x),
}


@pytest.mark.parametrize("name", NORMS)
def test_what_normalises_is_a_constant(name: str) -> None:
    model, (x,) = Of(NORMS[name]), drawn([(5,)])
    out = NORMS[name](x[0])
    close(LRP(model, "lrp0").attribute(x)[0], out * torch.arange(1, 6, dtype=torch.float64).cos())


def test_gumbel_softmax_is_a_softmax_of_what_was_drawn() -> None:
    (x,) = drawn([(5,)])
    torch.manual_seed(3)
    noise = -torch.empty_like(x[0]).exponential_().log()
    p = torch.softmax((x[0] + noise) / 0.7, 0)
    c = torch.arange(1, 6, dtype=torch.float64).cos()
    torch.manual_seed(3)
    found = LRP(Of(lambda z: F.gumbel_softmax(z, tau=0.7, dim=0)), "lrp0").attribute(x)
    close(found[0], x[0] / 0.7 * p * (c - (p * c).sum()))


def test_attention_by_a_function_is_its_steps() -> None:
    torch.manual_seed(0)
    layer, head = nn.MultiheadAttention(8, 2).double(), torch.randn(8).double()
    w, b, out = layer.in_proj_weight, layer.in_proj_bias, layer.out_proj

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            y = x.transpose(0, 1)
            found = F.multi_head_attention_forward(
                y, y, y, 8, 2, w, b, None, None, False, 0.0, out.weight, out.bias, training=False
            )
            return (found[0].sum(0) * head).sum(1)

    class Steps(Whole):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (t.reshape(len(x), -1, 2, 4).transpose(1, 2) for t in F.linear(x, w, b).chunk(3, -1))
            y = torch.softmax(q @ k.mT / 2, -1) @ v
            return (F.linear(y.transpose(1, 2).reshape(x.shape), out.weight, out.bias).sum(1) * head).sum(1)

    x = torch.randn(2, 4, 8).double()
    close(LRP(Whole(), "lrp0").attribute(x), LRP(Steps(), "lrp0").attribute(x))


# A loss on the relevance -----------------------------------------------------------------------------------

TWO: dict[str, Function] = {
    "bilinear": lambda a, b, p: F.bilinear(a, b, p.repeat(4, 1, 1)),
    "addcmul": lambda a, b, p: torch.addcmul(a, b, p[0]),
    "addcmul, active": lambda a, b, p: torch.addcmul(p[0], a, b),
    "lerp": lambda a, b, p: torch.lerp(a, b, p[0]),
    "lerp, active": lambda a, b, p: torch.lerp(a, b, torch.tanh(a)) + p[0],
    "prod": lambda a, b, p: torch.stack([a, b, a + b], -1).prod(-1) @ p,
    "cumprod": lambda a, b, p: torch.stack([a, b], -1).cumprod(-1)[..., 1] @ p,
    "outer": lambda a, b, p: torch.stack([torch.outer(u, v) @ p[0] for u, v in zip(a, b, strict=True)]),
    "kron": lambda a, b, p: torch.stack([torch.kron(u, v).reshape(4, 4) @ p[0] for u, v in zip(a, b, strict=True)]),
    "multi_dot": lambda a, b, p: torch.linalg.multi_dot([a, p, b.T, a]),
    "tensordot": lambda a, b, p: torch.tensordot(a, b.T, 1) @ a @ p,
    "baddbmm": lambda a, b, p: torch.baddbmm(p[None], a[:, :, None], b[:, None]).sum(1),
    "normalize": lambda a, b, p: F.normalize(a, dim=1) * b @ p,
    "local_response_norm": lambda a, b, p: F.local_response_norm((a + b)[:, :, None], 3)[..., 0] @ p,
    "attention": lambda a, b, p: F.multi_head_attention_forward(
        a[:, None], b[:, None], a[:, None], 4, 2, p.repeat(3, 1), p.flatten()[:12], None, None, False, 0.0, p, p[0]
    )[0][:, 0],
}  # fmt: skip


class Two(nn.Module):
    """A function of two linear layers and a parameter."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.p = nn.Parameter(torch.randn(4, 4))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.function(self.a(x), self.b(x), self.p))
        return out


@pytest.mark.parametrize("rules", ["lrp0", "zplus"])
@pytest.mark.parametrize("name", TWO)
def test_the_derivative_of_a_loss_on_relevance(name: str, rules: str) -> None:
    """Against central differences of relevance itself, along one direction of all parameters and of the input."""
    torch.manual_seed(1)
    model, x, weight = Two(TWO[name]).double().eval(), torch.randn(3, 4).double(), torch.randn(3, 4).double()
    explainer, parameters = LRP(model, rules), list(model.parameters())
    leaf = x.clone().requires_grad_()
    loss = (explainer.attribute(leaf, 1, create_graph=True) * weight).sum()
    found = torch.autograd.grad(loss, [leaf, *parameters], allow_unused=True)
    along = [torch.randn_like(tensor) for tensor in (x, *parameters)]
    slope = sum(float((g * d).sum()) for g, d in zip(found, along, strict=True) if g is not None)

    def moved(t: float) -> float:
        with torch.no_grad():
            for parameter, direction in zip(parameters, along[1:], strict=True):
                parameter.add_(t * direction)
            value = float((explainer.attribute(x + t * along[0], 1) * weight).sum())
            for parameter, direction in zip(parameters, along[1:], strict=True):
                parameter.sub_(t * direction)
        return value

    step = 1e-7
    assert slope == pytest.approx((moved(step) - moved(-step)) / (2 * step), rel=1e-5, abs=1e-5)
    assert abs(slope) > 1e-3
