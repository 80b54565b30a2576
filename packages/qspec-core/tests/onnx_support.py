"""A converted network and helpers that the tests of ONNX files share."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from core_support import CONFIG, export, table
from torch import Tensor, nn
from torch.fx import GraphModule

from qspec_core import QuantizationConfig, TableQuantizer, convert_pt2e, prepare_pt2e
from qspec_core.onnx import to_onnx
from qspec_core.onnx._run import reference_evaluator
from qspec_core.patterns import Outputs

IMAGE = (torch.linspace(-20.0, 30.0, 2 * 3 * 8 * 8).sin().reshape(2, 3, 8, 8),)


class Vision(nn.Module):
    """Two convolutions, one with as many channels in as out, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.Conv2d(4, 4, 4)
        self.head = nn.Linear(4, 4)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.body(torch.relu(self.stem(image))))
        return {"logits": self.head(x.mean((2, 3)))}


def quantized(
    model: nn.Module,
    inputs: tuple[Any, ...],
    config: QuantizationConfig = CONFIG,
    calibration: Sequence[tuple[Any, ...]] = (),
    **options: Any,
) -> GraphModule:
    """A model through the flow, with all results quantized, calibrated on its inputs too."""
    quantizer = TableQuantizer(table(outputs=Outputs.ALWAYS)).set_global(config)
    prepared = prepare_pt2e(export(model, *inputs, **options), quantizer)
    with torch.no_grad():
        for batch in (inputs, *calibration):
            prepared(*batch)
    return convert_pt2e(prepared)


def vision(config: QuantizationConfig = CONFIG) -> GraphModule:
    torch.manual_seed(0)
    return quantized(Vision(), IMAGE, config)


def written(converted: GraphModule, inputs: tuple[Any, ...], folder: Path, **options: Any) -> Path:
    return to_onnx(converted, inputs, folder / "model.onnx", **options)


def run_reference(path: Path, *tensors: Tensor) -> list[Tensor]:
    """Outputs of a file in ONNX's reference evaluator."""
    import onnx

    evaluator = reference_evaluator(onnx.load(path))
    arrays = [tensor.numpy() for tensor in tensors]
    found = evaluator.run(None, dict(zip(evaluator.input_names, arrays, strict=True)))
    return [torch.from_numpy(array) for array in found]


class Module(nn.Module):
    """A module from a function of itself and a tensor; keywords are its buffers."""

    def __init__(self, function: Callable[..., Any], **buffers: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)
