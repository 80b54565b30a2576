"""Whole models of the usual kinds, in plain torch: small for tests, or of full size.

A model takes the tensors of one call and returns one tensor. The decoder with a cache is called token by token and
keeps its keys and values in buffers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn
from whole_networks import (
    Block,
    Bottleneck,
    Decoder,
    InvertedResidual,
    Listener,
    Product,
    Recurrent,
    Size,
    UNet,
    ViT,
    Words,
)

import qspec_core as qspec
from qspec_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

__all__ = ["FULL", "MODELS", "Call", "Size", "Whole", "quantized_for_xnnpack", "whole"]

Call = tuple[Tensor, ...]
CALLS = 4
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""MobileNetV2: expansion factor, output channels for a stem of 32, blocks, stride of the first block."""


@dataclass(frozen=True)
class Whole:
    """A model, and the inputs of several calls in order; the first are its example inputs."""

    model: nn.Module
    calls: list[Call]


def _stem(channels: int, act: nn.Module) -> list[nn.Module]:
    return [nn.Conv2d(3, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), act]


def _head(channels: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels, classes)]


def _resnet50(size: Size) -> Whole:
    blocks: list[nn.Module] = []
    inputs = size.width
    for stage, repeats in enumerate((3, 4, 6, 3) if size.depth > 1 else (1, 2)):
        for index in range(repeats):
            width = size.width << stage
            blocks.append(Bottleneck(inputs, width, 2 if stage and not index else 1))
            inputs = 4 * width
    pool = nn.MaxPool2d(3, 2, 1)
    layers = [*_stem(size.width, nn.ReLU()), pool, *blocks, *_head(inputs, size.classes)]
    return _of_pictures(nn.Sequential(*layers), size)


def _mobilenet_v2(size: Size) -> Whole:
    blocks: list[nn.Module] = []
    inputs = size.width
    for factor, channels, repeats, stride in STAGES if size.depth > 1 else STAGES[:2]:
        outputs = max(8, channels * size.width // 32)
        for index in range(repeats):
            blocks.append(InvertedResidual(inputs, outputs, 1 if index else stride, factor))
            inputs = outputs
    last = 40 * size.width
    end = [nn.Conv2d(inputs, last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU6(), *_head(last, size.classes)]
    return _of_pictures(nn.Sequential(*_stem(size.width, nn.ReLU6()), *blocks, *end), size)


def _segmentation(size: Size) -> Whole:
    return _of_pictures(UNet(size.width // 2, size.classes), size)


def _of_pictures(model: nn.Module, size: Size) -> Whole:
    pictures = [torch.randn(1, 3, size.side, size.side) for _ in range(CALLS)]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # with statistics of data: with initial ones activations vanish with depth
    with torch.no_grad():
        model.train()(torch.randn(4, 3, size.side, size.side))
    return Whole(model.eval(), [(picture,) for picture in pictures])


def _vit(size: Size) -> Whole:
    return Whole(ViT(size).eval(), [(torch.randn(1, 3, size.side, size.side),) for _ in range(CALLS)])


def _bert(size: Size) -> Whole:
    return _of_words(Words(size, lambda: Block(size, post_norm=True), size.width), size)


def _gpt2(size: Size) -> Whole:
    return _of_words(Words(size, lambda: Block(size, causal=True, layer=Product), size.words), size)


def _of_words(model: nn.Module, size: Size) -> Whole:
    return Whole(model.eval(), [(torch.randint(size.words, (1, size.tokens)),) for _ in range(CALLS)])


def _whisper_encoder(size: Size) -> Whole:
    return Whole(Listener(size).eval(), [(torch.randn(1, size.bins, 2 * size.tokens),) for _ in range(CALLS)])


def _lstm(size: Size) -> Whole:
    return Whole(Recurrent(size).eval(), [(torch.randint(size.words, (1, size.tokens)),) for _ in range(CALLS)])


def _llama(size: Size) -> Whole:
    calls: list[Call] = [(torch.randint(size.words, (1, 1)), torch.tensor([place])) for place in range(CALLS)]
    return Whole(Decoder(size).eval(), calls)


MODELS: Mapping[str, Callable[[Size], Whole]] = MappingProxyType(
    {
        "resnet50": _resnet50,
        "mobilenet_v2": _mobilenet_v2,
        "segmentation": _segmentation,
        "vit": _vit,
        "bert": _bert,
        "gpt2": _gpt2,
        "llama": _llama,
        "whisper_encoder": _whisper_encoder,
        "lstm": _lstm,
    }
)
"""Functions by name; each makes a model and data from torch's random generator."""
FULL: Mapping[str, Size] = MappingProxyType(
    {
        "resnet50": Size(width=64, depth=16, side=224, classes=1000),
        "mobilenet_v2": Size(width=32, depth=17, side=224, classes=1000),
        "segmentation": Size(width=64, depth=3, side=256, classes=21),
        "vit": Size(width=384, depth=12, heads=6, side=224, patch=16, classes=1000),  # ViT-S/16
        "bert": Size(width=768, depth=6, heads=12, tokens=128, words=30_000),  # DistilBERT's
        "gpt2": Size(width=768, depth=6, heads=12, tokens=128, words=50_257),  # DistilGPT-2's
        "llama": Size(width=768, depth=6, heads=12, tokens=256, words=32_000),
        "whisper_encoder": Size(width=512, depth=6, heads=8, tokens=1500, bins=80),  # Whisper base's
        "lstm": Size(width=512, depth=2, tokens=32, words=10_000),
    }
)


def whole(name: str, *, full: bool = False) -> Whole:
    """A model with its data, the same on every call.

    Args:
        name: a key of `MODELS`.
        full: full size, as deployed; else small.
    """
    torch.manual_seed(0)
    return MODELS[name](FULL[name] if full else Size())


def quantized_for_xnnpack(made: Whole, mode: str) -> qspec.Result:
    """Quantize a model for XNNPACK.

    Args:
        made: the model with its data.
        mode: "static", "dynamic", or "4-bit": dynamic, with 4-bit weights in groups of 32.
    """
    quantizer = None
    if mode == "4-bit":
        config = get_symmetric_quantization_config(
            is_per_channel=True, is_dynamic=True, weight_qmin=-8, weight_qmax=7, group_size=32
        )
        quantizer = XNNPACKQuantizer(element_wise_starts=False).set_global(config)
    kind = "static" if mode == "static" else "dynamic"
    return qspec.quantize(
        made.model, made.calls[0], calibration=made.calls, backend="xnnpack", mode=kind, quantizer=quantizer
    )
