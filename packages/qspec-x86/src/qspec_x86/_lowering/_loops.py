"""Linear layers in the bodies of loops, and loops in the forms that torch runs and compiles."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qspec_core.graph import attribute, tensor_value
from qspec_core.lowering import Lowering, plain_parameters
from qspec_x86._lowering._layer import Layer, output_shape
from qspec_x86._lowering._options import Options
from qspec_x86._torch import not_compiled, symbols_of

__all__ = ["give_sizes_to_loops", "insert_product", "run_loops_directly"]

aten = torch.ops.aten
_SCAN = torch.ops.higher_order.scan


def insert_product(lowering: Lowering[Options], anchor: Node, layer: Layer) -> Node:
    """Insert the product of a linear layer in a loop: an integer product, then float operators, which compilers fuse.

    `_int_mm` takes plain weights. Inductor takes no packed convolution in a loop's body (torch 2.13). For 1 to 8 rows
    of 256 features and 1024 outputs the product took 9 to 25 us, the convolution 36 to 44 (AVX-512 with VNNI); with
    AVX2 alone 87 to 182, against 65 to 94.

    y = (x - x_zero) * x_scale @ (w * w_scale).T + bias = (x @ w.T - x_zero * sums(w)) * (x_scale * w_scale) + bias

    Returns: the node of the result, in the layer's shape. The caller sets its metadata.
    """
    x = layer.x

    def call(target: object, *arguments: object) -> Node:
        return lowering.call(anchor, target, *arguments)

    integers, scale = layer.weight.integers, layer.weight.scale
    sums = integers.sum(1, dtype=torch.float32)
    weight = lowering.constant("_x86_weight", integers, anchor)
    # (..., features) -> (rows, features); (outputs, features) -> (features, outputs)
    rows = call(aten.reshape.default, x.integers, [-1, integers.shape[1]])
    found = call(aten._int_mm.default, rows, call(aten.transpose.int, weight, 0, 1))
    found = call(aten.to.dtype, found, torch.float32)
    if x.is_dynamic:
        constant = lowering.constant("_x86_sums", sums, anchor)
        found = call(aten.sub.Tensor, found, call(aten.mul.Tensor, constant, x.zero_point))
        found = call(
            aten.mul.Tensor, found, call(aten.mul.Tensor, lowering.constant("_x86_scale", scale, anchor), x.scale)
        )
    else:
        x_scale, x_zero = plain_parameters(x)
        found = call(aten.mul.Tensor, found, lowering.constant("_x86_scale", scale * x_scale, anchor))
        found = call(
            aten.sub.Tensor, found, lowering.constant("_x86_offset", sums * scale * (x_scale * x_zero), anchor)
        )
    if layer.bias is not None:
        found = call(aten.add.Tensor, found, layer.bias)
    return call(aten.reshape.default, found, output_shape(lowering, anchor, x.integers))


def give_sizes_to_loops(module: GraphModule) -> None:
    """Pass the symbolic sizes of a loop's results to the loop as operands, in place.

    Inductor allocates the results by them, and looks for their symbols among the operands (torch 2.13).
    """
    inputs = [(node, tensor_value(node)) for node in module.graph.find_nodes(op="placeholder")]
    sizes = {
        str(size): (node, dim) for node, value in inputs if value is not None for dim, size in enumerate(value.shape)
    }
    for loop in module.graph.find_nodes(op="call_function", target=_SCAN):
        shapes = [size for value in loop.meta["val"] for size in value.shape]
        wanted = dict.fromkeys(symbol for size in shapes for symbol in symbols_of(size))
        body = attribute(module, str(loop.args[0].target))
        spot = body.graph.find_nodes(op="placeholder")[-1]
        for symbol in wanted:
            if symbol not in sizes:
                continue
            node, dim = sizes[symbol]
            with module.graph.inserting_before(loop):
                size = module.graph.call_function(aten.sym_size.int, (node, dim))
            size.meta["val"] = node.meta["val"].shape[dim]
            with body.graph.inserting_after(spot):
                spot = body.graph.placeholder(f"size_{dim}")
            loop.args = (*loop.args[:3], (*loop.args[3], size))
        body.recompile()


@not_compiled
def run_loop(
    body: nn.Module, states: Sequence[Tensor], inputs: Sequence[Tensor], operands: Sequence[Any]
) -> tuple[Tensor, ...]:
    """Run the steps of a loop one by one. Arguments and results are those of torch's `scan`."""
    count = len(states)
    outputs: list[Tensor] = []
    for step in range(len(inputs[0])):
        found = body(*states, *(x[step] for x in inputs), *operands)
        states = found[:count]
        for index, value in enumerate(found[count:]):
            if not step:
                outputs.append(value.new_empty((len(inputs[0]), *value.shape)))
            outputs[index][step] = value
    return (*states, *outputs)


def run_loops_directly(module: GraphModule) -> None:
    """Call `run_loop` in place of torch's `scan`, which costs more for each step, and which torch.compile takes only
    while `capture_scalar_outputs` is switched on for the whole process."""
    for loop in module.graph.find_nodes(op="call_function", target=_SCAN):
        loop.target = run_loop
