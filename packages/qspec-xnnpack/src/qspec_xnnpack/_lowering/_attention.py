"""Attention in the form that the delegate runs: two batched products with a softmax between them."""

import math

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from qspec_core.graph import add_constant, argument

__all__ = ["attention_to_products"]

aten = torch.ops.aten
_HIDES = torch.finfo(torch.float32).min / 2
"""Added to the score of a key that a query must not see: its weight becomes exactly 0, without infinite values."""


def attention_to_products(module: GraphModule) -> None:
    """Decompose calls of `scaled_dot_product_attention`, in place.

    ExecuTorch decomposes them too. But it handles queries that see no key, whose result is 0, by a dozen operators over
    all scores, outside the delegate. Without a mask, or with the causal one, every query sees the first key; otherwise
    the mask alone says which queries see a key.

    Attention whose masks differ within a batch, or whose sizes vary, is not changed.

    Args:
        module: a converted graph module that the caller owns.
    Source: softmax(q @ k.T * scale) @ v: Vaswani et al., "Attention is all you need", 2017, equation 1.
    Cost: O(nodes).
    """
    for node in module.graph.find_nodes(op="call_function", target=aten.scaled_dot_product_attention.default):
        if _is_plain(node) and _has_one_mask(node):
            _Products(module, node).replace()


def _is_plain(node: Node) -> bool:
    """Whether there is no dropout and no broadcast, and all sizes are known."""
    values = [argument(node, name).meta.get("val") for name in ("query", "key", "value")]
    if not all(isinstance(value, Tensor) and value.dtype is torch.float32 and value.dim() >= 3 for value in values):
        return False
    query, key, value = (tuple(value.shape) for value in values)
    is_known = all(isinstance(size, int) and size > 0 for size in (*query, *key, *value))
    is_alike = query[:-2] == key[:-2] == value[:-2] and key[-2] == value[-2]
    return is_known and is_alike and not argument(node, "dropout_p")


def _has_one_mask(node: Node) -> bool:
    """Whether there is no mask, or one mask for the whole batch and all heads, of float32 or bool."""
    mask = argument(node, "attn_mask")
    if mask is None:
        return True
    value = mask.meta.get("val")
    if not isinstance(value, Tensor) or value.dim() < 2 or value.dtype not in (torch.bool, torch.float32):
        return False
    return all(isinstance(size, int) for size in value.shape) and math.prod(value.shape[:-2]) == 1


class _Products:
    """Writes one attention as products, before the node that computes it."""

    def __init__(self, module: GraphModule, node: Node) -> None:
        self._module, self._node = module, node
        self._first = argument(node, "query")

    def replace(self) -> None:
        """Write the products and replace the node by their result."""
        node, graph = self._node, self._module.graph
        with graph.inserting_before(node):
            result = self._laid_out(self._attention())
        node.replace_all_uses_with(result)
        graph.erase_node(node)

    def _attention(self) -> Node:
        node = self._node
        shape: torch.Size = node.meta["val"].shape
        query, key, value = (self._in_one_batch(argument(node, name)) for name in ("query", "key", "value"))
        scale = argument(node, "scale")
        width = query.meta["val"].shape[-1]
        # (n, queries, width) @ (n, width, keys) -> scores (n, queries, keys)
        query = self._call(aten.mul.Tensor, query, self._number(1.0 / math.sqrt(width) if scale is None else scale))
        scores = self._call(aten.bmm.default, query, self._call(aten.permute.default, key, [0, 2, 1]))
        if argument(node, "is_causal"):
            later = torch.full(scores.meta["val"].shape[-2:], _HIDES).triu_(1).unsqueeze(0)
            scores = self._call(aten.add.Tensor, scores, self._constant("causal", later))
        mask, sees = argument(node, "attn_mask"), None
        if mask is not None:
            hidden, sees = self._masked(mask)
            scores = self._call(aten.add.Tensor, scores, hidden)
        # (n, queries, keys) @ (n, keys, value width) -> (n, queries, value width)
        found = self._call(aten.bmm.default, self._call(aten.softmax.int, scores, -1), value)
        if sees is not None:
            found = self._call(aten.mul.Tensor, found, sees)
        return self._call(aten.reshape.default, found, list(shape))

    def _masked(self, mask: Node) -> tuple[Node, Node]:
        """Two tensors: what to add to the scores, (1, queries, keys), and 1 for each query that sees a key, else 0,
        (1, queries, 1). Either may have size 1 instead, where the mask broadcasts.
        """
        shape = [1, *mask.meta["val"].shape[-2:]]  # (1, ..., 1, queries, keys) -> (1, queries, keys)
        if mask.meta["val"].dtype is torch.bool:
            # The delegate takes no bool tensors: they become float32 first.
            seen = self._call(aten.reshape.default, self._call(aten.to.dtype, mask, torch.float32), shape)
            away = self._call(aten.sub.Tensor, seen, self._number(1.0))
            hidden = self._call(aten.mul.Tensor, away, self._number(-_HIDES))
        else:
            mask = self._call(aten.reshape.default, mask, shape)
            seen = self._call(aten.to.dtype, self._call(aten.gt.Scalar, mask, -math.inf), torch.float32)
            hidden = self._call(aten.clamp.default, mask, _HIDES)
        return hidden, self._call(aten.amax.default, seen, [-1], True)

    def _laid_out(self, result: Node) -> Node:
        """The result with the strides of torch's own: a reader may be a view that no other strides allow."""
        strides = self._node.meta["val"].stride()
        order = sorted(range(len(strides)), key=strides.__getitem__, reverse=True)
        if order == list(range(len(strides))):
            return result
        laid = self._call(aten.clone.default, self._call(aten.permute.default, result, order))
        laid.kwargs = {"memory_format": torch.contiguous_format}
        laid.meta["val"] = laid.meta["val"].contiguous()
        return self._call(aten.permute.default, laid, [order.index(dim) for dim in range(len(strides))])

    def _in_one_batch(self, source: Node) -> Node:
        shape = source.meta["val"].shape  # (batch, heads, length, width) -> (batch * heads, length, width)
        return self._call(aten.reshape.default, source, [math.prod(shape[:-2]), *shape[-2:]])

    def _call(self, target: OpOverload, *args: object) -> Node:
        made = self._module.graph.call_function(target, args)  # type: ignore[arg-type]  # nodes, numbers, lists of them
        values = (arg.meta["val"] if isinstance(arg, Node) else arg for arg in args)
        made.meta = {**self._node.meta, "val": target(*values)}
        return made

    def _number(self, number: float) -> Node:
        return self._constant("number", torch.tensor([number]))

    def _constant(self, name: str, tensor: Tensor) -> Node:
        return add_constant(self._module, name, tensor, self._first)
