"""From a converted graph to a .pte program: name the rows, pass the graph to ExecuTorch, check what it delegated."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule, Node

from qspec_core import BackendError, GraphError, LoweringError, SourceLocation, ops
from qspec_core.graph import (
    add_constant,
    constant_value,
    copy_graph_module,
    gc_paused,
    lift_constants,
    sink_constants,
    wrap_graph,
)
from qspec_core.lowering import FLOAT_KEY, Lowering, match_converted, on_device, quantized_value, require_converted
from qspec_core.patterns import Delegated, Match, Reason, Role
from qspec_xnnpack._lowering._attention import attention_to_products
from qspec_xnnpack._lowering._barriers import copy_inputs_of_dynamic_convolutions, flatten_dynamic_linears
from qspec_xnnpack._lowering._decompositions import decompose
from qspec_xnnpack._lowering._executorch import Refusal, compile_program, load_program
from qspec_xnnpack._lowering._forms import to_delegate_form
from qspec_xnnpack._lowering._half import dequantize_to_float32
from qspec_xnnpack._lowering._loops import Loop, example_states, put_back, take_loops, write_recurrent_layers
from qspec_xnnpack._lowering._partitioner import CUSTOM_KEY, OUTSIDE_KEY
from qspec_xnnpack._lowering._program import Delegation, XNNPACKProgram, in_order, signature_of
from qspec_xnnpack._lowering._scales import fit_scales
from qspec_xnnpack._rows import TABLE

__all__ = ["TARGETS", "lower", "package"]

TARGETS = ("any",)
"""Classes of deployment device: there is one."""


def lower(converted: GraphModule, example_inputs: tuple[Any, ...], target: str = "any") -> XNNPACKProgram:
    """Compile a converted graph for XNNPACK and load it into ExecuTorch's runtime. The graph is not changed.

    Args:
        converted: a graph from `convert_pt2e`, or one loaded from disk.
        example_inputs: positional arguments; the program takes inputs of their shapes.
        target: class of the deployment device; there is one.
    Returns: a module that runs the program; its `delegation` lists what the delegate executes.
    Raises:
        BackendError: ExecuTorch is not installed, or there is no such target.
        GraphError: the module is not from `convert_pt2e`.
        LoweringError: the delegate refuses a quantized operator, or the runtime refuses the program.
    """
    if target not in TARGETS:
        raise BackendError(
            f"backend 'xnnpack' has no target {target!r}",
            found=target,
            expected=", ".join(TARGETS),
            remedy="leave target out",
        )
    converted = on_device(require_converted(converted, "lowering to XNNPACK"), "cpu")
    example_inputs = _laid_out(example_inputs)
    named, matches, loops = _named(converted)
    program = _export(named, example_inputs)
    compiled = compile_program(program)
    if loops:
        steps = example_states(program)
        bodies = [compile_program(_export(loop.body, steps[loop.position])) for loop in loops]
        compiled = put_back(compiled, loops, bodies)
    if compiled.refusals:
        raise _refused(compiled.refusals, matches)
    rows = {anchor: match.label for anchor, match in matches.items()}
    delegation = Delegation(compiled.delegates, compiled.outside, rows)
    signature = signature_of(program, example_inputs, compiled.written_inputs)
    lowered = XNNPACKProgram(compiled.serialize(), signature, delegation, load_program)
    lowered.load()
    return lowered


def package(converted: GraphModule, example_inputs: tuple[Any, ...], path: Path, target: str = "any") -> Path:
    """Write a converted graph as a .pte file, after the runtime has loaded it once. The graph is not changed.

    Args:
        converted: as in `lower`.
        example_inputs: as in `lower`.
        path: the file; an existing one is replaced.
        target: as in `lower`.
    Returns: the path.
    Raises: as `lower`.
    """
    return lower(converted, example_inputs, target).write_package(path)


def _named(converted: GraphModule) -> tuple[GraphModule, Mapping[str, Match], tuple[Loop, ...]]:
    """Copy a graph in the delegate's form, and write the name of its row's anchor on each node.

    Returns: the copy, the matches by that name, and the loops whose bodies are compiled apart.
    """
    with gc_paused():
        module = copy_graph_module(converted)
        sink_constants(module)
        write_recurrent_layers(module)
        loops = take_loops(module)
        lift_constants(module)
        named, matches = _name_rows(module)
        inner = []
        for loop in loops:
            body, found = _name_rows(loop.body)
            inner.append(replace(loop, body=body))
            matches |= found
        return named, matches, tuple(inner)


def _name_rows(module: GraphModule) -> tuple[GraphModule, dict[str, Match]]:
    """Bring one graph into the delegate's form and name its rows, in place. The result has no unused constants:
    ExecuTorch would write them into the file."""
    to_delegate_form(module)
    attention_to_products(module)
    context = Lowering(module, "any", None)
    decompose(module)
    looked_up = _lower_own(module, context)
    matches = [match for match in match_converted(module, TABLE) if _is_quantized(match, context)]
    fit_scales(module, matches)
    dequantize_to_float32(module, matches)
    flatten_dynamic_linears(module, matches)
    copy_inputs_of_dynamic_convolutions(module, matches)
    for node in module.graph.nodes:
        if FLOAT_KEY in node.meta:
            _fold_weights(module, node)
            node.meta["custom"] = {**(node.meta.get("custom") or {}), OUTSIDE_KEY: True}
    for match in matches:
        for node in match.nodes:
            node.meta["custom"] = {**(node.meta.get("custom") or {}), CUSTOM_KEY: match.anchor.name}
    module.graph.eliminate_dead_code()
    return wrap_graph(module, module.graph), {match.anchor.name: match for match in (*looked_up, *matches)}


def _lower_own(module: GraphModule, context: Lowering[None]) -> list[Match]:
    """Lower the rows that the delegate does not take as they are. Returns: the matches that were lowered."""
    lowered = []
    for match in match_converted(module, TABLE):
        if not isinstance(match.row.lower, Delegated) and not isinstance(match.row.lower(match, context), Reason):
            lowered.append(match)
    return lowered


def _fold_weights(module: GraphModule, node: Node) -> None:
    """Give an operator that runs in float its weights in float: ExecuTorch has no kernel to dequantize channels."""
    for source in node.all_input_nodes:
        if ops.is_dequantize(source) and source.all_input_nodes[0].op == "get_attr":
            values = torch.fx.map_arg((source.args, source.kwargs), lambda read: constant_value(module, read))
            folded = source.target(*values[0], **values[1])  # type: ignore[operator]  # an operator overload
            node.replace_input_with(source, add_constant(module, "weight", folded, node))


def _is_quantized(match: Match, context: Lowering[None]) -> bool:
    """Whether a match runs in integers: a static one whose result is read as float does not."""
    inputs = (quantized_value(node) for _, node in match.inputs(Role.ACTIVATION))
    return any(found is not None and found.is_dynamic for found in inputs) or context.requantize(match.tail) is not None


def _export(module: GraphModule, example_inputs: tuple[Any, ...]) -> torch.export.ExportedProgram:
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(module, example_inputs)
    except Exception as error:  # torch.export raises dozens of types
        raise GraphError(
            "the converted graph does not take these example inputs",
            found=f"{type(error).__name__}: {error}",
            remedy="give the example inputs that the float model was exported with",
        ) from error


def _laid_out(value: Any) -> Any:  # a model's arguments may be of any type
    """Arguments on the CPU and contiguous. The delegate permutes tensors itself, and refuses the operators that export
    writes for other memory formats."""
    if isinstance(value, torch.Tensor):
        return in_order(value.cpu())
    if type(value) in (tuple, list):
        return type(value)(map(_laid_out, value))
    if type(value) is dict:
        return {key: _laid_out(item) for key, item in value.items()}
    return value


def _refused(refusals: Sequence[Refusal], matches: Mapping[str, Match]) -> LoweringError:
    first = refusals[0]
    match = matches.get(first.anchor) if first.anchor is not None else None
    others = sorted({str(r.anchor or r.operator) for r in refusals[1:]} - {str(first.anchor or first.operator)})
    what = f"row {match.label}" if match is not None else f"operator {first.operator}"
    return LoweringError(
        f"{what} was quantized, and XNNPACK's delegate does not run it in integers",
        where=SourceLocation.of(match.anchor if match is not None else first.node),
        found=f"{first.operator}: {first.cause}" + (f"; likewise {', '.join(others)}" if others else ""),
        expected="every quantized operator in the delegate",
        remedy="leave the module out: quantizer.set_module_name(<its path>, None)",
    )
