"""A process in which torch has no `quantized_decomposed` operators. Argument: a folder for what it computes."""

import importlib.abc
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

HIDDEN = "torch.ao.quantization.fx._decomposed"


class Hidden(importlib.abc.MetaPathFinder):
    """Says that torch's definitions do not exist."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if fullname == HIDDEN:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


assert HIDDEN not in sys.modules
sys.meta_path.insert(0, Hidden())
torch.manual_seed(0)

import qspec_core as qspec  # noqa: E402  # after the finder
from qspec_core._decomposed import OPERATORS  # noqa: E402
from qspec_core._torch import schema_of  # noqa: E402

namespace = torch.ops.quantized_decomposed
assert HIDDEN not in sys.modules


def overload(name: str) -> Any:  # an operator overload, which torch leaves untyped
    packet, _, own = name.partition(".")
    return getattr(getattr(namespace, packet), own or "default")


def samples() -> dict[str, tuple[Any, ...]]:
    """Arguments for every operator."""
    x, i8 = torch.randn(4, 8), torch.randint(-128, 127, (4, 8), dtype=torch.int8)
    per_tensor, tensors = (0.1, 3, -128, 127, torch.int8), (torch.tensor([0.1]), torch.tensor([3]))
    rows, limits = (torch.rand(4) + 0.1, torch.zeros(4, dtype=torch.int64)), (-128, 127, torch.int8)
    tokens = rows[0][:, None], rows[1][:, None]
    all_tensors = (*tensors, torch.tensor(-128), torch.tensor(127), torch.int8)
    groups = torch.rand(4, 2) + 0.1, torch.zeros(4, 2, dtype=torch.int32)
    return {
        "quantize_per_tensor": (x, *per_tensor),
        "quantize_per_tensor.tensor": (x, *tensors, *limits),
        "quantize_per_tensor.tensor2": (x, *all_tensors),
        "dequantize_per_tensor": (i8, *per_tensor),
        "dequantize_per_tensor.tensor": (i8, *tensors, *limits),
        "dequantize_per_tensor.tensor2": (i8, *all_tensors),
        "choose_qparams.tensor": (x, -128, 127, 1e-7, torch.int8),
        "choose_qparams_symmetric.tensor": (x, -128, 127, 1e-7, torch.int8),
        "quantize_per_channel": (x, *rows, 0, *limits),
        "dequantize_per_channel": (i8, *rows, 0, *limits),
        "choose_qparams_per_token": (x.half(), torch.int8),
        "choose_qparams_per_token_asymmetric": (x, torch.int8),
        "quantize_per_token": (x, *tokens, *limits),
        "dequantize_per_token": (i8, *tokens, *limits, torch.float16),
        "quantize_per_channel_group": (x, *groups, *limits, 4),
        "dequantize_per_channel_group": (i8, *groups, *limits, 4, torch.float16),
        "fake_quant_per_channel": (x, *rows, 0, -128, 127),
        "convert_element_type.no_fuse": (x, torch.float16),
    }


class Observe(qspec.Quantizer):
    """Quantizes the input and the weight of every linear."""

    def __init__(self, activation: qspec.QuantizationSpec, weight: qspec.QuantizationSpec) -> None:
        self.specs = activation, weight

    def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
        for node in model.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default):
            for source, spec in zip(node.all_input_nodes, self.specs, strict=False):
                qspec.annotate_input_qspec_map(node, source, spec)
        return model

    def validate(self, model: torch.fx.GraphModule) -> None:
        pass


def main(folder: Path) -> None:
    found = samples()
    assert found.keys() == OPERATORS.keys()
    for name, arguments in found.items():  # schemas tell the truth, and fakes are as the kernels
        torch.library.opcheck(overload(name), arguments, test_utils=("test_schema", "test_faketensor"))

    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    x = torch.randn(6, 8)
    activation = qspec.QuantizationSpec(torch.uint8, qspec.MinMaxObserver, 0, 255, torch.per_tensor_affine)
    weight = qspec.QuantizationSpec(
        torch.int8, qspec.PerChannelMinMaxObserver, -128, 127, torch.per_channel_symmetric, 0
    )
    prepared = qspec.prepare_pt2e(torch.export.export(model, (x,)).module(), Observe(activation, weight))
    prepared(x)
    converted = qspec.convert_pt2e(prepared, fold_quantize=False)
    expected = converted(x)
    assert not torch.equal(expected, model(x))
    torch.export.save(torch.export.export(converted, (x,)), folder / "program.pt2")
    assert torch.equal(torch.export.load(folder / "program.pt2").module()(x), expected)

    leaf = x.clone().requires_grad_()
    namespace.fake_quant_per_channel(leaf, torch.full((8,), 0.01), torch.zeros(8), 1, -128, 127).sum().backward()
    torch.save((x, expected.detach(), leaf.grad), folder / "tensors.pt")
    schemas = {name: str(schema_of(overload(name))) for name in OPERATORS}
    print(json.dumps(schemas))  # noqa: T201  # what the test reads


main(Path(sys.argv[1]))
