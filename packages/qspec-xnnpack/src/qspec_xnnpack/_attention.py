"""Attention as the delegate runs it: two batched products with a softmax between them."""

import math

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from qspec_core.graphs import add_constant
from qspec_core.patterns import argument

__all__ = ["attention_to_products"]

aten = torch.ops.aten
_NEVER = torch.finfo(torch.float32).min / 2
"""Added to the score of a key that a query must not see: its weight is exactly 0, without an infinity on the way."""


def attention_to_products(module: GraphModule) -> None:
    """Take apart, in place, what computes attention in one call, without a mask or with the causal one.

    ExecuTorch takes it apart too, but guards against queries that see no key, in a dozen operators over all scores that
    run outside the delegate. Without a mask, and with a causal one, every query sees the first key. Attention under
    another mask is left as it is.

    Args:
        module: a converted graph module that the caller owns.
    Source: softmax(q @ k.T * scale) @ v: Vaswani et al., "Attention is all you need", 2017, equation 1.
    Cost: O(nodes).
    """
    for node in module.graph.find_nodes(op="call_function", target=aten.scaled_dot_product_attention.default):
        if _is_plain(node):
            _take_apart(module, node)


def _is_plain(node: Node) -> bool:
    """Whether every query surely sees a key, nothing is random or broadcast, and all sizes are known."""
    values = [argument(node, name).meta.get("val") for name in ("query", "key", "value")]
    if not all(isinstance(value, Tensor) and value.dtype is torch.float32 and value.dim() >= 3 for value in values):
        return False
    query, key, value = (tuple(value.shape) for value in values)
    is_known = all(isinstance(size, int) and size > 0 for size in (*query, *key, *value))
    is_alike = query[:-2] == key[:-2] == value[:-2] and key[-2] == value[-2]
    return is_known and is_alike and argument(node, "attn_mask") is None and not argument(node, "dropout_p")


def _take_apart(module: GraphModule, node: Node) -> None:
    query, key, value = (argument(node, name) for name in ("query", "key", "value"))
    shape: torch.Size = node.meta["val"].shape
    queries, keys, width = shape[-2], key.meta["val"].shape[-2], query.meta["val"].shape[-1]
    given = argument(node, "scale")
    scale = 1.0 / math.sqrt(width) if given is None else given

    def call(target: OpOverload, *args: object) -> Node:
        made = module.graph.call_function(target, args)  # type: ignore[arg-type]  # nodes, numbers and lists of them
        made.meta = {**node.meta, "val": target(*(arg.meta["val"] if isinstance(arg, Node) else arg for arg in args))}
        return made

    def constant(name: str, tensor: Tensor) -> Node:
        return add_constant(module, name, tensor, query)

    with module.graph.inserting_before(node):
        batch = math.prod(shape[:-2])
        q, k, v = (call(aten.reshape.default, n, [batch, *n.meta["val"].shape[-2:]]) for n in (query, key, value))
        q = call(
            aten.mul.Tensor, q, constant("scale", torch.tensor([1.0 / math.sqrt(width) if scale is None else scale]))
        )
        scores = call(aten.bmm.default, q, call(aten.permute.default, k, [0, 2, 1]))
        if argument(node, "is_causal"):
            hidden = torch.full((1, queries, keys), _NEVER).triu_(1)
            scores = call(aten.add.Tensor, scores, constant("causal", hidden))
        products = call(aten.bmm.default, call(aten.softmax.int, scores, -1), v)
        result = call(aten.reshape.default, products, list(shape))
        # Laid out in memory as before: what reads it may be a view that another layout does not have.
        order = sorted(range(len(shape)), key=node.meta["val"].stride().__getitem__, reverse=True)
        if order != list(range(len(shape))):
            laid = call(aten.clone.default, call(aten.permute.default, result, order))
            laid.kwargs = {"memory_format": torch.contiguous_format}
            laid.meta["val"] = laid.meta["val"].contiguous()
            result = call(aten.permute.default, laid, [order.index(dim) for dim in range(len(shape))])
    node.replace_all_uses_with(result)
    module.graph.erase_node(node)
