"""Divide tensors into blocks, and choose the operators that quantize them block by block."""

from collections.abc import Sequence

import torch
from torch import Tensor

from qspec_core import ops
from qspec_core._errors import SpecError
from qspec_core._torch import OpOverload
from qspec_core.observers._form import ConvertedForm, Step

__all__ = [
    "adds_zero_point_before_rounding",
    "block_form",
    "block_grid",
    "is_tensor_wide",
    "join_blocks",
    "split_blocks",
]

aten = torch.ops.aten
Size = int | torch.SymInt


def _is_whole(size: Size, block: Size) -> bool:
    """Whether a block spans a dimension, whose size may be symbolic."""
    return block is size or (isinstance(size, int) and isinstance(block, int) and block == size)


def block_grid(shape: Sequence[Size], block: Sequence[Size]) -> tuple[Size, ...]:
    """Number of blocks along each dimension, without the dimensions that one block spans."""
    return tuple(n // b for n, b in zip(shape, block, strict=True) if not _is_whole(n, b) or n == 1)


def is_tensor_wide(shape: Sequence[Size], block: Sequence[Size]) -> bool:
    """Whether one block spans the whole tensor."""
    return all(map(_is_whole, shape, block))


def split_blocks(shape: Sequence[Size], block: Sequence[Size]) -> tuple[Step, ...]:
    """Steps that reshape a tensor to (blocks along each dimension..., elements of a block).

    Raises: SpecError: more than one size is symbolic, or the symbolic one is not divided into single elements.
    """
    counts = _counts(shape, block)
    # (d0, d1, ...) -> (n0, b0, n1, b1, ...) -> (n0, n1, ..., b0, b1, ...) -> (n0, n1, ..., b0 * b1 * ...)
    cut = [size for pair in zip(counts, block, strict=True) for size in pair]
    order = [*range(0, len(cut), 2), *range(1, len(cut), 2)]
    return Step(aten.reshape.default, (cut,)), Step(aten.permute.default, (order,)), _reshape((*counts, _volume(block)))


def join_blocks(shape: Sequence[Size], block: Sequence[Size]) -> tuple[Step, ...]:
    """Steps that undo `split_blocks`."""
    counts, rank = _counts(shape, block), len(block)
    # (n0, n1, ..., b0 * b1 * ...) -> (n0, n1, ..., b0, b1, ...) -> (n0, b0, n1, b1, ...) -> (d0, d1, ...)
    order = [i // 2 + rank * (i % 2) for i in range(2 * rank)]
    whole = [size if isinstance(size, int) else -1 for size in shape]
    return _reshape((*counts, *block)), Step(aten.permute.default, (order,)), _reshape(whole)


def _reshape(sizes: Sequence[Size]) -> Step:
    return Step(aten.reshape.default, (list(sizes),))


def _volume(block: Sequence[Size]) -> Size:
    volume: Size = 1
    for size in block:
        volume *= size
    return volume


def _counts(shape: Sequence[Size], block: Sequence[Size]) -> list[Size]:
    """Number of blocks along each dimension; -1 for a symbolic one."""
    symbolic = [i for i, size in enumerate(shape) if not isinstance(size, int)]
    if len(symbolic) > 1 or any(not isinstance(block[i], int) or block[i] != 1 for i in symbolic):
        raise SpecError(
            f"blocks divide {len(symbolic)} sizes that are not known before the model runs",
            found=f"shape {tuple(map(str, shape))}, block {tuple(map(str, block))}",
            expected="known sizes, except in one dimension with blocks of one element",
            remedy="export the model with static shapes, or choose PerToken or PerTensor",
        )
    return [-1 if i in symbolic else size // block[i] for i, size in enumerate(shape)]


def adds_zero_point_before_rounding(form: ConvertedForm) -> bool:
    """Whether quantize adds the zero point before it rounds. An odd zero point then changes how ties round."""
    return form.quantize in (ops.QUANTIZE_PER_GROUP, ops.QUANTIZE_PER_TOKEN)


def block_form(
    shape: Sequence[Size],
    block: Sequence[Size],
    limits: tuple[int, int, torch.dtype],
    qparams: tuple[Tensor, Tensor] | None,
    choose: Step | None,
    *,
    is_token: bool,
) -> ConvertedForm:
    """The operators that quantize with one scale for each block: per tensor, channel, group or token.

    Other blocks become tokens: the tensor is reshaped to (blocks..., elements of a block) before it is quantized, and
    back after it is dequantized.

    Args:
        shape: shape of the tensor.
        block: size of the block in each dimension.
        limits: quantized range and dtype of the integers.
        qparams: scale and zero point of each block; None where the model finds them when it runs.
        choose: the step that finds them when the model runs.
        is_token: use the token operators even where others fit.
    Raises: SpecError: see `split_blocks`.
    """
    dtype, cut = limits[2], [i for i in range(len(shape)) if not _is_whole(shape[i], block[i])]
    rows = len(shape) > 0 and _is_whole(shape[-1], block[-1]) and all(size == 1 for size in block[:-1])
    scale, zero_point = (None, None) if qparams is None else qparams
    if not cut and not is_token and scale is not None and zero_point is not None:
        return ConvertedForm(ops.QUANTIZE, ops.DEQUANTIZE, dtype, limits, float(scale), int(zero_point))
    if not cut and not is_token:
        return ConvertedForm(ops.QUANTIZE_DYNAMIC, ops.DEQUANTIZE_DYNAMIC, dtype, limits, choose=choose)
    if scale is not None and zero_point is not None and not (is_token and rows):
        flat = scale.reshape(-1), zero_point.reshape(-1)
        if len(cut) == 1 and block[cut[0]] == 1:
            channels: tuple[OpOverload, OpOverload] = ops.QUANTIZE_PER_CHANNEL, ops.DEQUANTIZE_PER_CHANNEL
            return ConvertedForm(*channels, dtype, (cut[0], *limits), *flat)
        if len(shape) == 2 and block[0] == 1 and block[1] > 1:
            grouped = scale.reshape(shape[0], -1), zero_point.reshape(shape[0], -1)  # (rows, groups of a row)
            operators = ops.QUANTIZE_PER_GROUP, ops.DEQUANTIZE_PER_GROUP
            return ConvertedForm(*operators, dtype, (*limits, block[1]), *grouped, output_dtype=torch.float32)
    before, after = ((), ()) if rows else (split_blocks(shape, block), join_blocks(shape, block))
    if scale is not None and zero_point is not None:
        # (blocks,) -> (blocks along each dimension..., 1), to broadcast over the elements of a block
        grid = [size // part for size, part in zip(shape, block, strict=True)]
        grid = [*grid[:-1], 1] if rows else [*grid, 1]
        scale, zero_point = scale.reshape(grid), zero_point.reshape(grid)
    return ConvertedForm(
        ops.QUANTIZE_PER_TOKEN,
        ops.DEQUANTIZE_PER_TOKEN,
        dtype,
        limits,
        scale,
        zero_point,
        choose,
        torch.float32,
        before,
        after,
    )
