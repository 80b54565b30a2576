"""NNCF's OpenVINO quantizer in qspec's flow, and qspec's quantizers in NNCF's flow."""

import math
from typing import Any

import pytest
import torch
from flows import Program, by_qspec, by_torchao, expressions
from torch.fx import GraphModule

import qspec_core as qspec
from qspec_core.graph import constant_value, copy_graph_module
from qspec_core.interop import for_torchao

nncf: Any = pytest.importorskip("nncf")
pytestmark = pytest.mark.filterwarnings("default")  # NNCF, torchao and torch.ao warn about their own code

MODES = "INT8_SYM", "INT8_MIXED", "INT8WO_SYM", "INT8WO_ASYM", "INT4WO_SYM", "INT4WO_ASYM"


@pytest.mark.parametrize("program", ["small"], indirect=True)
@pytest.mark.parametrize("mode", MODES)
def test_openvinos_quantizer_as_in_torchao(program: Program, mode: str) -> None:
    openvino: Any = pytest.importorskip("executorch.backends.openvino.quantizer.quantizer")

    def quantizer() -> Any:
        return openvino.OpenVINOQuantizer(mode=openvino.QuantizationMode[mode])

    ours, theirs = by_qspec(program, quantizer()), by_torchao(program, quantizer())
    if "WO" in mode:  # its observers convert themselves to calls of modules that unpack the weights
        assert decompressors(ours) == decompressors(theirs)
        assert len(decompressors(ours)) == 3
    else:
        assert expressions(ours) == expressions(theirs)
        assert "dequantize" in ours.code
    with torch.no_grad():
        for batch in program.batches:
            assert torch.equal(ours(*batch), theirs(*batch))


def decompressors(module: GraphModule) -> list[str]:
    called = (module.get_submodule(str(node.target)) for node in module.graph.find_nodes(op="call_module"))
    return [type(part).__name__ for part in called if "Decompressor" in type(part).__name__]


def xnnpack() -> Any:
    its = pytest.importorskip("qspec_xnnpack")
    return its.XNNPACKQuantizer().set_global(its.get_symmetric_quantization_config(is_per_channel=True))


def x86() -> Any:
    its = pytest.importorskip("qspec_x86")
    return its.X86InductorQuantizer().set_global(its.get_default_x86_inductor_quantization_config())


@pytest.mark.parametrize("program", ["small"], indirect=True)
@pytest.mark.parametrize("corrects", [True, None])
@pytest.mark.parametrize("make", [x86, xnnpack])
def test_qspecs_quantizers_in_nncfs_flow(program: Program, make: Any, corrects: bool | None) -> None:
    from nncf.experimental.torch.fx import quantize_pt2e

    data = nncf.Dataset([batch[0] for batch in program.batches])
    made = quantize_pt2e(copy_graph_module(program.graph), for_torchao(make()), data, fast_bias_correction=corrects)
    assert isinstance(made, GraphModule)
    layers = qspec.coverage(qspec.prepare_pt2e(program.graph, make())).quantized_layers
    assert len(layers) == 3
    stored = [constant_value(made, node) for node in made.graph.find_nodes(op="get_attr")]
    weights = [value for value in stored if value is not None and value.dtype == torch.int8 and value.dim() > 1]
    assert len(weights) == len(layers)  # zero points are int8 in NNCF too
    with torch.no_grad():
        want = torch.cat([program.graph(*batch) for batch in program.batches])
        noise = want - torch.cat([made(*batch) for batch in program.batches])
    assert 20 * math.log10(float(want.norm() / noise.norm())) > 25
