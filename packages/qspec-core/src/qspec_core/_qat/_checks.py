"""Checks of graphs that are prepared for training."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.fx import GraphModule, Node

from qspec_core import ops
from qspec_core._errors import GraphError, SpecError
from qspec_core._qat._parameters import read_parameters
from qspec_core.fake_quantize import FakeQuantizeBase
from qspec_core.graph import argument, attribute, calls, constant_value, graph_modules, observer_nodes

__all__ = [
    "require_fake_quantizes",
    "require_one_precision",
    "require_running_statistics",
    "require_trained",
    "require_unconverted",
]

aten = torch.ops.aten


def require_unconverted(model: GraphModule) -> None:
    """Raise if a graph has integers already."""
    for _, body in graph_modules(model):
        for node in body.graph.nodes:
            if ops.is_dequantize(node):
                raise GraphError(
                    "the model is converted already",
                    where=node,
                    found=f"{node.target}",
                    expected="a float graph",
                    remedy="prepare the exported float model; integers cannot be trained",
                )


def require_running_statistics(body: GraphModule) -> None:
    """Raise if a batch norm has no running statistics: it cannot be evaluated as it was trained."""
    for node in calls(body.graph, aten.batch_norm.default):
        if argument(node, "running_mean") is None or argument(node, "running_var") is None:
            raise GraphError(
                "a batch norm has no running statistics, so it cannot be folded after training",
                where=node,
                found="running_mean=None, running_var=None",
                expected="a batch norm with track_running_stats=True",
                remedy="create the module with track_running_stats=True, or use another normalization",
            )


def require_trained(module: GraphModule, before: Mapping[int, tuple[str, nn.Parameter]]) -> None:
    """Raise if a graph no longer reads a parameter that it read before: nothing would train it."""
    after = read_parameters(module)
    for key, (name, parameter) in before.items():
        if key not in after:
            raise GraphError(
                f"parameter {name} would not be trained",
                found=f"a constant computed from it, shape {tuple(parameter.shape)}",
                expected="operators that read the parameter itself",
                remedy="write the operator that reads it as torch.nn.functional.linear or a convolution, or freeze "
                "the parameter with requires_grad_(False)",
            )


def require_fake_quantizes(module: GraphModule) -> None:
    """Raise if observers were inserted and none of them rounds: training would not see the quantization."""
    found = [entry for _, body in graph_modules(module) for entry in observer_nodes(body)]
    if found and not any(isinstance(observer, FakeQuantizeBase) or _rounds(observer) for _, observer in found):
        kinds = sorted({type(observer).__name__ for _, observer in found})
        raise SpecError(
            "the configuration is not for training: nothing in it rounds values",
            where=found[0][0],
            found=", ".join(kinds),
            expected="fake-quantizes, such as FakeQuantize.with_args(observer=...)",
            remedy="build the configuration with is_qat=True, or quantize after training with prepare_pt2e",
        )


def _rounds(observer: nn.Module) -> bool:
    """Whether an observer is a fake-quantize of another stack, or a module that converts itself."""
    return hasattr(observer, "fake_quant_enabled") or callable(getattr(observer, "convert", None))


def require_one_precision(body: GraphModule) -> None:
    """Raise if a parameter is read both through a fake-quantize and as it is."""
    quantized: dict[int, Node] = {}
    plain: dict[int, Node] = {}
    for node in body.graph.find_nodes(op="get_attr"):
        value = constant_value(body, node)
        if not isinstance(value, nn.Parameter):
            continue
        for reader in node.users:
            is_observed = reader.op == "call_module" and isinstance(
                attribute(body, str(reader.target)), FakeQuantizeBase
            )
            (quantized if is_observed else plain).setdefault(id(value), reader)
    for key in quantized.keys() & plain.keys():
        source = quantized[key].all_input_nodes[0]
        reader = next(iter(quantized[key].users), quantized[key])
        raise GraphError(
            f"parameter {source.target} is shared by a quantized layer, {reader.name}, and by {plain[key].name}, which "
            "stays in float",
            where=plain[key],
            found=f"{plain[key].format_node()}",
            expected="readers that all quantize it, or none",
            remedy="leave the layer in float with set_module_name(path, None), or give each module its own parameter",
        )
