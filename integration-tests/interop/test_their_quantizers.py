"""Quantizers written for torchao, unchanged, in qspec's flow: the graph and the numbers of torchao's own flow."""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from flows import Program, by_qspec, by_torchao, expressions
from torch import Tensor
from torch.fx import GraphModule

from qspec_core.graph import constant_value

pytest.importorskip("torchao")

pytestmark = pytest.mark.filterwarnings("default")  # torchao, ExecuTorch and coremltools warn about their own code
slow = pytest.mark.skipif("QSPEC_SLOW" not in os.environ, reason="coremltools annotates for minutes: set QSPEC_SLOW")


def xnnpack() -> Any:
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as its

    return its.XNNPACKQuantizer().set_global(its.get_symmetric_quantization_config(is_per_channel=True))


def xnnpack_dynamic() -> Any:
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as its

    config = its.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    return its.XNNPACKQuantizer().set_global(config)


def vulkan() -> Any:
    from executorch.backends.vulkan.quantizer import vulkan_quantizer as its

    return its.VulkanQuantizer().set_global(its.get_symmetric_quantization_config())


def core_ml() -> Any:
    pytest.importorskip("coremltools")
    from coremltools.optimize.torch.quantization import quantization_config as config
    from executorch.backends.apple.coreml.quantizer.coreml_quantizer import CoreMLQuantizer

    chosen = {
        "quantization_scheme": config.QuantizationScheme.symmetric,
        "milestones": [0, 0, 10, 10],
        "activation_dtype": torch.quint8,
        "weight_dtype": torch.qint8,
        "weight_per_channel": True,
    }
    return CoreMLQuantizer(config.LinearQuantizerConfig.from_dict({"global_config": chosen}))


def cadence() -> Any:
    from executorch.backends.cadence.aot.quantizer.quantizer import CadenceDefaultQuantizer

    return CadenceDefaultQuantizer()


def qualcomm() -> Any:
    from executorch.backends.qualcomm.quantizer.quantizer import QnnQuantizer

    return QnnQuantizer()


def samsung() -> Any:
    from executorch.backends.samsung.quantizer.quantizer import EnnQuantizer, Precision

    quantizer = EnnQuantizer()
    quantizer.setup_quant_params(Precision.A8W8)
    return quantizer


def x86() -> Any:
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as its

    return its.X86InductorQuantizer().set_global(its.get_default_x86_inductor_quantization_config())


def embedding() -> Any:
    from torchao.quantization.pt2e.quantizer.embedding_quantizer import EmbeddingQuantizer

    return EmbeddingQuantizer()


def blocks(*, is_dynamic: bool = False) -> Any:
    """torchao's block observers, which convert themselves to torchao's operators."""
    from torchao.quantization.granularity import PerGroup, PerTensor
    from torchao.quantization.pt2e import _affine_quantization as its
    from torchao.quantization.pt2e import quantizer as specs
    from torchao.quantization.quant_primitives import MappingType

    fields = {"mapping_type": MappingType.ASYMMETRIC, "target_dtype": torch.uint8, "granularity": PerTensor()}
    grouped = {"mapping_type": MappingType.SYMMETRIC, "target_dtype": torch.int8, "granularity": PerGroup(4)}
    observer, moving = its.AffineQuantizedMinMaxObserver, its.AffineQuantizedMovingAverageMinMaxObserver
    chosen = moving.with_args(averaging_constant=1.0, **fields) if is_dynamic else observer.with_args(**fields)
    activation = specs.QuantizationSpec(torch.uint8, chosen, 0, 255, is_dynamic=is_dynamic)
    weight = specs.QuantizationSpec(torch.int8, observer.with_args(**grouped), -8, 7)

    class Blocks(specs.Quantizer):  # type: ignore[misc]  # torchao is untyped
        def annotate(self, model: GraphModule) -> GraphModule:
            for node in model.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default):
                inputs = {node.args[0]: activation, node.args[1]: weight}
                node.meta["quantization_annotation"] = specs.QuantizationAnnotation(inputs, _annotated=True)
            return model

        def validate(self, model: GraphModule) -> None:
            pass

    return Blocks()


def dynamic_blocks() -> Any:
    return blocks(is_dynamic=True)


@pytest.mark.parametrize(
    ("program", "make"),
    [
        *(("encoder", make) for make in (xnnpack, xnnpack_dynamic, qualcomm, samsung, x86)),
        *(("encoder", make) for make in (blocks, dynamic_blocks)),
        ("small", vulkan),
        ("traced", cadence),
        pytest.param("small", core_ml, marks=slow),
        *(("lite0", make) for make in (xnnpack, qualcomm, samsung)),
    ],
    indirect=["program"],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_same_graph_and_numbers(program: Program, make: Callable[[], Any]) -> None:
    pytest.importorskip("executorch")
    theirs, ours = by_torchao(program, make()), by_qspec(program, make())
    assert expressions(ours) == expressions(theirs)
    assert any("dequantize" in str(node.target) for node in ours.graph.nodes)
    with torch.no_grad():
        for batch in program.batches:
            assert torch.equal(ours(*batch), theirs(*batch))


def tables(module: GraphModule) -> dict[torch.Size, tuple[Tensor, Tensor, Tensor]]:
    """Integers, scales and zero points of each quantized table, (rows, columns), (rows,) and (rows,), by its shape."""
    found = {}
    for node in module.graph.nodes:
        if "dequantize_per_channel" in str(node.target):
            integers, scales, zero_points = (constant_value(module, argument) for argument in node.args[:3])
            assert integers is not None
            assert scales is not None
            assert zero_points is not None
            found[integers.shape] = integers, scales, zero_points
    return found


@pytest.mark.parametrize("program", ["encoder"], indirect=True)
def test_tables_are_rounded_once(program: Program) -> None:
    """qspec differs on purpose: torch's operator rounds, adds the float zero point, and truncates."""
    theirs, ours = tables(by_torchao(program, embedding())), tables(by_qspec(program, embedding()))
    named = program.graph.named_parameters()
    floats = {value.shape: value.detach() for name, value in named if name.endswith("embeddings.weight")}
    assert len(floats) == len(ours) == 3
    for shape, (integers, scales, zero_points) in ours.items():
        others = theirs[shape]
        assert torch.equal(scales, others[1])
        assert torch.equal(zero_points, others[2])
        assert (integers.int() - others[0].int()).abs().max() <= 1
        lost, lost_there = (
            ((each - zero_points[:, None]) * scales[:, None] - floats[shape]).abs() / scales[:, None]
            for each in (integers, others[0])
        )
        assert lost.max() < 0.501 < lost_there.max()
