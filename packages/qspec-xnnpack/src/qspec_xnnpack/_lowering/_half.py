"""Results of float16 models, which the delegate would write as float32."""

import torch
from torch.fx import GraphModule, Node

from qspec_core import ops
from qspec_core.graph import argument
from qspec_core.patterns import Match

__all__ = ["dequantize_to_float32"]

aten = torch.ops.aten


def dequantize_to_float32(module: GraphModule, matches: list[Match]) -> None:
    """Let static values of float16 that float operators read, or that the program returns, be dequantized to float32,
    and converted outside the delegate.

    Where ExecuTorch reorders an image, it forgets the dtype of a dequantize (1.5.1): the delegate would write float32
    into the memory of a float16 tensor, beyond its end.

    Args:
        module: a converted graph module in canonical form that the caller owns.
        matches: its rows, which read the integers and need no conversion.
    Cost: O(nodes + edges); one conversion for each such value when the program runs.
    """
    inside = {node for match in matches for node in match.nodes}
    for node in module.graph.find_nodes(op="call_function", target=ops.DEQUANTIZE):
        if argument(node, "out_dtype") is torch.float16:
            readers = [user for user in node.users if user not in inside]
            if readers:
                _convert(module, node, readers)


def _convert(module: GraphModule, node: Node, readers: list[Node]) -> None:
    names = ("input", "scale", "zero_point", "quant_min", "quant_max", "dtype")
    with module.graph.inserting_after(node):
        whole = module.graph.call_function(node.target, tuple(argument(node, name) for name in names))  # type: ignore[arg-type]  # an operator
    whole.meta = {**node.meta, "val": node.meta["val"].to(torch.float32)}
    with module.graph.inserting_after(whole):
        half = module.graph.call_function(aten.to.dtype, (whole, torch.float16))
    half.meta = dict(node.meta)
    for reader in readers:
        reader.replace_input_with(node, half)
