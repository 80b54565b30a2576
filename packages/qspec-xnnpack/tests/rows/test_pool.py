"""Rows of the pooling family through ExecuTorch's runtime: in integers, within one step of the converted graph."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from xnnpack_support import Case, check_complete, check_rows

from qspec_xnnpack._rows import _pool


def mean(x: Tensor) -> Tensor:
    return x.mean((-1, 2), keepdim=True)


def mean_flat(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def mean_flat_by_name(x: Tensor) -> Tensor:
    return torch.mean(x, dim=(-2, -1), keepdim=False)


CASES = {
    "mean": Case("mean", mean),
    "mean without keepdim": Case("mean", mean_flat),
    "mean by name": Case("mean", mean_flat_by_name),
    "adaptive_avg_pool2d": Case("adaptive_avg_pool2d", partial(F.adaptive_avg_pool2d, output_size=1)),
    "max_pool2d": Case("max_pool2d", partial(F.max_pool2d, kernel_size=3, stride=2, padding=1)),
    "max_pool2d ceil": Case("max_pool2d", partial(F.max_pool2d, kernel_size=(2, 3), ceil_mode=True)),
}


def test_rows_run_in_integers() -> None:
    check_rows(CASES)


def test_every_row_has_a_case() -> None:
    check_complete(CASES, _pool.ROWS)
