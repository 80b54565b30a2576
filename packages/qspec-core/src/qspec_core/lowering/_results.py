"""Results of a layer: their shape, and their place in the graph."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from qspec_core.graph import require_tensor_value, tensor_value
from qspec_core.lowering._rows import Lowering, Quantized

__all__ = ["finish", "output_shape"]


def output_shape(lowering: Lowering[Any], anchor: Node, source: Node) -> list[int | Node]:
    """Sizes of a linear layer's result. One symbolic size is -1; several, which may be 0, are read from its input."""
    shape: Sequence[int | torch.SymInt] = require_tensor_value(anchor).shape
    symbolic = [dim for dim, size in enumerate(shape) if not isinstance(size, int)]
    if len(symbolic) == 1 and all(size != 0 for size in shape if isinstance(size, int)):
        return [size if isinstance(size, int) else -1 for size in shape]
    sizes: list[int | Node] = [size if isinstance(size, int) else -1 for size in shape]
    for dim in symbolic:
        sizes[dim] = read = lowering.call(anchor, torch.ops.aten.sym_size.int, source, dim)
        read.meta["val"] = shape[dim]
    return sizes


def finish(lowering: Lowering[Any], tail: Node, result: Node, quantized: Quantized | None) -> None:
    """Replace `tail`, or the quantizes that read it, by `result`."""
    if quantized is None:
        result.meta = dict(tail.meta)
        tail.replace_all_uses_with(result)
    else:
        result.meta = _with_dtype(tail, quantized.dtype)
        lowering.replace_quantizes(tail, result)


def _with_dtype(node: Node, dtype: torch.dtype) -> dict[str, object]:
    """Metadata of a node with another dtype."""
    value = tensor_value(node)
    changed = {"val": value.to(dtype)} if value is not None else {}
    return dict(node.meta) | changed
