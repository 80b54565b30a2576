"""Three quantizers of ExecuTorch's vendors as tables: they quantize no less than the vendor's own, on every model."""

import ast
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch.fx import GraphModule
from vendors import cadence, cortex_m, vulkan

from qspec_core import QuantizationConfig, TableQuantizer, convert_pt2e, ops, prepare_pt2e
from qspec_core.graph import called_operator, is_call, tensor_value
from qspec_core.patterns import PatternTable
from qspec_core.testing import ARCHITECTURES

# The vendors' code warns about itself. Not "default": pytest-xdist then imports ExecuTorch to show its warnings.
pytestmark = pytest.mark.filterwarnings("ignore")
aten = torch.ops.aten
LAYERS = (aten.linear.default, aten.conv1d.default, aten.conv2d.default, aten.conv_transpose2d.input)


def its_vulkan() -> Any:
    pytest.importorskip("executorch")
    from executorch.backends.vulkan.quantizer import vulkan_quantizer as its

    return its.VulkanQuantizer().set_global(its.get_symmetric_quantization_config(is_dynamic=True))


def its_cadence() -> Any:
    pytest.importorskip("executorch")
    from executorch.backends.cadence.aot.quantizer.quantizer import CadenceDefaultQuantizer

    return CadenceDefaultQuantizer()


def its_cortex_m() -> Any:
    pytest.importorskip("executorch")
    sys.modules.setdefault("tosa_serializer", MagicMock())  # imported by it, and not needed to annotate
    from executorch.backends.cortex_m.quantizer.quantizer import CortexMQuantizer

    return CortexMQuantizer(use_explicit_layout=True)


@dataclass(frozen=True)
class Vendor:
    """A vendor's quantizer and its table.

    Args:
        name: of the file in this folder.
        table: the rows.
        config: the default configuration.
        theirs: makes the vendor's own quantizer.
        files: sources of the vendor's own, in ExecuTorch's wheel.
    """

    name: str
    table: PatternTable
    config: QuantizationConfig
    theirs: Callable[[], Any]
    files: tuple[str, ...]


VENDORS = (
    Vendor("vulkan", vulkan.TABLE, vulkan.CONFIG, its_vulkan, ("vulkan/quantizer",)),
    Vendor("cadence", cadence.TABLE, cadence.CONFIG, its_cadence, ("cadence/aot/quantizer",)),
    Vendor("cortex_m", cortex_m.TABLE, cortex_m.CONFIG, its_cortex_m, ("cortex_m/quantizer",)),
)
vendors = pytest.mark.parametrize("vendor", VENDORS, ids=lambda vendor: vendor.name)


def quantized(name: str, quantizer: Any) -> GraphModule:
    torch.manual_seed(0)
    model, shape = ARCHITECTURES[name]()
    x = torch.randn(shape)
    # Cadence's quantizer finds operators by metadata of the strict mode; Cortex-M's takes no module of guards.
    exported = torch.export.export(model.eval(), (x,), strict=True).module(check_guards=False)
    assert isinstance(exported, GraphModule)
    prepared = prepare_pt2e(exported, quantizer, allow_empty=True)
    prepared(x)
    return convert_pt2e(prepared)


def in_integers(module: GraphModule) -> tuple[int, int]:
    """Layers, and all operators, whose tensors are dequantized; a bias may be float."""
    layers, operators = 0, 0
    for node in module.graph.nodes:
        operator = called_operator(node)
        if operator is None or operator.namespace != "aten":
            continue
        floats = [n for n in node.all_input_nodes if (v := tensor_value(n)) is not None and v.is_floating_point()]
        needed = floats[:2] if is_call(node, *LAYERS) else floats
        if needed and all(ops.is_dequantize(n) for n in needed):
            operators += 1
            layers += is_call(node, *LAYERS)
    return layers, operators


@vendors
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_coverage_is_no_less_than_the_vendors(vendor: Vendor, name: str) -> None:
    ours = in_integers(quantized(name, TableQuantizer(vendor.table).set_global(vendor.config)))
    theirs = in_integers(quantized(name, vendor.theirs()))
    assert ours[0] >= theirs[0]
    assert ours[1] >= theirs[1]


def lines_of_code(path: Path) -> int:
    """Lines with code: statements of the syntax tree, without docstrings."""
    tree = ast.parse(path.read_text())
    docstrings = {
        number
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines = path.read_text().splitlines()
    return sum(
        1
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.strip().startswith("#") and number not in docstrings
    )


@vendors
def test_a_table_is_a_fraction_of_the_vendors_lines(vendor: Vendor) -> None:
    executorch = pytest.importorskip("executorch.backends")
    (backends,) = executorch.__path__
    theirs = sum(lines_of_code(path) for folder in vendor.files for path in Path(backends, folder).glob("*.py"))
    folder = Path(__file__).parent
    ours = lines_of_code(folder / f"{vendor.name}.py") + lines_of_code(folder / "parts.py")
    print(f"{vendor.name}: {ours} lines, {theirs} in ExecuTorch's wheel")
    assert ours < theirs / 3
