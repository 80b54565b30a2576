"""`to_onnx`: a converted graph as an ONNX file."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from qspec_core._errors import QSpecError
from qspec_core._torch import EXPORT_LOCK, tree_leaves, tree_map
from qspec_core.graph import copy_graph_module, gc_paused
from qspec_core.graph._mutation import written_roots
from qspec_core.lowering import require_converted
from qspec_core.onnx._errors import OnnxExportError
from qspec_core.onnx._files import require_writable, write_model
from qspec_core.onnx._libraries import library, quiet_exporter
from qspec_core.onnx._names import name_model, output_names, renamed_sizes
from qspec_core.onnx._profiles import profile_of, require_accepted
from qspec_core.onnx._rewrite import fold_integers, optimize, set_versions, unsigned_activations
from qspec_core.onnx._translate import Translator

__all__ = ["NEWEST_OPSET", "OLDEST_OPSET", "to_onnx"]

OLDEST_OPSET, NEWEST_OPSET = 18, 25
"""Opsets that onnxscript writes."""
_DEFAULT_OPSET = 21
"""The first one with groups, 16 bits and 4 bits."""


def to_onnx(
    converted: GraphModule,
    example_inputs: tuple[Any, ...],  # a model's arguments may be of any type
    path: str | Path,
    *,
    opset: int | None = None,
    dynamic_shapes: Any = None,  # as torch.export takes it
    profile: str | None = None,
) -> Path:
    """Write a converted graph as an ONNX file that keeps its quantization.

    Quantized tensors are QuantizeLinear and DequantizeLinear, constants are stored as integers. Nothing is written if
    anything fails.

    Args:
        converted: from `convert_pt2e`; not changed.
        example_inputs: positional arguments of one call.
        path: the file. One over 2 GB gets its constants in a second file beside it, `NAME.data`.
        opset: 18 to 25; None for 21.
        dynamic_shapes: the dimensions that may vary, as `torch.export.export` takes them; None for those that vary in
            the converted graph.
        profile: the consumer that the file is written for: "onnxruntime", "openvino" or "tensorrt"; None for a file
            that any consumer reads.
    Returns: the path.
    Raises:
        GraphError: the module is not from `convert_pt2e`.
        OnnxExportError: the opset, ONNX or the profile cannot express it, the path cannot be written, or a library is
            missing.
    Cost: one export by torch, which takes nearly all of the time.
    """
    graph = require_converted(converted, "to_onnx")
    chosen, number, path = profile_of(profile), _opset(opset), require_writable(Path(path))
    for name in ("onnx", "onnxscript", "onnx_ir"):
        library(name)
    _require_no_state(graph)
    require_accepted(graph, chosen)
    with EXPORT_LOCK, quiet_exporter(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns about its own deprecated parts
        program = _exported(graph, example_inputs, dynamic_shapes)
        constants = frozenset(
            spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name != "USER_INPUT"
        )
        translator = Translator(number, chosen, constants)
        exported = _translated(program, translator, number)
        exported.rename_axes(renamed_sizes(exported.model, example_inputs, dynamic_shapes))
        model = exported.model
        fold_integers(model)
        optimize(model, translator.kept)
        if chosen.unsigned:
            unsigned_activations(model)
        set_versions(model, number)
        name_model(model, graph, output_names(program))
    write_model(model, path)
    return path


def _opset(opset: int | None) -> int:
    number: object = _DEFAULT_OPSET if opset is None else opset
    if not isinstance(number, int) or not OLDEST_OPSET <= number <= NEWEST_OPSET:
        raise OnnxExportError(
            f"opset {opset} cannot be written",
            found=opset,
            expected=f"{OLDEST_OPSET} to {NEWEST_OPSET}",
            remedy=f"pass opset={_DEFAULT_OPSET}, which has every form of quantization",
        )
    return number


def _require_no_state(graph: GraphModule) -> None:
    """Raises: OnnxExportError: the graph writes to a buffer or an input, which an ONNX model cannot."""
    written = sorted(written_roots(graph), key=str)
    if written:
        raise OnnxExportError(
            "the model writes to a buffer or an input, and an ONNX model has no state",
            where=written[0],
            found=", ".join(str(node.target) for node in written),
            expected="a model whose state is an input and an output",
            remedy="pass the state, such as a cache of keys and values, as an argument and return it",
        )


def _exported(graph: GraphModule, inputs: tuple[Any, ...], dynamic_shapes: Any) -> torch.export.ExportedProgram:
    owned, shapes = copy_graph_module(graph), dynamic_shapes
    if shapes is None:
        shapes = _varying(graph, inputs)
    owned.recompile()  # torch.export reads the names of the inputs from its code
    try:
        with torch.no_grad():
            return torch.export.export(owned, inputs, dynamic_shapes=shapes)
    except Exception as error:  # torch.export raises dozens of types
        raise OnnxExportError(
            "torch.export cannot export the converted graph with these example inputs",
            found=f"{type(error).__name__}: {error}",
            expected="inputs of the shapes that the model was exported with",
            remedy="pass the example inputs and dynamic_shapes of the float model's export",
        ) from error


def _varying(graph: GraphModule, inputs: tuple[Any, ...]) -> Any:  # as torch.export takes it
    """The sizes of the inputs that vary in the graph; None if all are fixed."""
    values = [node.meta.get("val") for node in graph.graph.find_nodes(op="placeholder")]
    if len(values) != len(tree_leaves(inputs)):
        return None
    sizes = [_varying_sizes(value) for value in values]
    rest = iter(sizes)

    def next_sizes(_: object) -> dict[int, Any] | None:
        return next(rest) or None

    return tree_map(next_sizes, inputs) if any(sizes) else None


def _varying_sizes(value: object) -> dict[int, Any]:
    shape: tuple[object, ...] = tuple(value.shape) if isinstance(value, Tensor) else ()
    return {index: torch.export.Dim.AUTO for index, size in enumerate(shape) if isinstance(size, torch.SymInt)}


def _translated(program: torch.export.ExportedProgram, translator: Translator, opset: int) -> torch.onnx.ONNXProgram:
    try:
        with gc_paused():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                custom_translation_table=translator.table(),
                optimize=False,
                verbose=False,
            )
    except Exception as error:  # as above
        reason = _cause(error)
        if isinstance(reason, QSpecError):
            raise reason from error
        raise OnnxExportError(
            "an operator of the model has no translation to ONNX",
            found=f"{type(reason).__name__}: {reason}",
            expected="operators that torch.onnx.export translates",
            remedy="export the float model with torch.onnx.export(dynamo=True): if that fails too, the operator is "
            "missing in torch; otherwise report it",
        ) from error
    if exported is None:
        raise OnnxExportError("torch.onnx.export returned nothing", remedy="check the version of torch")
    return exported


def _cause(error: BaseException) -> BaseException:
    """The first error of a chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
