"""Two PT2E flows on one program, and their results as values to compare."""

import hashlib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

import qspec_core as qspec
from qspec_core.canonical import fold_batch_norms
from qspec_core.graph import constant_value, copy_graph_module

EXAMPLES = Path(__file__).parent.parent / "examples"
os.environ.setdefault("QNN_SDK_ROOT", "")  # Qualcomm's quantizer would download its SDK


class Program(NamedTuple):
    """A float graph with its batch norms folded, and inputs to calibrate with.

    The batch norms are folded beforehand, because the two flows round differently when they fold.
    """

    graph: GraphModule
    batches: Sequence[tuple[Tensor, ...]]


def program(model: nn.Module, batches: Sequence[tuple[Tensor, ...]]) -> Program:
    exported = torch.export.export(model.eval(), batches[0]).module()
    assert isinstance(exported, GraphModule)
    graph = copy_graph_module(exported)
    fold_batch_norms(graph)
    graph.recompile()
    return Program(graph, batches)


def lite0() -> Program:
    """EfficientNet-Lite0, on two pictures of half its size."""
    sys.path.append(str(EXAMPLES))
    pictures = importlib.import_module("pictures")
    crops = pictures.calibration_crops(2)
    return program(pictures.lite0(), [(crop[:, :, ::2, ::2].contiguous(),) for crop in crops])


class Encoder(nn.Module):
    """A BERT of two layers with random weights: tokens to float32 (batch, tokens, 32)."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=100,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=32,
            attn_implementation="eager",
        )
        self.bert = BertModel(config, add_pooling_layer=False)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden: Tensor = self.bert(tokens).last_hidden_state
        return hidden


def encoder() -> Program:
    torch.manual_seed(0)
    return program(Encoder(), [(torch.randint(0, 100, (1, 16)),) for _ in range(3)])


def small() -> Program:
    """Two convolutions and a linear layer."""
    torch.manual_seed(0)
    convs = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU()
    model = nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    return program(model, [(torch.randn(2, 3, 16, 16),) for _ in range(3)])


def traced() -> Program:
    """The small program, exported in strict mode from its own graph: Cadence's quantizer needs strict metadata."""
    made = small()
    graph = torch.export.export(made.graph, made.batches[0], strict=True).module()
    assert isinstance(graph, GraphModule)
    return Program(graph, made.batches)


def run(given: Program, quantizer: object, prepare: Callable[..., Any], convert: Callable[..., Any]) -> GraphModule:
    """Prepare a copy, calibrate it and convert it."""
    torch.manual_seed(0)
    prepared = prepare(copy_graph_module(given.graph), quantizer)
    with torch.no_grad():
        for batch in given.batches:
            prepared(*batch)
    converted = convert(prepared)
    assert isinstance(converted, GraphModule)
    return converted


def by_qspec(given: Program, quantizer: Any) -> GraphModule:  # Any: also torchao's class
    return run(given, quantizer, qspec.prepare_pt2e, qspec.convert_pt2e)


def by_torchao(given: Program, quantizer: object) -> GraphModule:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    return run(given, quantizer, prepare_pt2e, convert_pt2e)


def digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


def expressions(module: GraphModule) -> set[tuple[str, str]]:
    """Every value that the output depends on, as its operator and a digest of everything that it is computed from.

    Two are equal where operators, arguments and constants are equal, constants bit by bit. A call on constants alone
    counts as its result, and equal calls count once, because one flow folds such calls or writes a dequantize for each
    reader, and the other does not.
    """
    constants: dict[Node, Any] = {}
    values: dict[Node, str] = {}
    module.graph.eliminate_dead_code()
    for at, node in enumerate(module.graph.find_nodes(op="placeholder")):
        values[node] = digest("input", at)
    for node in module.graph.nodes:
        constant = constant_value(module, node)
        sources = node.all_input_nodes
        if constant is not None:
            constants[node] = constant.detach()
        elif node.op == "call_function" and sources and all(source in constants for source in sources):
            arguments, named = map_arg((node.args, node.kwargs), constants.__getitem__)
            with torch.no_grad():
                constants[node] = node.target(*arguments, **named)
        elif node.op in ("call_function", "output"):
            values[node] = digest(node.target, map_arg((node.args, node.kwargs), values.__getitem__))
        if isinstance(constants.get(node), Tensor):
            held = constants[node].contiguous()
            values[node] = digest(held.dtype, held.shape, held.flatten().view(torch.uint8).numpy().tobytes())
    called = [node for node in values if node.op in ("call_function", "output") and node not in constants]
    return {(str(node.target), values[node]) for node in called}
