"""Scales of weights for CPUs that sum two products in 16 bits."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from qspec_core.fake_quantize import AffineFakeQuantize, FakeQuantize, FakeQuantizeBase
from qspec_core.observers import ObserverBase, PartialWrapper, PerChannelMinMaxObserver

__all__ = ["PAIR_LIMIT", "PairSumObserver", "pair_sums", "with_pair_sums"]

PAIR_LIMIT = (2**15 - 1) // 255
"""Largest sum of two weights of one sign, 128, whose products with inputs of 0..255 fit 16 bits together."""


def pair_sums(weight: Tensor) -> Tensor:
    """Largest absolute sum of two weights of one sign, for each output channel.

    Args:
        weight: (outputs, ...), at least one value for each output.
    Returns: (outputs,), of the weight's dtype.
    Cost: O(weights).
    """
    rows = weight.reshape(weight.shape[0], -1)
    count = min(2, rows.shape[1])
    positive = rows.topk(count, dim=1).values.clamp(min=0).sum(dim=1)
    negative = rows.topk(count, dim=1, largest=False).values.clamp(max=0).sum(dim=1)
    return torch.maximum(positive, -negative)


class PairSumObserver(ObserverBase):
    """Scale of another observer, made coarser where the sum of two products could overflow 16 bits, and no more than
    needed.

    With inputs of 0..255, the sum of any two weights of one sign in a channel may be up to 128. That costs 0 to 1 bit;
    narrowing all weights to -64..63 costs 1 bit everywhere. EfficientNet-Lite0, 64 crops, in dB: 8 bits 15.5, this
    15.0, 7 bits 13.2.

    Args:
        observer: constructor of the observer that gives the scale.
        keywords: arguments of that constructor.
    Source: Intel 64 and IA-32 Architectures Software Developer's Manual, VPMADDUBSW: products of u8 by s8, summed in
        pairs into s16 with saturation.
    """

    def __init__(
        self,
        observer: Callable[..., nn.Module] = PerChannelMinMaxObserver,
        **keywords: Any,  # arguments of any observer
    ) -> None:
        inner = cast(ObserverBase, observer(**keywords))
        super().__init__(inner.dtype)
        # PT2E fake-quantizes hold their observer under this name; convert reads its axis there.
        self.activation_post_process = inner
        for name in ("qscheme", "quant_min", "quant_max", "ch_axis"):
            setattr(self, name, getattr(inner, name, None))
        # In a tuple: a module would register a bare parameter as its own.
        self._weight: tuple[Tensor, ...] = ()

    @property
    def has_observed(self) -> bool:
        """Whether a weight was observed."""
        return bool(self._weight)

    def forward(self, x: Tensor) -> Tensor:
        """Observe a weight, (outputs, ...), and return it. `calculate_qparams` sums its pairs."""
        self.activation_post_process(x)
        self._weight = (x.detach(),)
        return x

    def can_be_traced(self) -> bool:
        """Whether `observe_traced` can run."""
        ready = getattr(self.activation_post_process, "can_be_traced", None)
        return callable(ready) and bool(ready())

    def observe_traced(self, x: Tensor, enabled: Tensor) -> None:
        """Observe a weight as `forward` does, in a form that `torch.compile` traces; if `enabled`, bool, (1,)."""
        cast(Any, self.activation_post_process).observe_traced(x, enabled)  # can_be_traced held
        self._weight = (x.detach(),)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point, in the shape that the wrapped observer gives them."""
        scale, zero_point = self.activation_post_process.calculate_qparams()
        if not self._weight:
            return scale, zero_point
        axis = getattr(self.activation_post_process, "ch_axis", 0) or 0  # 1 for a transposed convolution
        weight = self._weight[0].to(torch.float32).movedim(axis, 0)
        # Rounding can add half a step to each weight of a pair, so the limit for the quotients is one less.
        needed = pair_sums(weight) / (PAIR_LIMIT - 1)
        return torch.maximum(scale, needed.max() if scale.numel() == 1 else needed), zero_point


def with_pair_sums(constructor: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """The constructor of an observer or a fake-quantize, with scales that a `PairSumObserver` makes coarser."""
    inner = constructor.p if isinstance(constructor, PartialWrapper) else partial(constructor)
    if not isinstance(inner.func, type) or not issubclass(inner.func, FakeQuantizeBase):
        return PairSumObserver.with_args(observer=constructor)
    if "observer" not in inner.keywords or issubclass(inner.func, AffineFakeQuantize):
        return constructor  # one scale for each block: no kernel sums those in 16 bits
    kind = FakeQuantize if issubclass(inner.func, FakeQuantize) else inner.func
    observer = PairSumObserver.with_args(observer=inner.keywords["observer"])
    return PartialWrapper(partial(cast(type[nn.Module], kind), **{**inner.keywords, "observer": observer}))
