"""LRP-0 and AttnLRP of a whole network by the plain gradient of a surrogate: an independent way to the same map.

Every operation that has a rule of its own is replaced, as the model calls it, by one of the same value whose ordinary
derivative is the coefficient that the rule gives. Gradient x Input of what then runs is LRP-0. The rules are those of
`docs/theory.md`, and for AttnLRP those of Achtibat et al. 2024 (arXiv:2402.05602); nothing here comes from relprop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from benchmarks._zoo_operations import ELEMENTWISE, LINEAR, PIECEWISE, spelling
from benchmarks._zoo_reference import Function, GatesConstant, Known, active, tensors

Marks = frozenset[tuple[Any, int]]
"""Tensors, by the nodes that made them."""


class Surrogate(GatesConstant):
    """Runs a model so that its plain gradient is the coefficient of LRP-0.

    Attributes:
        curved: the operations met that are not piecewise linear.
        unknown: the operations met, with relevance passing them, that are in no list here.
        rounded: the model computes in single precision here or there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rounded = False
        self.curved: set[str] = set()
        self.unknown: set[str] = set()

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = super().__torch_function__(func, types, args, kwargs)
        self.rounded |= any(active(x) and x.dtype != torch.float64 for x in tensors(out))
        return out

    def handler(self, name: str) -> Function | None:
        if name == "batch_norm":
            return self.do_batch_norm
        if name in LINEAR or name in PIECEWISE:
            return getattr(self, f"with_{name}", None)
        if name in ELEMENTWISE:
            self.curved.add(name)
            return self.elementwise
        found: Function | None = getattr(self, f"do_{name}", None)
        return self.stranger(name) if found is None else found

    def stranger(self, name: str) -> Function:
        """Return what runs an operation as it is, and notes it if relevance passes."""

        def run(func: Function, *args: Any, **kwargs: Any) -> Any:
            out = func(*args, **kwargs)
            for part in filter(active, tensors(out)):
                part.register_hook(lambda c: self.unknown.add(name) if bool((c != 0).any()) else None)
            return out

        return run

    # Elementwise functions -------------------------------------------------------------------------

    def elementwise(self, func: Function, z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``f(0) + z q`` with the quotient ``q = (f(z) - f(0)) / z`` held constant."""
        kwargs.pop("inplace", None)
        fixed = z.detach()
        offset, step = func(torch.zeros_like(fixed), *args, **kwargs), torch.full_like(fixed, 1e-8)
        value = func(fixed, *args, **kwargs)
        slope = (func(step, *args, **kwargs) - func(-step, *args, **kwargs)) / 2e-8
        zero = fixed == 0
        return self.line(z, value, torch.where(zero, slope, (value - offset) / torch.where(zero, 1.0, fixed)))

    @staticmethod
    def line(z: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        """Return ``value`` with a constant derivative by ``z``."""
        return value + (z - z.detach()) * slope

    def do_sigmoid(self, func: Function, z: Tensor, inplace: bool = False) -> Tensor:
        self.curved.add("sigmoid")
        fixed = z.detach()
        quotient = torch.where(fixed == 0, 0.25, torch.tanh(fixed / 2) / torch.where(fixed == 0, 1.0, 2 * fixed))
        if func is not torch.sigmoid and "hard" in func.__name__:
            quotient = (func(fixed) - 0.5) / torch.where(fixed == 0, 1.0, fixed)
            quotient = torch.where(fixed.abs() < 1, 1 / 6, quotient)
        value = func(fixed)
        out = self.line(z, value, quotient)
        return super().do_sigmoid(lambda _: out, z)

    do_hardsigmoid = do_sigmoid

    def do_pow(self, func: Function, z: Any, exponent: Any) -> Tensor:
        self.curved.add("pow")
        if active(exponent):
            return self.stranger("pow")(func, z, exponent)  # type: ignore[no-any-return]
        if exponent < 0:
            return func(z, exponent).detach()  # type: ignore[no-any-return]
        return self.elementwise(torch.pow, z, exponent)

    def do_glu(self, func: Function, x: Tensor, dim: int = -1) -> Tensor:
        self.curved.add("glu")
        signal, gate = x.chunk(2, dim)
        return signal * torch.sigmoid(gate).detach()

    def do_softmax(self, func: Function, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.curved.add("softmax")
        return func(x, *args, **kwargs)  # type: ignore[no-any-return]

    # Products --------------------------------------------------------------------------------------

    def shared(self, *factors: Any) -> list[Any]:
        gates = self.gates(*factors)
        counts = [
            self.known(x).factors if active(x) and not gate else 0 for x, gate in zip(factors, gates, strict=True)
        ]
        shares = [count / sum(counts) for count in counts]
        self.curved.add("product")
        return [
            x if not active(x) or share == 1 else x.detach() + (x - x.detach()) * share
            for x, share in zip(factors, shares, strict=True)
        ]

    def halved(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """The factors of a product in an attention: AttnLRP gives each half, whatever it is made of."""
        self.curved.add("product")
        if not (active(a) and active(b)):
            return a, b
        return a.detach() + (a - a.detach()) / 2, b.detach() + (b - b.detach()) / 2

    def do_matmul(self, func: Function, a: Tensor, b: Tensor) -> Tensor:
        if not (active(a) and active(b)):
            return self.note(func(a, b), self.known(a if active(a) else b))
        return self.note(func(*self.shared(a, b)), self.product(a, b))

    def do_addcmul(self, func: Function, c: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Tensor:
        return c + value * self.do_mul(torch.mul, a, b)

    def do_baddbmm(self, func: Function, c: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
        return beta * c + alpha * self.do_matmul(torch.matmul, a, b)

    do_addmm = do_baddbmm

    def do_einsum(self, func: Function, equation: str, *operands: Any) -> Tensor:
        operands = tuple(tensors(operands))
        if sum(map(active, operands)) < 2:
            return func(equation, *operands)  # type: ignore[no-any-return]
        return self.note(func(equation, *self.shared(*operands)), self.product(*operands))

    def _layer(self, func: Function, x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """A layer, whose weight may depend on the input."""
        known = self.known(x)
        if active(x) and active(weight):
            known = self.product(x, weight)
            x, weight = self.shared(x, weight)
        return self.note(func(x, weight, *args, **kwargs), known)

    with_linear = with_conv1d = with_conv2d = with_conv3d = _layer

    # Recurrent layers ------------------------------------------------------------------------------

    def do_lstm(
        self, func: Function, x: Tensor, states: tuple[Tensor, Tensor], parameters: list[Tensor], bias: bool,
        layers: int, dropout: float, training: bool, bidirectional: bool, batch_first: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """One layer, step by step, of one or two directions: its gates are constants."""
        assert layers == 1 and not training and bias
        self.curved.add("lstm")
        steps = list(x.unbind(1 if batch_first else 0))
        outputs = []
        for direction in range(1 + bidirectional):
            w_x, w_h, b_x, b_h = parameters[4 * direction : 4 * direction + 4]
            h, c = states[0][direction], states[1][direction]
            order = range(len(steps))[:: -1 if direction else 1]
            found = {}
            for t in order:
                i, f, signal, o = (steps[t] @ w_x.T + b_x + h @ w_h.T + b_h).chunk(4, -1)
                i, f, o = (gate.detach().sigmoid() for gate in (i, f, o))
                c = f * c + i * self.elementwise(torch.tanh, signal)
                h = found[t] = o * self.elementwise(torch.tanh, c)
            outputs.append(torch.stack([found[t] for t in range(len(steps))], 1 if batch_first else 0))
        return torch.cat(outputs, -1), h, c

    # Norms and quotients ---------------------------------------------------------------------------

    def do_div(self, func: Function, a: Any, b: Any, **kwargs: Any) -> Tensor:
        if active(b):
            self.curved.add("div")
            return self.note(func(a, b.detach(), **kwargs), Known(gate=self.only_gates(a, b)))
        return super().do_div(func, a, b, **kwargs)

    def do_rdiv(self, func: Function, b: Tensor, a: Any) -> Tensor:
        self.curved.add("div")
        return func(b.detach(), a)  # type: ignore[no-any-return]

    def do_rsqrt(self, func: Function, x: Tensor) -> Tensor:
        self.curved.add("rsqrt")
        return func(x.detach())  # type: ignore[no-any-return]

    do_reciprocal = do_rsqrt

    def do_normalize(
        self, func: Function, x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None
    ) -> Tensor:
        self.curved.add("normalize")
        return x / x.detach().norm(p, dim, keepdim=True).clamp_min(eps)

    def do_local_response_norm(
        self, func: Function, x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
    ) -> Tensor:
        self.curved.add("local_response_norm")
        fixed = x.detach()
        return x * torch.where(fixed == 0, k**-beta, func(fixed, size, alpha, beta, k) / fixed)

    def _standardized(self, x: Tensor, dims: Sequence[int], eps: float, centred: bool = True) -> Tensor:
        self.curved.add("norm")
        if centred:
            x = x - x.mean(tuple(dims), keepdim=True)
        return x / torch.sqrt(x.detach().square().mean(tuple(dims), keepdim=True) + eps)

    @staticmethod
    def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int]) -> Tensor:
        x = x if weight is None else x * weight.reshape(tuple(shape))
        return x if bias is None else x + bias.reshape(tuple(shape))

    def do_layer_norm(
        self, func: Function, x: Tensor, shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5
    ) -> Tensor:
        return self._affine(self._standardized(x, range(-len(shape), 0), eps), weight, bias, shape)

    def do_rms_norm(
        self, func: Function, x: Tensor, shape: Sequence[int], weight: Any = None, eps: float | None = None
    ) -> Tensor:
        eps = torch.finfo(x.dtype).eps if eps is None else eps
        return self._affine(self._standardized(x, range(-len(shape), 0), eps, False), weight, None, shape)

    def do_group_norm(
        self, func: Function, x: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
    ) -> Tensor:
        flat = self._standardized(x.reshape(len(x), groups, -1), [-1], eps)
        return self._affine(flat.reshape(x.shape), weight, bias, (1, -1, *(1,) * (x.dim() - 2)))

    # Attention -------------------------------------------------------------------------------------

    def do_scaled_dot_product_attention(
        self, func: Function, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None,
        dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        self.curved.add("attention")
        if dropout_p:
            return self.stranger("attention")(func, q, k, v, attn_mask, dropout_p, is_causal)  # type: ignore[no-any-return]
        if enable_gqa:
            k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, v))
        q, k = self.halved(q, k)
        scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -math.inf)
        elif attn_mask is not None:
            scores = scores + attn_mask
        p, v = self.halved(scores.softmax(-1), v)
        return p @ v  # type: ignore[no-any-return]

    def do_multi_head_attention_forward(
        self, func: Function, query: Tensor, key: Tensor, value: Tensor, width: int, heads: int,
        in_weight: Tensor, in_bias: Tensor | None, bias_k: Any, bias_v: Any, add_zero_attn: bool, dropout_p: float,
        out_weight: Tensor, out_bias: Tensor | None, **kwargs: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """Self-attention ``[T, N, E]`` as `nn.MultiheadAttention` calls it, without masks."""
        assert bias_k is None and bias_v is None and not add_zero_attn
        assert kwargs.get("attn_mask") is None and kwargs.get("key_padding_mask") is None
        q, k, v = (
            F.linear(x, w, b)
            .unflatten(-1, (heads, width // heads))
            .permute(1, 2, 0, 3)
            for x, w, b in zip(
                (query, key, value), in_weight.chunk(3), in_bias.chunk(3) if in_bias is not None else [None] * 3,
                strict=True,
            )
        )  # fmt: skip
        out = self.do_scaled_dot_product_attention(func, q, k, v)
        return F.linear(out.permute(2, 0, 1, 3).flatten(2), out_weight, out_bias), None


class EqualSurrogate(Surrogate):
    """The same under AttnLRP: a call that multiplies N tensors of the input gives each 1/N, whatever they are made of.

    In ``z q(z)``, which is an activation and no product, ``q(z)`` is a constant. So every tensor is known by a mark,
    and by those of the tensors of which it is a function, entry by entry, or a constant multiple.
    """

    def __init__(self) -> None:
        super().__init__()
        self._marks: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = super().__torch_function__(func, types, args, kwargs)
        terms = [x for x in tensors(args) if active(x)]
        if isinstance(out, Tensor) and terms and all(x.shape == out.shape for x in terms):
            name, _ = spelling(func)
            functions = frozenset.intersection(*(self.functions(x) for x in terms))
            multiples = self.multiples(terms[0]) if len(terms) == 1 else frozenset()
            if name in ("mul", "div", "neg"):
                self._mark(out, functions, multiples)
            elif name in ("add", "sub", "rsub", "rdiv", "sigmoid", "pow", "relu", *ELEMENTWISE):
                self._mark(out, functions, frozenset())
        return out

    def _mark(self, out: Tensor, functions: Marks, multiples: Marks) -> None:
        self._marks[out] = out._version, functions, multiples

    def functions(self, x: Tensor) -> Marks:
        """Return the marks of the tensors of which one is a function, itself included."""
        version, functions, _ = self._marks.get(x, (-1, frozenset(), frozenset()))
        return (functions if version == x._version else frozenset()) | {(x.grad_fn, x.output_nr)}

    def multiples(self, x: Tensor) -> Marks:
        """Return the marks of the tensors of which one is a constant multiple, itself included."""
        version, _, multiples = self._marks.get(x, (-1, frozenset(), frozenset()))
        return (multiples if version == x._version else frozenset()) | {(x.grad_fn, x.output_nr)}

    def gates(self, *factors: Any) -> list[bool]:
        return [False] * len(factors)

    def do_mul(self, func: Function, a: Any, b: Any) -> Tensor:
        if active(a) and active(b):
            for z, q in ((a, b), (b, a)):
                if self.multiples(z) & (self.functions(q) - self.multiples(q)):
                    return self.note(func(z, q.detach()), Known())
        return super().do_mul(func, a, b)

    def shared(self, *factors: Any) -> list[Any]:
        self.curved.add("product")
        share = 1 / sum(map(active, factors))
        return [x.detach() + (x - x.detach()) * share if active(x) else x for x in factors]

    def do_glu(self, func: Function, x: Tensor, dim: int = -1) -> Tensor:
        signal, gate = x.chunk(2, dim)
        return self.do_mul(torch.mul, signal, self.do_sigmoid(torch.sigmoid, gate))
