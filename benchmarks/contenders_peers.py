"""Contenders outside torch: ONNX Runtime and OpenVINO, in float and in int8."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from contender import Built, Model, Setting
from profiles import of_onnxruntime, of_openvino
from torch import Tensor

import qspec_core as qspec

__all__ = [
    "onnxruntime_dynamic",
    "onnxruntime_f32",
    "onnxruntime_int8",
    "onnxruntime_qspec",
    "openvino_f32",
    "openvino_int8",
    "openvino_qspec",
]

ONNX_LAYERS = ("Conv", "Gemm", "MatMul")
SHAPES = ("Reshape", "Squeeze", "Transpose")
OPENVINO_LAYERS = ("Convolution", "GroupConvolution", "MatMul")


def onnxruntime_f32(setting: Setting) -> Built:
    """The exported float model."""
    return Built(_onnx_session(setting.onnx(), setting.threads), size=_size(setting.onnx()))


class _Reader:
    """Iterator of the calibration inputs, in the form that ONNX Runtime reads."""

    def __init__(self, crops: Sequence[Tensor]) -> None:
        self._crops = iter(crops)

    def get_next(self) -> dict[str, Any] | None:  # a NumPy array by the input's name
        """The next feed, or None at the end."""
        crop = next(self._crops, None)
        return None if crop is None else {"x": crop.numpy()}


def onnxruntime_int8(setting: Setting) -> Built:
    """Static quantization as its documentation advises for CPUs: uint8 activations, int8 weights per channel."""
    import onnx
    from onnxruntime import quantization as q

    ready, path = setting.folder / "ready.onnx", setting.folder / "int8.onnx"
    q.quant_pre_process(str(setting.onnx()), str(ready))
    q.quantize_static(
        str(ready),
        str(path),
        _Reader(setting.calibration),
        quant_format=q.QuantFormat.QDQ,
        per_channel=True,
        reduce_range=not setting.vnni,
        activation_type=q.QuantType.QUInt8,
        weight_type=q.QuantType.QInt8,
    )
    graph = onnx.load(str(path)).graph
    dequantized = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    layers = [node for node in graph.node if node.op_type in ONNX_LAYERS]
    quantized = [node for node in layers if set(node.input[:2]) <= dequantized]
    profile = partial(of_onnxruntime, path, setting.threads)
    run = _onnx_session(path, setting.threads)
    return Built(run, f"{len(quantized)} of {len(layers)}", _size(path), profile=profile)


def onnxruntime_dynamic(setting: Setting) -> Built:
    """Dynamic quantization of matrix products and recurrent layers, with scales for each channel of the weights."""
    from onnxruntime import quantization as q

    ready, path = setting.folder / "ready-dynamic.onnx", setting.folder / "dynamic.onnx"
    q.quant_pre_process(str(setting.onnx()), str(ready))
    q.quantize_dynamic(str(ready), str(path), per_channel=True, reduce_range=not setting.vnni)
    return Built(_onnx_session(path, setting.threads), size=_size(path))


def onnxruntime_qspec(setting: Setting) -> Built:
    """qspec's file for ONNX Runtime. XNNPACK's table quantizes every result, as its integer kernels need."""
    path, layers = _qspec_file(setting, "onnxruntime")
    profile = partial(of_onnxruntime, path, setting.threads)
    return Built(_onnx_session(path, setting.threads), layers, _size(path), profile=profile)


def openvino_qspec(setting: Setting) -> Built:
    """qspec's file for OpenVINO."""
    import openvino

    path, layers = _qspec_file(setting, "openvino")
    model = openvino.Core().read_model(path)
    profile = partial(of_openvino, model, setting.threads)
    return Built(_openvino_model(model, setting.threads), layers, _size(path), profile=profile)


def _qspec_file(setting: Setting, profile: str) -> tuple[Path, str]:
    """A quantized file for a consumer, and "n of m" layers that are quantized."""
    batches = [(crop,) for crop in setting.calibration]
    result = qspec.quantize(setting.model, setting.example, backend="xnnpack", calibration=batches)
    path = setting.folder / f"qspec-{profile}.onnx"
    result.to_onnx(path, profile=profile, check=False)
    return path, f"{len(result.coverage.quantized_layers)} of {len(result.coverage.layers)}"


def _onnx_session(path: Path, threads: int) -> Model:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    name = session.get_inputs()[0].name

    def run(crop: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: crop.numpy()})[0])

    return run


def openvino_f32(setting: Setting) -> Built:
    """The exported float model."""
    import openvino

    return Built(_openvino_model(openvino.Core().read_model(setting.onnx()), setting.threads))


def openvino_int8(setting: Setting) -> Built:
    """NNCF's post-training quantization with its defaults for CPUs, and its fix for overflow on CPUs without VNNI."""
    import nncf
    import openvino
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix

    batches = [crop.numpy() for crop in setting.calibration]
    model = openvino.Core().read_model(setting.onnx())
    advanced = AdvancedQuantizationParameters(
        overflow_fix=OverflowFix.FIRST_LAYER if setting.vnni else OverflowFix.ENABLE
    )
    quantized = nncf.quantize(
        model,
        nncf.Dataset(batches),
        subset_size=len(batches),
        target_device=nncf.TargetDevice.CPU,
        advanced_parameters=advanced,
    )
    path = setting.folder / "openvino.xml"
    openvino.save_model(quantized, path)
    layers = [node for node in quantized.get_ordered_ops() if node.get_type_name() in OPENVINO_LAYERS]
    done = [node for node in layers if _is_quantized(node)]
    size = _size(path) + _size(path.with_suffix(".bin"))
    profile = partial(of_openvino, quantized, setting.threads)
    run = _openvino_model(quantized, setting.threads)
    return Built(run, f"{len(done)} of {len(layers)}", size, profile=profile)


def _is_quantized(layer: Any) -> bool:
    """Whether a layer reads the output of a FakeQuantize, directly or through a reshape."""
    node = layer.input_value(0).get_node()
    while node.get_type_name() in SHAPES:
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "FakeQuantize")


def _openvino_model(model: Any, threads: int) -> Model:
    import openvino

    hints = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    compiled = openvino.Core().compile_model(model, "CPU", hints)
    request = compiled.create_infer_request()

    def run(crop: Tensor) -> Tensor:
        return torch.from_numpy(request.infer({0: crop.numpy()})[0].copy())

    return run


def _size(path: Path) -> int:
    data = path.with_name(f"{path.name}.data")  # where an ONNX file keeps large weights
    return path.stat().st_size + (data.stat().st_size if data.exists() else 0)
