"""The models of `flow.py`: a chain of linear layers, MobileNetV2 with random weights, EfficientNet-Lite0."""

import torch
from torch import Tensor, nn

__all__ = ["BACKEND_OF", "SMALL", "exported"]

BACKEND_OF = {"chain": "x86", "mobilenet_v2": "x86", "lite0": "xnnpack"}
SMALL = "chain:3"
WIDTH = 64
# expansion, channels, repeats, stride. Source: MobileNetV2 (Sandler et al. 2018), table 2.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def exported(name: str) -> tuple[torch.export.ExportedProgram, tuple[Tensor, ...]]:
    """Export a model, in evaluation mode, with the inputs of one call.

    Args:
        name: "mobilenet_v2", "lite0", or "chain:N" for N times linear and relu.
    """
    torch.manual_seed(0)
    kind, _, layers = name.partition(":")
    inputs = (torch.randn(1, 3, 224, 224),)
    model: nn.Module
    if kind == "chain":
        model, inputs = nn.Sequential(*_chain(int(layers))), (torch.randn(4, WIDTH),)
    elif kind == "mobilenet_v2":
        model = settled(mobilenet_v2())
    else:
        from examples.pictures import calibration_crops, lite0

        model, inputs = lite0(), (calibration_crops(1)[0],)
    with torch.no_grad():
        return torch.export.export(model.eval(), inputs), inputs


def _chain(layers: int) -> list[nn.Module]:
    return [module for _ in range(layers) for module in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]


def _convolution(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU6())


class InvertedResidual(nn.Module):
    """Expand, depthwise, project; the input is added where shapes agree."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = [_convolution(inputs, hidden)] if expansion != 1 else []
        depthwise = _convolution(hidden, hidden, 3, stride, groups=hidden)
        project = nn.Sequential(nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.body = nn.Sequential(*expand, depthwise, project)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        found: Tensor = self.body(x)
        return x + found if self.residual else found


def settled(model: nn.Module) -> nn.Module:
    """Let the batch norms of a random model see data first: with fresh statistics activations fade out with depth."""
    with torch.no_grad():
        for _ in range(8):
            model.train()(torch.randn(4, 3, 224, 224))
    return model


def mobilenet_v2() -> nn.Module:
    """MobileNetV2 of width 1 with random weights: 52 convolutions and a linear layer."""
    channels, blocks = 32, [_convolution(3, 32, 3, 2)]
    layers: list[nn.Module] = list(blocks)
    for expansion, outputs, repeats, stride in STAGES:
        for index in range(repeats):
            layers.append(InvertedResidual(channels, outputs, expansion, stride if index == 0 else 1))
            channels = outputs
    head = [_convolution(channels, 1280), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000)]
    return nn.Sequential(*layers, *head)
