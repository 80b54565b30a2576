"""The first tensor of a file that is not what its operator computes from the tensors before it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from qspec_core import ops
from qspec_core._torch import tree_leaves
from qspec_core.graph import copy_graph_module
from qspec_core.onnx._libraries import library
from qspec_core.onnx._rewrite import SHIFT
from qspec_core.onnx._run import reference_evaluator, to_tensor

__all__ = ["first_divergence"]

_ARITHMETIC = {torch.float16: 1e-2, torch.bfloat16: 4e-2}
_FLOAT32 = 1e-4
"""Errors of one operator's float arithmetic, relative to its largest result: sums in another order."""
_OTHER_STEP = 0.02
"""Share of the integers of a tensor that may be rounded to the step beside: x / scale is not x * (1 / scale)."""


def first_divergence(converted: GraphModule, model: Any, arrays: Mapping[str, Any], inputs: tuple[Any, ...]) -> str:
    """Run each operator of the converted graph on the file's own tensors, and name the first one that differs.

    Errors do not add up on the way: each operator is compared by itself, within one quantization step.

    Args:
        converted: the graph.
        model: an onnx.ModelProto, evaluated by the reference evaluator.
        arrays: inputs of the file by name.
        inputs: the same, as the graph's positional arguments.
    Returns: name of the tensor and what was found; empty if no operator differs.
    Cost: a run of the reference evaluator that keeps all tensors, and one of the graph.
    """
    names = _names(converted, model)
    evaluator = reference_evaluator(model)
    wanted = list(dict.fromkeys(names.values()))
    with library("numpy").errstate(all="ignore"):
        values = dict(zip(wanted, evaluator.run(wanted, dict(arrays)), strict=True))
    run = _Run(copy_graph_module(converted), {name: values[key] for name, key in names.items()})
    with torch.no_grad():
        run.run(*inputs)
    return run.found


def _names(converted: GraphModule, model: Any) -> dict[str, str]:
    """The tensor of the file for each node of the converted graph that has one."""
    known = {value for node in model.graph.node for value in node.output}
    names = {node.name: node.name for node in converted.graph.nodes if node.name in known}
    results = [node for node in tree_leaves(converted.graph.output_node().args) if isinstance(node, Node)]
    if len(results) == len(model.graph.output):
        names |= {node.name: value.name for node, value in zip(results, model.graph.output, strict=True)}
    return {name: value for name, value in names.items() if value in known}


class _Run(Interpreter):
    """Runs each node on the values of the file, where it has them."""

    def __init__(self, module: GraphModule, values: Mapping[str, Any]) -> None:
        super().__init__(module)
        self._values = values
        self.found = ""

    def run_node(self, n: Node) -> Any:  # a node may return anything
        expected = super().run_node(n)
        if n.op != "call_function" or n.name not in self._values or not isinstance(expected, Tensor):
            return expected
        found = to_tensor(self._values[n.name])
        if found.dtype is torch.uint8 and expected.dtype is torch.int8:  # written as uint8, see unsigned_activations
            found = (found.short() - SHIFT).to(torch.int8)
        problem = _difference(n, found, expected)
        if problem and not self.found:
            self.found = f"{n.name} ({n.target}): {problem}"
        same = found.shape == expected.shape and found.dtype == expected.dtype
        return found if same else expected


def _difference(node: Node, found: Tensor, expected: Tensor) -> str:
    """A description of the difference; empty if there is none."""
    if found.shape != expected.shape:
        return f"shape {list(found.shape)}, {list(expected.shape)} expected"
    if expected.numel() == 0:
        return ""
    if found.is_floating_point() != expected.is_floating_point():
        return f"{found.dtype}, {expected.dtype} expected"
    off = (found.double() - expected.double()).abs()
    if ops.is_quantize(node):
        share = (off > 0).double().mean().item()
        allowed = max(_OTHER_STEP, 1.5 / off.numel())
        if off.max() <= 1 and share <= allowed and found.dtype == expected.dtype:
            return ""
        return f"{share:.1%} of the integers differ, by up to {off.max():.3g} steps"
    if not expected.is_floating_point():
        share = (off > 0).double().mean().item()
        return f"{share:.1%} of the elements differ" if share > _OTHER_STEP else ""
    finite = expected.isfinite()
    if not bool((found.isfinite() == finite).all()):
        return "elements are finite in one of the two alone"
    if not bool(finite.any()):
        return ""
    largest = expected[finite].double().abs().max().item()
    relative = _ARITHMETIC.get(expected.dtype, _FLOAT32)
    if off[finite].max().item() <= relative * largest + 1e-6:
        return ""
    return f"elements differ by up to {off[finite].max():.3g}, results have up to {largest:.3g}"
