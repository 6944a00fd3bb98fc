"""What a figure shows, as plain arrays: sums over channels, scales, and inputs that cannot be drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from relprop.errors import InputError, InputTypeError, RelpropError
from relprop.visual import channel_sum, symmetric_scale
from relprop.visual.maps import named, picture, unit_map


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 3, 4, 5)])
def test_channel_sum_keeps_the_total(shape: tuple[int, ...]) -> None:
    relevance = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    result = channel_sum(relevance)
    assert result.shape == (4, 5)
    np.testing.assert_allclose(result.sum(), float(relevance.sum()))
    np.testing.assert_allclose(result[1, 2], float(relevance[..., 1, 2].sum()))


def test_a_map_is_returned_as_it_is() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(channel_sum(values), values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64, torch.bool])
def test_every_real_dtype_is_drawn_in_float64(dtype: torch.dtype) -> None:
    result = channel_sum(torch.ones(2, 3, 3, dtype=dtype))
    assert result.dtype == np.float64
    np.testing.assert_array_equal(result, np.full((3, 3), 2.0))


def test_relevance_that_still_has_a_graph_is_drawn_and_left_alone() -> None:
    relevance = torch.ones(1, 2, 2, requires_grad=True) * 2
    np.testing.assert_array_equal(channel_sum(relevance), np.full((2, 2), 2.0))
    assert relevance.requires_grad


@pytest.mark.parametrize(
    ("relevance", "error", "message"),
    [
        ([[1.0, 2.0]], InputTypeError, "relevance is a list; expected a torch.Tensor or numpy.ndarray"),
        (torch.ones(2, 2, dtype=torch.complex64), InputTypeError, "dtype torch.complex64; expected a real"),
        (np.array([["a"]]), InputTypeError, "dtype <U1; expected a real"),
        (torch.ones(0, 4), InputError, r"shape \(0, 4\), so it is empty"),
        (torch.tensor([[1.0, float("nan")], [float("inf"), 0.0]]), InputError, "in 2 of 4 entries"),
        (torch.ones(64), InputError, "reshape it to the picture's height and width"),
        (torch.ones(2, 3, 4, 4), InputError, r"pass one sample, as relevance\[0\]"),
        (torch.ones(1, 1, 1, 1, 1), InputError, r"expected one sample, \[C, H, W\] or \[H, W\]$"),
    ],
)
def test_what_cannot_be_drawn_says_why(relevance: object, error: type[RelpropError], message: str) -> None:
    with pytest.raises(error, match=message):
        channel_sum(relevance)  # type: ignore[arg-type]


def test_scale_is_the_largest_magnitude_of_all_maps() -> None:
    assert symmetric_scale(torch.tensor([-3.0, 1.0]), np.array([[2.0]])) == 3.0


def test_scale_by_quantile_leaves_extremes_out() -> None:
    values = torch.cat([torch.ones(99), torch.tensor([-1000.0])])
    assert symmetric_scale(values, quantile=0.9) == 1.0
    assert symmetric_scale(values) == 1000.0


def test_scale_of_a_mostly_empty_map_is_not_zero() -> None:
    values = torch.cat([torch.zeros(99), torch.tensor([-5.0])])
    assert symmetric_scale(values, quantile=0.5) == 5.0
    assert symmetric_scale(torch.zeros(3)) == 1.0


@pytest.mark.parametrize("quantile", [0.0, -0.1, 1.5, float("nan")])
def test_quantile_outside_its_range(quantile: float) -> None:
    with pytest.raises(InputError, match="expected 0 < quantile <= 1"):
        symmetric_scale(torch.ones(2), quantile=quantile)


def test_scale_of_nothing() -> None:
    with pytest.raises(InputError, match="at least one map"):
        symmetric_scale()


def test_picture_stretches_what_is_not_in_the_unit_interval() -> None:
    image = picture(np.array([[-1.0, 1.0], [0.0, 3.0]]))
    np.testing.assert_allclose(image, [[0.0, 0.5], [0.25, 1.0]])
    np.testing.assert_array_equal(picture(np.full((2, 2), 7.0)), np.zeros((2, 2)))


def test_picture_leaves_the_unit_interval_as_it_is() -> None:
    image = np.array([[0.2, 0.6]])
    np.testing.assert_array_equal(picture(image), image)


def test_picture_shows_three_channels_as_colours_and_others_as_their_mean() -> None:
    colours = np.arange(12.0).reshape(3, 2, 2) / 12
    np.testing.assert_array_equal(picture(colours)[1, 0], colours[:, 1, 0])
    np.testing.assert_allclose(picture(colours[:2]), colours[:2].mean(axis=0))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((), (1, 1)),
        ((7,), (1, 7)),
        ((10,), (2, 5)),
        ((100,), (10, 10)),
        ((4, 9), (4, 9)),
        ((5, 4, 9), (4, 9)),
        ((2, 5, 4, 9), (4, 9)),
    ],
)
def test_units_without_a_place_are_folded_and_others_summed(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    sample = np.arange(np.prod(shape, dtype=int), dtype=np.float64).reshape(shape)
    result = unit_map(sample)
    assert result.shape == expected
    assert result.sum() == sample.sum()


def test_a_module_used_twice_becomes_two_entries() -> None:
    first, second = torch.zeros(1), torch.ones(1)
    assert list(named({"a": (first, second), "b": first}, "x")) == ["a (call 1)", "a (call 2)", "b"]


def test_names_without_a_mapping_or_without_entries() -> None:
    with pytest.raises(InputTypeError, match="x is a list; expected a mapping"):
        named([torch.ones(1)], "x")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="x is empty"):
        named({}, "x")
