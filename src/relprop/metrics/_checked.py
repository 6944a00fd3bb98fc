"""What metrics that run more than one model, or the model at other inputs, ask of what they are given."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from relprop.arguments import nonnegative_number
from relprop.errors import InputTypeError, ModelError
from relprop.metrics._explain import checked_explain


def must_explain(explain: Any, metric: str, what: str) -> None:
    """Refuse relevance that is there already where a metric explains something else, too.

    Raises:
        InputTypeError: ``explain`` is such relevance, or no explainer.
    """
    if isinstance(checked_explain(explain, f"{metric} explains {what}, and explain", instead=""), Tensor):
        raise InputTypeError(
            f"{metric} explains {what}, and explain is relevance that is there already, which cannot; expected a "
            "callable explain(model, x, target) -> relevance"
        )


def copied(model: nn.Module, what: str) -> nn.Module:
    """Return a deep copy.

    Raises:
        ModelError: no module, or one that cannot be copied.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"{what} works on a copy of an nn.Module; the model is a {type(model).__name__}")
    try:
        return copy.deepcopy(model)
    except Exception as error:
        cause = next(
            (
                f"module {name!r} ({type(module).__name__}) holds {key!r}, a tensor with a gradient graph, as "
                "torch.nn.utils.weight_norm makes one: take it off by torch.nn.utils.remove_weight_norm, or use "
                "torch.nn.utils.parametrizations.weight_norm"
                for name, module in model.named_modules()
                for key, value in vars(module).items()
                if isinstance(value, Tensor) and not value.is_leaf
            ),
            "give it what copy.deepcopy needs, such as __deepcopy__",
        )
        raise ModelError(
            f"{what} works on a copy, and {type(model).__name__} cannot be copied ({error}): {cause}"
        ) from (error)


def tensor_output(model: nn.Module, outputs: Any, metric: str) -> Tensor:
    """Return what the model returned, a tensor.

    Raises:
        ModelError: something else, such as a tuple.
    """
    if not isinstance(outputs, Tensor):
        raise ModelError(
            f"{metric} compares outputs, and {type(model).__name__} returned a {type(outputs).__name__}; expected a "
            "tensor: wrap the model in a module that returns the one to compare"
        )
    return outputs


def allowed(tolerance: float | None, least: float, *dtypes: torch.dtype) -> float:
    """Return a relative tolerance: what is given, or ``least``, and no less than half the digits of a dtype.

    Half the digits, the square root of epsilon: 1.5e-8 for float64, 3.5e-4 for float32, 0.03 for float16, 0.09 for
    bfloat16; of several dtypes, the coarsest.

    Raises:
        InputError: a tolerance that is negative or no finite number.
    """
    if tolerance is not None:
        return nonnegative_number("tolerance", tolerance)
    digits = [math.sqrt(torch.finfo(dtype).eps) for dtype in dtypes if dtype.is_floating_point]
    return max(least, *digits)


def in_precision(dtype: torch.dtype) -> str:
    """Return what to say where models of a low precision differ: it may be rounding."""
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return ""
    return f"; in {dtype} that may be rounding: pass a larger tolerance, or model.double() and x.double()"


def must_be_numbers(x: Tensor, what: str) -> None:
    """Refuse indices, such as token ids, where numbers in between must mean something.

    Raises:
        InputTypeError: x is of integers or booleans.
    """
    if not x.is_floating_point():
        raise InputTypeError(
            f"x has dtype {x.dtype}: {what}, which means nothing for indices, as token ids are; expected floating "
            "numbers: explain the model behind its embedding"
        )
