"""`check_onnx`: whether an ONNX file computes what its converted graph computes."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from qspec_core._agreement import Call, Deviation, calls_of, deviations
from qspec_core._torch import has_vnni
from qspec_core.lowering import require_converted
from qspec_core.onnx._divergence import first_divergence
from qspec_core.onnx._errors import OnnxCheckError
from qspec_core.onnx._files import read_model
from qspec_core.onnx._layers import OnnxLayer, layers_of
from qspec_core.onnx._libraries import has_library, library
from qspec_core.onnx._parameters import compare_parameters
from qspec_core.onnx._report import OnnxCheck, OnnxFinding, OnnxStatus
from qspec_core.onnx._run import input_arrays, reference_results, runtime_results
from qspec_core.onnx._structure import float_copies

__all__ = ["FORMAT", "OPTIMIZED", "PARAMETERS", "PLAIN", "REFERENCE", "STRUCTURE", "check_onnx"]

FORMAT, STRUCTURE, PARAMETERS = "format", "structure", "parameters"
REFERENCE, PLAIN, OPTIMIZED = "reference evaluator", "ONNX Runtime, as written", "ONNX Runtime, optimized"
"""Names of the parts of a check."""

_WEIGHT_ONLY_KERNEL = "MatMulNBits"

Run = Callable[[dict[str, Any]], list[Tensor]]  # arrays of NumPy


def check_onnx(
    converted: GraphModule,
    path_or_model: Any,  # a path, an onnx.ModelProto or an onnx_ir.Model
    inputs: tuple[Any, ...],  # a model's arguments may be of any type
    *,
    node_by_node: bool = False,
    runtime: bool = True,
    label: str | None = None,
) -> OnnxCheck:
    """Check that an ONNX file computes what its converted graph computes.

    Parts: the file follows the format; no constant of integers is stored as floats too; scales, zero points, axes and
    ranges are those of the graph; the results of ONNX's reference evaluator and of ONNX Runtime, without and with its
    optimizations, are as close to those of the graph as `qspec_core.lower` asks of a lowered program. If the reference
    evaluator's differ, each operator is compared by itself to name the first that does.

    Args:
        converted: the graph that the file was written from.
        path_or_model: the file, or a model of onnx or onnx_ir.
        inputs: positional arguments of one call.
        node_by_node: compare each operator by itself in any case.
        runtime: run ONNX Runtime.
        label: name of the file in the report; None for its path.
    Returns: what each part found. `check.require()` raises if one found a difference.
    Raises:
        GraphError: the module is not from `convert_pt2e`.
        OnnxCheckError: the file cannot be read or is of another model, or the graph does not take the inputs.
        OnnxExportError: onnx is not installed.
    Cost: two runs of the graph, one of the reference evaluator and two of ONNX Runtime, for each call that it makes:
        one with the inputs, and one with other sizes where sizes may vary.
    """
    graph = require_converted(converted, "check_onnx")
    with tempfile.TemporaryDirectory() as folder:
        path = _as_file(path_or_model, Path(folder))
        name = str(path) if isinstance(path_or_model, str | Path) else "the model"
        shown = name if label is None else label
        return _Checker(graph, path, inputs, Path(folder), shown).run(node_by_node, runtime)


def _as_file(given: Any, folder: Path) -> Path:  # as in check_onnx
    if isinstance(given, str | Path):
        return Path(given)
    path = folder / "model.onnx"
    if isinstance(given, library("onnx").ModelProto):
        library("onnx").save(given, path)
    else:
        library("onnx_ir").save(given, path)
    return path


@dataclass(frozen=True)
class _Checker:
    """One check."""

    graph: GraphModule
    path: Path
    inputs: tuple[Any, ...]
    folder: Path
    label: str

    def run(self, node_by_node: bool, runtime: bool) -> OnnxCheck:
        model = read_model(self.path)
        proto = _load(self.path)
        names = [value.name for value in model.graph.inputs]
        calls = self._calls(names, len(model.graph.outputs))
        findings = [self._format(), self._structure(model), self._parameters(model)]
        findings.append(self._compared(REFERENCE, calls, names, lambda arrays: reference_results(proto, arrays)))
        first = ""
        if node_by_node or findings[-1].status is OnnxStatus.DIFFERS:
            first = first_divergence(self.graph, proto, input_arrays(names, calls[0].inputs), calls[0].inputs)
        if first and findings[-1].status is not OnnxStatus.DIFFERS:
            findings[-1] = OnnxFinding(REFERENCE, OnnxStatus.DIFFERS, first)
        layers: tuple[OnnxLayer, ...] = ()
        if runtime:
            more, layers = self._runtime(model, calls, names)
            findings += more
        opset = model.graph.opset_imports.get("", model.opset_imports.get("", 0))
        return OnnxCheck(self.label, opset, tuple(findings), layers, first)

    def _calls(self, names: Sequence[str], outputs: int) -> tuple[Call, ...]:
        try:
            calls = calls_of(self.graph, self.inputs)
        except Exception as error:  # a guard of the export, or any operator of the model
            raise OnnxCheckError(
                "the converted graph does not take these inputs",
                found=f"{type(error).__name__}: {error}",
                expected="inputs of the shapes that the model was exported with",
                remedy="pass the example inputs",
            ) from error
        expected = [value for value in calls[0].expected if isinstance(value, Tensor)]
        try:
            input_arrays(names, calls[0].inputs)
            fits = len(expected) == outputs
        except ValueError:
            fits = False
        if not fits:
            raise OnnxCheckError(
                f"{self.label} is a file of another model",
                found=f"inputs {', '.join(names)}; {outputs} outputs",
                expected=f"{len(self.inputs)} arguments and {len(expected)} results, as the converted graph",
                remedy="check the graph that the file was written from",
            )
        return calls

    def _format(self) -> OnnxFinding:
        checker = library("onnx").checker
        try:
            checker.check_model(str(self.path), full_check=True)
        except Exception as error:  # the checker raises types of its own
            return OnnxFinding(FORMAT, OnnxStatus.DIFFERS, _first_line(error))
        return OnnxFinding(FORMAT, OnnxStatus.HOLDS, "onnx.checker with shape inference")

    def _structure(self, model: Any) -> OnnxFinding:
        copies = float_copies(model)
        if copies:
            return OnnxFinding(STRUCTURE, OnnxStatus.DIFFERS, f"stored as floats too: {', '.join(copies)}")
        return OnnxFinding(STRUCTURE, OnnxStatus.HOLDS, "no float copy of a quantized constant")

    def _parameters(self, model: Any) -> OnnxFinding:
        found = compare_parameters(self.graph, model)
        counts = f"{found.equal} equal, {found.elsewhere} not constants of a node"
        if found.differing:
            lines = "; ".join(found.differing[:3])
            return OnnxFinding(PARAMETERS, OnnxStatus.DIFFERS, f"{len(found.differing)} differ: {lines}")
        return OnnxFinding(PARAMETERS, OnnxStatus.HOLDS, counts)

    def _compared(self, part: str, calls: Sequence[Call], names: Sequence[str], run: Run) -> OnnxFinding:
        """Run a file on each call and compare."""
        found: list[Deviation] = []
        for call in calls:
            try:
                results = run(input_arrays(names, call.inputs))
            except Exception as error:  # a runtime raises types of its own
                return OnnxFinding(part, OnnxStatus.NOT_RUN, f"{type(error).__name__}: {_first_line(error)}")
            tensors = tuple(value for value in call.expected if isinstance(value, Tensor))
            moved = tuple(value for value in call.moved if isinstance(value, Tensor))
            found += deviations(Call(call.label, call.inputs, tensors, moved), results)
        worst = max(found, key=_ratio, default=None)
        holds = worst is None or worst.ratio <= 1
        return OnnxFinding(part, OnnxStatus.HOLDS if holds else OnnxStatus.DIFFERS, str(worst or "no tensors"))

    def _runtime(
        self, model: Any, calls: Sequence[Call], names: Sequence[str]
    ) -> tuple[list[OnnxFinding], tuple[OnnxLayer, ...]]:
        if not has_library("onnxruntime"):
            reason = "onnxruntime is not installed: pip install onnxruntime"
            return [OnnxFinding(part, OnnxStatus.NOT_RUN, reason) for part in (PLAIN, OPTIMIZED)], ()
        optimized = self.folder / "optimized.onnx"
        findings = []
        for part, is_optimized in ((PLAIN, False), (OPTIMIZED, True)):
            write = optimized if is_optimized else None

            def run(arrays: dict[str, Any], fast: bool = is_optimized, write: Path | None = write) -> list[Tensor]:
                return runtime_results(self.path, arrays, optimized=fast, write_optimized=write)

            def precisely(arrays: dict[str, Any], fast: bool = is_optimized) -> list[Tensor]:
                return runtime_results(self.path, arrays, optimized=fast, precise=True)

            found = self._compared(part, calls, names, run)
            if found.status is OnnxStatus.DIFFERS:
                precise = self._compared(part, calls, names, precisely)
                if precise.status is OnnxStatus.HOLDS:
                    found = OnnxFinding(part, self._excuse(optimized), f"{found.detail}; precise kernels agree")
            findings.append(found)
        layers = layers_of(model, read_model(optimized)) if optimized.exists() else ()
        return findings, layers

    @staticmethod
    def _excuse(optimized: Path) -> OnnxStatus:
        """Why a runtime whose precise kernels agree differs with its fast ones."""
        layers = read_model(optimized).graph if optimized.exists() else ()
        if any(node.op_type == _WEIGHT_ONLY_KERNEL for node in layers):
            return OnnxStatus.APPROXIMATES
        return OnnxStatus.DIFFERS if has_vnni() else OnnxStatus.SATURATES


def _load(path: Path) -> Any:  # an onnx.ModelProto
    return library("onnx").load(path)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


def _ratio(deviation: Deviation) -> float:
    return deviation.ratio
