"""Observer that keeps a histogram and finds the range with the smallest quantization error on it."""

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from qspec_core._errors import SpecError
from qspec_core.observers._arithmetic import FLOAT8, PER_TENSOR, SYMMETRIC, float32, symmetric_zero_point
from qspec_core.observers._base import FLOAT32_EPS, UniformQuantizationObserverBase, finite_limits
from qspec_core.observers._range_search import Histogram, best_ranges

__all__ = ["HistogramObserver", "searched_together"]

_SMALLEST_EXPONENT = -120
"""The narrowest bins are 2**-120 wide; the inverse of a narrower one would not be a float32."""

_FLOAT32_MAX = torch.finfo(torch.float32).max

_FINE_STEPS_PER_BIN = 8
"""With this many quantization steps in a bin, or more, the whole range is the best range."""

_CHUNK = 1 << 20
"""Elements counted at a time: the float32 copy stays small (4 MiB), and threads still get enough work each."""


def _layout(low: float, high: float, bins: int) -> tuple[int, int]:
    """Layout of the narrowest bins that cover a range: exponent of their width, and number of the first bin.

    The width is a power of two. Bin `i` holds the values from `i * width` to `(i + 1) * width`. The layout depends
    only on the range, and bins of a coarser layout are unions of bins of a finer one. So the histogram does not depend
    on the order of the batches.
    """
    exponent = max(_SMALLEST_EXPONENT, math.frexp(high - low)[1] - math.frexp(bins)[1] - 1)
    while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= bins:
        exponent += 1
    return exponent, math.floor(math.ldexp(low, -exponent))


def _count(x: Tensor, exponent: int, first: int, bins: int) -> Tensor:
    """Count the values in each bin; int64, (bins,).

    Scaling by a power of two and rounding down are exact in float32, so every value lands in its own bin. The
    exception is a value smaller than 2**-149 bin widths, which may land in the bin on the other side of 0.
    """
    flat = x.reshape(-1)
    counts = torch.zeros(bins, dtype=torch.int64, device=x.device)
    size = min(_CHUNK, flat.numel())
    place = torch.empty(size, dtype=torch.float32, device=x.device)
    index = torch.empty(size, dtype=torch.int32, device=x.device)
    for chunk in torch.split(flat, _CHUNK):
        part, number = place[: chunk.numel()], index[: chunk.numel()]
        torch.mul(chunk.to(torch.float32), math.ldexp(1.0, -exponent), out=part)
        if first != 0:  # without negative values, the conversion to integers takes the floor
            part.floor_().sub_(first)
        number.copy_(part)
        counts += torch.bincount(number, minlength=bins)
    return counts


def _count_equal(x: Tensor, value: float) -> int:
    """Count the values equal to `value`, which is the smallest or the largest of them."""
    flat = x.reshape(-1)
    away = torch.empty(min(_CHUNK, flat.numel()), dtype=torch.float32, device=x.device)
    different = 0.0
    for chunk in torch.split(flat, _CHUNK):
        # Twice as fast as a comparison. Exact: only equal values differ by 0, and float32 counts up to 2**24 exactly.
        part = torch.sub(chunk, value, out=away[: chunk.numel()])
        different += abs(part.sign_().sum().item())
    return flat.numel() - int(different)


@lru_cache(maxsize=8)
def _moments(bins: int, device: torch.device) -> Tensor:
    """1, the number of each bin, and its square: float64, (bins, 3). Numbers from the middle lose fewest bits."""
    numbers = torch.arange(bins, dtype=torch.float64, device=device) - bins // 2
    return torch.stack([torch.ones_like(numbers), numbers, numbers * numbers], dim=1)


class HistogramObserver(UniformQuantizationObserverBase):
    """Range with the smallest squared quantization error on a histogram of all values seen; per tensor.

    The width of the bins is a power of two, 0 lies on a bin edge, and the range always includes 0. The histogram does
    not depend on the order of the data or on how it is divided into batches. There is no search, and the whole range is
    used, for float8 and for a range around 0 with at most as many values as quantized values.

    Buffers: `histogram`, int64, (bins,); `bin_layout`, int64, (2,): exponent of the width, number of the first bin;
    `min_val`, `max_val`, scalars; `limit_counts`, int64, (2,): number of values equal to `min_val` (if that is
    negative) and to `max_val` (if that is positive). Outputs of a hardtanh, for example, have many.

    Args:
        bins: number of bins, 2 or more; at least half of them lie in the range.
        others: as `UniformQuantizationObserverBase`; a per-tensor scheme, static.
    """

    histogram: Tensor
    bin_layout: Tensor
    limit_counts: Tensor
    bins: int
    _found_range: tuple[float, float] | None
    _schemes = PER_TENSOR

    def __init__(
        self,
        bins: int = 2048,
        dtype: torch.dtype = torch.quint8,
        qscheme: torch.qscheme = torch.per_tensor_affine,
        reduce_range: bool = False,
        quant_min: int | None = None,
        quant_max: int | None = None,
        factory_kwargs: Mapping[str, Any] | None = None,  # Any: torch's own keywords of a tensor
        eps: float = FLOAT32_EPS,
        is_dynamic: bool = False,
        **unused: object,
    ) -> None:
        super().__init__(dtype, qscheme, reduce_range, quant_min, quant_max, factory_kwargs, eps, is_dynamic, **unused)
        self._check_static()
        if bins < 2:
            raise SpecError(
                "a histogram needs 2 bins or more, one on each side of 0",
                found=f"bins={bins}",
                remedy="leave bins at 2048",
            )
        self._set_plain(bins=bins, _found_range=None)
        device = self.eps.device
        self.register_buffer("histogram", torch.zeros(bins, dtype=torch.int64, device=device))
        self.register_buffer("bin_layout", torch.tensor([_SMALLEST_EXPONENT, 0], device=device))
        self.register_buffer("limit_counts", torch.zeros(2, dtype=torch.int64, device=device))
        self.register_buffer("min_val", torch.tensor(math.inf, **self._factory))
        self.register_buffer("max_val", torch.tensor(-math.inf, **self._factory))

    def forward(self, x: Tensor) -> Tensor:
        """Observe `x`, of any shape; return it."""
        if x.numel() == 0:
            return x
        data = x.detach()
        if data.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            data = data.to(torch.float32)
        low, high = (limit.item() for limit in finite_limits(data, self.where))
        self._count_limits(data, low, high)
        self.min_val.clamp_(max=low)
        self.max_val.clamp_(min=high)
        exponent, first = self._grow(low, high)
        self.histogram += _count(data, exponent, first, self.bins).to(self.histogram.device)
        return x

    def _count_limits(self, data: Tensor, low: float, high: float) -> None:
        """Count the values equal to the limits, in batches that reach them.

        A limit of 0 is not counted: 0 is exact in every range.
        """
        least, most = self.min_val.item(), self.max_val.item()
        if low < 0.0 and low <= least:
            self.limit_counts[0] = _count_equal(data, low) + (self.limit_counts[0] if low == least else 0)
        if high > 0.0 and high >= most:
            self.limit_counts[1] = _count_equal(data, high) + (self.limit_counts[1] if high == most else 0)

    def _grow(self, low: float, high: float) -> tuple[int, int]:
        """Make the bins cover one more range and return their layout. Old bins move as a whole into new ones."""
        exponent, first = self.bin_layout.tolist()
        width = math.ldexp(1.0, exponent)
        if first * width <= low and high < (first + self.bins) * width:
            return exponent, first
        low = min(low, 0.0, self.min_val.item())
        high = max(high, 0.0, self.max_val.item())
        layout = _layout(low, high, self.bins)
        old = torch.arange(first, first + self.bins, device=self.histogram.device)
        moved = (old >> (layout[0] - exponent)) - layout[1]
        counts = torch.zeros_like(self.histogram)
        counts.index_add_(0, moved.clamp(0, self.bins - 1), self.histogram)
        self.histogram.copy_(counts)
        self.bin_layout.copy_(torch.tensor(layout))
        return layout

    def cover(self, low: float, high: float) -> tuple[Tensor, Tensor]:
        """Extend the bins to the range of several observers, so that their counts can be summed.

        Returns: `histogram` and `limit_counts`, to be summed over the observers in place. After that, each observer is
            as if it had seen all of the data.

        Args:
            low: smallest value that any of the observers saw; +inf if none saw data.
            high: largest value; -inf if none saw data.
        """
        for index, (limit, own) in enumerate(((low, self.min_val), (high, self.max_val))):
            if limit != own.item():
                self.limit_counts[index] = 0
        if low <= high:
            self.min_val.fill_(low)
            self.max_val.fill_(high)
            self._grow(low, high)
        return self.histogram, self.limit_counts

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point of the range with the smallest squared error.

        Returns: scale, float32, and zero point, int64, both (1,).
        Cost: O(bins).
        """
        if not self.has_observed or self.dtype in FLOAT8:
            return super().calculate_qparams()
        low, high = self._best_range() if self._found_range is None else self._found_range
        # A range may be one step wider than the data, so it may overflow float32.
        return self._qparams_of_range(float32(max(low, -_FLOAT32_MAX)), float32(min(high, _FLOAT32_MAX)))

    def _best_range(self) -> tuple[float, float]:
        whole, histogram = self._whole_range()
        return whole if histogram is None else self._in_values(best_ranges([histogram])[0])

    def _in_values(self, range_: tuple[float, float]) -> tuple[float, float]:
        """A range in bin widths as a range of values."""
        exponent = int(self.bin_layout[0])
        return math.ldexp(range_[0], exponent), math.ldexp(range_[1], exponent)

    def _whole_range(self) -> tuple[tuple[float, float], Histogram | None]:
        """The whole range, and the histogram to search; None if the whole range is the best."""
        low_limit, high_limit = self.min_val.item(), self.max_val.item()
        low, high = min(low_limit, 0.0), max(high_limit, 0.0)
        zero_point = None
        if self.qscheme in SYMMETRIC:
            high = max(-low, high)
            low = -high
            zero_point = symmetric_zero_point(
                self.quant_min, self.quant_max, self.dtype, has_custom_range=self.has_customized_qrange
            )
        exponent, first = self.bin_layout.tolist()
        levels = self.quant_max - self.quant_min
        # All values are 0, or the steps are so small that only clipping costs.
        if low == high or levels >= _FINE_STEPS_PER_BIN * self.bins:
            return (low, high), None
        # Fewer values than steps: a search would fit the rounding of single values, and clip values that come later.
        if low_limit <= 0.0 <= high_limit and int(self.histogram.sum()) <= levels + 1:
            return (low, high), None
        limits = zip((low_limit, high_limit), self.limit_counts.tolist(), strict=True)
        return (low, high), Histogram(
            self.histogram.cpu(),
            first,
            math.ldexp(low, -exponent),
            math.ldexp(high, -exponent),
            int(self.quant_min),
            int(self.quant_max),
            zero_point,
            [(math.ldexp(limit, -exponent), float(number)) for limit, number in limits if number],
        )

    @property
    def spread(self) -> float | None:
        """Standard deviation of all values seen, each taken as the middle of its bin; None before any.

        Cost: O(bins).
        """
        count, total, squares = (self.histogram.double() @ _moments(self.bins, self.histogram.device)).tolist()
        if not count:
            return None
        variance = max(squares / count - (total / count) ** 2, 0.0)
        return math.ldexp(math.sqrt(variance), int(self.bin_layout[0]))

    def reset_histogram(self) -> None:
        """Forget what was observed."""
        self.reset_min_max_vals()

    def reset_min_max_vals(self) -> None:
        """Forget what was observed."""
        super().reset_min_max_vals()
        self.histogram.zero_()
        self.limit_counts.zero_()
        self.bin_layout.copy_(torch.tensor([_SMALLEST_EXPONENT, 0]))


@contextlib.contextmanager
def searched_together(observers: Iterable[object]) -> Iterator[None]:
    """Search the ranges of all histograms at once; within, `calculate_qparams` of each observer uses the range found.

    It gives the same values, bit for bit, in about a tenth of the time. The observers must not see data within.

    Args:
        observers: others than `HistogramObserver`s, and those without data, are left out.
    """
    searched: list[HistogramObserver] = []
    histograms: list[Histogram] = []
    for observer in {id(each): each for each in observers}.values():
        if isinstance(observer, HistogramObserver) and observer.has_observed and observer.dtype not in FLOAT8:
            _, histogram = observer._whole_range()
            if histogram is not None:
                searched.append(observer)
                histograms.append(histogram)
    try:
        for observer, found in zip(searched, best_ranges(histograms), strict=True):
            observer._found_range = observer._in_values(found)
        yield
    finally:
        for observer in searched:
            observer._found_range = None
