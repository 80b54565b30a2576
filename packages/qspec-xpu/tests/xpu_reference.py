"""The kernels in plain torch on the CPU, and the fake device: two ways to run a lowered graph without a GPU.

The arithmetic is that of oneDNN's documentation (developer guide, "Quantization" and "Post-ops" attributes): an exact
sum of products of integers less the input's zero point; times the scale of the input and of the weight; plus the bias;
then the post-ops in their order, in float32; then divided by the scale of the result, plus its zero point, rounded to
the nearest even integer and saturated to the dtype. Padding stands for the real number 0.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule
from torch.utils._pytree import tree_map_only
from xpu_contract import Arguments, Contract, kernel_of

from qspec_core.graph import copy_graph_module, graph_modules
from qspec_xpu import BACKEND, lower_portable

__all__ = ["OnReference", "Reference", "lower_to_reference", "trace_on_xpu"]

_CONVOLUTIONS = {4: F.conv2d, 5: F.conv3d}


def _number(value: Any) -> float:
    return float(value.item() if isinstance(value, Tensor) else value)


def _products_in_float(given: Arguments, sums: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Exact sums of products, float64, as float32 with scales and bias; `shape` broadcasts along the outputs."""
    assert sums.abs().max() < 2**31 if sums.numel() else True
    scale = torch.tensor(_number(given["x_scale"]), dtype=torch.float32)
    result: Tensor = sums.to(torch.float32) * (scale * given["w_scale"]).reshape(shape)
    return result if given["bias"] is None else result + given["bias"].reshape(shape)


def _unary(y: Tensor, name: str, scalars: list[Any], algorithm: str) -> Tensor:
    if name == "relu":
        return y.clamp(min=0)
    if name == "hardtanh":
        return y.clamp(scalars[0], scalars[1])
    if name == "leaky_relu":
        return torch.where(y > 0, y, y * scalars[0])
    if name == "hardswish":
        return y * (y / 6 + 0.5).clamp(0, 1)
    if name == "swish":
        return y * (1 / (1 + torch.exp(-y)))
    if name == "tanh":
        return y.tanh()
    if name == "gelu":
        erf = 0.5 * y * (1 + torch.erf(y / 2**0.5))
        return erf if algorithm == "none" else 0.5 * y * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (y + 0.044715 * y**3)))
    assert name == "none"
    return y


def _written(y: Tensor, given: Arguments) -> Tensor:
    dtype = given["output_dtype"]
    if dtype.is_floating_point:
        return y.to(dtype)
    limits = torch.iinfo(dtype)
    steps = torch.round(y / given["output_scale"] + given["output_zero_point"])
    return steps.clamp(limits.min, limits.max).to(dtype)


def _convolved(given: Arguments) -> Tensor:
    x, geometry = given["qx"], (given["stride"], given["padding"], given["dilation"], given["groups"])
    centred = x.double() - _number(given["x_zero_point"])
    sums = _CONVOLUTIONS[x.dim()](centred, given["qw"].double(), None, *geometry)
    return _products_in_float(given, sums, (1, -1, *(1,) * (x.dim() - 2)))


def _layout(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.dim() == 4 else torch.channels_last_3d


def _convolution(given: Arguments) -> Tensor:
    y = _unary(_convolved(given), given["attr"], given["scalars"], given["algorithm"])
    return _written(y, given).contiguous(memory_format=_layout(given["qx"]))


def _convolution_sum(given: Arguments) -> Tensor:
    accumulated: Tensor = given["qaccum"]
    y = _convolved(given) + (accumulated.float() - given["accum_zero_point"]) * given["accum_scale"]
    y = _unary(y, given["unary_attr"], given["unary_scalars"], "")
    result: Tensor = accumulated.copy_(_written(y, given))
    return result


def _multiplied(given: Arguments) -> Tensor:
    centred = given["qx"].double() - _number(given["x_zero_point"])
    return _products_in_float(given, centred @ given["qw"].double(), (1, -1))


def _linear(given: Arguments) -> Tensor:
    if "other" in given:
        y = _multiplied(given) + given["other"].float()
        return _written(_unary(y, given["unary_post_op"], [], ""), given)
    y = _unary(_multiplied(given), given["post_op_name"], given["post_op_args"], given["post_op_algorithm"])
    return _written(y, given)


def _weight_only_8(given: Arguments) -> Tensor:
    x: Tensor = given["self"]
    y = (x.double() @ given["mat2"].double().t()) * given["scales"].double()
    result: Tensor = y.to(x.dtype)
    return result


def _weight_only_4(given: Arguments) -> Tensor:
    x, words, group = given["self"], given["mat2"].long() & 0xFFFFFFFF, given["qGroupSize"]
    # The first of eight weights is in the lowest bits: (outputs, words) -> (outputs, features)
    nibbles = torch.stack([(words >> (4 * place)) & 15 for place in range(8)], -1).reshape(len(words), -1)
    # (groups, outputs) -> (outputs, features)
    scale, zero = (given[name].double().t().repeat_interleave(group, 1) for name in ("qScale", "qZeros"))
    result: Tensor = (x.double() @ ((nibbles - zero) * scale).t()).to(x.dtype)
    return result


def _max_pool(given: Arguments) -> Tensor:
    x: Tensor = given["qx"]
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    result: Tensor = F.max_pool2d(x.double(), *(given[name] for name in names)).to(x.dtype)
    return result


_KERNELS = {
    "onednn.qconv_pointwise": _convolution,
    "onednn.qconv2d_pointwise": _convolution_sum,
    "onednn.qlinear_pointwise": _linear,
    "aten._weight_int8pack_mm": _weight_only_8,
    "aten._weight_int4pack_mm_with_scales_and_zeros": _weight_only_4,
    "quantized.max_pool2d": _max_pool,
}


class Reference(Contract):  # type: ignore[no-untyped-call]  # torch's class has no types
    """Check every call of a kernel, and compute it in plain torch."""

    def compute(self, func: Any, given: Arguments, args: Any, kwargs: Any) -> Any:
        """Run a kernel."""
        return _KERNELS[kernel_of(func)](given)


def _scan(body: Any, state: Any, sequences: Any, constants: Any) -> tuple[Tensor, ...]:
    """The loop of a recurrent layer. Its own operator does not run under a dispatch mode."""
    results: list[Any] = []
    for step in range(sequences[0].shape[0]):
        found = body(*state, *(torch.select(sequence, 0, step) for sequence in sequences), *constants)
        state, written = found[: len(state)], found[len(state) :]
        results.append(written)
    return (*state, *map(torch.stack, zip(*results, strict=True)))


_SCAN = torch.ops.higher_order.scan


def _with_loops(lowered: GraphModule) -> GraphModule:
    """The graph with loops that run under a dispatch mode; the graph itself if it has none."""
    bodies = [body.graph for _, body in graph_modules(lowered)]
    if not any(node.target is _SCAN for graph in bodies for node in graph.nodes):
        return lowered
    copied = copy_graph_module(lowered)
    for _, body in graph_modules(copied):
        for node in body.graph.nodes:
            node.target = _scan if node.target is _SCAN else node.target
        body.recompile()
    return copied


class OnReference(nn.Module):
    """A lowered graph, run with the kernels in plain torch."""

    def __init__(self, lowered: GraphModule) -> None:
        super().__init__()
        self.lowered = _with_loops(lowered)
        self.meta = lowered.meta

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph."""
        with Reference():
            return self.lowered(*args, **kwargs)


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    """Shape of attention: torch built for CPUs chooses no kernel of it for another device."""
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


def _lstm(x: Tensor, state: list[Tensor], weights: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Shapes of a recurrent layer, as in `_attention`."""
    is_bidirectional = arguments[4]
    width = state[0].shape[-1] * (2 if is_bidirectional else 1)
    return x.new_empty((*x.shape[:-1], width)), state[0].clone(), state[1].clone()


_SHAPES: dict[Any, Any] = {
    torch.ops.aten.scaled_dot_product_attention.default: _attention,
    torch.ops.aten.lstm.input: _lstm,
}


def trace_on_xpu(lowered: GraphModule, example_inputs: tuple[Any, ...]) -> tuple[Any, dict[str, int]]:
    """Run a lowered graph on fake tensors of device `xpu`, and check every call of a kernel.

    Returns: the fake results, and the number of calls of each kernel.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():

        def move(value: Tensor) -> Tensor:
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="xpu")

        def moved(device: torch.device) -> torch.device:
            return torch.device("xpu")

        copied = copy_graph_module(_with_loops(lowered))
        for owner in copied.modules():
            for name, value in (*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)):
                delattr(owner, name)
                setattr(owner, name, move(value))
        for _, body in graph_modules(copied):
            for node in body.graph.nodes:
                node.args, node.kwargs = (tree_map_only(torch.device, moved, part) for part in (node.args, node.kwargs))
                node.target = _SHAPES.get(node.target, node.target)
            body.recompile()
        inputs = tree_map_only(Tensor, move, example_inputs)
        with Contract() as contract:
            results = copied(*inputs)
        assert mode is not None
    return results, contract.calls


def lower_to_reference(converted: GraphModule, example_inputs: tuple[Any, ...], target: str) -> OnReference:
    """Lower as the backend does, trace the graph on the fake device, and run it on the reference."""
    BACKEND.resolve_target(target)
    lowered = lower_portable(converted)
    trace_on_xpu(lowered, example_inputs)
    return OnReference(lowered)
