"""Contenders that run in ExecuTorch through XNNPACK: float, ExecuTorch's own quantizer, qspec's backend."""

from pathlib import Path
from typing import Any

import torch
from contender import Built, Model, Setting
from counting import count_layers
from torch import Tensor

import qspec_core as qspec

__all__ = ["delegated", "executorch_f32", "executorch_int8", "loaded", "qspec_xnnpack"]

DELEGATE_GLUE = ("executorch_call_delegate", "getitem")


def executorch_f32(setting: Setting) -> Built:
    """The float model through XNNPACK."""
    with torch.no_grad():
        program = torch.export.export(setting.model, setting.example)
    return delegated(program, setting.folder / "executorch-f32.pte")


def executorch_int8(setting: Setting) -> Built:
    """ExecuTorch's XNNPACK quantizer in torchao's flow, per channel."""
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    with torch.no_grad():
        module = torch.export.export(setting.model, setting.example).module()
        config = xnnpack.get_symmetric_quantization_config(is_per_channel=True)
        prepared = prepare_pt2e(module, xnnpack.XNNPACKQuantizer().set_global(config))
        for crop in setting.calibration:
            prepared(crop)
        converted = convert_pt2e(prepared)
        program = torch.export.export(converted, setting.example)
    layers = "{} of {}".format(*count_layers(converted))
    return delegated(program, setting.folder / "executorch.pte", layers, converted)


def delegated(
    program: torch.export.ExportedProgram, path: Path, layers: str = "", converted: Model | None = None
) -> Built:
    """Write a program as a .pte file by ExecuTorch's own partitioner, and load it."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    calls = [node for node in edge.exported_program().graph.nodes if node.op == "call_function"]
    names = [getattr(node.target, "__name__", str(node.target)) for node in calls]
    outside = tuple(name for name in names if name not in DELEGATE_GLUE)
    path.write_bytes(edge.to_executorch().buffer)
    return Built(loaded(path), layers, path.stat().st_size, converted, outside)


def loaded(path: Path) -> Model:
    """A .pte file of one output in ExecuTorch's runtime."""
    from executorch.runtime import Runtime

    method: Any = Runtime.get().load_program(path).load_method("forward")  # untyped

    def run(*inputs: Tensor) -> Tensor:
        found: Tensor = method.execute(inputs)[0]
        return found

    return run


def qspec_xnnpack(setting: Setting) -> Built:
    """qspec's XNNPACK backend."""
    batches = [(crop,) for crop in setting.calibration]
    result = qspec.quantize(setting.model, setting.example, calibration=batches, backend="xnnpack")
    path = result.package(setting.folder / "qspec.pte")
    layers = f"{len(result.coverage.quantized_layers)} of {len(result.coverage.layers)}"
    outside: tuple[str, ...] = result.lowered.delegation.outside  # type: ignore[union-attr, assignment]  # the backend's module
    return Built(loaded(path), layers, path.stat().st_size, result.converted, outside)
