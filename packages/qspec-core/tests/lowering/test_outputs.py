"""Clamps and saturation: what the kernel is told must give the integers of the graph, for every value."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from qspec_core.lowering import Bounds, Output, output_of

FLOATS = st.floats(-8, 8, allow_nan=False, width=32)


@st.composite
def bounds(draw: st.DrawFn) -> Bounds:
    low, high = sorted((draw(FLOATS), draw(FLOATS)))
    unbounded = draw(st.sampled_from(["neither", "low", "high", "both"]))
    return Bounds(-np.inf if unbounded in ("low", "both") else low, np.inf if unbounded in ("high", "both") else high)


class FakeQuantized:
    """The fields of `qspec_core.lowering.Quantized` that are read here; the real one needs a graph."""

    def __init__(self, dtype: torch.dtype, scale: float, zero_point: int, low: int, high: int) -> None:
        self.dtype, self.scale, self.zero_point, self.quant_min, self.quant_max = dtype, scale, zero_point, low, high


def kernel(x: np.ndarray, output: Output) -> np.ndarray:
    """The arithmetic of oneDNN: its clamp in float, then a quantize that saturates to the range of the dtype."""
    if output.attr == "relu":
        x = np.maximum(x, 0.0)
    if output.attr == "hardtanh":
        low, high = output.scalars
        x = np.clip(x, low, high)
    limits = torch.iinfo(output.dtype)
    return np.asarray(np.clip(np.rint(x / output.scale) + output.zero_point, limits.min, limits.max))


@given(
    st.sampled_from([torch.uint8, torch.int8]),
    bounds(),
    st.integers(-6, 1),
    st.integers(0, 255),
    st.integers(0, 254),
    st.integers(1, 255),
)
def test_kernel_gives_the_integers_of_the_graph(
    dtype: torch.dtype, clamp: Bounds, exponent: int, zero_point: int, low: int, span: int
) -> None:
    first, scale = torch.iinfo(dtype).min, 2.0**exponent
    low, high = first + low, first + min(low + span, 255)
    zero_point = min(max(first + zero_point, low), high)
    output = output_of(clamp, FakeQuantized(dtype, scale, zero_point, low, high))  # type: ignore[arg-type]  # the same fields
    x = np.linspace(-300 * scale, 300 * scale, 4801)
    expected = np.clip(np.rint(np.clip(x, clamp.low, clamp.high) / scale) + zero_point, low, high)
    np.testing.assert_array_equal(kernel(x, output), expected)


@given(bounds(), bounds())
def test_two_clamps_are_one(first: Bounds, second: Bounds) -> None:
    x = np.linspace(-10, 10, 2001)
    both = first.then(second)
    expected = np.clip(np.clip(x, first.low, first.high), second.low, second.high)
    np.testing.assert_array_equal(np.clip(x, both.low, both.high), expected)
