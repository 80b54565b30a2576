"""Operators that join, split and transpose in canonical form: the float model's values, and quantized like cat."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from core_support import Net, canonical, canonical_of, export, quantized, sqnr, targets
from torch import Tensor, nn

from qspec_core import coverage

Function = Callable[..., Any]  # a test's own forward
R = torch.randn

JOINS: list[tuple[Function, tuple[int, ...], int]] = [  # with the shape of an input, and how many unsqueezes it needs
    (lambda x, y: torch.concat([x, y]), (3, 4), 0),
    (lambda x, y: torch.concat([x, y], -1), (3, 4), 0),
    (lambda x, y: torch.concatenate([x, y, x], 1), (3, 4), 0),
    *((lambda x, y, dim=dim: torch.stack([x, y, x], dim), (3, 4), 3) for dim in (0, 1, 2, -1, -2, -3)),
    (lambda x, y: torch.stack([x.sum(), y.sum()]), (3, 4), 2),
    (lambda x, y: torch.hstack([x, y]), (3, 4, 2), 0),
    (lambda x, y: torch.hstack([x, y]), (4,), 0),
    (lambda x, y: torch.vstack([x, y]), (3, 4), 0),
    (lambda x, y: torch.vstack([x, y]), (4,), 2),
    (lambda x, y: torch.vstack([x, y[0]]), (1, 4), 1),
    (lambda x, y: torch.row_stack([x, y]), (4,), 2),
    (lambda x, y: torch.dstack([x, y]), (2, 3, 4, 2), 0),
    (lambda x, y: torch.dstack([x, y]), (3, 4), 2),
    (lambda x, y: torch.dstack([x, y]), (4,), 4),
    (lambda x, y: torch.column_stack([x, y]), (3, 4), 0),
    (lambda x, y: torch.column_stack([x, y]), (4,), 2),
    (lambda x, y: torch.column_stack([x[:, 0], y]), (3, 4), 1),
]
SPLITS: list[tuple[Function, int]] = [  # with the number of parts that are read
    (lambda x: x.chunk(2), 2),
    (lambda x: x.chunk(4, -1), 4),  # five columns in chunks of two: three parts, and no fourth
    (lambda x: x.chunk(3, 0)[1:2], 1),
    (lambda x: torch.unsafe_chunk(x, 2, 1), 2),
    (lambda x: x.split(2, 1), 3),
    (lambda x: x.split([1, 3, 1], -1)[::-1], 3),
    (lambda x: torch.split_with_sizes(x, [2, 3], 1), 2),
    (lambda x: torch.unsafe_split(x, 4), 2),
    (lambda x: x.tensor_split(4), 4),
    (lambda x: x.tensor_split((1, 3), 1), 3),
    (lambda x: x.tensor_split((-2,), -1), 2),
    (lambda x: x.hsplit([2, 3]), 3),
    (lambda x: x.vsplit(3), 3),
    (lambda x: x[0].hsplit(5), 5),
    (lambda x: x.view(2, 3, 5).dsplit([4]), 2),
    (lambda x: [x.narrow(0, 1, 3)], 1),
    (lambda x: [x.narrow(-1, -4, 2)], 1),
]
TRANSPOSES: list[tuple[Function, tuple[int, ...], str]] = [
    *((lambda x: x.mT, shape, "transpose.int") for shape in ((3, 4), (2, 3, 4))),
    (lambda x: x.mH, (2, 3, 4), "transpose.int"),
    (lambda x: x.adjoint(), (2, 3, 4), "transpose.int"),
    (lambda x: x.H, (3, 4), "transpose.int"),
    (lambda x: x.t(), (3, 4), "transpose.int"),
    (lambda x: x.T, (3, 4), "transpose.int"),
    (lambda x: x.swapaxes(0, -1), (2, 3, 4), "transpose.int"),
    (lambda x: x.swapdims(-1, 1), (2, 3, 4), "transpose.int"),
    (lambda x: x.movedim(0, -1), (2, 3, 4), "permute.default"),
    (lambda x: x.movedim((0, 3), (-2, 0)), (2, 3, 4, 5), "permute.default"),
    (lambda x: x.moveaxis(-1, 1), (2, 3, 4), "permute.default"),
    (lambda x: torch.moveaxis(x, (2, 0), (0, 1)), (2, 3, 4), "permute.default"),
]


def names(module: torch.fx.GraphModule) -> list[str]:
    return [name.removeprefix("aten.") for name in targets(module) if name.startswith("aten.")]


@pytest.mark.parametrize(("function", "shape", "unsqueezes"), JOINS)
def test_joins_become_cat(function: Function, shape: tuple[int, ...], unsqueezes: int) -> None:
    found = names(canonical_of(Net(lambda _, x, y: function(x * 2, y)), R(shape), R(shape)))
    assert found.count("cat.default") == 1
    assert found.count("unsqueeze.default") == unsqueezes
    assert not [name for name in found if "stack" in name or "concat" in name]


@pytest.mark.parametrize(("function", "parts"), SPLITS)
def test_parts_become_slices(function: Function, parts: int) -> None:
    model = Net(lambda _, x: [part + 1 for part in function(x * 2)])
    found = names(canonical_of(model, R(6, 5)))
    count = 3 if parts == 4 and len(model(R(6, 5))) == 3 else parts
    assert found.count("slice.Tensor") == count
    assert not [name for name in found if "split" in name or "chunk" in name or "narrow" in name]
    assert "<built-in function getitem>" not in found


@pytest.mark.filterwarnings("ignore:The use of `x.T` on tensors of dimension other than 2")
@pytest.mark.parametrize(("function", "shape", "want"), TRANSPOSES)
def test_transposes_become_transpose_or_permute(function: Function, shape: tuple[int, ...], want: str) -> None:
    assert names(canonical_of(Net(lambda _, x: function(x * 2)), R(shape))) == ["mul.Tensor", want]


def test_transposed_vector_and_tensors_of_integers_stay() -> None:
    integers = torch.arange(12).view(3, 4)
    assert names(canonical_of(Net(lambda _, x: (x * 2).t()), R(4))) == ["mul.Tensor", "t.default"]
    kept = names(canonical_of(Net(lambda _, x: (torch.stack([x, x]), x.mT, x.chunk(2)[0])), integers))
    assert kept[:3] == ["stack.default", "mT.default", "chunk.default"]


@pytest.mark.parametrize(
    ("function", "want"),
    [
        (lambda x: x.split(2), "split.Tensor"),
        (lambda x: x.narrow(0, x.shape[0] - 1, 1), "narrow.default"),
        (lambda x: x.split(2, 1)[1], "slice.Tensor"),
        (lambda x: x.narrow(1, 1, 2), "slice.Tensor"),
    ],
)
def test_unknown_sizes_stay_unless_they_are_not_split(function: Function, want: str) -> None:
    rows = (({0: torch.export.Dim.DYNAMIC},),)
    x = R(6, 5)
    module = canonical(export(Net(lambda _, x: function(x * 2)), x, dynamic_shapes=rows))
    assert want in names(module)
    for found, expected in zip(_flat(module(x)), _flat(function(x * 2)), strict=True):
        assert torch.equal(found, expected)


def test_stacks_of_unknown_sizes_become_cat() -> None:
    rows = (({0: torch.export.Dim.DYNAMIC},),)
    module = canonical(export(Net(lambda _, x: torch.stack([x, x + 1], 1)), R(6, 5), dynamic_shapes=rows))
    x = R(3, 5)
    assert torch.equal(module(x), torch.stack([x, x + 1], 1))
    assert names(module).count("cat.default") == 1


def test_written_parts_still_write_to_their_tensor() -> None:
    def forward(_: Net, x: Tensor) -> Tensor:
        y = x * 2
        first, second = y.chunk(2)
        first.add_(second)
        return y

    canonical_of(Net(forward), R(6, 5))


def _flat(value: Any) -> list[Tensor]:
    return list(value) if isinstance(value, tuple | list) else [value]


@pytest.mark.parametrize(
    "function",
    [
        lambda y: torch.concat([y, y * 1], -1)[:, :8],
        lambda y: torch.stack([y, y.flip(0)], 1).flatten(1)[:, :8],
        lambda y: torch.hstack(y.chunk(2, 1)),
        lambda y: torch.hstack(y.split([3, 5], 1)[::-1]),
        lambda y: y.narrow(1, 2, 4).repeat(1, 2),
        lambda y: y.mT.swapaxes(0, 1),
        lambda y: y.view(3, 2, 4).movedim(1, 2).flatten(1),
    ],
)
def test_converted_graphs_compute_what_the_float_model_does(function: Function) -> None:
    model = Net(lambda m, x: m.last(function(m.first(x))), first=nn.Linear(4, 8), last=nn.Linear(8, 2))
    x = R(3, 4)
    converted = quantized(export(model, x), (x,))
    assert sqnr(model(x).detach(), converted(x).detach()) > 25
    again = canonical(converted)
    assert torch.equal(again(x), converted(x))
    assert not [
        e
        for e in coverage(converted)
        if e.operator.split(".")[1] in ("chunk", "stack", "concat", "mT", "narrow") and e.status.value == "skipped"
    ]
