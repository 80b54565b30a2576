"""A small device for the tests of core, and references in plain torch."""

from collections.abc import Callable, Mapping
from email.message import Message
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qspec_core import (
    Backend,
    QuantizationConfig,
    QuantizationSpec,
    Quantizer,
    TableQuantizer,
    convert_pt2e,
    prepare_pt2e,
)
from qspec_core.canonical import canonicalize, fold_batch_norms
from qspec_core.graph import copy_graph_module
from qspec_core.observers import MinMaxObserver, PerChannelMinMaxObserver, PlaceholderObserver
from qspec_core.patterns import (
    DELEGATED,
    Flow,
    Mode,
    OtherRole,
    Outputs,
    PatternTable,
    PostOp,
    Row,
    activation,
    activations,
    bias,
    weight,
)

aten = torch.ops.aten
decomposed = torch.ops.quantized_decomposed

RELU = PostOp(aten.relu.default, "relu")
HARDTANH = PostOp(aten.hardtanh.default, "hardtanh")
ADD = PostOp(aten.add.Tensor, "add", other=OtherRole.QUANTIZED)
FLOAT_ADD = PostOp(aten.add.Tensor, "add", other=OtherRole.FLOAT)
CHAINS = ((ADD, RELU), (ADD,), (HARDTANH,), (RELU,), ())
ALL_MODES = frozenset(Mode)


def layer(name: str, target: Any, chains: tuple[tuple[PostOp, ...], ...] = CHAINS) -> Row:
    """A row of a convolution or linear layer. `target` is an operator overload, which torch leaves untyped."""
    operands = (activation("input"), weight("weight", ch_axis=0), bias("bias"))
    return Row(name, target, operands, Flow.STARTS, DELEGATED, chains=chains, modes=ALL_MODES)


def sharing(name: str, target: Any) -> Row:
    """A row whose output has the parameters of its one input."""
    return Row(name, target, (activation("self"),), Flow.SHARES, DELEGATED)


CONV2D = layer("conv2d", aten.conv2d.default)
LINEAR = layer("linear", aten.linear.default)
ADD_ROW = Row(
    "add",
    aten.add.Tensor,
    (activation("self"), activation("other")),
    Flow.JOINS,
    DELEGATED,
    chains=((RELU,), ()),
)
CAT = Row("cat", aten.cat.default, (activations("tensors"),), Flow.SHARES, DELEGATED)
PAD, POOL, SELECT, VIEW = (
    sharing(name, target)
    for name, target in (
        ("pad", aten.pad.default),
        ("max_pool2d", aten.max_pool2d.default),
        ("select", aten.select.int),
        ("view", aten.view.default),
    )
)
ROWS = (CONV2D, LINEAR, ADD_ROW, CAT, PAD, POOL, SELECT, VIEW)

ACT = QuantizationSpec(torch.uint8, MinMaxObserver, 0, 255, torch.per_tensor_affine)
WEIGHT = QuantizationSpec(torch.int8, PerChannelMinMaxObserver, -128, 127, torch.per_channel_symmetric, 0)
DYNAMIC_ACT = QuantizationSpec(torch.int8, PlaceholderObserver, -128, 127, torch.per_tensor_affine, is_dynamic=True)
CONFIG = QuantizationConfig(ACT, ACT, WEIGHT, None)
DYNAMIC = QuantizationConfig(DYNAMIC_ACT, None, WEIGHT, None)
WEIGHT_ONLY = QuantizationConfig(None, None, WEIGHT, None)


def table(
    rows: tuple[Row, ...] = ROWS, outputs: Outputs = Outputs.DEMAND, float_only: Mapping[Any, str] | None = None
) -> PatternTable:
    return PatternTable(rows, outputs, {} if float_only is None else float_only)


def quantizer(config: QuantizationConfig | None = CONFIG, outputs: Outputs = Outputs.DEMAND) -> TableQuantizer:
    return TableQuantizer(table(outputs=outputs)).set_global(config)


class Custom(Quantizer):
    """Annotates by a function of the graph module."""

    def __init__(self, function: Callable[[GraphModule], object]) -> None:
        self.function = function

    def annotate(self, model: GraphModule) -> GraphModule:
        self.function(model)
        return model

    def validate(self, model: GraphModule) -> None:
        """Accept everything."""


class Net(nn.Module):
    """A module from a function of itself and its inputs; keywords are its submodules, parameters and buffers."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.function(self, *inputs, **named)


def export(model: nn.Module, *inputs: Any, **options: Any) -> GraphModule:
    """The exported graph module of a model in evaluation mode."""
    module = torch.export.export(model.eval(), inputs, **options).module()
    assert isinstance(module, GraphModule)
    return module


def settled(model: nn.Module) -> nn.Module:
    """Give every batch norm statistics and affine parameters that are not the identity."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.uniform_(module.bias, -1, 1)
    return model.eval()


def canonical(exported: GraphModule) -> GraphModule:
    """A copy in canonical form, with batch norms folded."""
    module = copy_graph_module(exported)
    fold_batch_norms(module)
    canonicalize(module)
    module.graph.lint()
    module.recompile()
    return module


def canonical_of(model: nn.Module, *inputs: Tensor, decompose: bool = False, **options: Any) -> GraphModule:
    """The canonical form of a model, after a check that it computes what the model does."""
    want = model.eval()(*(x.clone() for x in inputs))
    program = torch.export.export(model, inputs, **options)
    exported = (program.run_decompositions() if decompose else program).module()
    assert isinstance(exported, GraphModule)
    frozen = Frozen(exported)
    module = canonical(exported)
    torch.testing.assert_close(module(*(x.clone() for x in inputs)), want, rtol=1e-5, atol=1e-5)
    frozen.check()
    return module


def calls(module: GraphModule, *targets: Any) -> list[Node]:
    """Calls of these operators, in graph order; of all where none is given."""
    nodes = [node for node in module.graph.nodes if node.op == "call_function"]
    return [node for node in nodes if not targets or node.target in targets]


def targets(module: GraphModule) -> list[str]:
    """Names of the operators called, in graph order."""
    return [str(node.target) for node in calls(module)]


def quantized(exported: GraphModule, *batches: tuple[Any, ...], config: QuantizationConfig = CONFIG) -> GraphModule:
    """Prepare with the small device's rows, calibrate on the batches, convert."""
    prepared = prepare_pt2e(exported, quantizer(config))
    for batch in batches:
        prepared(*batch)
    return convert_pt2e(prepared)


def simulate(x: Tensor, scale: Tensor | float, zero_point: Tensor | int, low: int, high: int) -> Tensor:
    """Quantize and dequantize in plain torch; `scale` and `zero_point` must broadcast against `x`."""
    inverse = 1.0 / scale
    return (torch.clamp(torch.round(x * inverse) + zero_point, low, high) - zero_point) * scale


def affine_parameters(x: Tensor, low: int = 0, high: int = 255) -> tuple[float, int]:
    """Scale and zero point of the range of `x`, widened to hold 0; in float32, as devices hold scales."""
    smallest, largest = x.detach().min().clamp(max=0.0), x.detach().max().clamp(min=0.0)
    scale = (largest - smallest) / (high - low)
    return scale.item(), int((low - torch.round(smallest / scale)).clamp(low, high).item())


def symmetric_scales(value: Tensor) -> Tensor:
    """Scale of each output channel of a weight at -128..127, shaped to broadcast against it."""
    largest = value.detach().flatten(1).abs().amax(1)
    return (largest / 127.5).reshape(-1, *(1 for _ in value.shape[1:]))


def at_activation(x: Tensor) -> Tensor:
    """A tensor after quantization over its own range."""
    return simulate(x, *affine_parameters(x), 0, 255)


def at_weight(w: Tensor) -> Tensor:
    """A weight after quantization to -128..127, each output channel over its own range."""
    return simulate(w.detach(), symmetric_scales(w), 0, -128, 127)


def sqnr(reference: Tensor, found: Tensor) -> float:
    """Signal to quantization noise, in dB."""
    noise = (reference - found).double().pow(2).sum()
    return float(10 * torch.log10(reference.double().pow(2).sum() / noise))


class Frozen:
    """The state of a module, to check later that it did not change: parameters bitwise, code, every node's metadata."""

    def __init__(self, module: GraphModule) -> None:
        self.module = module
        self.code = module.code
        self.state = {name: value.clone() for name, value in module.state_dict().items()}
        self.storage = {name: value.data_ptr() for name, value in module.state_dict().items()}
        self.nodes = [(node, str(node.format_node()), dict(node.meta)) for node in module.graph.nodes]
        self.meta = dict(module.meta)
        self.children = [name for name, _ in module.named_modules()]

    def check(self) -> None:
        module = self.module
        assert module.code == self.code
        assert list(module.state_dict()) == list(self.state)
        for name, value in module.state_dict().items():
            assert torch.equal(value, self.state[name]), name
            assert value.data_ptr() == self.storage[name], name
        assert [node for node, _, _ in self.nodes] == list(module.graph.nodes)
        for node, text, meta in self.nodes:
            assert str(node.format_node()) == text
            assert node.meta.keys() == meta.keys()
            assert all(node.meta[key] is value for key, value in meta.items()), node.name
        assert module.meta == self.meta
        assert [name for name, _ in module.named_modules()] == self.children


def toy_backend(**fields: Any) -> Backend:  # Any: whichever fields a test replaces
    """A backend over the small device's rows, which lowers to the converted module itself."""
    given: dict[str, Any] = {
        "name": "toy",
        "table": table(),
        "quantizer": toy_quantizer,
        "lower": toy_lower,
        "package": toy_package,
        "targets": ("any", "fast"),
        "modes": frozenset({Mode.STATIC, Mode.DYNAMIC}),
    }
    return Backend(**given | fields)


def toy_quantizer(*, mode: Mode, target: str) -> TableQuantizer:
    return quantizer({Mode.STATIC: CONFIG, Mode.DYNAMIC: DYNAMIC, Mode.WEIGHT_ONLY: WEIGHT_ONLY}[mode])


def toy_lower(converted: GraphModule, example_inputs: tuple[Any, ...], target: str) -> nn.Module:
    converted.meta["lowered for"] = target
    return converted


def toy_package(converted: GraphModule, example_inputs: tuple[Any, ...], path: Path, target: str) -> Path:
    torch.save(converted.state_dict(), path)
    return path


def install(
    monkeypatch: pytest.MonkeyPatch, *points: tuple[str, str, Any], distributions: tuple[str, ...] = ()
) -> list[str]:
    """Replace the installed entry points by (group, name, loaded object). Returns a list that gets each name loaded.

    An exception as the object is raised by loading. `distributions` names one for each point, qspec-NAME by default.
    """
    loaded: list[str] = []

    class Point(EntryPoint):
        def load(self) -> Any:
            loaded.append(self.name)
            found = next(value for group, name, value in points if (group, name) == (self.group, self.name))
            if isinstance(found, BaseException):
                raise found
            return found

    made = []
    owners = distributions or tuple(f"qspec-{name}" for _, name, _ in points)
    for (group, name, _), owner in zip(points, owners, strict=True):
        point = Point(name, "module:attribute", group)
        metadata = Message()
        metadata["Summary"] = f"the {name}"
        vars(point)["dist"] = SimpleNamespace(name=owner, version="1.2", metadata=metadata)
        made.append(point)
    monkeypatch.setattr("_qspec_contract._installed.entry_points", lambda **wanted: EntryPoints(made).select(**wanted))
    return loaded
