"""Dynamic layers among static ones: which linear layers become dynamic, and what dynamic convolutions do not share."""

from collections.abc import Container
from dataclasses import replace

import torch
from torch.fx import GraphModule, Node

from qspec_core import (
    Q_ANNOTATION_KEY,
    QuantizationAnnotation,
    QuantizationConfig,
    QuantizationSpec,
)
from qspec_core.graph import argument, is_call, tensor_value
from qspec_core.patterns import Mode
from qspec_xnnpack._config import get_symmetric_quantization_config

__all__ = ["dynamic_form", "linear_between_floats", "separate_dynamic_convolutions"]

aten = torch.ops.aten


def dynamic_form(config: QuantizationConfig) -> QuantizationConfig:
    """The dynamic configuration with the same weights; the configuration itself if it is not static, or if its
    activations have a range of their own, which the dynamic kernels do not take."""
    dynamic = get_symmetric_quantization_config(True, config.is_qat, is_dynamic=True).input_activation
    static = config.input_activation
    if config.mode is not Mode.STATIC or static is None or dynamic is None or static.range != dynamic.range:
        return config
    return replace(config, input_activation=dynamic, output_activation=None)


def linear_between_floats(annotated: GraphModule, starts: Container[object]) -> frozenset[str]:
    """Names of the static linear layers that read float values, and whose results only float operators read.

    Operators that only join integers would be float operators if the layer gave float results.

    Args:
        annotated: a graph that was annotated with static configurations.
        starts: operators that start integers.
    Cost: O(nodes + edges), and the integer operators after each layer.
    """
    found = set()
    for node in annotated.graph.find_nodes(op="call_function", target=aten.linear.default):
        annotation, value = _annotation(node), tensor_value(node)
        if annotation is None or value is None or value.dtype is not torch.float32:
            continue
        source, tail = argument(node, "input"), _tail(node)
        spec = annotation.input_qspec_map.get(source)
        if tail is None or not isinstance(spec, QuantizationSpec) or spec.is_dynamic:
            continue
        if _output_spec(source) is None and not _has_integer_reader(tail, starts):
            found.add(node.name)
    return frozenset(found)


def separate_dynamic_convolutions(annotated: GraphModule) -> None:
    """Let no dynamic convolution share its quantized input: the delegate finds one scale for an image, and one for each
    row in a linear layer."""
    for node in annotated.graph.nodes:
        annotation = _annotation(node)
        if annotation is None or not is_call(node, aten.conv2d.default, aten.conv_transpose2d.input):
            continue
        spec = annotation.input_qspec_map.get(argument(node, "input"))
        if isinstance(spec, QuantizationSpec) and spec.is_dynamic:
            annotation.allow_implicit_sharing = False


def _annotation(node: Node) -> QuantizationAnnotation | None:
    found = node.meta.get(Q_ANNOTATION_KEY)
    return found if isinstance(found, QuantizationAnnotation) else None


def _output_spec(node: Node) -> object:
    annotation = _annotation(node)
    return None if annotation is None else annotation.output_qspec


def _tail(layer: Node) -> Node | None:
    """The node that holds the result of a static layer: itself, or the clamp that its kernel applies."""
    for node in (layer, *layer.users):
        if _output_spec(node) is not None:
            return node
    return None


def _has_integer_reader(tail: Node, starts: Container[object]) -> bool:
    """Whether an operator that starts integers reads a result, directly or after others that read integers."""
    pending, seen = [tail], {tail}
    while pending:
        source = pending.pop()
        for user in source.users:
            annotation = _annotation(user)
            if annotation is None or annotation.input_qspec_map.get(source) is None:
                continue
            if user.target in starts:
                return True
            if user not in seen:
                seen.add(user)
                pending.append(user)
    return False
