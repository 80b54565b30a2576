"""Embedding family: tables as integers, of which only the rows that are looked up become floats."""

import torch
from torch import Tensor
from torch.fx import Node

from qspec_core.graph import argument
from qspec_core.patterns import Flow, Mode, Reason, Row, weight
from qspec_x86._lowering import lower_embedding, lower_embedding_bag

__all__ = ["ROWS"]

aten = torch.ops.aten
_SUM = 0


def _is_plain_sum(node: Node) -> Reason | None:
    """The kernel sums, whatever mode it is told, without a word; it knows no padding, and gives the sums alone."""
    value = argument(node, "weight").meta.get("val")
    if not isinstance(value, Tensor) or value.dtype is not torch.float32:
        return Reason.unsupported("its table is not float32; the kernel gives float32")
    if argument(node, "mode") != _SUM:
        return Reason.unsupported("it takes a mean or a maximum; the kernel sums")
    if argument(node, "padding_idx") not in (None, -1):
        return Reason.unsupported("it skips an index; the kernel skips none")
    if argument(node, "include_last_offset"):
        return Reason.unsupported(
            "it is told where its last bag ends; the kernel reads that while it is traced, and fails"
        )
    read = {reader.args[1] for reader in node.users}
    return None if read <= {0} else Reason.unsupported("its second to fourth results are read; the kernel has none")


EMBEDDING = Row(
    name="embedding",
    anchor=aten.embedding.default,
    operands=(weight("weight", ch_axis=0),),
    flow=Flow.STARTS,
    modes=frozenset({Mode.WEIGHT_ONLY}),
    lower=lower_embedding,
)

EMBEDDING_BAG = Row(
    name="embedding_bag",
    anchor=aten.embedding_bag.padding_idx,
    operands=(weight("weight", ch_axis=0),),
    flow=Flow.STARTS,
    modes=frozenset({Mode.WEIGHT_ONLY}),
    lower=lower_embedding_bag,
    checks=(_is_plain_sum,),
)
ROWS = (EMBEDDING, EMBEDDING_BAG)
