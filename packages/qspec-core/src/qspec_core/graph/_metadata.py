"""Metadata of nodes that a pass makes for others."""

from typing import Any

from torch.fx import Node

from qspec_core._torch import history_after

__all__ = ["derived_meta", "port_meta"]


def derived_meta(source: Node, pass_name: str, reader: Node | None = None) -> dict[str, Any]:  # as node.meta is
    """Metadata of a node made for another: its value and place, and that it was made from it.

    Args:
        source: the node it is made for.
        pass_name: what makes it.
        reader: where the source has no place (an input, a constant), the place of this node is taken.
    """
    meta: dict[str, Any] = {"from_node": history_after(source, pass_name)}
    for key in ("val", "nn_module_stack", "stack_trace", "torch_fn"):
        if key in source.meta:
            meta[key] = source.meta[key]
        elif reader is not None and key != "val" and key in reader.meta:
            meta[key] = reader.meta[key]
    return meta


def port_meta(owner: Node, made: Node) -> None:
    """Give a node what users and quantizers noted on the operator that it serves."""
    made.meta |= {key: owner.meta[key] for key in ("stack_trace", "quantization_tag") if key in owner.meta}
