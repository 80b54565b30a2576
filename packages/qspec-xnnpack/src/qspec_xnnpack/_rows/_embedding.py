"""Embedding family: integer tables. Only the rows that are looked up become floats."""

from dataclasses import replace

import torch
from torch.fx import Node

from qspec_core import QuantizationSpec
from qspec_core.observers import PerChannelMinMaxObserver
from qspec_core.patterns import Flow, Mode, Row, weight
from qspec_xnnpack._lowering._embedding import lower_embedding
from qspec_xnnpack._rows._specs import group_size, has_four_bits

__all__ = ["EMBEDDING", "ROWS"]

_LIMITS = (-127, 127)


def _by_rows(node: Node, spec: QuantizationSpec, target: str) -> QuantizationSpec:
    """Give a table int8 values with a scale for each row. A spec that says so is kept: a layer with the same weight
    then reads the same integers."""
    if spec.qscheme is torch.per_channel_symmetric and not has_four_bits(spec) and group_size(spec) is None:
        return spec
    return replace(
        spec,
        observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(),
        quant_min=_LIMITS[0],
        quant_max=_LIMITS[1],
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
    )


EMBEDDING = Row(
    name="embedding",
    anchor=torch.ops.aten.embedding.default,
    operands=(weight("weight", ch_axis=0, adapt=_by_rows),),
    flow=Flow.STARTS,
    modes=frozenset({Mode.STATIC, Mode.DYNAMIC}),
    lower=lower_embedding,
)
ROWS = (EMBEDDING,)
