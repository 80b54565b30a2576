"""Small networks that transformers does not have: segmentation with transposed convolutions, and a recurrent one."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

__all__ = ["OWN", "Recurrent", "Segmenter"]

Made = tuple[nn.Module, list[tuple[Tensor, ...]]]


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Segmenter(nn.Module):
    """Down twice and up twice, each way up with what the way down saw."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem, self.down, self.deep = _block(3, width), _block(width, 2 * width, 2), _block(2 * width, 4 * width, 2)
        self.up, self.last = (
            nn.ConvTranspose2d(4 * width, 2 * width, 2, 2),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1),
        )
        self.mix, self.join = _block(4 * width, 2 * width), _block(2 * width, width)
        self.head = nn.Conv2d(width, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (n, 3, 4 h, 4 w); classes (n, 5, 4 h, 4 w)."""
        stem = self.stem(x)
        down = self.down(stem)
        y = self.mix(torch.cat([torch.relu(self.up(self.deep(down))), down], 1))
        y = self.join(torch.cat([torch.relu(self.last(y)), stem], 1))
        result: Tensor = self.head(y)
        return result


class Recurrent(nn.Module):
    """Token numbers through an LSTM; its linear head has one row for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.lstm = nn.Embedding(100, 32), nn.LSTM(32, 48, batch_first=True)
        self.head = nn.Linear(48, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        """Numbers (n, length); (n, length, 10)."""
        result: Tensor = self.head(self.lstm(self.words(tokens))[0])
        return result


def _segmenter() -> Made:
    return Segmenter().eval(), [(torch.randn(2, 3, 32, 40),) for _ in range(3)]


def _recurrent() -> Made:
    return Recurrent().eval(), [(torch.randint(0, 100, (2, 9)),) for _ in range(3)]


OWN: Mapping[str, Callable[[], Made]] = MappingProxyType({"segmenter": _segmenter, "lstm": _recurrent})
"""By name: the model, and inputs of a few calls."""
