"""Rows of the shape family through ExecuTorch's runtime: in integers, within one step of the converted graph."""

from functools import partial

import torch
from torch import Tensor
from xnnpack_support import Case, check_complete, check_rows

from qspec_xnnpack._rows import _shape


def cat(*tensors: Tensor) -> Tensor:
    return torch.cat(tensors, 1)


def view(x: Tensor) -> Tensor:
    return x.view(8, -1)


def reshape(x: Tensor) -> Tensor:
    return x.reshape(-1, 10)


def squeeze_permuted(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).squeeze(1)


def tail(x: Tensor) -> Tensor:
    return x[:, -3:]


IMAGE = (1, 8, 9, 10)
CASES = {
    "cat": Case("cat", cat, (IMAGE, (1, 4, 9, 10))),
    "cat of six": Case("cat", cat, (IMAGE,) * 6),
    "view": Case("view", view),
    "reshape": Case("reshape", reshape),
    "flatten": Case("flatten", partial(torch.flatten, start_dim=1)),
    "unsqueeze": Case("unsqueeze", partial(torch.unsqueeze, dim=-1)),
    "unsqueeze in front": Case("view", partial(torch.unsqueeze, dim=1)),
    "squeeze": Case("view", partial(torch.squeeze, dim=2), ((2, 8, 1, 10),)),
    "squeeze of all": Case("view", torch.squeeze, ((1, 8, 1, 10),)),
    "squeeze of a permuted tensor": Case("view", squeeze_permuted, ((2, 8, 1, 10),)),
    "permute": Case("permute", partial(torch.permute, dims=(0, 2, 3, 1))),
    "transpose": Case("transpose", partial(torch.transpose, dim0=1, dim1=-1)),
    "slice": Case("slice", tail),
}


def test_rows_run_in_integers() -> None:
    check_rows(CASES)


def test_every_row_has_a_case() -> None:
    check_complete(CASES, _shape.ROWS)
