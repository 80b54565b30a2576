"""Small architectures: the shapes of real networks, in a few layers each."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ARCHITECTURES", "Architecture"]

Architecture = Callable[[], tuple[nn.Module, tuple[int, ...]]]
"""Builds a module, and gives the shape of its one input."""


class _Residual(nn.Module):
    """Two convolutions with batch norms, and a sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _convolution(channels, channels, 3)
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.second(self.first(x)))


def _convolution(inputs: int, outputs: int, kernel: int, groups: int = 1, stride: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


class _Inverted(nn.Module):
    """An inverted bottleneck with a squeeze and excitation, as in MobileNetV3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 2 * channels
        self.expand = nn.Sequential(nn.Conv2d(channels, wide, 1), nn.BatchNorm2d(wide), nn.Hardswish())
        self.depthwise = nn.Sequential(
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide), nn.BatchNorm2d(wide), nn.ReLU()
        )
        self.squeeze, self.excite = nn.Conv2d(wide, 8, 1), nn.Conv2d(8, wide, 1)
        self.project = nn.Conv2d(wide, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.depthwise(self.expand(x))
        pooled = functional.adaptive_avg_pool2d(hidden, 1)
        gate = functional.hardsigmoid(self.excite(functional.relu(self.squeeze(pooled))))
        result: Tensor = x + self.project(hidden * gate)
        return result


class _Encoder(nn.Module):
    """Self-attention and a feed-forward layer, each after a layer norm."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm2 = nn.LayerNorm(size), nn.LayerNorm(size)
        self.query, self.key, self.value = (nn.Linear(size, size) for _ in range(3))
        self.mix = nn.Linear(size, size)
        self.feed = nn.Sequential(nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size))

    def forward(self, x: Tensor) -> Tensor:
        normal = self.norm(x)
        parts = [layer(normal).unflatten(-1, (self.heads, -1)) for layer in (self.query, self.key, self.value)]
        q, k, v = (
            part.transpose(1, 2) for part in parts
        )  # (batch, tokens, heads, size) -> (batch, heads, tokens, size)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.mix(mixed)
        result: Tensor = x + self.feed(self.norm2(x))
        return result


class _UNet(nn.Module):
    """One step down and one up, joined by a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.inner = _convolution(3, 8, 3), _convolution(8, 16, 3)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.join, self.head = _convolution(16, 8, 3), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.down(x)
        up = self.up(self.inner(functional.max_pool2d(wide, 2)))
        result: Tensor = self.head(self.join(torch.cat((wide, up), 1)))
        return result


def _perceptron() -> tuple[nn.Module, tuple[int, ...]]:
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)), (4, 16)


def _resnet() -> tuple[nn.Module, tuple[int, ...]]:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 8))
    stem = (_convolution(3, 16, 3, stride=2), nn.MaxPool2d(2))
    return nn.Sequential(*stem, _Residual(16), _Residual(16), *head), (1, 3, 16, 16)


def _mobilenet() -> tuple[nn.Module, tuple[int, ...]]:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 8))
    return nn.Sequential(_convolution(3, 16, 3, stride=2), _Inverted(16), _Inverted(16), *head), (1, 3, 16, 16)


def _transformer() -> tuple[nn.Module, tuple[int, ...]]:
    return nn.Sequential(_Encoder(32, 4), _Encoder(32, 4), nn.LayerNorm(32), nn.Linear(32, 8)), (1, 6, 32)


def _unet() -> tuple[nn.Module, tuple[int, ...]]:
    return _UNet(), (1, 3, 16, 16)


def _audio() -> tuple[nn.Module, tuple[int, ...]]:
    first, second = nn.Conv1d(8, 16, 5, padding=2), nn.Conv1d(16, 16, 3, padding=2, dilation=2)
    head = (nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 4))
    return nn.Sequential(first, nn.BatchNorm1d(16), nn.ReLU(), second, nn.ReLU(), *head), (1, 8, 20)


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "perceptron": _perceptron,
        "resnet": _resnet,
        "mobilenet": _mobilenet,
        "transformer": _transformer,
        "unet": _unet,
        "audio": _audio,
    }
)
"""The architectures of a scorecard, by name."""
