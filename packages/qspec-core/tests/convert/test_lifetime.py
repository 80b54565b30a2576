"""Prepared and converted modules in use: copies, files, state, metadata, exports."""

import copy
import io
import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from core_support import CONFIG, DYNAMIC, Net, aten, calls, export, quantizer, settled
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qspec_core import ExportError, convert_pt2e, coverage, prepare_pt2e
from qspec_core.graph import observer_nodes
from qspec_core.patterns import Outputs

X = torch.randn(2, 3, 6, 6)


def network() -> nn.Module:
    return settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)))


def region(m: Any, x: Tensor) -> Tensor:  # submodules by name
    with torch.no_grad():
        y = m.inner(x)
    return torch.relu(y)


def calibrated(config: Any = CONFIG) -> GraphModule:
    prepared = prepare_pt2e(export(network(), X), quantizer(config))
    prepared(X)
    return prepared


def test_copies_compute_alike_and_apart() -> None:
    prepared = calibrated()
    copied = copy.deepcopy(prepared)
    before = [value.clone() for value in prepared.state_dict().values()]
    copied(10 * X)
    assert all(torch.equal(*pair) for pair in zip(before, prepared.state_dict().values(), strict=True))
    converted, other = convert_pt2e(prepared), convert_pt2e(copied)
    assert not torch.equal(converted(X), other(X))  # the copy has seen larger values
    again = copy.deepcopy(converted)
    assert torch.equal(again(X), converted(X))
    assert coverage(again) == coverage(converted)


def test_copies_of_control_flow_have_their_own_bodies() -> None:
    x = torch.randn(3, 4)
    prepared = prepare_pt2e(export(Net(region, inner=nn.Linear(4, 4)), x), quantizer())
    copied = copy.deepcopy(prepared)
    with torch.no_grad():
        copied(x)
        assert torch.equal(convert_pt2e(copied)(x), copy.deepcopy(convert_pt2e(copied))(x))
    bodies = [child for child in prepared.children() if isinstance(child, GraphModule)]
    assert not any(getattr(observer, "has_observed", False) for body in bodies for _, observer in observer_nodes(body))


@pytest.mark.parametrize("dump", [pickle.dumps, lambda m: torch.save(m, io.BytesIO())], ids=["pickle", "save"])
@pytest.mark.parametrize("deep", [False, True])
def test_pickling_says_what_to_do_instead(dump: Callable[[GraphModule], object], deep: bool) -> None:
    prepared = calibrated()
    for module in (prepared, convert_pt2e(prepared)):
        with pytest.raises(ExportError, match="cannot be pickled") as caught:
            dump(copy.deepcopy(module) if deep else module)
        assert "torch.export.save" in caught.value.remedy
        assert "state_dict()" in caught.value.remedy


def test_calibration_resumes_from_its_state(tmp_path: Any) -> None:
    prepared = calibrated()
    torch.save(prepared.state_dict(), tmp_path / "calibration.pt")
    torch.manual_seed(3)
    fresh = prepare_pt2e(export(copy.deepcopy(network()), X), quantizer())
    fresh.load_state_dict(torch.load(tmp_path / "calibration.pt"))
    assert torch.equal(convert_pt2e(fresh)(X), convert_pt2e(prepared)(X))


@pytest.mark.parametrize("config", [CONFIG, DYNAMIC], ids=["static", "dynamic"])
def test_exported_again_saved_and_loaded(tmp_path: Any, config: Any) -> None:
    converted = convert_pt2e(calibrated(config))
    program = torch.export.export(converted, (X,))
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2")
    assert torch.equal(loaded.module()(X), converted(X))
    assert sorted(loaded.state_dict) == sorted(converted.state_dict())


@pytest.mark.parametrize("config", [CONFIG, DYNAMIC], ids=["static", "dynamic"])
def test_every_node_says_where_it_comes_from(config: Any) -> None:
    exported = export(network(), X)
    given = {node.name: node for node in exported.graph.nodes}
    prepared = prepare_pt2e(exported, quantizer(config))
    prepared(X)
    converted = convert_pt2e(prepared)
    for module in (prepared, converted):
        for node in module.graph.nodes:
            if node.op == "output" or node.name == "_guards_fn":
                continue
            assert node.meta.get("val") is not None, node.name
            if node.name in given:
                kept = ("nn_module_stack", "torch_fn", "stack_trace", "from_node")
                assert all(node.meta.get(key) == given[node.name].meta.get(key) for key in kept), node.name
            elif "bias" not in node.name:  # that of a folded batch norm
                assert {"from_node", "nn_module_stack", "torch_fn"} <= node.meta.keys(), node.name
    made = [node for node in calls(converted) if node.name not in given]
    assert made
    for node in made:
        value = node.meta["val"]
        stack = list(node.meta["nn_module_stack"].values())
        assert stack[-1][0] in ("0", "2", "3", "4")
        if isinstance(value, Tensor) and "quantize" in str(node.target) and "dequantize" not in str(node.target):
            assert value.dtype == (torch.uint8 if config is CONFIG else torch.int8)
        if "dequantize" in str(node.target):
            assert value.dtype == torch.float32


def test_provenance_leads_back_to_the_float_model() -> None:
    converted = convert_pt2e(calibrated())
    (first, *_) = calls(converted, torch.ops.quantized_decomposed.quantize_per_tensor.default)
    (made,) = first.meta["from_node"]
    assert made.pass_name == "convert_pt2e"
    assert made.name.startswith("activation_post_process_")
    (before,) = made.from_node
    assert (before.pass_name, before.name) == ("prepare_pt2e", "input_1")
    frozen = next(node for node in converted.graph.nodes if node.name == "_frozen_param1")
    assert frozen.meta["from_node"][0].from_node[0].name == "_4_weight"


def origin(node: Node) -> str | None:
    """The operator that a node came from, as debuggers of other stacks look it up."""
    history = node.meta.get("from_node")
    if node.op in ("placeholder", "output") or not history:
        return None
    source = history[-1]
    if source.pass_name == "ExportedProgram.module().unlift()":
        return None
    while source.from_node:
        source = source.from_node[-1]
    return str(source.name)


def test_what_is_made_for_an_operator_leads_back_to_it_and_what_is_made_for_its_weight_does_not() -> None:
    """In a strict export the history of a weight leads on to the operator that reads it."""
    exported = export(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), torch.randn(2, 4), strict=True)
    prepared = prepare_pt2e(exported, quantizer(outputs=Outputs.ALWAYS))
    prepared(torch.randn(2, 4))
    for module, count in ((prepared, 2), (convert_pt2e(prepared), 3)):
        found = Counter(filter(None, map(origin, module.graph.nodes)))
        _, relu, linear = (str(origin(node)) for node in calls(exported))
        # The operator itself and its observer, or its quantize and dequantize.
        assert found[relu] == count
        assert found[linear] == count


def test_shapes_that_are_not_known_stay_symbolic() -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = export(nn.Linear(4, 3), torch.randn(2, 4), dynamic_shapes=({0: batch},))
    prepared = prepare_pt2e(exported, quantizer())
    prepared(torch.randn(5, 4))
    for node in calls(convert_pt2e(prepared)):
        if "per_tensor" in str(node.target) or node.target is aten.linear.default:
            assert isinstance(node.meta["val"].shape[0], torch.SymInt)
