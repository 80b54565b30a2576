"""Which layer a batch norm normalizes, in training as in evaluation."""

import torch
from torch.fx import Node

from qspec_core.canonical._batch_norm import scales_channels
from qspec_core.graph import argument, is_call
from qspec_core.graph._layers import LAYERS
from qspec_core.patterns import Reason

__all__ = ["normalized_layer"]

aten = torch.ops.aten


def normalized_layer(norm: Node) -> Node | Reason:
    """The convolution or linear layer that a `batch_norm` normalizes, or the reason why it cannot be folded into one.

    The two become one layer when the model is converted, so nothing else may read the layer.
    """
    source = argument(norm, "input")
    if argument(norm, "running_mean") is None:
        return Reason.unsupported("the batch norm has no running statistics")
    if not is_call(source, *LAYERS):
        return Reason.unsupported("the batch norm follows no layer")
    norms = [user for user in source.users if is_call(user, aten.batch_norm.default)]
    if len(norms) > 1:
        names = ", ".join(user.name for user in norms)
        return Reason.unsupported(f"{len(norms)} batch norms read {source.name}: {names}; it can be folded with one")
    if len(source.users) > 1:
        return Reason.unsupported(f"{source.name} has {len(source.users)} readers, and only one is a batch norm")
    if not scales_channels(source):
        return Reason.unsupported(f"dimension 1, which the batch norm scales, is no channel of {source.name}")
    return source
