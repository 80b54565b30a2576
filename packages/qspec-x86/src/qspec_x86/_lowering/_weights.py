"""Weights for CPUs that may sum two products in 16 bits."""

import torch

from qspec_core.lowering import Weight
from qspec_x86._observer import pair_sums

__all__ = ["narrow_weight"]

_INT16_MAX = 2**15 - 1


def narrow_weight(weight: Weight, input_max: int) -> Weight | None:
    """Make the scale coarser in the channels where the sum of two products could overflow 16 bits.

    With inputs of 0..255, the sum of two weights of one sign may be up to 128. A channel is divided by the factor that
    it needs, at most 2, and gets the scale that fits its integers best. Quantizing the float weights with
    `PairSumObserver` loses less, because it rounds once.

    Args:
        weight: as it was quantized.
        input_max: largest integer of the input.
    Returns: the weight; None if no channel needs a coarser scale.
    Cost: O(weights).
    Source: Intel 64 and IA-32 Architectures Software Developer's Manual, VPMADDUBSW: products of u8 by s8, summed in
        pairs into s16 with saturation.
    """
    limit = _INT16_MAX // input_max
    sums = pair_sums(weight.integers.to(torch.int32))
    fits = sums <= limit
    if bool(fits.all()):
        return None
    # Rounding can add half a step to each weight of a pair, so the limit for the quotients is one less.
    # (outputs, ...) -> (outputs, weights of a channel)
    rows = weight.integers.reshape(len(fits), -1).to(torch.float32)
    factor = torch.where(fits, 1.0, sums / (limit - 1))
    rounded = torch.round(rows / factor[:, None])
    # Least squares: if most weights are in the middle of two steps, rounding makes all of them larger, or all smaller.
    exact = (rows * rounded).sum(dim=1) / (rounded * rounded).sum(dim=1)
    return Weight(rounded.to(torch.int8).reshape(weight.integers.shape), weight.scale * torch.where(fits, 1.0, exact))
