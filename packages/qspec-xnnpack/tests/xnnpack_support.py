"""Helpers of this package's tests: quantize a module for XNNPACK, read what ExecuTorch wrote, and run rows' cases."""

import importlib.util
import json
import struct
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

import qspec_core as qspec
from qspec_core import Result
from qspec_core.lowering import quantized_value
from qspec_core.patterns import Row
from qspec_xnnpack import BACKEND, XNNPACKProgram, XNNPACKQuantizer, get_symmetric_quantization_config

Function = Callable[..., Tensor]
Layer = tuple[Callable[..., nn.Module], tuple[object, ...], Mapping[str, object]]

WEIGHTS: Mapping[str, Mapping[str, int]] = {
    "xnn_datatype_qcint8": {},
    "xnn_datatype_qcint4": {"weight_qmin": -8, "weight_qmax": 7},
    "xnn_datatype_qbint4": {"weight_qmin": -8, "weight_qmax": 7, "group_size": 32},
}
"""Arguments of a dynamic configuration, by the data type that XNNPACK has for its weights."""


def quantized(model: nn.Module, *inputs: Tensor, quantizer: qspec.Quantizer | None = None) -> Result:
    """Quantize a module for XNNPACK, calibrated on the inputs themselves; all static unless a quantizer is given."""
    if quantizer is None:
        config = get_symmetric_quantization_config(is_per_channel=True)
        quantizer = XNNPACKQuantizer(element_wise_starts=False).set_global(config)
    return qspec.quantize(model, inputs, calibration=[inputs], backend=BACKEND, quantizer=quantizer)


def dynamic(model: nn.Module, *inputs: Tensor, **weight: int) -> Result:
    """Quantize a module for XNNPACK in dynamic mode, with the weights of `WEIGHTS`."""
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True, **weight)
    quantizer = XNNPACKQuantizer().set_global(config)
    return qspec.quantize(model, inputs, backend=BACKEND, mode="dynamic", quantizer=quantizer)


def lowered(result: Result) -> XNNPACKProgram:
    """The program that a result runs, with its own type."""
    assert isinstance(result.lowered, XNNPACKProgram)
    return result.lowered


def sqnr(real: Tensor, given: Tensor) -> float:
    """Signal to noise in dB."""
    return float(10 * torch.log10(real.square().sum() / (given - real).square().sum()))


def steps(converted: GraphModule) -> list[float]:
    """One quantized step of each output of a converted graph."""
    (output,) = converted.graph.find_nodes(op="output")
    found = [quantized_value(node) for node in output.all_input_nodes]
    return [value.scale for value in found if value is not None and isinstance(value.scale, float)]


def graphs(buffer: bytes) -> list[dict[str, Any]]:
    """Graphs of XNNPACK in a .pte, decoded by the flatbuffer compiler from ExecuTorch's schema."""
    found = importlib.util.find_spec("executorch")
    assert found is not None
    root = Path((found.submodule_search_locations or [""])[0])
    decoded = []
    at = buffer.find(b"XH00")
    while at >= 0:
        start = at - 4
        offset, size = struct.unpack_from("<II", buffer, start + 10)
        decoded.append(_decoded(buffer[start + offset : start + offset + size], root))
        at = buffer.find(b"XH00", at + 1)
    return decoded


def _decoded(graph: bytes, root: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "graph.bin").write_bytes(graph)
        flags = ["--json", "--strict-json", "--raw-binary", "--defaults-json", "--allow-non-utf8"]
        schema = root / "backends/xnnpack/serialization/runtime_schema.fbs"
        command = [str(root / "data/bin/flatc"), *flags, "-o", name, str(schema), "--"]
        subprocess.run([*command, str(folder / "graph.bin")], check=True, capture_output=True)
        # flatc writes the open end of a clamp as a bare word that is not JSON.
        text = (folder / "graph.json").read_text().replace(": inf", ": Infinity").replace(": -inf", ": -Infinity")
        read: dict[str, Any] = json.loads(text)
        return read


def kernels(buffer: bytes) -> list[str]:
    """Names of the XNNPACK nodes in a .pte. A node `XNNConvert` quantizes or dequantizes: each one beyond the inputs
    and outputs of the model is beside a float operator."""
    return [node["xnode_union_type"] for graph in graphs(buffer) for node in graph["xnodes"]]


def datatypes(buffer: bytes) -> list[str]:
    """Data types of the XNNPACK tensors in a .pte."""
    values = [value["xvalue_union"] for graph in graphs(buffer) for value in graph["xvalues"]]
    return [str(value.get("tensor_value", value)["datatype"]) for value in values]


class Case(NamedTuple):
    row: str  # label that coverage must show
    function: Function  # of as many tensors as there are shapes, then the layer if there is one
    shapes: tuple[tuple[int, ...], ...] = ((1, 8, 9, 10),)
    layer: Layer | None = None


class Model(nn.Module):
    """Applies a function to int8 tensors, each made by a depthwise 1 by 1 convolution by 1, which alters nothing."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.function = case.function
        self.layer = None if case.layer is None else case.layer[0](*case.layer[1], **case.layer[2])
        channels = [] if case.layer is not None else [shape[1] for shape in case.shapes]
        starts = [nn.Conv2d(c, c, 1, groups=c, bias=False) for c in channels]
        for start in starts:
            nn.init.ones_(start.weight)
        self.starts = nn.ModuleList(starts)

    def forward(self, *tensors: Tensor) -> Tensor:
        if self.layer is not None:
            return self.function(*tensors, self.layer)
        return self.function(*(start(x) for start, x in zip(self.starts, tensors, strict=True)))


def layer(x: Tensor, made: Function) -> Tensor:
    return made(x)


def layer_relu(x: Tensor, made: Function) -> Tensor:
    return F.relu(made(x))


def layer_hardtanh(x: Tensor, made: Function) -> Tensor:
    return F.hardtanh(made(x), -0.5, 0.75)


class Several(nn.Module):
    """Cases side by side: takes the inputs of all, one case after the other, and returns an output of each."""

    def __init__(self, cases: Sequence[Case]) -> None:
        super().__init__()
        self.cases = nn.ModuleList(map(Model, cases))
        self.shapes = [shape for case in cases for shape in case.shapes]
        self._counts = [len(case.shapes) for case in cases]

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        given = iter(tensors)
        return [case(*islice(given, count)) for case, count in zip(self.cases, self._counts, strict=True)]


class Program(NamedTuple):
    """Several cases, quantized and lowered."""

    inputs: tuple[Tensor, ...]
    real: list[Tensor]
    result: Result
    lowered: XNNPACKProgram

    @classmethod
    def of(cls, cases: Sequence[Case], quantizer: qspec.Quantizer | None = None) -> "Program":
        torch.manual_seed(0)
        model = Several(cases).eval()
        inputs = tuple(torch.randn(shape) * 2 for shape in model.shapes)
        result = quantized(model, *inputs, quantizer=quantizer)
        with torch.no_grad():
            return cls(inputs, model(*inputs), result, lowered(result))

    def labels(self) -> list[set[str]]:
        """Of each case, the labels of the rows that the delegate runs in integers."""
        rows = self.lowered.delegation.rows
        ran = [(entry.module.split("."), entry.node) for entry in self.result.coverage.quantized if entry.node in rows]
        return [{rows[node] for path, node in ran if path[:2] == ["cases", str(i)]} for i in range(len(self.real))]

    def check(self, names: Sequence[str], steps: Sequence[float]) -> list[Tensor]:
        """Compares the program with the converted graph, and returns what it gives."""
        delegation = self.lowered.delegation
        assert self.result.coverage.skipped == ()
        assert (delegation.delegates, delegation.outside) == (1, ())
        with torch.no_grad():
            wanted, given = self.result.converted(*self.inputs), self.lowered(*self.inputs)
        for name, want, found, step in zip(names, wanted, given, steps, strict=True):
            # One rounding may fall to the other side; float32 arithmetic on either side moves it a little more.
            torch.testing.assert_close(found, want, rtol=1e-5, atol=step * 1.001, msg=f"{name}: {{}}".format)
        return list(given)


def check_rows(cases: Mapping[str, Case]) -> None:
    """The delegate runs the row of each case in integers, within one output step of the converted graph.

    ExecuTorch takes seconds for a program, however small: all cases are one program, side by side.
    """
    program = Program.of(list(cases.values()))
    for key, case, labels in zip(cases, cases.values(), program.labels(), strict=True):
        assert case.row in labels, key
    given = program.check(list(cases), steps(program.result.converted))
    # One to quantize each input, and one to dequantize each output: nothing between them is in float.
    assert kernels(program.lowered.buffer).count("XNNConvert") == len(program.inputs) + len(cases)
    for key, real, found in zip(cases, program.real, given, strict=True):
        assert sqnr(real, found) > 25, key


def check_one_scale(cases: Mapping[str, Case]) -> None:
    """The same where a weight has one scale; XNNPACK has a data type of its own for weights with several."""
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config())
    program = Program.of(list(cases.values()), quantizer)
    assert program.labels() == [{case.row} for case in cases.values()]
    program.check(list(cases), steps(program.result.converted))
    found = datatypes(program.lowered.buffer)
    assert set(found) <= {"xnn_datatype_fp32", "xnn_datatype_qint8", "xnn_datatype_qint32"}
    assert found.count("xnn_datatype_qint8") >= 3 * len(cases)


def check_complete(cases: Mapping[str, Case], rows: Sequence[Row]) -> None:
    """Every chain of every row has a case."""
    chains = {" + ".join((row.name, *(op.kernel for op in chain))) for row in rows for chain in row.chains}
    assert {case.row for case in cases.values()} == chains


class SideBySide(nn.Module):
    """Layers, each with its own input: one program in place of many."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        return [layer(x) for layer, x in zip(self.layers, tensors, strict=True)]


def check_dynamic(
    model: nn.Module, result: Result, inputs: Sequence[Tensor], labels: Sequence[str], least: float
) -> XNNPACKProgram:
    """The delegate runs all layers, gives the result of the converted graph, and stays near float."""
    program = lowered(result)
    assert list(program.delegation.rows.values()) == list(labels)
    assert result.coverage.skipped == ()
    assert (program.delegation.delegates, program.delegation.outside) == (1, ())
    with torch.no_grad():
        given, wanted, real = program(*inputs), result.converted(*inputs), model(*inputs)
    for label, found, want, true in zip(labels, given, wanted, real, strict=True):
        # Both sides find the same parameters and sum integers; float32 roundings remain.
        torch.testing.assert_close(found, want, rtol=1e-5, atol=2e-6)
        assert sqnr(true, found) > least, label
    return program


class Block(nn.Module):
    """An inverted residual block with an uneven pad, then a head: the operators of a mobile network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU6())
        self.project = nn.Conv2d(8, 8, 1)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(F.pad(x, (0, 1, 0, 1)))
        x = self.project(self.depthwise(x)) + x
        return F.linear(self.drop(F.adaptive_avg_pool2d(x, 1).flatten(1)), self.head.weight, self.head.bias)


IMAGE_INPUT = torch.linspace(-2, 2, 3 * 16 * 16).reshape(1, 3, 16, 16)
"""Input of `Block`."""
