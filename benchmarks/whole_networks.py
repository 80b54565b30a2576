"""The networks of `whole_models.py`, in plain torch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "Block",
    "Bottleneck",
    "Decoder",
    "InvertedResidual",
    "Listener",
    "Product",
    "Recurrent",
    "Size",
    "UNet",
    "ViT",
    "Words",
]


@dataclass(frozen=True)
class Size:
    """Sizes of the models.

    Args:
        width: features of a token; channels of a picture network are a part or a multiple of it.
        depth: number of blocks; with more than one, a picture network has all its stages.
        heads: number of attention heads.
        tokens: tokens in a call, or capacity of the cache.
        words: size of the vocabulary.
        side: height and width of a picture.
        patch: height and width of a patch of a picture.
        classes: number of classes of pictures.
        bins: frequency bins of a spectrogram.
    """

    width: int = 32
    depth: int = 1
    heads: int = 4
    tokens: int = 8
    words: int = 50
    side: int = 32
    patch: int = 8
    classes: int = 10
    bins: int = 16


class Bottleneck(nn.Module):
    """ResNet-50's block."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.narrow = nn.Sequential(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        middle = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.middle = nn.Sequential(middle, nn.BatchNorm2d(width), nn.ReLU())
        self.widen = nn.Sequential(nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width))
        direct = nn.Sequential(nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width))
        self.skip = direct if inputs != 4 * width or stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) to (n, 4 width, h / stride, w / stride)."""
        return F.relu(self.widen(self.middle(self.narrow(x))) + self.skip(x))


class InvertedResidual(nn.Module):
    """MobileNetV2's block."""

    def __init__(self, inputs: int, outputs: int, stride: int, factor: int) -> None:
        super().__init__()
        wide = inputs * factor
        widen = [nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()] if factor > 1 else []
        self.layers = nn.Sequential(
            *widen,
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
            nn.Conv2d(wide, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        found: Tensor = self.layers(x)
        return x + found if self.adds else found


class UNet(nn.Module):
    """A segmentation network: convolutions down, transposed convolutions up, a concatenation on each level."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.top = self._block(3, width)
        self.middle = self._block(width, 2 * width)
        self.bottom = self._block(2 * width, 4 * width)
        self.up_middle = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2)
        self.join_middle = self._block(4 * width, 2 * width)
        self.up_top = nn.ConvTranspose2d(2 * width, width, 4, 2, 1)
        self.join_top = self._block(2 * width, width)
        self.classes = nn.Conv2d(width, classes, 1)

    @staticmethod
    def _block(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding="same"), nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, h, w) to (n, classes, h, w)."""
        top = self.top(x)
        middle = self.middle(F.max_pool2d(top, 2))
        bottom = self.bottom(F.max_pool2d(middle, 2))
        middle = self.join_middle(torch.cat([F.relu(self.up_middle(bottom)), middle], 1))
        top = self.join_top(torch.cat([F.relu(self.up_top(middle)), top], 1))
        found: Tensor = self.classes(top)
        return found


class Attention(nn.Module):
    """Multi-head attention over (n, tokens, width)."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self._heads, self._causal = heads, causal

    def forward(self, x: Tensor) -> Tensor:
        """(n, tokens, width) to the same shape."""
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).view(n, tokens, 3, self._heads, width // self._heads).permute(2, 0, 3, 1, 4).unbind(0)
        found = F.scaled_dot_product_attention(q, k, v, is_causal=self._causal)
        result: Tensor = self.out(found.transpose(1, 2).reshape(n, tokens, width))
        return result


class Product(nn.Module):
    """GPT-2's linear layer, whose weight is (in, out)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * inputs**-0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(n, tokens, inputs) to (n, tokens, outputs)."""
        flat = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return flat.view(*x.shape[:-1], self.weight.size(1))


class Block(nn.Module):
    """Attention and two linear layers, each with a norm before or after it."""

    def __init__(self, size: Size, *, causal: bool = False, post_norm: bool = False, layer: type = nn.Linear) -> None:
        super().__init__()
        width = size.width
        self.attention = Attention(width, size.heads, causal=causal)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = layer(width, 4 * width), layer(4 * width, width)
        self._post_norm = post_norm

    def forward(self, x: Tensor) -> Tensor:
        """(n, tokens, width) to the same shape."""
        if self._post_norm:
            x = self.first(x + self.attention(x))
            found: Tensor = self.second(x + self.down(F.gelu(self.up(x))))
            return found
        x = x + self.attention(self.first(x))
        grown: Tensor = self.down(F.gelu(self.up(self.second(x)), approximate="tanh"))
        return x + grown


class ViT(nn.Module):
    """A vision transformer: a classifier of pictures by patches."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, size.width, size.patch, size.patch)
        self.first = nn.Parameter(torch.randn(1, 1, size.width))
        self.places = nn.Parameter(torch.randn(1, 1 + (size.side // size.patch) ** 2, size.width))
        self.blocks = nn.Sequential(*(Block(size) for _ in range(size.depth)))
        self.norm, self.head = nn.LayerNorm(size.width), nn.Linear(size.width, size.classes)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, side, side) to (n, classes)."""
        patches = self.patches(x).flatten(2).transpose(1, 2)
        joined = torch.cat([self.first.expand(x.size(0), -1, -1), patches], 1) + self.places
        found: Tensor = self.head(self.norm(self.blocks(joined))[:, 0])
        return found


class Words(nn.Module):
    """A text encoder or decoder."""

    def __init__(self, size: Size, block: Callable[[], nn.Module], outputs: int) -> None:
        super().__init__()
        self.words = nn.Embedding(size.words, size.width)
        self.places = nn.Parameter(torch.randn(size.tokens, size.width))
        self.blocks = nn.Sequential(*(block() for _ in range(size.depth)))
        self.norm, self.head = nn.LayerNorm(size.width), nn.Linear(size.width, outputs, bias=False)

    def forward(self, words: Tensor) -> Tensor:
        """(n, tokens) to (n, tokens, outputs)."""
        found: Tensor = self.head(self.norm(self.blocks(self.words(words) + self.places)))
        return found


class Listener(nn.Module):
    """Whisper's encoder: two convolutions over time, then blocks."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.near, self.far = nn.Conv1d(size.bins, size.width, 3, 1, 1), nn.Conv1d(size.width, size.width, 3, 2, 1)
        self.places = nn.Parameter(torch.randn(size.tokens, size.width))
        self.blocks = nn.Sequential(*(Block(size) for _ in range(size.depth)))
        self.norm = nn.LayerNorm(size.width)

    def forward(self, x: Tensor) -> Tensor:
        """(n, bins, 2 tokens) to (n, tokens, width)."""
        x = F.gelu(self.far(F.gelu(self.near(x)))).permute(0, 2, 1)
        found: Tensor = self.norm(self.blocks(x + self.places))
        return found


class Recurrent(nn.Module):
    """Tokens through an LSTM between two linear layers."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.words, self.enter = nn.Embedding(size.words, size.width), nn.Linear(size.width, size.width)
        self.lstm = nn.LSTM(size.width, size.width, num_layers=size.depth, batch_first=True)
        self.leave = nn.Linear(size.width, 10)

    def forward(self, words: Tensor) -> Tensor:
        """(n, tokens) to (n, tokens, 10)."""
        found: Tensor = self.leave(self.lstm(F.relu(self.enter(self.words(words))))[0])
        return found


class CachedAttention(nn.Module):
    """Attention of one new token over earlier tokens, whose keys and values are kept in buffers."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        layers = (nn.Linear(size.width, size.width, bias=False) for _ in range(4))
        self.q, self.k, self.v, self.out = layers
        shape = (1, size.heads, size.tokens, size.width // size.heads)
        self.register_buffer("keys", torch.zeros(shape), persistent=False)
        self.register_buffer("values", torch.zeros(shape), persistent=False)
        angles = torch.outer(torch.arange(size.tokens), 1e4 ** -(torch.arange(0, shape[3], 2) / shape[3]))
        self.register_buffer("cos", angles.cos().repeat(1, 2), persistent=False)
        self.register_buffer("sin", angles.sin().repeat(1, 2), persistent=False)
        self.register_buffer("seen", torch.ones(size.tokens, size.tokens).tril().bool(), persistent=False)
        self._heads = size.heads

    keys: Tensor
    values: Tensor
    cos: Tensor
    sin: Tensor
    seen: Tensor

    def forward(self, x: Tensor, place: Tensor) -> Tensor:
        """(1, 1, width) at the position `place` (1,) to the same shape."""
        q, k, v = (layer(x).view(1, 1, self._heads, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        self.keys[:, :, place] = self._turned(k, place)
        self.values[:, :, place] = v
        found = F.scaled_dot_product_attention(
            self._turned(q, place), self.keys.clone(), self.values.clone(), attn_mask=self.seen[place]
        )
        result: Tensor = self.out(found.transpose(1, 2).reshape(x.shape))
        return result

    def _turned(self, x: Tensor, place: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * self.cos[place] + torch.cat([-second, first], -1) * self.sin[place]


class DecoderLayer(nn.Module):
    """LLaMA's layer, one token at a time."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.attention = CachedAttention(size)
        self.first, self.second = nn.RMSNorm(size.width), nn.RMSNorm(size.width)
        wide = 2 * size.width
        self.gate = nn.Linear(size.width, wide, bias=False)
        self.up = nn.Linear(size.width, wide, bias=False)
        self.down = nn.Linear(wide, size.width, bias=False)

    def forward(self, x: Tensor, place: Tensor) -> Tensor:
        """(1, 1, width) to the same shape."""
        x = x + self.attention(self.first(x), place)
        y = self.second(x)
        grown: Tensor = self.down(F.silu(self.gate(y)) * self.up(y))
        return x + grown


class Decoder(nn.Module):
    """LLaMA with a cache: scores of the next word."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.words = nn.Embedding(size.words, size.width)
        self.layers = nn.ModuleList(DecoderLayer(size) for _ in range(size.depth))
        self.norm, self.head = nn.RMSNorm(size.width), nn.Linear(size.width, size.words, bias=False)

    def forward(self, word: Tensor, place: Tensor) -> Tensor:
        """A word (1, 1) at a position (1,) to scores (1, 1, words)."""
        x = self.words(word)
        for layer in self.layers:
            x = layer(x, place)
        found: Tensor = self.head(self.norm(x))
        return found
