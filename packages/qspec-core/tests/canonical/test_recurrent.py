"""Recurrent layers written as linear layers and loops give the values of `torch.nn`, in every form."""

from typing import Any

import pytest
import torch
from core_support import Net, export
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qspec_core.canonical import RECURRENT_KEY, expand_recurrent_layers
from qspec_core.graph import bodies, copy_graph_module

aten = torch.ops.aten
pytestmark = [
    pytest.mark.filterwarnings("ignore:The tensor attributes"),  # torch.export of nn.LSTM
    pytest.mark.filterwarnings("ignore:RNN module weights"),
    pytest.mark.filterwarnings("ignore:LSTM with projections"),
    pytest.mark.filterwarnings("ignore:dropout option adds"),
]
LOOP = torch.ops.higher_order.scan


def expanded(model: nn.Module, *inputs: Any, dynamic_shapes: Any = None) -> GraphModule:
    exported = torch.export.export(model.eval(), inputs, dynamic_shapes=dynamic_shapes).module()
    assert isinstance(exported, GraphModule)
    module = copy_graph_module(exported)
    expand_recurrent_layers(module, lambda _: True)
    module.graph.lint()
    module.recompile()
    return module


def leaves(value: Any) -> list[Tensor]:
    found: list[Tensor] = torch.utils._pytree.tree_leaves(value)
    return found


def assert_equal(model: nn.Module, module: GraphModule, *inputs: Any) -> None:
    """Float32 rounding in sums of 16 terms at most, over a few steps of contracting gates."""
    with torch.no_grad():
        for wanted, found in zip(leaves(model(*inputs)), leaves(module(*inputs)), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


LAYERS = st.fixed_dictionaries(
    {
        "kind": st.sampled_from([nn.LSTM, nn.GRU, nn.RNN, "relu"]),
        "num_layers": st.integers(1, 3),
        "bidirectional": st.booleans(),
        "batch_first": st.booleans(),
        "bias": st.booleans(),
        "dropout": st.sampled_from([0.0, 0.5]),
    }
)


@settings(max_examples=25, deadline=None)
@given(LAYERS, st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.booleans(), st.integers(0, 4))
def test_equals_torch(form: dict[str, Any], steps: int, batch: int, width: int, given_state: bool, proj: int) -> None:
    torch.manual_seed(0)
    options = dict(form)
    kind = options.pop("kind")
    if kind == "relu":
        kind, options["nonlinearity"] = nn.RNN, "relu"
    hidden = 5
    if kind is nn.LSTM:
        options["proj_size"] = proj
    model = kind(width, hidden, **options).eval()
    x = torch.randn((batch, steps, width) if options["batch_first"] else (steps, batch, width))
    inputs: tuple[Any, ...] = (x,)
    if given_state:
        count = options["num_layers"] * (2 if options["bidirectional"] else 1)
        state = torch.randn(count, batch, (proj if kind is nn.LSTM else 0) or hidden)
        inputs = (x, (state, torch.randn(count, batch, hidden)) if kind is nn.LSTM else state)
    module = expanded(model, *inputs)
    assert not any(str(node.target).endswith((".input", ".data")) for node in module.graph.nodes)
    assert_equal(model, module, *inputs)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell], ids=lambda kind: kind.__name__)
def test_cells(kind: type[nn.Module], bias: bool) -> None:
    torch.manual_seed(0)
    model, x = kind(3, 5, bias=bias).eval(), torch.randn(2, 3)
    module = expanded(model, x)
    assert len(module.graph.find_nodes(op="call_function", target=aten.linear.default)) == 2
    assert_equal(model, module, x)


def test_the_batch_may_vary() -> None:
    torch.manual_seed(0)
    model = nn.LSTM(3, 4, 2, bidirectional=True, batch_first=True).eval()
    shapes = ({0: torch.export.Dim("batch", max=8)},)  # torch.export takes one length only
    module = expanded(model, torch.randn(2, 3, 3), dynamic_shapes=shapes)
    for batch in (1, 5):
        assert_equal(model, module, torch.randn(batch, 3, 3))


def test_the_graph_does_not_grow_with_the_length() -> None:
    sizes = []
    for steps in (2, 200):
        module = expanded(nn.LSTM(3, 4), torch.randn(steps, 1, 3))
        sizes.append(len(module.graph.nodes) + sum(len(body.graph.nodes) for body in bodies(module).values()))
    assert sizes[0] == sizes[1]


def test_weights_are_shared_and_nodes_know_their_layer() -> None:
    model = nn.GRU(3, 4)
    module = expanded(model, torch.randn(2, 1, 3))
    (body,) = bodies(module).values()
    originals = dict(model.named_parameters())
    assert body.get_buffer("hidden").data_ptr() == originals["weight_hh_l0"].data_ptr()
    assert body.get_buffer("hidden_bias").data_ptr() == originals["bias_hh_l0"].data_ptr()
    for node in body.graph.find_nodes(op="call_function", target=aten.linear.default):
        assert node.name == "gru_hh_l0"
        assert node.meta[RECURRENT_KEY] == ("gru", "aten.gru.input")
    loop = next(iter(module.graph.find_nodes(op="call_function", target=LOOP)))
    assert loop.meta["nn_module_stack"]


def test_layers_that_are_not_selected_stay() -> None:
    asked: list[Node] = []
    exported = export(
        Net(lambda m, x: m.second(m.first(x)[0])[0], first=nn.LSTM(3, 3), second=nn.GRU(3, 3)), torch.randn(2, 1, 3)
    )
    module = copy_graph_module(exported)

    def is_selected(node: Node) -> bool:
        asked.append(node)
        return node.target is aten.gru.input

    expand_recurrent_layers(module, is_selected)
    assert [node.target for node in asked] == [aten.lstm.input, aten.gru.input]
    assert module.graph.find_nodes(op="call_function", target=aten.lstm.input)
    assert not module.graph.find_nodes(op="call_function", target=aten.gru.input)
