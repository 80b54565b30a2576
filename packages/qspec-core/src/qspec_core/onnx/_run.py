"""Runs of a file: in ONNX's reference evaluator, and in ONNX Runtime."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qspec_core._torch import tree_leaves
from qspec_core.onnx._libraries import library

__all__ = ["input_arrays", "reference_evaluator", "reference_results", "runtime_results", "to_array", "to_tensor"]

Array = Any  # numpy.ndarray, which core does not need elsewhere
_NARROW = {torch.bfloat16: "bfloat16", torch.float8_e4m3fn: "float8_e4m3fn", torch.float8_e5m2: "float8_e5m2"}
_PRECISE = {
    "session.x64quantprecision": "1",  # kernels that do not saturate, on CPUs without VNNI
    "session.qdq_matmulnbits_accuracy_level": "1",  # float32 activations; by default 8 bits for each block of a token
}
"""Session options of ONNX Runtime for kernels that compute what the file says."""


def to_array(value: object) -> Array:
    """A tensor or number as a NumPy array. Dtypes that NumPy lacks are those of ml_dtypes."""
    numpy = library("numpy")
    if not isinstance(value, Tensor):
        return numpy.asarray(value)
    plain = value.detach().cpu().contiguous()
    name = _NARROW.get(plain.dtype)
    if name is None:
        return plain.numpy()
    bits = plain.view(torch.int16 if plain.element_size() == 2 else torch.uint8).numpy()
    return bits.view(getattr(library("ml_dtypes"), name))


def to_tensor(value: Array) -> Tensor:
    """A NumPy array as a tensor; the other way of `to_array`."""
    numpy = library("numpy")
    array = numpy.ascontiguousarray(value).reshape(numpy.shape(value))
    narrow = {name: dtype for dtype, name in _NARROW.items()}.get(array.dtype.name)
    if narrow is None:
        return torch.from_numpy(array.copy())
    bits = array.view(numpy.int16 if array.dtype.itemsize == 2 else numpy.uint8)
    return torch.from_numpy(bits.copy()).view(narrow)


def input_arrays(names: Sequence[str], inputs: tuple[Any, ...]) -> dict[str, Array]:
    """The inputs of a file by name, from the positional arguments of the model. Arguments that are None are left out.

    Raises: ValueError: there is another number of them.
    """
    leaves = [leaf for leaf in tree_leaves(inputs) if leaf is not None]
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    given = leaves if len(leaves) == len(names) else tensors
    return {name: to_array(value) for name, value in zip(names, given, strict=True)}


def reference_evaluator(model: Any) -> Any:  # an onnx.ModelProto; an onnx.reference.ReferenceEvaluator
    """The reference evaluator of a model. onnx 1.23 has no DequantizeLinear of opset 18 in it."""
    opset = next((entry.version for entry in model.opset_import if entry.domain == ""), 0)
    more = [_dequantize_linear()] if opset < 19 else []
    return library("onnx.reference").ReferenceEvaluator(model, new_ops=more)


def _dequantize_linear() -> Any:  # a subclass of onnx.reference.op_run.OpRun
    """DequantizeLinear as opset 13 defines it."""
    base = library("onnx.reference.op_run").OpRun

    def run(
        self: Any, x: Array, scale: Array, zero_point: Array | None = None, axis: int | None = None, **later: Any
    ) -> tuple[Array]:  # `later`: attributes of later opsets
        numpy, along = library("numpy"), 1 if axis is None else axis
        # (channels,) -> (1, ..., channels, ..., 1)
        shape = [-1 if index == along % max(x.ndim, 1) else 1 for index in range(x.ndim)]
        scale = scale.reshape(shape) if scale.ndim else scale
        zero = numpy.int32(0) if zero_point is None else zero_point.astype(numpy.int32)
        zero = zero.reshape(shape) if zero.ndim else zero
        return ((x.astype(numpy.int32) - zero).astype(scale.dtype) * scale,)

    return type("DequantizeLinear", (base,), {"_run": run, "op_domain": ""})


def reference_results(model: Any, arrays: Mapping[str, Array]) -> list[Tensor]:  # an onnx.ModelProto
    """Outputs of a model in the reference evaluator."""
    evaluator = reference_evaluator(model)
    with library("numpy").errstate(all="ignore"):
        return [to_tensor(value) for value in evaluator.run(None, dict(arrays))]


def runtime_results(
    path: Path,
    arrays: Mapping[str, Array],
    *,
    optimized: bool,
    precise: bool = False,
    write_optimized: Path | None = None,
) -> list[Tensor]:
    """Outputs of a file in ONNX Runtime, on the CPU.

    Args:
        path: the file.
        arrays: inputs by name.
        optimized: whether the runtime may rewrite the graph.
        precise: use kernels that neither saturate nor round activations that the file leaves in float.
        write_optimized: where to write the rewritten graph.
    """
    runtime = library("onnxruntime")
    options = runtime.SessionOptions()
    level = runtime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    if precise:
        for key, value in _PRECISE.items():
            options.add_session_config_entry(key, value)
    if write_optimized is not None:
        options.optimized_model_filepath = str(write_optimized)
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    values = {name: _ort_value(runtime, array) for name, array in arrays.items()}
    results = session.run_with_ort_values([output.name for output in session.get_outputs()], values)
    return [_from_ort_value(value) for value in results]


def _ort_value(runtime: Any, array: Array) -> Any:
    if array.dtype.name not in _NARROW.values():
        return runtime.OrtValue.ortvalue_from_numpy(array)
    kind = library("onnx").helper.np_dtype_to_tensor_dtype(array.dtype)
    bits = array.view("int16" if array.dtype.itemsize == 2 else "uint8")
    return runtime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, kind)


def _from_ort_value(value: Any) -> Tensor:
    if value.element_type() == library("onnx").TensorProto.BFLOAT16:
        return torch.utils.dlpack.from_dlpack(value._ortvalue.to_dlpack()).clone()
    return to_tensor(value.numpy())
