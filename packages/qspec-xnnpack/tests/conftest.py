"""How tests quantize a module for XNNPACK, and how they read what ExecuTorch wrote."""

import importlib.util
import json
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qspec_core as qspec
from qspec_core.lowering import quantized_value
from qspec_xnnpack import BACKEND, XNNPACKProgram

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def quantized() -> Callable[..., qspec.Result]:
    """Quantizes a module for XNNPACK, calibrated on the inputs themselves."""

    def run(model: nn.Module, *inputs: Tensor, quantizer: qspec.Quantizer | None = None) -> qspec.Result:
        return qspec.quantize(model, inputs, calibration=[inputs], backend=BACKEND, quantizer=quantizer)

    return run


@pytest.fixture(scope="session")
def lowered() -> Callable[[qspec.Result], XNNPACKProgram]:
    """The program that a result runs, by its own type."""

    def read(result: qspec.Result) -> XNNPACKProgram:
        assert isinstance(result.lowered, XNNPACKProgram)
        return result.lowered

    return read


@pytest.fixture(scope="session")
def steps() -> Callable[[torch.fx.GraphModule], list[float]]:
    """One quantized step of each output of a converted graph."""

    def read(converted: torch.fx.GraphModule) -> list[float]:
        (output,) = converted.graph.find_nodes(op="output")
        found = [quantized_value(node) for node in output.all_input_nodes]
        return [value.scale for value in found if value is not None and isinstance(value.scale, float)]

    return read


Graphs = Callable[[bytes], list[dict[str, Any]]]


@pytest.fixture
def graphs(tmp_path: Path) -> Graphs:
    """What a .pte hands to XNNPACK, decoded by the flatbuffer compiler from ExecuTorch's schema."""
    found = importlib.util.find_spec("executorch")
    assert found is not None
    root = Path((found.submodule_search_locations or [""])[0])
    schema = root / "backends/xnnpack/serialization/runtime_schema.fbs"

    def read(buffer: bytes) -> list[dict[str, Any]]:
        decoded = []
        at = buffer.find(b"XH00")
        while at >= 0:
            start = at - 4
            offset, size = struct.unpack_from("<II", buffer, start + 10)
            (tmp_path / "graph.bin").write_bytes(buffer[start + offset : start + offset + size])
            flags = ["--json", "--strict-json", "--raw-binary", "--defaults-json", "--allow-non-utf8"]
            command = [str(root / "data/bin/flatc"), *flags, "-o", str(tmp_path), str(schema), "--"]
            subprocess.run([*command, str(tmp_path / "graph.bin")], check=True, capture_output=True)
            # flatc writes the open end of a clamp as a bare word that is not JSON.
            text = (tmp_path / "graph.json").read_text().replace(": inf", ": Infinity").replace(": -inf", ": -Infinity")
            decoded.append(json.loads(text))
            at = buffer.find(b"XH00", at + 1)
        return decoded

    return read


@pytest.fixture
def kernels(graphs: Graphs) -> Callable[[bytes], list[str]]:
    """Names of the nodes that a .pte hands to XNNPACK. A node `XNNConvert` quantizes or dequantizes, so that each one
    beyond the model's inputs and outputs feeds float."""

    def read(buffer: bytes) -> list[str]:
        return [node["xnode_union_type"] for graph in graphs(buffer) for node in graph["xnodes"]]

    return read


@pytest.fixture
def datatypes(graphs: Graphs) -> Callable[[bytes], list[str]]:
    """Data types of the tensors that a .pte hands to XNNPACK."""

    def read(buffer: bytes) -> list[str]:
        values = [value["xvalue_union"] for graph in graphs(buffer) for value in graph["xvalues"]]
        return [str(value.get("tensor_value", value)["datatype"]) for value in values]

    return read
