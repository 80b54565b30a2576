"""Embedding family: integer tables. Only the rows that are looked up are dequantized."""

import torch
from torch.fx import Node

from qspec_core.graph import argument, tensor_value
from qspec_core.patterns import Flow, Mode, Reason, Row, weight
from qspec_x86._lowering import lower_embedding, lower_embedding_bag
from qspec_x86._rows._specs import narrow_tied_table

__all__ = ["ROWS"]

aten = torch.ops.aten
_SUM = 0


def _is_plain_sum(node: Node) -> Reason | None:
    """Decline bags that the kernel computes wrongly: it always sums, ignores padding, and returns the sums only."""
    value = tensor_value(argument(node, "weight"))
    if value is None or value.dtype is not torch.float32:
        return Reason.unsupported("its table is not float32; the kernel gives float32")
    if argument(node, "mode") != _SUM:
        return Reason.unsupported("it takes a mean or a maximum; the kernel sums")
    if argument(node, "padding_idx") not in (None, -1):
        return Reason.unsupported("it has a padding index; the kernel does not skip it")
    if argument(node, "include_last_offset"):
        return Reason.unsupported(
            "its offsets include the end of the last bag; the kernel fails on them while it is traced"
        )
    read = {reader.args[1] for reader in node.users}
    return (
        None
        if read <= {0}
        else Reason.unsupported("its second to fourth results are read; the kernel does not compute them")
    )


EMBEDDING = Row(
    name="embedding",
    anchor=aten.embedding.default,
    operands=(weight("weight", ch_axis=0, adapt=narrow_tied_table),),
    flow=Flow.STARTS,
    modes=frozenset(Mode),
    lower=lower_embedding,
)

EMBEDDING_BAG = Row(
    name="embedding_bag",
    anchor=aten.embedding_bag.padding_idx,
    operands=(weight("weight", ch_axis=0, adapt=narrow_tied_table),),
    flow=Flow.STARTS,
    modes=frozenset(Mode),
    lower=lower_embedding_bag,
    checks=(_is_plain_sum,),
)
ROWS = (EMBEDDING, EMBEDDING_BAG)
