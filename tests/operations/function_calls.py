"""One call of every function that relprop covers: the arguments it is given, made from an explained `x`.

The names are those of the table of operations, or of the function itself where a namespace spells it differently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.unrolled import DTYPE, random

Arguments = Callable[[Tensor], tuple[Any, ...]]


@dataclass(frozen=True)
class Sample:
    """What a function is given: its positional arguments, with a dict at the end for keywords."""

    arguments: Arguments
    shape: tuple[int, ...] = (3, 4)
    domain: str = "signed"

    def input(self) -> Tensor:
        """A batch of one sample, [1, ...]."""
        x = random(1, *self.shape, seed=3)
        if self.domain == "positive":
            return x.abs() + 0.2
        if self.domain == "unit":
            return torch.sigmoid(x) * 0.9
        if self.domain == "above one":
            return x.abs() + 1.1
        return x

    def given(self, x: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments and the keywords for one sample `x`."""
        found = self.arguments(x)
        return (found[:-1], found[-1]) if found and isinstance(found[-1], dict) else (found, {})


def fixed(*shape: int, seed: int = 11) -> Tensor:
    """A constant of both signs."""
    return random(*shape, seed=seed)


def whole(*values: int) -> Tensor:
    return torch.tensor(values)


SAMPLES: dict[str, Sample] = {}


def enter(names: str, arguments: Arguments, shape: tuple[int, ...] = (3, 4), domain: str = "signed") -> None:
    for name in names.split():
        assert name not in SAMPLES, name
        SAMPLES[name] = Sample(arguments, shape, domain)


IMAGE = (1, 2, 4, 4)
SQUARE = (3, 3)

# Elementwise functions ------------------------------------------------------------------------------

enter(
    "gelu silu mish hardswish elu celu selu softplus logsigmoid log_sigmoid softsign tanhshrink softshrink hardshrink "
    "hardtanh relu6 tanh sinh cosh sin cos tan atan arctan asinh arcsinh sinc exp exp2 expm1 erf erfc erfcx ndtr "
    "log_ndtr i0 i0e i1 i1e square sigmoid hardsigmoid relu leaky_relu abs absolute sign sgn round floor ceil trunc "
    "fix frac deg2rad rad2deg neg positive nan_to_num",
    lambda x: (x,),
)
enter("asin arcsin acos arccos atanh arctanh erfinv", lambda x: (x,), domain="unit")
enter("log1p sqrt entr log log2 log10 rsqrt reciprocal", lambda x: (x,), domain="positive")
enter("acosh arccosh", lambda x: (x,), domain="above one")
enter("logit ndtri", lambda x: (x,), domain="unit")
enter("rrelu", lambda x: (x, 0.1, 0.3, False))
enter("prelu", lambda x: (x, fixed(4)))
enter("clamp clip", lambda x: (x, -fixed(3, 4).abs(), x.flip(1) + 0.1))
enter("clamp_min clamp_max", lambda x: (x, -0.2))
enter("threshold", lambda x: (x, 0.1, 0.7))
enter("pow float_power", lambda x: (x, fixed(3, 4)), domain="positive")
enter("torch.Tensor.__rpow__", lambda x: (x, 2.5))
enter("fmod remainder heaviside floor_divide", lambda x: (x, fixed(3, 4).abs() + 0.3))
enter("torch.Tensor.__rmod__ torch.Tensor.__rfloordiv__ torch.Tensor.__rdiv__", lambda x: (x, 2.5))
enter("fake_quantize_per_tensor_affine", lambda x: (x.float(), 0.1, 0, -128, 127))
enter(
    "fake_quantize_per_channel_affine",
    lambda x: (x.float(), torch.full((3,), 0.1), torch.zeros(3, dtype=torch.int32), 0, -128, 127),
)

# Products, norms and softmax -------------------------------------------------------------------------

enter("mul div maximum minimum fmax fmin add sub rsub", lambda x: (x, x.flip(0) + 3 * fixed(3, 4)))
enter("hypot dist logaddexp logaddexp2 xlogy xlog1py", lambda x: (x, (x.flip(0) + fixed(3, 4)).abs()))
enter("ldexp", lambda x: (x, fixed(3, 4)))
enter("copysign", lambda x: (x, fixed(3, 4)))
enter("cross", lambda x: (x, x.flip(1)), (2, 3))
enter("matmul", lambda x: (x, x.T + fixed(4, 3)))
enter("torch.mv torch.Tensor.mv", lambda x: (x, x[0] + fixed(4)))
enter("torch.bmm torch.Tensor.bmm", lambda x: (x, x.mT), (2, 3, 4))
enter("torch.dot torch.Tensor.dot vdot outer ger", lambda x: (x, x.flip(0)), (4,))
enter("torch.Tensor.__rmatmul__", lambda x: (x, fixed(2, 3)))
enter("torch.sparse.mm", lambda x: (fixed(5, 3).relu().to_sparse(), x))
enter("inner vecdot kron", lambda x: (x, x.flip(0) + fixed(3, 4)))
enter("tensordot", lambda x: (x, x.T + fixed(4, 3), 1))
enter("addmm", lambda x: (x, x, fixed(4, 4), {"beta": 0.5, "alpha": 2.0}))
enter("torch.sparse.addmm", lambda x: (x, fixed(3, 3).relu().to_sparse(), x, {"beta": 0.5, "alpha": 2.0}))
enter("addmv", lambda x: (x[:, 0], x, x[0], {"beta": 0.5, "alpha": 2.0}))
enter("addr", lambda x: (x, x[:, 0], x[0], {"beta": 0.5, "alpha": 2.0}))
enter("baddbmm", lambda x: (x[:, :, :3], x, x.mT, {"beta": 0.5, "alpha": 2.0}), (2, 3, 4))
enter("addbmm", lambda x: (x[0, :, :3], x, x.mT, {"beta": 0.5, "alpha": 2.0}), (2, 3, 4))
enter("addcmul addcdiv", lambda x: (x, x.flip(0), fixed(3, 4).abs() + x.abs(), {"value": 0.7}))
enter("lerp", lambda x: (x, x.flip(0), torch.sigmoid(x.roll(1, 1))))
enter("einsum", lambda x: ("ij,kj,kj->ik", x, x, fixed(3, 4)))
enter("bilinear", lambda x: (x, x[:, :2], fixed(5, 4, 2), fixed(5)))
enter("multi_dot", lambda x: ([x, x.T, fixed(3, 2)],))
enter("chain_matmul", lambda x: (x, x.T, fixed(3, 2)))
enter("prod", lambda x: (x, 1))
enter("cumprod cumsum logcumsumexp cummax cummin", lambda x: (x, 1))
enter("det", lambda x: (x,), SQUARE)
enter("matrix_power", lambda x: (x, 3), SQUARE)
enter("var std var_mean std_mean", lambda x: (x, 1))
enter("cov corrcoef vander", lambda x: (x,), (3, 4))
SAMPLES["vander"] = Sample(lambda x: (x,), (4,))
enter("layer_norm", lambda x: (x, [4], fixed(4), fixed(4)))
enter("rms_norm", lambda x: (x, [4], fixed(4)))
enter("group_norm", lambda x: (x, 2, fixed(4), fixed(4)))
enter("batch_norm", lambda x: (x, fixed(4), fixed(4).abs(), fixed(4), fixed(4)))
enter("torch.batch_norm", lambda x: (x, fixed(4), fixed(4), fixed(4), fixed(4).abs(), False, 0.1, 1e-5, False))
enter("instance_norm", lambda x: (x, None, None, fixed(2), fixed(2)), IMAGE)
enter("torch.instance_norm", lambda x: (x, fixed(2), fixed(2), None, None, True, 0.1, 1e-5, False), IMAGE)
enter("softmax log_softmax softmin", lambda x: (x, 1))
enter("logsumexp", lambda x: (x, 1))
enter("scaled_dot_product_attention", lambda x: (x, x.flip(1), x + 1), (1, 2, 3, 4))
enter("normalize", lambda x: (x, 2.0, 1))
enter("local_response_norm", lambda x: (x, 2), IMAGE)
enter("cosine_similarity pairwise_distance", lambda x: (x, x.flip(0) + fixed(3, 4)))
enter("cdist", lambda x: (x, x[:2] + fixed(2, 4)))
enter("pdist", lambda x: (x,))
enter("renorm", lambda x: (x, 2, 0, 1.0))
enter("norm vector_norm nuclear_norm frobenius_norm matrix_norm svdvals norm_except_dim", lambda x: (x,))
SAMPLES["norm_except_dim"] = Sample(lambda x: (x, 2, 0))
SAMPLES["torch.frobenius_norm"] = Sample(lambda x: (x, [0, 1]))
enter("eigvalsh", lambda x: (x + x.T,), SQUARE)
enter("glu", lambda x: (x,))
enter(
    "multi_head_attention_forward",
    lambda x: (x, x, x, 4, 2, fixed(12, 4), fixed(12), None, None, False, 0.0, fixed(4, 4), fixed(4)),
    (3, 1, 4),
)

# Linear maps with parameters ---------------------------------------------------------------------------

for d in (1, 2, 3):
    enter(f"conv{d}d", lambda x, d=d: (x, fixed(3, 2, *[2] * d), fixed(3)), (1, 2, *[3] * d))  # type: ignore[misc]
    enter(f"conv_transpose{d}d", lambda x, d=d: (x, fixed(2, 3, *[2] * d), fixed(3)), (1, 2, *[3] * d))  # type: ignore[misc]
    enter(f"max_pool{d}d avg_pool{d}d max_pool{d}d_with_indices", lambda x: (x, 2), (1, 2, *[4] * d))
    enter(f"lp_pool{d}d", lambda x: (x, 2.0, 2), (1, 2, *[4] * d), "positive")
    enter(
        f"adaptive_max_pool{d}d adaptive_avg_pool{d}d adaptive_max_pool{d}d_with_indices",
        lambda x: (x, 2),
        (1, 2, *[4] * d),
    )
    enter(f"max_unpool{d}d", lambda x, d=d: (x, torch.arange(8).reshape(1, 2, 4) % 8, 2), (1, 2, 4))  # type: ignore[misc]
    enter(f"dropout{d}d", lambda x: (x, 0.5, False), (1, 2, *[3] * d))
SAMPLES["max_unpool2d"] = Sample(lambda x: (x, whole(0, 3, 9, 15).reshape(1, 1, 2, 2), 2), (1, 1, 2, 2))
SAMPLES["max_unpool3d"] = Sample(
    lambda x: (x, whole(0, 9, 30, 60, 1, 5, 7, 8).reshape(1, 1, 2, 2, 2), 2), (1, 1, 2, 2, 2)
)
enter("linear", lambda x: (x, fixed(2, 4), fixed(2)))
enter("convolution", lambda x: (x, fixed(3, 2, 2, 2), fixed(3), [1, 1], [0, 0], [1, 1], False, [0, 0], 1), IMAGE)
enter("conv_tbc", lambda x: (x, fixed(2, 2, 3), fixed(3), 1), (4, 1, 2))
enter("embedding", lambda x: (whole(0, 2, 1, 2), x))
enter("torch.embedding", lambda x: (x, whole(0, 2, 1, 2)))
enter("embedding_bag", lambda x: (whole(0, 2, 1, 2, 0), x, whole(0, 2), {"mode": "mean"}))

# Sums, choices and places ------------------------------------------------------------------------------

enter("sum nansum mean nanmean amax amin aminmax max min median nanmedian kthvalue mode trace", lambda x: (x,))
SAMPLES["kthvalue"] = Sample(lambda x: (x, 2))
SAMPLES["aminmax"] = Sample(lambda x: (x, {"dim": 1}))
enter("quantile nanquantile", lambda x: (x, 0.4, 1))
enter("sum_to_size", lambda x: (x, 1, 4))
enter("fold", lambda x: (x, (3, 3), 2), (1, 4, 4))
enter("torch.nn.functional.unfold", lambda x: (x, 2), IMAGE)
enter("index_add", lambda x: (fixed(4, 4), 0, whole(0, 2, 0), x))
enter("index_copy", lambda x: (fixed(4, 4), 0, whole(0, 2, 1), x))
enter("index_fill", lambda x: (x, 0, whole(0, 2), 0.5))
enter("index_reduce", lambda x: (fixed(4, 4), 0, whole(0, 2, 0), x, "amax"))
enter("index_put", lambda x: (x, (whole(0, 2), whole(1, 1)), x[0, :2], True))
enter("put", lambda x: (x, whole(0, 5), x[0, :2] * 2))
enter("scatter scatter_add", lambda x: (x, 1, whole(1, 0, 3).reshape(3, 1), x[:, :1] * 2))
enter("scatter_reduce", lambda x: (x, 1, whole(1, 0, 3, 3, 2, 1).reshape(3, 2), x[:, 1:3] * 2, "mean"))
enter("masked_scatter", lambda x: (fixed(3, 4), fixed(3, 4, seed=2) > 0, x))
enter("masked_fill", lambda x: (x, fixed(3, 4) > 0, 0.5))
enter("masked_select", lambda x: (x, fixed(3, 4) > 0))
enter("select_scatter", lambda x: (x, x[0] * 2, 0, 1))
enter("slice_scatter", lambda x: (x, x[:2] * 2, 0, 1))
enter("diagonal_scatter", lambda x: (x, x[0, :3] * 2))
enter("fill_diagonal", lambda x: (x, 0.5))
enter("copy", lambda x: (x, x[0] * 2))
enter("fill", lambda x: (fixed(3, 4), x[0, 0]))
enter("segment_reduce", lambda x: (x, "mean", {"lengths": whole(1, 2)}))
enter("where", lambda x: (fixed(3, 4) > 0, x, 2 * x.flip(0)))
SAMPLES["torch.Tensor.where"] = Sample(lambda x: (x, fixed(3, 4) > 0, 2 * x.flip(0)))
enter("grid_sample", lambda x: (x, fixed(1, 3, 3, 2).clamp(-0.9, 0.9), {"align_corners": False}), IMAGE)
enter("grid_sampler grid_sampler_2d", lambda x: (x, fixed(1, 3, 3, 2).clamp(-0.9, 0.9), 0, 0, False), IMAGE)
enter("grid_sampler_3d", lambda x: (x, fixed(1, 2, 2, 2, 3).clamp(-0.9, 0.9), 0, 0, False), (1, 2, 3, 3, 3))
enter("affine_grid", lambda x: (x, [1, 2, 3, 3], {"align_corners": False}), (1, 2, 3))
enter("affine_grid_generator", lambda x: (x, [1, 2, 3, 3], False), (1, 2, 3))
enter("polar", lambda x: (x, fixed(3, 4)), domain="positive")
enter("frexp", lambda x: (x,))
enter("complex", lambda x: (x, x.flip(0)))
enter("cholesky_solve", lambda x: (x, fixed(3, 3).abs() + 2 * torch.eye(3, dtype=DTYPE)))
enter("torch.linalg.solve torch.linalg.solve_ex torch.linalg.lstsq", lambda x: (fixed(3, 3), x))
enter("torch.linalg.solve_triangular", lambda x: (fixed(3, 3).triu(), x, {"upper": True}))
enter("torch.triangular_solve torch.Tensor.triangular_solve", lambda x: (x, fixed(3, 3).triu()))
enter("torch.linalg.tensorsolve", lambda x: (fixed(3, 4, 12), x))
enter("torch.lu_solve torch.Tensor.lu_solve", lambda x: (x, *torch.linalg.lu_factor(fixed(3, 3))))
enter("torch.linalg.lu_solve", lambda x: (*torch.linalg.lu_factor(fixed(3, 3)), x))
enter("ormqr", lambda x: (*torch.geqrf(fixed(3, 3)), x))
enter("interpolate upsample upsample_nearest upsample_bilinear", lambda x: (x, None, 2), IMAGE)
enter("pad", lambda x: (x, (1, 2)))
enter("constant_pad_nd", lambda x: (x, (1, 2), 0.5))
enter("cat concat concatenate stack hstack vstack dstack row_stack column_stack block_diag", lambda x: ([x, 2 * x],))
SAMPLES["block_diag"] = Sample(lambda x: (x, 2 * x, fixed(2, 2)))
enter("diff", lambda x: (x,))
enter("gradient", lambda x: (x,))
enter("nll_loss nll_loss_nd", lambda x: (x, whole(1, 0, 3), fixed(4).abs()))
SAMPLES["torch.nll_loss_nd"] = Sample(lambda x: (x, whole(1, 0, 3), None, 1, -100))
enter("meshgrid", lambda x: (x, 2 * x), (4,))
enter("cartesian_prod", lambda x: (x, 2 * x), (4,))
enter("combinations", lambda x: (x,), (4,))
enter("broadcast_tensors", lambda x: (x, fixed(2, 3, 4)))
enter("trapezoid trapz cumulative_trapezoid", lambda x: (x, x.cumsum(1)))
enter("fractional_max_pool2d fractional_max_pool2d_with_indices", lambda x: (x, 2, 2), IMAGE)
enter("fractional_max_pool3d fractional_max_pool3d_with_indices", lambda x: (x, 2, 2), (1, 2, 4, 4, 4))
enter("alpha_dropout feature_alpha_dropout", lambda x: (x, 0.5, True))
enter("fft ifft rfft hfft fft2 ifft2 rfft2 hfft2 fftn ifftn rfftn hfftn fftshift ifftshift", lambda x: (x,))
enter("irfft irfft2 irfftn ihfft ihfft2 ihfftn", lambda x: (x,), (3, 5))
enter("stft", lambda x: (x, 4, {"return_complex": True, "window": fixed(4).abs()}), (12,))
enter("istft", lambda x: (torch.complex(x, x.flip(0)), 4), (3, 6))

# Views and copies ----------------------------------------------------------------------------------------

enter(
    "ravel squeeze t adjoint contiguous clone double cfloat cdouble type_as fliplr flipud rot90 diagonal diag diagflat "
    "diag_embed tril triu atleast_1d atleast_2d atleast_3d conj conj_physical resolve_conj resolve_neg cpu "
    "requires_grad_ share_memory_ T mT H mH real to_dense pin_memory sort alias_copy t_copy squeeze_copy diagonal_copy "
    "__reversed__ __iter__ unbind unbind_copy imag view_as_real view_as_real_copy float half bfloat16 cuda chalf "
    "detach xpu ipu mtia as_tensor asarray",
    lambda x: (x,),
)
SAMPLES["type_as"] = Sample(lambda x: (x, fixed(2)))
SAMPLES["diagonal_copy"] = Sample(lambda x: (x,))
for name in ("imag", "view_as_real", "view_as_real_copy"):
    SAMPLES[name] = Sample(lambda x: (x * 1j * torch.exp(1j * fixed(3, 4)),))
enter("view_as_complex", lambda x: (x,), (3, 2))
enter("view reshape view_copy", lambda x: (x, (4, 3)))
enter("view_as reshape_as", lambda x: (x, fixed(4, 3)))
enter("expand_as", lambda x: (x, fixed(2, 3, 4)))
enter("expand broadcast_to expand_copy", lambda x: (x, (2, 3, 4)))
enter("flatten", lambda x: (x, 0))
enter("unflatten", lambda x: (x, 1, (2, 2)))
enter("unsqueeze unsqueeze_copy", lambda x: (x, 1))
enter("transpose swapaxes swapdims movedim moveaxis transpose_copy", lambda x: (x, 0, 1))
enter("permute permute_copy", lambda x: (x, (1, 0)))
enter("to type", lambda x: (x, torch.float64))
enter("repeat tile", lambda x: (x, (2, 1)))
enter("repeat_interleave", lambda x: (x, 2, 1))
enter("roll", lambda x: (x, 1, 1))
enter("flip", lambda x: (x, (0, 1)))
enter("narrow narrow_copy", lambda x: (x, 1, 1, 2))
enter("select select_copy", lambda x: (x, 1, 2))
enter("slice_copy", lambda x: (x, 1, 1, 3))
enter("slice_inverse", lambda x: (x, fixed(3, 4), 1, 0, 4))
enter("index_select", lambda x: (x, 1, whole(0, 2, 2)))
enter("gather take_along_dim", lambda x: (x, 1, whole(0, 2, 2).reshape(3, 1)))
SAMPLES["take_along_dim"] = Sample(lambda x: (x, whole(0, 2, 2).reshape(3, 1), 1))
enter("take", lambda x: (x, whole(0, 5, 5)))
enter("unfold unfold_copy", lambda x: (x, 1, 2, 1))
enter("topk", lambda x: (x, 2))
enter("msort", lambda x: (x,))
enter("__setitem__", lambda x: (x, (slice(None), 1), x[:, 0] * 2))
enter("__getitem__", lambda x: (x, (slice(None), [0, 2, 2])))
enter("pixel_shuffle", lambda x: (x, 2), (1, 4, 2, 2))
enter("pixel_unshuffle", lambda x: (x, 2), (1, 1, 4, 4))
enter("channel_shuffle", lambda x: (x, 2), (1, 4, 2, 2))
enter("as_strided as_strided_copy", lambda x: (x, (2, 2), (4, 1)))
enter("chunk unsafe_chunk tensor_split hsplit", lambda x: (x, 2, {}), (4, 4))
SAMPLES["hsplit"] = Sample(lambda x: (x, 2))
enter("vsplit", lambda x: (x, 2), (4, 4))
enter("dsplit", lambda x: (x, 2), (2, 2, 4))
enter("split unsafe_split split_copy", lambda x: (x, 2, 1))
enter("split_with_sizes split_with_sizes_copy unsafe_split_with_sizes", lambda x: (x, [1, 3], 1))
enter("dropout feature_dropout native_dropout", lambda x: (x, 0.5, False))

# Loss functions -------------------------------------------------------------------------------------------

enter("mse_loss l1_loss huber_loss smooth_l1_loss", lambda x: (x, fixed(3, 4)))
enter("soft_margin_loss hinge_embedding_loss", lambda x: (x, fixed(3, 4).sign()))
enter("binary_cross_entropy", lambda x: (x, torch.sigmoid(fixed(3, 4))), domain="unit")
enter("binary_cross_entropy_with_logits", lambda x: (x, torch.sigmoid(fixed(3, 4))))
enter("cross_entropy", lambda x: (x, whole(1, 0, 3), fixed(4).abs(), {"label_smoothing": 0.1}))
enter("kl_div", lambda x: (F.log_softmax(x, 1), torch.softmax(fixed(3, 4), 1)))
enter("poisson_nll_loss", lambda x: (x, fixed(3, 4).abs() + 1, True, True, 1e-8, 1), domain="positive")
SAMPLES["torch.nn.functional.poisson_nll_loss"] = Sample(lambda x: (x, fixed(3, 4).abs() + 1, False), domain="positive")
enter("gaussian_nll_loss", lambda x: (x, fixed(3, 4), x.square() + 0.1))
enter("margin_ranking_loss", lambda x: (x, x.flip(0), fixed(3, 4).sign()))
enter("cosine_embedding_loss", lambda x: (x, x.flip(0) + fixed(3, 4), whole(1, -1, 1)))
enter("triplet_margin_loss triplet_margin_with_distance_loss", lambda x: (x, x.flip(0), x.roll(1, 1)))
enter("multi_margin_loss", lambda x: (x, whole(1, 0, 3), 2))
enter("multilabel_soft_margin_loss", lambda x: (x, (fixed(3, 4) > 0).double()))
enter("gumbel_softmax", lambda x: (x,))
