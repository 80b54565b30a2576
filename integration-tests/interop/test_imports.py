"""Core imported before or after torchao and ExecuTorch: one definition of the operators, and a flow that runs."""

import subprocess
import sys

import pytest

FLOW = """
import torch
import qspec_core as qspec

class Inputs(qspec.Quantizer):
    def annotate(self, model):
        (linear,) = model.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
        spec = qspec.QuantizationSpec(torch.uint8, qspec.MinMaxObserver, 0, 255, torch.per_tensor_affine)
        qspec.annotate_input_qspec_map(linear, linear.args[0], spec)
        return model

    def validate(self, model):
        pass

x = torch.randn(2, 4)
prepared = qspec.prepare_pt2e(torch.export.export(torch.nn.Linear(4, 4).eval(), (x,)).module(), Inputs())
prepared(x)
assert any("quantize" in str(node.target) for node in qspec.convert_pt2e(prepared).graph.nodes)
"""
OTHERS = {
    "torchao": "import torchao.quantization.pt2e.quantize_pt2e",
    "executorch": "import executorch.exir, executorch.backends.xnnpack.quantizer.xnnpack_quantizer",
}


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("other", sorted(OTHERS))
def test_either_order(other: str, order: str) -> None:
    pytest.importorskip(other)
    parts = [OTHERS[other], FLOW] if order == "before" else [FLOW, OTHERS[other]]
    run = subprocess.run([sys.executable, "-c", "\n".join(parts)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_core_imports_neither() -> None:
    program = (
        "import sys, qspec_core, qspec_core.interop; print([m for m in ('torchao', 'executorch') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
