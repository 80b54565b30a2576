"""The search over shares against the error of every share, in NumPy and float64."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from qspec_core.observers import PerChannelMSEObserver, _share_search
from qspec_core.observers._share_search import best_shares

Make = Callable[[tuple[int, ...], torch.Generator], Tensor]
SHARES = np.array([0.80 + 0.005 * place for place in range(45)], dtype=np.float64)


def normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


def heavy_tails(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return normal(shape, generator) / normal((3, *shape), generator).square().mean(0).sqrt()  # Student's t, 3 degrees


def uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator) * 2 - 1


def mostly_zero(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return normal(shape, generator) * (torch.rand(shape, generator=generator) < 0.1)


def one_outlier(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    w = normal(shape, generator)
    w[:, 0] = 300.0  # the others are smaller than two steps
    return w


def quantized_before(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    w = normal(shape, generator)
    step = w.abs().amax(1, keepdim=True) / 127
    return (w / step).round() * step


def half(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return normal(shape, generator).bfloat16()


WEIGHTS: list[Make] = [normal, heavy_tails, uniform, mostly_zero, one_outlier, quantized_before, half]


def errors(rows: Tensor, scale: Tensor, low: int, high: int) -> np.ndarray:
    """Sum of squared errors for each channel and share; float64, (channels, shares)."""
    w = rows.double().numpy()
    steps = scale.double().numpy()[:, None] * SHARES
    each = [np.clip(np.rint(w / step[:, None]), low, high) * step[:, None] - w for step in steps.T]
    return np.stack([(error**2).sum(1) for error in each], axis=1)


@pytest.mark.parametrize("make", WEIGHTS)
@pytest.mark.parametrize("shape", [(16, 27), (24, 700), (12, 4096), (2, 40_000)], ids=str)
@pytest.mark.parametrize(("low", "high"), [(-128, 127), (-127, 127)], ids=str)
def test_error_is_within_two_percent_of_the_best_share(make: Make, shape: tuple[int, int], low: int, high: int) -> None:
    rows = make(shape, torch.Generator().manual_seed(sum(shape)))
    scale = rows.float().abs().amax(1).clamp(min=1e-6) / ((high - low) / 2)
    found = best_shares(rows, scale, low, high)
    places = np.rint((found.double().numpy() - 0.8) / 0.005).astype(int)
    np.testing.assert_allclose(found.numpy(), SHARES[places], rtol=1e-6)
    reference = errors(rows, scale, low, high)
    of_found = np.take_along_axis(reference, places[:, None], axis=1)[:, 0]
    # Channels with errors of a share computed in float32 may differ by its rounding, about 1e-5 of the error.
    bound = 1.02 if shape[1] >= 256 else 1.0001
    assert (of_found <= reference.min(1) * bound + 1e-12).all()
    assert np.mean(of_found <= reference.min(1) * 1.0001 + 1e-12) >= 0.9


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_few_bits(bits: int) -> None:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    rows = heavy_tails((8, 2048), torch.Generator().manual_seed(bits))
    scale = rows.abs().amax(1) / ((high - low) / 2)
    places = np.rint((best_shares(rows, scale, low, high).double().numpy() - 0.8) / 0.005).astype(int)
    reference = errors(rows, scale, low, high)
    assert (np.take_along_axis(reference, places[:, None], axis=1)[:, 0] <= reference.min(1) * 1.02).all()


def test_most_shares_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []
    original = _share_search._Search._rounding_errors

    def counted(search: object, rows: Tensor, factors: Tensor) -> Tensor:
        computed.append(rows.numel() * factors.shape[1])
        return original(search, rows, factors)  # type: ignore[arg-type]  # the instance

    def fail(search: object, rows: Tensor, scale: Tensor) -> Tensor:
        raise AssertionError("the channel contradicts the model")

    monkeypatch.setattr(_share_search._Search, "_rounding_errors", counted)
    monkeypatch.setattr(_share_search._Search, "exhaustive", fail)
    rows = normal((64, 4096), torch.Generator().manual_seed(0))
    best_shares(rows, rows.abs().amax(1) / 127.5, -128, 127)
    assert sum(computed) <= 13 * rows.numel()


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its hook untyped
    """Size in bytes of the largest storage that an operator returns."""

    bytes = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],  # Any: operators return anything
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, Tensor)}
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in given:
                self.bytes = max(self.bytes, value.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("ch_axis", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_intermediate_result_is_as_large_as_the_weight(ch_axis: int, dtype: torch.dtype) -> None:
    w = torch.randn(1024, 4096, generator=torch.Generator().manual_seed(0)).to(dtype)  # 16 or 8 MiB
    observer = PerChannelMSEObserver(ch_axis=ch_axis, dtype=torch.int8)
    with Largest() as largest:  # type: ignore[no-untyped-call]  # as above
        observer(w)
    assert largest.bytes <= 3 << 20
