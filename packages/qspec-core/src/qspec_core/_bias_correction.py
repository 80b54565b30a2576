"""Bias correction: subtract from a layer's bias the mean error that rounding its weight adds to the output.

A layer with rounded weights Q(W) gives (Q(W) - W) E[x] more than the float layer, on average over its inputs x. The
mean input of each channel is recorded while a prepared module is calibrated.

Sources: Finkelstein, Almog, Grobman, "Fighting Quantization Bias With Bias" (2019); Nagel, van Baalen, Blankevoort,
Welling, "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), section 4.2.
"""

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from qspec_core.graph import (
    add_constant,
    argument,
    attribute,
    called_operator,
    constant_value,
    copy_graph_module,
    fresh_attribute_name,
    gc_paused,
    graph_modules,
    is_call,
    is_observer,
    lift_constants,
    replace_argument,
    sink_constants,
    tensor_value,
    wrap_graph,
)
from qspec_core.graph._layers import CONVOLUTIONS, LINEARS, TRANSPOSED

__all__ = ["InputMeans", "correct_biases"]


class _Mean(nn.Module):
    """Records the mean of each channel over all tensors that it is called with."""

    def __init__(self, channel: int) -> None:
        super().__init__()
        self._channel = channel
        self._sum = torch.zeros((), dtype=torch.float64)
        self._count = 0

    def forward(self, x: Tensor) -> None:
        """Record a tensor whose dimension `channel`, counted from the end, holds the channels."""
        others = [axis for axis in range(-x.ndim, 0) if axis != self._channel]
        rows = x.numel() // max(x.shape[self._channel], 1)
        if rows:
            mean = x.detach().mean(others, dtype=torch.float32) if others else x.detach()
            self._sum = self._sum.to(x.device) + rows * mean.double()
            self._count += rows

    @property
    def mean(self) -> Tensor | None:
        """(channels,), float64; None before any data came."""
        return self._sum / self._count if self._count else None


class InputMeans:
    """Records the mean input of each convolution and linear layer with a quantized weight, in bodies too.

    Args:
        prepared: from `prepare_pt2e`; not changed.

    Attributes:
        module: a copy that shares the observers of `prepared`. Calibrating it calibrates `prepared` and records means.
    """

    def __init__(self, prepared: GraphModule) -> None:
        self._weights: dict[str, Tensor] = {}
        self._means: dict[str, _Mean] = {}
        with gc_paused():
            module = copy_graph_module(prepared)
            for prefix, body in graph_modules(module):
                for node in list(body.graph.nodes):
                    weight, name = _observed_weight(body, node), f"{prefix}{node.name}"
                    if weight is not None:
                        self._weights[name] = weight
                        self._means[name] = _record(body, node, -1 if node.target in LINEARS else 1 - weight.ndim)
                body.recompile()
        self.module = module

    def shifts(self, converted: GraphModule) -> Mapping[str, Tensor]:
        """The correction of each layer's bias, by the layer's name.

        Args:
            converted: from `convert_pt2e`, of the prepared module; its bodies hold their constants.
        Returns: float64 tensors (outputs,). Layers that saw no data, or whose weight is not in integers, are left out.
        """
        found = {}
        for prefix, body in graph_modules(converted):
            for node in body.graph.nodes:
                name = f"{prefix}{node.name}"
                recorder = self._means.get(name)
                mean = None if recorder is None else recorder.mean
                rounded = _constant(body, argument(node, "weight")) if mean is not None else None
                if mean is not None and rounded is not None:
                    lost = self._weights[name].detach().double() - rounded.double()
                    found[name] = _shift(node, lost, mean)
        return found


def correct_biases(converted: GraphModule, means: InputMeans) -> GraphModule:
    """Correct the biases of a converted module by the means recorded in calibration.

    Args:
        converted: from `convert_pt2e`; not changed.
        means: recorded by running `means.module` on calibration data in place of the prepared module.
    Returns: a copy that shares everything except the corrected biases.
    Cost: O(nodes + edges), plus one pass over the weights.
    """
    with gc_paused(), torch.no_grad():
        module = copy_graph_module(converted)
        sink_constants(module)
        shifts, graphs = means.shifts(module), list(graph_modules(module))
        for prefix, body in reversed(graphs):
            for node in [node for node in body.graph.nodes if f"{prefix}{node.name}" in shifts]:
                _correct(body, node, shifts[f"{prefix}{node.name}"])
            if len(graphs) > 1:
                lift_constants(body)
        return wrap_graph(module, module.graph)


def _record(module: GraphModule, node: Node, channel: int) -> _Mean:
    """Insert a module before a layer that records the mean of the layer's input."""
    name, recorder = fresh_attribute_name(module, "_input_mean_"), _Mean(channel)
    module.add_module(name, recorder)
    with module.graph.inserting_before(node):
        module.graph.call_module(name, (argument(node, "input"),))
    return recorder


def _correct(module: GraphModule, node: Node, shift: Tensor) -> None:
    """Give a layer a corrected bias. A bias that the graph computes stays as it is."""
    old = argument(node, "bias")
    value = constant_value(module, old)
    if old is not None and value is None:
        return
    corrected = shift if value is None else value.double() + shift
    kind = tensor_value(node) if value is None else value
    if kind is None:
        return
    bias = nn.Parameter(corrected.to(kind.dtype), requires_grad=False)
    replace_argument(node, "bias", add_constant(module, "_corrected_bias_", bias, node, fake=tensor_value(old)))
    if isinstance(old, Node) and not old.users:
        module.graph.erase_node(old)


def _observed_weight(module: GraphModule, node: Node) -> Tensor | None:
    """The float weight of a layer whose weight is observed; None for every other node."""
    if not is_call(node, *LINEARS, *CONVOLUTIONS, *TRANSPOSED):
        return None
    weight = argument(node, "weight")
    if weight.op != "call_module" or not is_observer(attribute(module, str(weight.target))):
        return None
    return constant_value(module, weight.args[0])


def _constant(module: GraphModule, node: Node) -> Tensor | None:
    """Value of a node that depends only on constants, dequantized and reshaped; None for any other node."""
    operator, value = called_operator(node), constant_value(module, node)
    if value is not None or operator is None:
        return value
    inputs = {source: _constant(module, source) for source in node.all_input_nodes}
    if not inputs or any(tensor is None for tensor in inputs.values()):
        return None
    arguments = map_arg((node.args, node.kwargs), inputs.__getitem__)
    result: Tensor = operator(*arguments[0], **arguments[1])
    return result


def _shift(node: Node, lost: Tensor, mean: Tensor) -> Tensor:
    """The mean that a layer's output loses with the `lost` part of its weight.

    At the borders of a padded convolution fewer taps see the input; they count like the inner part.

    Args:
        node: the layer.
        lost: float weight minus rounded weight, in float64 and the weight's shape.
        mean: mean input of each channel, float64 (inputs,).
    Returns: float64 (outputs,).
    """
    if node.target in LINEARS:
        return lost @ mean
    groups = argument(node, "groups")
    # (d0, d1, kernel...) -> (d0, d1), summed over the kernel -> (groups, d0 / groups, d1)
    taps = lost.flatten(2).sum(2).view(groups, -1, lost.shape[1])
    means = mean.view(groups, -1)  # (inputs,) -> (groups, inputs / groups)
    if node.target in CONVOLUTIONS:
        return torch.einsum("goi,gi->go", taps, means).flatten()  # (groups, outputs / groups) -> (outputs,)
    # The weight is (inputs, outputs / groups, kernel...). Along a dimension, an output sees one in `stride` taps.
    strides = _each(argument(node, "stride"), lost.ndim - 2)
    return torch.einsum("gio,gi->go", taps, means).flatten() / prod(strides)


def _each(value: int | list[int], dimensions: int) -> list[int]:
    """One value for each spatial dimension, as the operators expand a number or a list of one."""
    values = [value] if isinstance(value, int) else list(value)
    return values * dimensions if len(values) == 1 else values
