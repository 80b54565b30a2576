"""Search, for each channel of a weight, the share of its largest magnitude that quantizes it with the smallest error.

The exact error is computed only for shares with a small modelled error. The model adds up three kinds of values. Values
smaller than half a step round to 0; their error is their square. Clipped values lose the part outside the range. The
error of rounding the `n` others is `n * step**2 / 12` with a standard deviation of `0.894 / sqrt(n)` of it, as for
uniformly distributed remainders. If exact errors of a channel contradict the model, every share gets its exact error.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["best_shares"]

_FIRST, _APART, _NUMBER = 0.80, 0.005, 45
"""Shares of the largest magnitude that are tried as the range: 0.80, 0.805, ... 1.02. Below 0.80, clipping cost more
than the finer steps saved in every 8-bit weight tried; above 1, other roundings may fit better. The error has many
small local minima, so a coarse search with refinement misses the low ones."""

_ALWAYS = (39, 40, 41)
"""Positions of 0.995, 1.0 and 1.005, which are always tried: weights that were quantized before may be exact there."""

_NOISE = 0.894
"""Standard deviation of `r**2` divided by its mean, for `r` uniform in -1/2..1/2: sqrt(1 / 180) * 12."""

_OPEN = 2.5
"""Shares are tried up to this many standard deviations above the smallest modelled error: 10 of 45 for a normal
distribution in channels of 4,096 elements."""

_ODD = 6.0
"""A channel contradicts the model if an exact error differs by 3 % and this many standard deviations."""

_CACHED = 32767
"""Elements computed together on a CPU: two buffers of 128 KiB in the L2 cache. PyTorch runs operators on fewer than
32,768 elements in one thread. More threads took up to 40 times as long while other programs kept the cores busy."""

_GROUP = 1 << 19
"""Elements of the channels that are modelled together: few calls on small tensors, and 2 MiB for weights of 16 bits."""

_ON_ACCELERATOR = 1 << 24
"""Elements computed together on other devices: few launches of kernels, and 64 MiB for each buffer."""

_OFFSET = 1024.5
"""Added to a value in steps, this makes it positive, and its fraction the distance to the nearest integer plus 1/2.
`torch.frac` is cheaper than `torch.round`, which divides more than 2,048 elements among threads."""

_CHANNELS = 200
"""Most channels that are modelled together: a few tables of 46 numbers for each, kept below 32,768 elements as well."""

_TO_INTEGER = 1.5 * 2.0**23
"""Adding this number to a float32 below 2**22 rounds it to an integer."""

_SHORT = 256
"""For channels of fewer elements, the exact error is computed for every share: the model would exclude few."""


def best_shares(weight: Tensor, scale: Tensor, quant_min: float, quant_max: float) -> Tensor:
    """For each channel, the share of `scale` that gives the smallest sum of squared errors.

    Args:
        weight: floating point, (channels, ...), any strides.
        scale: steps of the whole ranges, float32, (channels,), greater than 0.
        quant_min: smallest quantized value.
        quant_max: largest quantized value.
    Returns: float32, (channels,).
    Cost: about 10 passes over 8-bit weights, 45 over short channels and those that contradict the model; in blocks that
        stay in the cache, with 2 MiB of memory.
    """
    search = _Search(weight.device, quant_min, quant_max)
    size = weight[0].numel()
    every = size < _SHORT or weight.device.type != "cpu"
    number = max(min(_GROUP // size, _CHANNELS), 1)
    found = []
    for part, steps in zip(torch.split(weight, number), torch.split(scale, number), strict=True):
        rows = part.reshape(-1, size).to(torch.float32)  # (channels, ...) -> (channels, elements)
        found.append(search.exhaustive(rows, steps) if every else search.modelled(rows, steps))
    return torch.cat(found)


class _Search:
    """Search over groups of channels, with the buffers that they use.

    Args:
        device: device of the weight.
        quant_min: smallest quantized value.
        quant_max: largest quantized value.
    """

    def __init__(self, device: torch.device, quant_min: float, quant_max: float) -> None:
        self.cached = _CACHED if device.type == "cpu" else _ON_ACCELERATOR
        self._limits = quant_min, quant_max
        shares = [_FIRST + _APART * place for place in range(_NUMBER)]
        self._shares = torch.tensor(shares, dtype=torch.float32, device=device)
        self._buffers, self._offset = (self._shares, self._shares), self._shares

    def exhaustive(self, rows: Tensor, scale: Tensor) -> Tensor:
        """Best shares from the exact errors of all; float32, (channels,).

        Args:
            rows: float32, (channels, elements).
            scale: float32, (channels,).
        """
        every = self._shares.expand(len(rows), -1)
        return every.gather(1, self._errors(rows, scale, every).argmin(1, keepdim=True)).squeeze(1)

    def modelled(self, rows: Tensor, scale: Tensor) -> Tensor:
        """Best shares from the exact errors of those that the model leaves open. Arguments as for `exhaustive`."""
        model, deviation, clipped = self._model(rows, scale)
        every = self._shares.expand(len(rows), -1)
        is_open = model <= model.amin(1, keepdim=True) * (1.0 + _OPEN * deviation)
        is_open[:, _ALWAYS] = True
        number = int(is_open.sum(1).amax())
        # (channels, shares) -> the same number of positions for each channel, in ascending order
        places = is_open.to(torch.float32).topk(number, dim=1).indices.sort(dim=1).values
        tried = every.gather(1, places)
        errors = self._rounding_errors(rows, (scale[:, None] * tried).reciprocal_())
        errors = self._correct(errors, *clipped, tried.reciprocal()).mul_(tried).mul_(tried)
        found = tried.gather(1, errors.argmin(1, keepdim=True)).squeeze(1)
        expected = model.gather(1, places)
        is_odd = ((errors - expected).abs_() > expected * (_ODD * deviation + 0.03)).any(1) & (errors.amin(1) > 0.0)
        for odd in (slice(place, place + 1) for place in is_odd.nonzero().flatten().tolist()):
            found[odd] = self.exhaustive(rows[odd], scale[odd])
        return found

    def _model(self, rows: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Model the errors, in squared steps of the whole range.

        Returns: errors, (channels, shares); standard deviation, (channels, 1); the values that some share may clip, as
            channels and values in steps of the whole range, (values,) each.
        """
        height = max(self.cached // rows.shape[1], 1)
        small, constant, channels, values = [], [], [], []
        for number, (block, step) in enumerate(zip(torch.split(rows, height), torch.split(scale, height), strict=True)):
            steps = block / step[:, None]
            sizes = steps.abs()
            # Values that some share clips.
            channel, element = (sizes > _FIRST * min(self._limits[1], -self._limits[0])).nonzero(as_tuple=True)
            channels.append(channel + number * height)
            values.append(steps[channel, element])
            # 1.0 and 0.0: four times as fast as a comparison that gives truth values.
            is_small = torch.lt(sizes, 0.5, out=steps)
            small.append(is_small.sum(1))
            constant.append(torch.linalg.vector_norm(sizes.mul_(is_small), dim=1))
        rounded = (rows.shape[1] - torch.cat(small)).clamp_(min=1.0)[:, None]
        squares = self._shares.square()
        model = torch.cat(constant).square_()[:, None] + rounded * squares / 12.0
        clipped = torch.cat(channels), torch.cat(values)
        return model + self._clipped(*clipped, len(rows)), _NOISE * rounded.rsqrt(), clipped

    def _clipped(self, channels: Tensor, values: Tensor, count: int) -> Tensor:
        """Squared parts outside the range of each share, summed over each channel, (count, shares).

        Args:
            channels: channel of each value, int64, (values,).
            values: in steps of the whole range, float32, (values,).
            count: number of channels.
        """
        low, high = self._limits
        limits = torch.where(values < 0.0, low, high).to(torch.float32)
        ratios = values / limits
        # Number of shares that clip a value.
        clipping = (ratios - _FIRST).div_(_APART).add_(1.0).clamp_(0, _NUMBER).to(torch.int64)
        places = clipping.add_(channels, alpha=_NUMBER + 1)
        moments = values.new_zeros(3, count * (_NUMBER + 1))
        weights = limits.square_()
        for moment in moments:
            moment.index_add_(0, places, weights)
            weights = weights * ratios
        # (3, channels, shares that clip) -> sums over the values that each share clips, (3, channels, shares)
        sums = moments.view(3, count, _NUMBER + 1).flip(2).cumsum(2).flip(2)[:, :, 1:]
        return sums[2] - 2.0 * self._shares * sums[1] + self._shares.square() * sums[0]

    def _rounding_errors(self, rows: Tensor, factors: Tensor) -> Tensor:
        """Sums of squared distances to the nearest integers, as if nothing were clipped, (channels, tried).

        Args:
            rows: float32, (channels, elements).
            factors: 1 / step, (channels, tried).
        """
        errors = torch.full_like(factors, rows.shape[1] / 4.0)
        for values, factor, sums in self._blocks(rows, factors, errors):
            steps, _ = self._buffers_for(values, factor)
            torch.addcmul(self._offset.expand_as(values), values, factor, out=steps)
            torch.frac(steps, out=steps)
            norms = torch.linalg.vector_norm(steps, dim=2)
            sums.addcmul_(norms, norms).sub_(steps.sum(2))  # (f - 1/2)**2 = f**2 - f + 1/4
        return errors

    def _correct(self, errors: Tensor, channels: Tensor, values: Tensor, factors: Tensor) -> Tensor:
        """Replace the errors of clipped values, as if rounded, by the parts outside the range; in squared steps.

        Args:
            errors: changed, (channels, tried).
            channels: channel of each value that may be clipped, (values,).
            values: in steps of the whole range, (values,).
            factors: 1 / share, (channels, tried).
        """
        tried = factors.shape[1]
        number = max(self.cached // tried, 1)
        within = torch.arange(tried, device=errors.device)
        for channel, value in zip(torch.split(channels, number), torch.split(values, number), strict=True):
            steps = value[:, None] * factors.index_select(0, channel)  # (number, tried)
            outside = steps - steps.clamp(*self._limits)
            rest = steps.add_(_OFFSET).frac_().sub_(0.5)
            more = torch.where(outside.abs() > 0.5, outside.square() - rest.square_(), 0.0)
            # (number, tried) -> (number * tried,): index_add_ of one dimension runs in one thread
            places = (channel[:, None] * tried).add(within).view(-1)
            errors.view(-1).index_add_(0, places, more.view(-1))
        return errors

    def _errors(self, rows: Tensor, scale: Tensor, tried: Tensor) -> Tensor:
        """Exact sums of squared errors, in squared steps of the whole range, (channels, tried).

        Args:
            rows: float32, (channels, elements).
            scale: float32, (channels,).
            tried: shares of each channel, (channels, tried).
        """
        errors = torch.zeros_like(tried)
        low, high = self._limits
        for values, factor, sums in self._blocks(rows, (scale[:, None] * tried).reciprocal_(), errors):
            steps, rounded = self._buffers_for(values, factor)
            torch.mul(values, factor, out=steps)
            torch.add(steps, _TO_INTEGER, out=rounded)
            steps.sub_(rounded.clamp_(low + _TO_INTEGER, high + _TO_INTEGER).sub_(_TO_INTEGER))
            norms = torch.linalg.vector_norm(steps, dim=2)
            sums.addcmul_(norms, norms)
        return errors.mul_(tried).mul_(tried)

    def _blocks(self, rows: Tensor, factors: Tensor, errors: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Parts whose products stay in the cache: (height, 1, width), (height, depth, 1) and (height, depth).

        Args:
            rows: (channels, elements).
            factors: (channels, tried).
            errors: (channels, tried).
        """
        width = min(rows.shape[1], self.cached)
        depth = min(factors.shape[1], max(self.cached // width, 1))
        height = max(self.cached // (width * depth), 1)
        for columns in torch.split(rows.unsqueeze(1), width, dim=2):
            for part, sums in zip(
                torch.split(factors.unsqueeze(2), depth, 1), torch.split(errors, depth, 1), strict=True
            ):
                yield from zip(
                    torch.split(columns, height), torch.split(part, height), torch.split(sums, height), strict=True
                )

    def _buffers_for(self, values: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
        """Two buffers of the shape of a product, which all products of one shape use."""
        shape = values.shape[0], factors.shape[1], values.shape[2]
        if self._buffers[0].shape != shape:
            self._buffers = values.new_empty(shape), values.new_empty(shape)
            self._offset = values.new_full((1, 1, shape[2]), _OFFSET)
        return self._buffers
