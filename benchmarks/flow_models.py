"""The models of `flow.py`: a chain of linear layers, EfficientNet-Lite0, two of `transformers` with random weights."""

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["BACKEND_OF", "SMALL", "exported", "float_model"]

BACKEND_OF = {"chain": "x86", "mobilenet_v2": "x86", "resnet50": "x86", "lite0": "xnnpack"}
SMALL = "chain:3"
WIDTH = 64


def exported(name: str) -> tuple[torch.export.ExportedProgram, tuple[Tensor, ...]]:
    """Export a model, in evaluation mode, with the inputs of one call."""
    model, inputs = float_model(name)
    with torch.no_grad():
        return torch.export.export(model, inputs), inputs


def float_model(name: str, batch: int = 1) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A model in evaluation mode, and the inputs of one call.

    Args:
        name: "lite0", "resnet50", "chain:N" for N times linear and relu, "mobilenet_v2:created" for the network as its
            constructor leaves it, "mobilenet_v2:settled" with the statistics of some data in its batch norms.
        batch: pictures in the call.
    """
    torch.manual_seed(0)
    kind, _, form = name.partition(":")
    inputs = (torch.randn(batch, 3, 224, 224),)
    model: nn.Module
    if kind == "chain":
        model, inputs = nn.Sequential(*_chain(int(form))), (torch.randn(4, WIDTH),)
    elif kind == "mobilenet_v2":
        model = _transformers("MobileNetV2ForImageClassification")
        model = settled(model) if form == "settled" else model
    elif kind == "resnet50":
        model = settled(_transformers("ResNetForImageClassification"))
    else:
        from examples.pictures import calibration_crops, lite0

        model, inputs = lite0(), (torch.cat(calibration_crops(batch)),)
    return model.eval(), inputs


def _chain(layers: int) -> list[nn.Module]:
    return [module for _ in range(layers) for module in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]


def _transformers(name: str) -> nn.Module:
    """A classifier of `transformers` with the sizes of its configuration's defaults, which returns its logits."""
    import transformers

    model_class: Any = getattr(transformers, name)
    return _Logits(model_class(model_class.config_class()))


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, 224, 224) to (n, classes)."""
        logits: Tensor = self.model(x).logits
        return logits


def settled(model: nn.Module) -> nn.Module:
    """Let the batch norms of a random model see data first: with fresh statistics activations fade out with depth."""
    with torch.no_grad():
        for _ in range(8):
            model.train()(torch.randn(4, 3, 224, 224))
    return model
