"""Fold batch norms in evaluation mode into the convolution or linear layer before them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qspec_core.canonical._identity import IDENTITY_NOTE, is_identity
from qspec_core.canonical._record import fold_node
from qspec_core.graph import (
    add_constant,
    argument,
    attribute,
    calls,
    constant_value,
    is_call,
    replace_argument,
    tensor_value,
)
from qspec_core.graph._layers import LAYERS, TRANSPOSED

__all__ = ["Affine", "affine_of", "fold_batch_norms", "is_transposed", "scale_channels", "scales_channels"]

aten = torch.ops.aten
_BATCH_NORMS = (aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default)


@dataclass(frozen=True)
class Affine:
    """A batch norm in evaluation mode as `y = x * factor + offset`, per channel, in float64."""

    factor: Tensor
    offset: Tensor


def fold_batch_norms(module: GraphModule) -> None:
    """Fold each batch norm in evaluation mode into the convolution, transposed convolution or linear layer before it.

    The batch norm must be the only reader of the layer. The folded weight replaces the old one under its name, in this
    module only.

    Args:
        module: an exported graph module that the caller owns.
    Cost: O(nodes), plus the arithmetic on the weights.
    Source: Ioffe and Szegedy, Batch Normalization, 2015, algorithm 2.
    """
    norms = calls(module.graph, *_BATCH_NORMS)
    readers: dict[str, int] = {}
    for node in module.graph.find_nodes(op="get_attr"):
        readers[str(node.target)] = readers.get(str(node.target), 0) + len(node.users)
    for norm in norms:
        layer, passed = _layer_before(norm)
        if is_call(norm, aten.batch_norm.default) and argument(norm, "training"):
            continue
        if not is_call(layer, *LAYERS) or len(layer.users) != 1 or not scales_channels(layer):
            continue
        affine = affine_of(module, norm)
        weight, bias = argument(layer, "weight"), argument(layer, "bias")
        weight_value, bias_value = constant_value(module, weight), constant_value(module, bias)
        if affine is None or weight_value is None or (bias is not None and bias_value is None):
            continue
        new_weight = scale_channels(layer, weight_value, affine.factor)
        offset = affine.offset if bias_value is None else affine.offset + bias_value.double() * affine.factor
        _set_constant(module, layer, "weight", weight, new_weight, readers, tensor_value(weight))
        fake_bias = tensor_value(argument(norm, "running_mean"))
        _set_constant(module, layer, "bias", bias, offset.to(weight_value.dtype), readers, fake_bias)
        for dropout in passed:
            fold_node(module, dropout, layer, IDENTITY_NOTE)
        _remove(module, norm, layer)


def _layer_before(norm: Node) -> tuple[Node, list[Node]]:
    """The operator before a batch norm, and the identities between them that nothing else reads."""
    source: Node = argument(norm, "input")
    passed: list[Node] = []
    while is_identity(source) and len(source.users) == 1:
        passed.append(source)
        source = source.all_input_nodes[0]
    return source, passed


def scales_channels(layer: Node) -> bool:
    """Whether dimension 1, which a batch norm scales, holds the layer's output channels.

    It does for a linear layer with inputs of rank 2, and for a convolution with a batch dimension: the result then has
    the rank of the weight.
    """
    value, held = tensor_value(layer), tensor_value(argument(layer, "weight"))
    return value is not None and held is not None and value.dim() == held.dim()


def is_transposed(layer: Node) -> bool:
    """Whether a layer is a transposed convolution, whose weight has its output channels in dimension 1."""
    if is_call(layer, aten.convolution.default):
        return bool(argument(layer, "transposed"))
    return is_call(layer, *TRANSPOSED)


def affine_of(module: GraphModule, norm: Node) -> Affine | None:
    """A batch norm in evaluation mode; None if its parameters are not constants or it has no running statistics."""
    values: dict[str, Tensor | None] = {}
    for name in ("weight", "bias", "running_mean", "running_var"):
        node = argument(norm, name)
        values[name] = constant_value(module, node)
        if isinstance(node, Node) and values[name] is None:
            return None
    mean, variance = values["running_mean"], values["running_var"]
    if mean is None or variance is None:
        return None
    factor = torch.rsqrt(variance.detach().double() + argument(norm, "eps"))
    if values["weight"] is not None:
        factor = factor * values["weight"].detach().double()
    offset = -mean.detach().double() * factor
    if values["bias"] is not None:
        offset = offset + values["bias"].detach().double()
    return Affine(factor, offset)


def scale_channels(layer: Node, weight: Tensor, factor: Tensor) -> Tensor:
    """Weight times the factor of its output channel."""
    value = weight.detach().double()
    if is_transposed(layer):
        groups = argument(layer, "groups")
        tail = value.shape[2:]
        # (in, out / groups, kernel...) -> (groups, in / groups, out / groups, kernel...)
        grouped = value.reshape(groups, value.shape[0] // groups, value.shape[1], *tail)
        shape = (
            groups,
            1,
            value.shape[1],
            *(1 for _ in tail),
        )  # of the factors: (out,) -> (groups, 1, out / groups, 1...)
        scaled = (grouped * factor.reshape(shape)).reshape(value.shape)
    else:
        scaled = value * factor.reshape(-1, *(1 for _ in value.shape[1:]))  # (out,) -> (out, 1, 1...)
    return scaled.to(weight.dtype)


def _set_constant(
    module: GraphModule,
    layer: Node,
    name: str,
    old: Node | None,
    value: Tensor,
    readers: dict[str, int],
    fake: Tensor | None,
) -> None:
    """Give the layer a constant, under the old name if the layer is its only reader, else under a new one."""
    if old is not None and readers[str(old.target)] == 1:
        path, _, field = str(old.target).rpartition(".")
        owner = attribute(module, path) if path else module
        keeps_kind = isinstance(getattr(owner, field), nn.Parameter)
        setattr(owner, field, nn.Parameter(value, requires_grad=False) if keeps_kind else value)
        return
    weight = argument(layer, "weight")
    prefix = f"{str(weight.target).replace('.', '_')}_{'bias' if name == 'bias' else 'folded'}"
    replace_argument(layer, name, add_constant(module, prefix, value, before=layer, fake=fake))


def _remove(module: GraphModule, norm: Node, layer: Node) -> None:
    """Remove the batch norm. For one that returns a tuple, its getitem nodes are removed first."""
    note = f"folded into {layer.name}"
    if is_call(norm, aten._native_batch_norm_legit_no_training.default):
        for user in list(norm.users):
            if user.args[1] == 0:
                fold_node(module, user, layer, note)
    if norm.users and is_call(norm, aten._native_batch_norm_legit_no_training.default):
        return
    fold_node(module, norm, layer, note)
