"""Models of `xnnpack.py`: EfficientNet-Lite0 with its trained weights, the others with random weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from examples.pictures import calibration_crops, evaluation_crops, lite0
from flow_models import float_model
from torch import Tensor, nn

__all__ = ["MODELS", "Bench"]

TOKENS, WORDS = 64, 1000
CALIBRATE, EVALUATE = 8, 8


@dataclass(frozen=True)
class Bench:
    """A model with its data.

    Args:
        model: float, in evaluation mode; takes one tensor, returns one.
        calibration: inputs to calibrate with, the first of them the example.
        evaluation: other inputs, to compare on.
    """

    model: nn.Module
    calibration: list[Tensor]
    evaluation: list[Tensor]


def _lite0() -> Bench:
    return Bench(lite0(), calibration_crops(), evaluation_crops())


def _of_pictures(name: str) -> Bench:
    pictures = [torch.randn(1, 3, 224, 224) for _ in range(CALIBRATE + EVALUATE)]
    return Bench(float_model(name)[0], pictures[:CALIBRATE], pictures[CALIBRATE:])


def _of_words(model: nn.Module) -> Bench:
    words = [torch.randint(WORDS, (1, TOKENS)) for _ in range(CALIBRATE + EVALUATE)]
    return Bench(First(model).eval(), words[:CALIBRATE], words[CALIBRATE:])


class First(nn.Module):
    """A model of `transformers` that returns its first output only."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Call the model with words (1, n) or pictures."""
        result: Tensor = self.model(x, return_dict=False)[0]
        return result


def _resnet50() -> Bench:
    return _of_pictures("resnet50")


def _bert() -> Bench:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
    )
    return _of_words(BertModel(config, add_pooling_layer=False))


def _gpt2() -> Bench:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=WORDS, n_positions=TOKENS, n_embd=256, n_layer=4, n_head=4, use_cache=False)
    return _of_words(GPT2LMHeadModel(config))


def _mobilenet_v2() -> Bench:
    return _of_pictures("mobilenet_v2:settled")


MODELS: Mapping[str, Callable[[], Bench]] = {
    "lite0": _lite0,
    "resnet50": _resnet50,
    "mobilenet_v2": _mobilenet_v2,
    "bert": _bert,
    "gpt2": _gpt2,
}
"""Functions by name. Each call makes the same weights and data in every process with the same seed."""
