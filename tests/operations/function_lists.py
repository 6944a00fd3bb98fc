"""The functions of torch that have no handler: those that are named when they run, and those that need none."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.operations.function_calls import SQUARE, Sample, fixed, whole

UNCOVERED: dict[str, Sample] = {}
"""One call each of what no rule covers: it is named with its place, and plain autograd carries its relevance."""


def _enter(names: str, arguments: object, shape: tuple[int, ...] = (3, 4), domain: str = "signed") -> None:
    for name in names.split():
        UNCOVERED[name] = Sample(arguments, shape, domain)  # type: ignore[arg-type]


def _definite(x: Tensor) -> Tensor:
    return x @ x.T + torch.eye(len(x), dtype=x.dtype)


_enter(
    "digamma lgamma gammaln psi airy_ai bessel_j0 bessel_j1 bessel_y0 bessel_y1 modified_bessel_i0 modified_bessel_i1 "
    "modified_bessel_k0 modified_bessel_k1 scaled_modified_bessel_k0 scaled_modified_bessel_k1 spherical_bessel_j0",
    lambda x: (x,),
    domain="positive",
)
_enter("angle", lambda x: (x,))
_enter("atan2 arctan2 nextafter", lambda x: (x, x.flip(0)))
_enter("torch.polygamma torch.special.polygamma", lambda x: (1, x), domain="positive")
_enter("torch.Tensor.polygamma torch.Tensor.polygamma_", lambda x: (x, 1), domain="positive")
_enter("mvlgamma multigammaln", lambda x: (x, 1), domain="positive")
_enter("igamma igammac gammainc gammaincc zeta", lambda x: (fixed(3, 4).abs() + 1.5, x), domain="positive")
_enter(
    "chebyshev_polynomial_t chebyshev_polynomial_u chebyshev_polynomial_v chebyshev_polynomial_w hermite_polynomial_h "
    "hermite_polynomial_he laguerre_polynomial_l legendre_polynomial_p shifted_chebyshev_polynomial_t "
    "shifted_chebyshev_polynomial_u shifted_chebyshev_polynomial_v shifted_chebyshev_polynomial_w",
    lambda x: (x, 2),
    domain="unit",
)
# Matrices that are inverted or factorised.
_enter(
    "inv inv_ex inverse pinv pinverse matrix_exp qr svd eig eigvals lu lu_factor lu_factor_ex slogdet cond tensorinv "
    "geqrf pca_lowrank svd_lowrank",
    lambda x: (x,),
    SQUARE,
)
UNCOVERED["tensorinv"] = Sample(lambda x: (x, 1), SQUARE)
_enter(
    "cholesky cholesky_ex cholesky_inverse logdet eigh ldl_factor ldl_factor_ex lobpcg",
    lambda x: (_definite(x),),
    SQUARE,
)
UNCOVERED["lobpcg"] = Sample(lambda x: (_definite(x), 1), (6, 6))
_enter("lu_unpack", lambda x: (x, whole(1, 2, 3).int()), SQUARE)
_enter("householder_product orgqr", lambda x: (x, fixed(3)), SQUARE)
# Layers by the names their kernels have, and what is not differentiable.
_enter("native_layer_norm", lambda x: (x, [4], fixed(4), fixed(4), 1e-5))
_enter("native_group_norm", lambda x: (x, fixed(4), fixed(4), 3, 4, 1, 2, 1e-5))
_enter("native_batch_norm", lambda x: (x, fixed(4), fixed(4), None, None, True, 0.1, 1e-5))
_enter("native_channel_shuffle", lambda x: (x, 2), (1, 4, 2, 2))
_enter("embedding_bag", lambda x: (x, whole(0, 2, 1, 2, 0), whole(0, 2)))
_enter("as_strided_scatter", lambda x: (x, x[:2, :2] * 2, (2, 2), (4, 1)))  # its derivative in PyTorch is wrong
_enter("ldl_solve", lambda x: (*torch.linalg.ldl_factor(fixed(3, 3) + fixed(3, 3).T), x))
_enter("unique unique_consecutive histc detach_copy", lambda x: (x,))
_enter("histogram", lambda x: (x, 3))
_enter("histogramdd", lambda x: (x, [2, 2, 2, 2]))
_enter("bernoulli poisson", lambda x: (x,), domain="unit")
_enter("multilabel_margin_loss", lambda x: (x, torch.tensor([[1, 2, -1, -1]] * 3)))
_enter(
    "ctc_loss",
    lambda x: (x.log_softmax(1).unsqueeze(1), whole(1, 2).reshape(1, 2), whole(4), whole(2)),
    (4, 5),
)
UNCOVERED["torch.ctc_loss"] = Sample(
    lambda x: (x.log_softmax(1).unsqueeze(1), whole(1, 2).reshape(1, 2), whole(4), whole(2)), (4, 5)
)
_enter("linear_cross_entropy", lambda x: (x, fixed(5, 4), whole(1, 0, 3)))

RECURRENT = {
    "gru", "gru_cell", "lstm", "lstm_cell", "rnn_relu", "rnn_relu_cell", "rnn_tanh", "rnn_tanh_cell",
}  # fmt: skip
"""Whole recurrent layers, which have tests of their own."""


def _words(names: str) -> set[str]:
    return set(names.split())


EXEMPT: dict[str, set[str]] = {
    "a property, or what is known of a tensor without its values": _words(
        "__cuda_array_interface__ _backward_hooks _base _cdata _grad _grad_fn _post_accumulate_grad_hooks _version "
        "device dtype grad grad_dtype grad_fn is_cpu is_cuda is_ipu is_leaf is_maia is_meta is_mkldnn is_mps is_mtia "
        "is_nested is_quantized is_sparse is_sparse_csr is_vulkan is_xla is_xpu itemsize layout name nbytes ndim "
        "output_nr requires_grad retains_grad shape volatile dim dim_order element_size get_device is_complex is_conj "
        "is_contiguous is_distributed is_floating_point is_inference is_neg is_pinned is_same_size is_set_to is_shared "
        "is_signed ndimension nelement numel size storage_offset storage_type _is_view __len__ "
        "_nested_tensor_size _nested_tensor_storage_offsets _nested_tensor_strides is_nonzero"
    ),
    "a comparison or a question, answered by truth values": _words(
        "all allclose any eq equal ge greater greater_equal gt isclose isfinite isin isinf isnan isneginf isposinf "
        "isreal le less less_equal logical_and logical_not logical_or logical_xor lt ne not_equal signbit __contains__ "
        "__eq__ __ge__ __gt__ __le__ __lt__ __ne__ eq_ ge_ greater_ greater_equal_ gt_ le_ less_ less_equal_ lt_ ne_ "
        "not_equal_ logical_and_ logical_not_ logical_or_ logical_xor_ bool"
    ),
    "its result, or its only argument, is made of integers": _words(
        "argmax argmin argsort argwhere bincount bucketize count_nonzero gcd gcd_ lcm lcm_ "
        "multinomial nonzero nonzero_static one_hot searchsorted unravel_index matrix_rank hash_tensor binomial "
        "bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor bitwise_and_ "
        "bitwise_left_shift_ bitwise_not_ bitwise_or_ bitwise_right_shift_ bitwise_xor_ __and__ __iand__ __ilshift__ "
        "__invert__ __ior__ __irshift__ __ixor__ __lshift__ __or__ __rand__ __rlshift__ __ror__ __rrshift__ __rshift__ "
        "__rxor__ __xor__ byte char int long short"
    ),
    "it makes a new constant, whatever the values of its argument": _words("empty_like full_like ones_like zeros_like"),
    "it overwrites everything with numbers that depend on nothing": _words(
        "bernoulli_ cauchy_ exponential_ geometric_ log_normal_ normal_ random_ uniform_ zero_"
    ),
    "it reshapes in place, as an autograd view (tested in test_in_place.py)": _words(
        "as_strided_ resize_ resize_as_ set_ squeeze_ swapaxes_ swapdims_ t_ transpose_ unsqueeze_ detach_ resize "
        "resize_as"
    ),
    "it leaves torch, or is Python's": _words(
        "__array__ __array_wrap__ __bool__ __complex__ __deepcopy__ __dlpack__ __dlpack_device__ __float__ __format__ "
        "__index__ __int__ __long__ __nonzero__ __reduce_ex__ __repr__ __setstate__ apply_ map_ map2_ item tolist "
        "index numpy data_ptr const_data_ptr storage untyped_storage module_load record_stream "
        "_clear_non_serializable_cached_data sym_float sym_int _sym_int sym_ite sym_max sym_min sym_not sym_sqrt "
        "sym_sum"
    ),
    "it is autograd's own, or takes a tensor out of the graph as the model wishes": _words(
        "backward register_hook register_post_accumulate_grad_hook retain_grad data autocast "
        "_autocast_to_full_precision _autocast_to_reduced_precision"
    ),
    "only older versions of PyTorch have it: named tensors, which nothing differentiable needs": _words(
        "names rename rename_ align_to align_as align_tensors refine_names has_names"
    ),
    "PyTorch refuses to run it with derivatives, or at all": _words("view_as_complex_copy native_norm"),
    "it acts on quantised tensors, which are refused": _words(
        "choose_qparams_optimized dequantize fbgemm_linear_fp16_weight fbgemm_linear_fp16_weight_fp32_activation "
        "fbgemm_linear_int8_weight fbgemm_linear_int8_weight_fp32_activation fbgemm_linear_quantize_weight "
        "fbgemm_pack_gemm_matrix_fp16 fbgemm_pack_quantized_matrix fused_moving_avg_obs_fake_quant int_repr "
        "q_per_channel_axis q_per_channel_scales q_per_channel_zero_points q_scale q_zero_point qscheme "
        "quantize_per_channel quantize_per_tensor quantize_per_tensor_dynamic quantized_batch_norm quantized_gru_cell "
        "quantized_lstm_cell quantized_max_pool1d quantized_max_pool2d quantized_max_pool3d quantized_rnn_relu_cell "
        "quantized_rnn_tanh_cell"
    ),
    "it acts on active sparse tensors, which are named where they are made": _words(
        "_coalesced_ _dimI _dimV _indices _nnz _sparse_mask_projection _to_dense _values ccol_indices "
        "ccol_indices_copy col_indices col_indices_copy crow_indices crow_indices_copy dense_dim indices "
        "indices_copy is_coalesced row_indices row_indices_copy resize_as_sparse_ smm hspmm sparse_dim sparse_mask "
        "sparse_resize_ sparse_resize_and_clear_ sspaddmm values values_copy"
    ),
    "it is the entry of one device's library, which no model calls by itself": _words(
        "batch_norm_backward_elemt batch_norm_backward_reduce batch_norm_elemt batch_norm_gather_stats "
        "batch_norm_gather_stats_with_counts batch_norm_stats batch_norm_update_stats miopen_batch_norm "
        "miopen_convolution miopen_convolution_add_relu miopen_convolution_relu miopen_convolution_transpose "
        "miopen_depthwise_convolution miopen_rnn to_mkldnn"
    ),
}
"""What needs no handler, by the reason."""
