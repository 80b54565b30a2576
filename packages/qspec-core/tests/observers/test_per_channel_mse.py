"""The per-channel range of least squared error against a search in NumPy loops."""

from typing import Any

import numpy as np
import pytest
import torch

from qspec_core import SpecError
from qspec_core.observers import PerChannelMinMaxObserver, PerChannelMSEObserver

RANGE: dict[str, Any] = {"dtype": torch.int8, "quant_min": -127, "quant_max": 127}


def weights(outputs: int = 6, inputs: int = 200, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(outputs, inputs, generator=generator)
    w[:, 0] *= 4  # an outlier that is worth clipping in some channels
    return w


def squared_error(row: np.ndarray, scale: float) -> float:
    integers = np.clip(np.rint(row / np.float32(scale)), -127, 127)
    return float(((integers * np.float32(scale) - row) ** 2).sum())


def test_error_is_near_that_of_a_fine_search() -> None:
    w = weights()
    observer = PerChannelMSEObserver(**RANGE)
    observer(w)
    scales, zero_points = observer.calculate_qparams()
    assert not zero_points.any()
    for row, scale in zip(w.numpy(), scales.tolist(), strict=True):
        whole = float(np.abs(row).max()) / 127
        best = min(squared_error(row, whole * share) for share in np.linspace(0.8, 1.02, 400))
        assert squared_error(row, scale) <= 1.08 * best


def test_error_is_never_above_that_of_the_whole_range_and_below_it_somewhere() -> None:
    w = weights()
    searched, whole = (
        PerChannelMSEObserver(**RANGE),
        PerChannelMinMaxObserver(qscheme=torch.per_channel_symmetric, **RANGE),
    )
    searched(w)
    whole(w)
    pairs = list(
        zip(w.numpy(), searched.calculate_qparams()[0].tolist(), whole.calculate_qparams()[0].tolist(), strict=True)
    )
    assert all(squared_error(row, a) <= squared_error(row, b) * (1 + 1e-5) for row, a, b in pairs)
    assert sum(squared_error(row, a) for row, a, _ in pairs) < 0.99 * sum(squared_error(row, b) for row, _, b in pairs)


@pytest.mark.parametrize("ch_axis", [0, 1, 3])
def test_channels_of_any_axis(ch_axis: int) -> None:
    w = weights(4, 2 * 3 * 5).reshape(4, 2, 3, 5)
    moved = w.movedim(0, ch_axis).contiguous()
    first, other = PerChannelMSEObserver(ch_axis=0, **RANGE), PerChannelMSEObserver(ch_axis=ch_axis, **RANGE)
    first(w)
    other(moved)
    torch.testing.assert_close(first.calculate_qparams()[0], other.calculate_qparams()[0], rtol=1e-5, atol=0)


def test_channel_of_zeros_and_exact_values() -> None:
    w = torch.stack([torch.zeros(8), torch.tensor([127.0, -127, 1, 2, 3, 4, 5, 6])])
    observer = PerChannelMSEObserver(**RANGE)
    observer(w)
    scales, _ = observer.calculate_qparams()
    assert scales[0] > 0
    torch.testing.assert_close(scales[1], torch.tensor(1.0))


def test_state_round_trip() -> None:
    observer, other = PerChannelMSEObserver(**RANGE), PerChannelMSEObserver(**RANGE)
    observer(weights())
    other.load_state_dict(observer.state_dict())
    torch.testing.assert_close(other.calculate_qparams()[0], observer.calculate_qparams()[0], rtol=0, atol=0)


def test_affine_scheme_is_refused() -> None:
    with pytest.raises(SpecError):
        PerChannelMSEObserver(qscheme=torch.per_channel_affine, **RANGE)
