"""Lowering of embeddings: lookups in integer tables."""

import operator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node

from qspec_core.graph import argument, constant_value, tensor_value
from qspec_core.lowering import Lowering, quantized_operand
from qspec_core.patterns import Match, Reason
from qspec_x86._lowering._options import Options

__all__ = ["lower_embedding", "lower_embedding_bag"]

aten = torch.ops.aten
_BYTES = torch.ops.quantized.embedding_bag_byte_rowwise_offsets.default
_NIBBLES = torch.ops.quantized.embedding_bag_4bit_rowwise_offsets.default
_FOUR_BITS = 15


@dataclass(frozen=True)
class _Table:
    """A quantized table. In each row, value = (integer - zero_point) * scale.

    Args:
        integers: int8 or uint8, (rows, width).
        scale: float32, (rows, 1).
        zero_point: float32, (rows, 1).
        quant_min: smallest integer.
        quant_max: largest integer.
    """

    integers: Tensor
    scale: Tensor
    zero_point: Tensor
    quant_min: int
    quant_max: int


def _table(match: Match, lowering: Lowering[Options]) -> _Table | Reason:
    found = quantized_operand(match, "weight")
    integers = constant_value(lowering.module, found.integers)
    numbers = [
        constant_value(lowering.module, value) if isinstance(value, Node) else torch.tensor(value or 0)
        for value in (found.scale, found.zero_point)
    ]
    if integers is None or numbers[0] is None or numbers[1] is None:
        return Reason.unsupported("the table is computed when the model runs")
    if found.ch_axis not in (None, 0) or found.group_size is not None:
        return Reason.unsupported("the table does not have one scale for each row, or one for all")
    scale, zero_point = (
        value.detach().to(torch.float32).reshape(-1).expand(len(integers)).contiguous()[:, None]
        for value in (numbers[0], numbers[1])
    )
    return _Table(integers.detach(), scale, zero_point, found.quant_min, found.quant_max)


def lower_embedding(match: Match, lowering: Lowering[Options]) -> Reason | None:
    """Lower a lookup: look up integers, scales and zero points of the rows, then dequantize."""
    table = _table(match, lowering)
    if isinstance(table, Reason):
        return table
    anchor = match.anchor
    looked_up = [
        lowering.call(
            anchor, aten.embedding.default, lowering.constant(name, value, anchor), argument(anchor, "indices")
        )
        for name, value in (
            ("_x86_table", table.integers),
            ("_x86_zero", table.zero_point),
            ("_x86_scale", table.scale),
        )
    ]
    rows = lowering.call(anchor, aten.to.dtype, looked_up[0], torch.float32)
    centred = lowering.call(anchor, aten.sub.Tensor, rows, looked_up[1])
    result = lowering.call(anchor, aten.mul.Tensor, centred, looked_up[2])
    value = tensor_value(anchor)
    if value is not None and value.dtype is not torch.float32:
        result = lowering.call(anchor, aten.to.dtype, result, value.dtype)
    result.meta = dict(anchor.meta)
    anchor.replace_all_uses_with(result)
    return None


def lower_embedding_bag(match: Match, lowering: Lowering[Options]) -> Reason | None:
    """Lower a bag to the kernel that sums rows. Each row of its table holds its scale and smallest value."""
    table = _table(match, lowering)
    if isinstance(table, Reason):
        return table
    anchor, (packed, kernel) = match.anchor, _packed(table)
    names = ("indices", "offsets", "per_sample_weights")
    indices, offsets, per_sample = (argument(anchor, name) for name in names)
    constant = lowering.constant("_x86_table", packed, anchor)
    # Mode 0 is the sum, the only mode that the kernel computes.
    result = lowering.call(anchor, kernel, constant, indices, offsets, False, 0, False, per_sample, None, False)
    for reader in list(anchor.users):
        if reader.target is operator.getitem:
            result.meta = dict(reader.meta)
            reader.replace_all_uses_with(result)
            lowering.module.graph.erase_node(reader)
    return None


def _packed(table: _Table) -> tuple[Tensor, OpOverload]:
    """Pack a table, and choose its kernel. Scale and smallest value of a row are its last bytes.

    Four bits: two integers in a byte, both numbers in float16. Eight bits: one integer in a byte, both in float32.

    Source: fbgemm, FusedNBitRowwiseQuantizedSBHalf and Fused8BitRowwiseQuantizedSBFloat.
    """
    integers = (table.integers.to(torch.int32) - table.quant_min).to(torch.uint8)
    smallest = (table.quant_min - table.zero_point) * table.scale
    halves = torch.cat([table.scale, smallest], 1).to(torch.float16)
    fits = bool(halves.isfinite().all()) and table.integers.shape[1] % 2 == 0
    if table.quant_max - table.quant_min <= _FOUR_BITS and fits:
        # (rows, width) -> (rows, width / 2 + 4)
        pairs = integers[:, ::2] | integers[:, 1::2] << 4
        return torch.cat([pairs, halves.view(torch.uint8)], 1), _NIBBLES
    # (rows, width) -> (rows, width + 8)
    floats = torch.cat([table.scale, smallest], 1)
    return torch.cat([integers, floats.view(torch.uint8)], 1), _BYTES
