"""Multiply-adds of operators, compared with torch's own counter of floating-point operations."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from core_support import Net, calls, export
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from qspec_core.graph._work import multiply_adds

R = torch.randn


def total(model: nn.Module, *inputs: Tensor, decompose: bool = False, **options: Any) -> int:
    program = torch.export.export(model.eval(), inputs, **options)
    graph = (program.run_decompositions() if decompose else program).graph
    return sum(map(multiply_adds, graph.nodes))


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (nn.Linear(5, 7), R(2, 3, 5)),
        (nn.Conv1d(4, 6, 3, padding=1, groups=2), R(2, 4, 9)),
        (nn.Conv2d(4, 6, (3, 2), stride=2, dilation=2), R(2, 4, 9, 8)),
        (nn.Conv3d(2, 3, 2), R(1, 2, 4, 5, 6)),
        (nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2), R(2, 4, 9)),
        (nn.ConvTranspose2d(4, 6, 3, output_padding=1, stride=2), R(2, 4, 5, 6)),
        (nn.Conv2d(4, 6, 3, padding="same"), R(2, 4, 5, 6)),
    ],
)
@pytest.mark.parametrize("decompose", [False, True])
def test_layers(model: nn.Module, x: Tensor, decompose: bool) -> None:
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert total(model, x, decompose=decompose) * 2 == counter.get_total_flops() > 0


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (torch.mm, [(3, 4), (4, 5)]),
        (torch.bmm, [(2, 3, 4), (2, 4, 5)]),
        (torch.matmul, [(2, 6, 3, 4), (2, 6, 4, 5)]),
        (torch.addmm, [(3, 5), (3, 4), (4, 5)]),
        (torch.baddbmm, [(2, 3, 5), (2, 3, 4), (2, 4, 5)]),
    ],
)
def test_products(function: Callable[..., Any], shapes: list[tuple[int, ...]]) -> None:
    inputs = [R(shape) for shape in shapes]
    with FlopCounterMode(display=False) as counter:
        function(*inputs)
    assert total(Net(lambda _, *x: function(*x)), *inputs) * 2 == counter.get_total_flops() > 0


def test_attention_counts_as_its_two_products() -> None:
    query, key, value = R(2, 4, 6, 8), R(2, 4, 5, 8), R(2, 4, 5, 3)
    with FlopCounterMode(display=False) as counter:
        torch.softmax(query @ key.mT, -1) @ value
    model = Net(lambda _, *x: F.scaled_dot_product_attention(*x))
    assert total(model, query, key, value) * 2 == counter.get_total_flops() > 0


@pytest.mark.filterwarnings("ignore:The tensor attributes")  # torch.export of recurrent layers
@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_layers(kind: Callable[..., nn.Module], gates: int) -> None:
    layer = kind(5, 7, num_layers=2, bidirectional=True)
    first, second = gates * 7 * (5 + 7), gates * 7 * (14 + 7)  # input and state of each gate, by layer
    assert total(layer, R(6, 2, 5)) == 6 * 2 * 2 * (first + second)


def test_recurrent_cell() -> None:
    cell = nn.LSTMCell(5, 7)
    assert total(Net(lambda m, x: m.cell(x)[0], cell=cell), R(2, 5)) == 2 * 4 * 7 * (5 + 7)


def test_symbolic_sizes_count_as_in_the_example() -> None:
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    assert total(nn.Linear(5, 7), R(3, 5), dynamic_shapes=shapes) == 3 * 5 * 7


def test_unknown_sizes_and_other_operators_count_nothing() -> None:
    exported = export(nn.Linear(5, 7), R(3, 5))
    (node,) = calls(exported)
    assert multiply_adds(node) == 3 * 5 * 7
    del node.meta["val"]
    assert multiply_adds(node) == 0
    assert total(Net(lambda _, x: torch.relu(x) * 2), R(3, 5)) == 0
