"""qspec's quantizers in torchao's flow: the graph and the numbers of qspec's own flow."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from flows import Program, by_qspec, by_torchao, expressions
from torch import nn
from torch.fx import GraphModule

import qspec_core as qspec
from qspec_core.graph import constant_value
from qspec_core.interop import for_torchao
from qspec_core.observers import AffineQuantizedMinMaxObserver, MappingType, PerGroup

pytest.importorskip("torchao")
pytestmark = pytest.mark.filterwarnings("default")  # torchao and torch.ao warn about their own code

ACT = qspec.QuantizationSpec(torch.uint8, qspec.HistogramObserver, 0, 255, torch.per_tensor_affine)
WEIGHT = qspec.QuantizationSpec(torch.int8, qspec.PerChannelMinMaxObserver, -127, 127, torch.per_channel_symmetric, 0)
GROUPS = AffineQuantizedMinMaxObserver.with_args(
    mapping_type=MappingType.SYMMETRIC, target_dtype=torch.int8, granularity=PerGroup(4)
)


def x86() -> Any:
    its = pytest.importorskip("qspec_x86")
    return its.X86InductorQuantizer().set_global(its.get_default_x86_inductor_quantization_config())


def xnnpack() -> Any:
    its = pytest.importorskip("qspec_xnnpack")
    return its.XNNPACKQuantizer().set_global(its.get_symmetric_quantization_config(is_per_channel=True))


def bias_scale(observers: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    activation, weight = observers
    assert isinstance(activation, qspec.HistogramObserver)  # a derivation gets qspec's own observers
    scale = activation.calculate_qparams()[0] * weight.calculate_qparams()[0]
    return scale, torch.zeros_like(scale, dtype=torch.int64)


class EveryKind(qspec.Quantizer):
    """Annotates with each kind of spec, refers to a later point, and replaces an observer in the callback."""

    def __init__(self) -> None:
        self.replaced = 0

    def annotate(self, model: GraphModule) -> GraphModule:
        conv, relu, second, *_ = [node for node in model.graph.nodes if node.op == "call_function"]
        x, weight, bias = conv.args[:3]
        derived = qspec.DerivedQuantizationSpec(
            [(x, conv), (weight, conv)], bias_scale, torch.int32, qscheme=torch.per_channel_symmetric, ch_axis=0
        )
        inputs: dict[Any, qspec.QuantizationSpecBase | None] = {
            bias: derived,
            x: qspec.SharedQuantizationSpec((relu, second)),
            weight: WEIGHT,
        }
        conv.meta[qspec.Q_ANNOTATION_KEY] = qspec.QuantizationAnnotation(inputs)
        qspec.annotate_input_qspec_map(second, relu, ACT)
        fixed = qspec.FixedQParamsQuantizationSpec(torch.uint8, 0.25, 7)
        (linear,) = model.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
        qspec.annotate_input_qspec_map(linear, linear.args[0], fixed)
        groups = qspec.QuantizationSpec(torch.int8, GROUPS, -8, 7)
        qspec.annotate_input_qspec_map(linear, linear.args[1], groups)
        qspec.annotate_output_qspec(linear, ACT)
        return model

    def validate(self, model: GraphModule) -> None:
        assert all(
            isinstance(node.meta.get(qspec.Q_ANNOTATION_KEY), qspec.QuantizationAnnotation | None)
            for node in model.graph.nodes
        )

    def prepare_obs_or_fq_callback(
        self, model: GraphModule, edge_or_node_to_obs_or_fq: dict[qspec.EdgeOrNode, nn.Module]
    ) -> None:
        for point in list(edge_or_node_to_obs_or_fq):
            if isinstance(point, torch.fx.Node):
                assert isinstance(edge_or_node_to_obs_or_fq[point], qspec.HistogramObserver)
                edge_or_node_to_obs_or_fq[point] = qspec.MinMaxObserver(torch.int8)
                self.replaced += 1


@pytest.mark.parametrize(
    ("program", "make"),
    [(name, make) for name in ("lite0", "encoder") for make in (x86, xnnpack)] + [("small", EveryKind)],
    indirect=["program"],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_same_graph_and_numbers(program: Program, make: Callable[[], Any]) -> None:
    in_torchao, in_qspec = by_torchao(program, for_torchao(make())), by_qspec(program, make())
    assert expressions(in_torchao) == expressions(in_qspec)
    assert any("dequantize" in str(node.target) for node in in_qspec.graph.nodes)
    with torch.no_grad():
        for batch in program.batches:
            assert torch.equal(in_torchao(*batch), in_qspec(*batch))


@pytest.mark.parametrize("program", ["small"], indirect=True)
def test_the_callback_sees_and_replaces_qspecs_observers(program: Program) -> None:
    quantizer = EveryKind()
    converted = by_torchao(program, for_torchao(quantizer))
    assert quantizer.replaced == 1
    groups = torch.ops.quantized_decomposed.dequantize_per_channel_group.default
    (read,) = converted.graph.find_nodes(op="call_function", target=groups)
    integers = constant_value(converted, read.args[0])
    assert integers is not None
    assert integers.dtype == torch.int8


def test_the_adapter_passes_class_checks() -> None:
    from torchao.quantization.pt2e.quantizer import Quantizer

    assert isinstance(for_torchao(EveryKind()), Quantizer)
