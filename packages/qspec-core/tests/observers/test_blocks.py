"""Converted forms of blocks against a NumPy loop over the blocks."""

import itertools

import numpy as np
import pytest
import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from qspec_core import SpecError, ops
from qspec_core._torch import OpOverload
from qspec_core.observers._blocks import adds_zero_point_before_rounding, block_form, block_grid, is_tensor_wide
from qspec_core.observers._form import ConvertedForm, Step

Shape = tuple[int, ...]
LIMITS = (-128, 127, torch.int8)
TENSOR, CHANNEL, GROUP, TOKEN = (
    ops.QUANTIZE,
    ops.QUANTIZE_PER_CHANNEL,
    ops.QUANTIZE_PER_GROUP,
    ops.QUANTIZE_PER_TOKEN,
)
CASES: list[tuple[Shape, Shape, bool, OpOverload]] = [
    ((4, 6), (4, 6), False, TENSOR),
    ((6,), (6,), False, TENSOR),
    ((2, 4, 6), (1, 4, 6), False, CHANNEL),
    ((2, 4, 6), (2, 1, 6), False, CHANNEL),
    ((2, 4, 6), (2, 4, 1), False, CHANNEL),
    ((4, 6), (1, 6), False, CHANNEL),
    ((4, 1), (1, 1), False, CHANNEL),
    ((6,), (1,), False, CHANNEL),
    ((4, 6), (1, 2), False, GROUP),
    ((4, 8), (1, 4), False, GROUP),
    ((1, 6), (1, 3), False, GROUP),
    ((4, 6), (1, 2), True, GROUP),
    ((2, 4, 6), (1, 1, 6), False, TOKEN),
    ((2, 4, 6), (1, 1, 6), True, TOKEN),
    ((4, 6), (1, 6), True, TOKEN),
    ((1, 6), (1, 6), True, TOKEN),
    ((6,), (6,), True, TOKEN),
    ((4, 6), (1, 1), False, TOKEN),
    ((4, 6), (2, 3), False, TOKEN),
    ((4, 6), (2, 6), False, TOKEN),
    ((4, 6), (4, 2), False, TOKEN),
    ((6,), (2,), False, TOKEN),
    ((2, 4, 6), (1, 1, 3), False, TOKEN),
    ((2, 4, 6), (1, 2, 3), False, TOKEN),
    ((2, 4, 6), (2, 2, 1), False, TOKEN),
    ((2, 3, 4, 5), (1, 3, 2, 5), False, TOKEN),
]


def blocks(shape: Shape, block: Shape) -> list[tuple[slice, ...]]:
    """The blocks of a tensor in row-major order."""
    corners = itertools.product(*(range(0, size, part) for size, part in zip(shape, block, strict=True)))
    return [tuple(slice(i, i + part) for i, part in zip(corner, block, strict=True)) for corner in corners]


def applied(steps: tuple[Step, ...], tensor: torch.Tensor) -> torch.Tensor:
    for step in steps:
        tensor = step(tensor)
    return tensor


@pytest.mark.parametrize(("shape", "block", "is_token", "operator"), CASES, ids=str)
def test_each_block_has_its_own_parameters(shape: Shape, block: Shape, is_token: bool, operator: OpOverload) -> None:
    places = blocks(shape, block)
    x = torch.randn(shape) * 30
    scale, zero_point = torch.rand(len(places)) + 0.5, torch.randint(-9, 9, (len(places),))
    whole = len(places) == 1 and operator is TENSOR
    qparams = (scale.reshape(()), zero_point.reshape(())) if whole else (scale, zero_point)
    form = block_form(shape, block, LIMITS, qparams, None, is_token=is_token)
    assert form.quantize is operator
    assert adds_zero_point_before_rounding(form) == (operator in (GROUP, TOKEN))
    expected, real = np.zeros(shape), np.zeros(shape)
    for place, step, zero in zip(places, scale.numpy(), zero_point.numpy(), strict=True):
        expected[place] = np.clip(np.rint(x.numpy()[place] / step) + zero, -128, 127)
        real[place] = (expected[place] - zero) * step
    integers = form.integers(x)
    assert integers.dtype == torch.int8
    arguments = (form.scale, form.zero_point, *form.limits, *form.last)
    found = applied(form.after, form.dequantize(integers, *arguments))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), real, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(applied(form.after, integers).numpy(), expected)
    assert (form.output_dtype is None) == (operator in (TENSOR, CHANNEL))


@pytest.mark.parametrize(
    ("shape", "block", "grid"),
    [
        ((2, 4, 6), (1, 2, 6), (2, 2)),
        ((2, 4, 6), (2, 4, 6), ()),
        ((1, 6), (1, 6), (1,)),
        ((1, 6), (1, 2), (1, 3)),
        ((4, 6), (1, 6), (4,)),
    ],
)
def test_grids_leave_out_dimensions_that_one_block_spans(shape: Shape, block: Shape, grid: Shape) -> None:
    assert block_grid(shape, block) == grid
    assert is_tensor_wide(shape, block) == (shape == block)


def sizes(number: int) -> list[torch.SymInt]:
    """Sizes that are not known before the model runs."""
    env = ShapeEnv()
    return [env.create_unbacked_symint() for _ in range(number)]


def test_a_symbolic_size_is_whole_only_where_the_block_is_the_same() -> None:
    first, second = sizes(2)
    assert is_tensor_wide((first, 6), (first, 6))
    assert not is_tensor_wide((first, 6), (1, 6))
    assert not is_tensor_wide((6, first), (6, second))
    assert not is_tensor_wide((6,), (first,))


def choose(form: ConvertedForm, x: torch.Tensor) -> torch.Tensor:
    """Quantize and dequantize with parameters found at run time."""
    assert form.choose is not None
    split = applied(form.before, x)
    scale, zero_point = form.choose(split)
    integers = form.quantize(split, scale, zero_point, *form.limits)
    return applied(form.after, form.dequantize(integers, scale, zero_point, *form.limits, *form.last))


@pytest.mark.parametrize(("shape", "block"), [((5, 6), (1, 6)), ((5, 6), (1, 3)), ((5, 4, 6), (1, 2, 6))])
def test_one_symbolic_size_cut_into_single_elements(shape: Shape, block: Shape) -> None:
    """The form does not know the first size; it is called with a size of five."""
    rows = sizes(1)[0]
    step = Step(ops.CHOOSE_QPARAMS_PER_TOKEN, (torch.int8,))
    form = block_form((rows, *shape[1:]), block, LIMITS, None, step, is_token=False)
    assert form.quantize is TOKEN
    x = torch.randn(shape)
    found = choose(form, x).numpy()
    for place in blocks(shape, block):
        largest = np.abs(x.numpy()[place]).max()
        assert np.abs(found[place] - x.numpy()[place]).max() <= largest / 127.5 * 0.51 + 1e-6


def test_symbolic_sizes_that_cannot_be_divided_are_refused() -> None:
    first, second = sizes(2)
    for shape, block in (((first, second, 6), (1, 1, 3)), ((first, 6), (2, 3)), ((6, first), (2, first))):
        with pytest.raises(SpecError, match="not known"):
            block_form(shape, block, LIMITS, None, Step(ops.CHOOSE_QPARAMS_PER_TOKEN, (torch.int8,)), is_token=False)


def test_one_block_finds_its_parameters_at_run_time() -> None:
    step = Step(ops.CHOOSE_QPARAMS, (-128, 127, 1e-6, torch.int8))
    form = block_form((4, 6), (4, 6), LIMITS, None, step, is_token=False)
    assert (form.quantize, form.dequantize) == (ops.QUANTIZE_DYNAMIC, ops.DEQUANTIZE_DYNAMIC)
    assert (form.choose, form.before, form.after) == (step, (), ())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_float_zero_points_are_added_before_rounding(axis: int) -> None:
    shape, channels = (3, 4, 5), (3, 4, 5)[axis]
    x = torch.randn(shape)
    scale, zero_point = torch.rand(channels) * 0.05 + 0.01, torch.rand(channels) * 100
    limits = (axis, 0, 255, torch.uint8)
    form = ConvertedForm(CHANNEL, ops.DEQUANTIZE_PER_CHANNEL, torch.uint8, limits, scale, zero_point)
    wide = [-1 if i == axis else 1 for i in range(3)]
    s, z = scale.double().numpy().reshape(wide), zero_point.double().numpy().reshape(wide)
    exact = x.double().numpy() / s + z
    found = form.integers(x).numpy()
    is_tie = np.abs(exact - np.floor(exact) - 0.5) < 1e-3
    np.testing.assert_array_equal(found[~is_tie], np.clip(np.rint(exact), 0, 255)[~is_tie])
