"""Quantizers written for torchao, unchanged, in qspec's flow: the graph and the numbers of torchao's own flow."""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from flows import Program, by_qspec, by_torchao, expressions

pytest.importorskip("torchao")

pytestmark = pytest.mark.filterwarnings("default")  # torchao, ExecuTorch and coremltools warn of much that is theirs
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


@pytest.mark.parametrize(
    ("program", "make"),
    [
        *(("encoder", make) for make in (xnnpack, xnnpack_dynamic, qualcomm, samsung, x86, embedding)),
        *(("small", make) for make in (vulkan, cadence)),
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
