"""Per-channel range with the smallest squared error, for weights."""

from typing import Any

import torch
from torch import Tensor

from qspec_core.observers._per_channel import PerChannelMinMaxObserver

__all__ = ["PerChannelMSEObserver"]

_SHARES = tuple(0.80 + 0.005 * step for step in range(45))
"""Shares of the largest magnitude that are tried as the range, 0.80 to 1.02. Below, clipping costs more than finer
steps save for every 8-bit weight tried; above 1, other roundings may fit better. The error has many small valleys, so
that a coarse search refined misses the low ones."""


class PerChannelMSEObserver(PerChannelMinMaxObserver):
    """Range of each channel that quantizes the observed tensor with the smallest sum of squared errors: the largest
    weights are clipped where finer steps for all the others save more. Symmetric schemes only.

    Made for weights: the search is made on each new tensor, and the widest range found so far is kept.

    Args:
        others: as `PerChannelMinMaxObserver`.
    Cost: 45 passes over a tensor that was not seen before.
    Source: Banner, Nahshan, Soudry: Post-training 4-bit quantization of convolution networks, 2019, section 2.
    """

    _schemes = (torch.per_channel_symmetric,)

    def __init__(
        self,
        ch_axis: int | None = 0,
        dtype: torch.dtype = torch.qint8,
        qscheme: torch.qscheme = torch.per_channel_symmetric,
        **others: Any,  # the base's own parameters
    ) -> None:
        super().__init__(ch_axis, dtype, qscheme, **others)

    def _limits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low, high = super()._limits(x)
        rows = x.detach().movedim(self.ch_axis, 0).reshape(low.numel(), -1).to(torch.float32)
        largest = torch.maximum(-low, high).to(rows).clamp(min=self.eps.item())
        scale = largest / ((self.quant_max - self.quant_min) / 2)
        best = torch.full_like(scale, torch.inf)
        share = torch.ones_like(scale)
        for tried in _SHARES:
            steps = (scale * tried)[:, None]
            rest = (rows / steps).round_().clamp_(self.quant_min, self.quant_max).mul_(steps).sub_(rows)
            error = rest.square_().sum(dim=1)
            closer = error < best
            share, best = torch.where(closer, tried, share), torch.where(closer, error, best)
        limit = (largest * share).to(low)
        return -limit, limit
