"""The models of the benchmarks: EfficientNet-Lite0, a chain of layers, some of `transformers` with random weights."""

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["BACKEND_OF", "SMALL", "TOKENS", "exported", "float_model"]

BACKEND_OF = {"chain": "x86", "mobilenet_v2": "x86", "resnet50": "x86", "lite0": "xnnpack"}
SMALL = "chain:3"
WIDTH = 64
TOKENS, SEQUENCE = 30_000, 128  # of the text model: vocabulary size, tokens in a call


def exported(name: str) -> tuple[torch.export.ExportedProgram, tuple[Tensor, ...]]:
    """Export a model, in evaluation mode, with the inputs of one call."""
    model, inputs = float_model(name)
    with torch.no_grad():
        return torch.export.export(model, inputs), inputs


def float_model(name: str, batch: int = 1, seed: int = 0) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A model in evaluation mode, and the inputs of one call.

    Args:
        name: "lite0", "resnet50", "bert", "chain:N" for N times linear and relu, "mobilenet_v2:created" for the network
            as its constructor leaves it, "mobilenet_v2:settled" with the statistics of some data in its batch norms.
        batch: pictures or texts in the call.
        seed: of random weights.
    """
    torch.manual_seed(seed)
    kind, _, form = name.partition(":")
    inputs = (torch.randn(batch, 3, 224, 224),)
    model: nn.Module
    if kind == "chain":
        model, inputs = nn.Sequential(*_chain(int(form))), (torch.randn(4, WIDTH),)
    elif kind == "mobilenet_v2":
        model = _transformers("MobileNetV2ForImageClassification")
        model = settled(model) if form == "settled" else model
    elif kind == "bert":
        model, inputs = _transformers("BertModel", "last_hidden_state"), (torch.randint(TOKENS, (batch, SEQUENCE)),)
    elif kind == "resnet50":
        model = settled(_transformers("ResNetForImageClassification"))
    else:
        from examples.pictures import calibration_crops, lite0

        model, inputs = lite0(), (torch.cat(calibration_crops(batch)),)
    return model.eval(), inputs


def _chain(layers: int) -> list[nn.Module]:
    return [module for _ in range(layers) for module in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]


def _transformers(name: str, output: str = "logits") -> nn.Module:
    """A model of `transformers` with the default sizes of its configuration; it returns one of its outputs."""
    import transformers

    model_class: Any = getattr(transformers, name)
    return _Output(model_class(model_class.config_class()), output)


class _Output(nn.Module):
    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model, self._name = model, name

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (n, 3, 224, 224) or tokens (n, length)."""
        found: Tensor = getattr(self.model(x), self._name)
        return found


def settled(model: nn.Module) -> nn.Module:
    """Run data through the batch norms of a random model: with initial statistics activations vanish with depth."""
    with torch.no_grad():
        for _ in range(8):
            model.train()(torch.randn(4, 3, 224, 224))
    return model
