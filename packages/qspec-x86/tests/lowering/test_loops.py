"""Recurrent layers in integers: in eager form, under torch.compile and in packages, against the converted graph."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from x86_support import FORMS, Lower

import qspec_core as qspec
from qspec_core.graph import graph_modules
from qspec_x86 import LOWERING_KEY, default_quantizer, load_package, lower_eager, package

pytestmark = [
    pytest.mark.filterwarnings("ignore:The tensor attributes"),  # torch.export of nn.LSTM
    pytest.mark.filterwarnings("ignore:RNN module weights"),
    pytest.mark.filterwarnings("ignore:LSTM with projections"),
]
PRODUCT = torch.ops.aten._int_mm.default
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: nn.LSTM(7, 12, batch_first=True),
    "lstm-2-projected": lambda: nn.LSTM(7, 12, 2, bidirectional=True, proj_size=5, bias=False),
    "gru-2": lambda: nn.GRU(7, 12, 2, bidirectional=True),
    "tanh": lambda: nn.RNN(7, 12),
    "relu": lambda: nn.RNN(7, 12, nonlinearity="relu"),
    "cell": lambda: Steps(),
}


class Steps(nn.Module):
    """A cell that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(7, 12)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = self.cell(x[1], self.cell(x[0]))
        return found


def converted(model: nn.Module, mode: str, *, dynamic: bool = False, target: str = "any") -> GraphModule:
    """Quantized for (4, 5, 7) inputs; the first dimension may vary where `dynamic` says so."""
    torch.manual_seed(0)
    shapes = ({0: torch.export.Dim("batch", max=8)},) if dynamic else None
    batches = [(torch.randn(4, 5, 7),) for _ in range(3)] if mode == "static" else None
    quantizer = default_quantizer(mode=qspec.Mode(mode), target=target)
    result = qspec.quantize(
        model.eval(),
        (torch.randn(4, 5, 7),),
        calibration=batches,
        backend="x86",
        mode=mode,
        quantizer=quantizer,
        dynamic_shapes=shapes,
    )
    return result.converted


def assert_alike(found: Any, wanted: Any) -> None:
    """Float32 rounding; a state that rounds to the other integer moves a sum by one step of 1/127 and a weight."""
    for one, other in zip(torch.utils._pytree.tree_leaves(found), torch.utils._pytree.tree_leaves(wanted), strict=True):
        assert (one - other).square().mean() <= 1e-7 * other.square().mean()


@torch.no_grad()
@pytest.mark.parametrize("lower", FORMS, ids=lambda lower: lower.__name__)
@pytest.mark.parametrize("mode", ["static", "dynamic"])
@pytest.mark.parametrize("kind", LAYERS)
def test_both_forms_equal_the_converted_graph(kind: str, mode: str, lower: Lower) -> None:
    graph, x = converted(LAYERS[kind](), mode), torch.randn(4, 5, 7)
    module = lower(graph)
    assert not module.meta[LOWERING_KEY].declined
    assert_alike(module(x), graph(x))


def test_products_in_the_body_take_integers() -> None:
    module = lower_eager(converted(LAYERS["gru-2"](), "static"))
    bodies = [body for prefix, body in graph_modules(module) if prefix]
    products = [body.graph.find_nodes(op="call_function", target=PRODUCT) for body in bodies]
    assert [len(found) for found in products] == [1, 1, 1, 1]
    assert not any(str(node.target).startswith("aten.linear") for body in bodies for node in body.graph.nodes)
    assert all(not list(body.parameters()) + list(body.buffers()) for body in bodies)  # operands, for torch.export


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit, which Inductor imports
def test_torch_compile_runs_the_eager_form() -> None:
    graph, x = converted(LAYERS["lstm"](), "static"), torch.randn(4, 5, 7)
    assert_alike(torch.compile(lower_eager(graph))(x), graph(x))


@torch.no_grad()
@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_package_with_a_dynamic_batch(mode: str, tmp_path: Path) -> None:
    graph = converted(LAYERS["lstm"](), mode, dynamic=True)
    path = package(graph, (torch.randn(4, 5, 7),), tmp_path / "lstm.pt2")
    loaded = load_package(path)
    for batch in (4, 1, 7):
        x = torch.randn(batch, 5, 7)
        assert_alike(loaded(x), graph(x))
    with zipfile.ZipFile(path) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".cpp")]
        assert all(entry.compress_type == zipfile.ZIP_DEFLATED for entry in archive.infolist())
