"""Metadata of nodes that a pass inserts for other nodes."""

from typing import Any

from torch.fx import Node

from qspec_core._torch import history_after

__all__ = ["derived_meta", "port_meta"]


def derived_meta(source: Node, pass_name: str, reader: Node | None = None) -> dict[str, Any]:  # as node.meta is
    """Metadata of a node made for another one: value, place in the model, and `from_node`.

    Args:
        source: the node it is made for.
        pass_name: name of the pass that makes it.
        reader: if the source has no place in the model (an input, a constant), the place of this node is used.
    """
    meta: dict[str, Any] = {"from_node": history_after(source, pass_name)}
    for key in ("val", "nn_module_stack", "stack_trace", "torch_fn"):
        if key in source.meta:
            meta[key] = source.meta[key]
        elif reader is not None and key != "val" and key in reader.meta:
            meta[key] = reader.meta[key]
    return meta


def port_meta(owner: Node, made: Node) -> None:
    """Copy `stack_trace` and `quantization_tag` from the operator `owner` to a node made for it."""
    made.meta |= {key: owner.meta[key] for key in ("stack_trace", "quantization_tag") if key in owner.meta}
