"""Whole models: a transformer that gets its cache as an input and returns it, in every mode."""

from pathlib import Path
from typing import Any

import pytest
import torch
from core_support import CONFIG, DYNAMIC, WEIGHT_ONLY
from onnx_support import quantized, run_reference, written
from torch import Tensor, nn
from torch.export import Dim

from qspec_core import QuantizationConfig
from qspec_core.onnx import OnnxStatus, check_onnx
from qspec_core.onnx._check import OPTIMIZED

WIDTH, HEADS, WORDS = 16, 2, 40


class Decoder(nn.Module):
    """One layer of a decoder: embedding, attention over a cache of keys and values, and a gated feed-forward part."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.before, self.after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.result = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.gate, self.up, self.down = nn.Linear(WIDTH, 32), nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)
        self.scores = nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, tokens: Tensor, keys: Tensor, values: Tensor) -> dict[str, Tensor]:
        x = self.words(tokens)
        normed = self.before(x)
        # (batch, tokens, width) -> (batch, heads, tokens, width of a head)
        query, key, value = (
            layer(normed).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        keys, values = torch.cat([keys, key], 2), torch.cat([values, value], 2)
        mixed = nn.functional.scaled_dot_product_attention(query, keys, values)
        x = x + self.result(mixed.transpose(1, 2).flatten(2))
        normed = self.after(x)
        x = x + self.down(nn.functional.silu(self.gate(normed)) * self.up(normed))
        return {"logits": self.scores(x), "keys_after": keys, "values_after": values}


def inputs_of(past: int) -> tuple[Tensor, ...]:
    torch.manual_seed(past)
    cache = (2, HEADS, past, WIDTH // HEADS)
    return torch.randint(WORDS, (2, 3)), torch.randn(cache), torch.randn(cache)


@pytest.mark.parametrize("config", [CONFIG, DYNAMIC, WEIGHT_ONLY], ids=["static", "dynamic", "weight only"])
def test_a_decoder_with_a_cache(tmp_path: Path, config: QuantizationConfig) -> None:
    torch.manual_seed(0)
    past = {2: Dim("past", min=2, max=64)}
    shapes: Any = {"tokens": None, "keys": past, "values": past}
    converted = quantized(Decoder(), inputs_of(5), config, [inputs_of(6)], dynamic_shapes=shapes)
    path = written(converted, inputs_of(5), tmp_path, dynamic_shapes=shapes)
    check = check_onnx(converted, path, inputs_of(5), node_by_node=True).require()
    if config is WEIGHT_ONLY:  # ONNX Runtime rounds the activations of layers whose weights alone are quantized
        assert check.finding(OPTIMIZED).status is OnnxStatus.APPROXIMATES
    other = inputs_of(9)
    found = run_reference(path, *other)
    with torch.no_grad():
        want = list(converted(*other).values())
    assert [tensor.shape for tensor in found] == [tensor.shape for tensor in want]
    same = (found[0].argmax(-1) == want[0].argmax(-1)).double().mean()
    assert same == 1
