"""Lowering with a check: the lowered program runs once and is compared with the converted graph."""

import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.fx import GraphModule

from qspec_core._agreement import Call, LoweringCheck, calls_of, check_lowered, first_divergence
from qspec_core._errors import LoweringError, SourceLocation
from qspec_core._torch import EXPORT_LOCK
from qspec_core.backend import Backend, get_backend
from qspec_core.graph import copy_graph_module
from qspec_core.graph._mutation import mutated_attributes
from qspec_core.lowering import FLOAT_KEY, require_converted

__all__ = ["DivergenceWarning", "lower", "lower_and_check"]

_ATTEMPTS = 3
"""Operators that are left in float, one after the other, before lowering is refused."""


class DivergenceWarning(UserWarning):
    """An operator runs in float on the device, since its integer kernel gave other numbers than the converted graph."""


def lower(
    converted: GraphModule,
    example_inputs: tuple[Any, ...],  # a model's arguments may be of any type
    *,
    backend: str | Backend,
    target: str | None = None,
    check: bool = True,
) -> nn.Module:
    """Lower a converted graph to its backend, and compare the lowered program with the graph before it is returned.

    The program runs once on the example inputs, a second time where the graph keeps state in buffers, and once with
    another size where sizes may vary. Its results may differ from those of the converted graph by twice as much as
    they move when every activation is rounded at random to the step above or below: in root mean square, with six times
    as much for the largest error. `docs/decisions/0007-a-lowered-program-is-checked.md` has the measurements. The first
    operator that diverges is left in float, with a warning.

    Args:
        converted: from `convert_pt2e`; not changed.
        example_inputs: positional arguments of one call.
        backend: name of an installed backend, or a `Backend`.
        target: class of the deployment device; None for the backend's default.
        check: False returns the lowered program unchecked.
    Returns: the program on its device.
    Raises:
        BackendError: the backend is not installed, or has no such target.
        GraphError: the module is not from `convert_pt2e`.
        LoweringError: the program cannot run there, or diverges even with the operator in float; it names the operator.
    Warns: DivergenceWarning: an operator runs in float.
    """
    chosen = get_backend(backend) if isinstance(backend, str) else backend
    return lower_and_check(converted, example_inputs, chosen, chosen.resolve_target(target), check=check)[0]


def lower_and_check(
    converted: GraphModule,
    example_inputs: tuple[Any, ...],  # as in `lower`
    backend: Backend,
    target: str,
    *,
    check: bool,
) -> tuple[nn.Module, LoweringCheck | None]:
    """`lower`, with what the check found; None without a check.

    Threads lower one after the other: a backend may export the graph, and `torch.export` changes it while it traces.
    """
    with EXPORT_LOCK:
        lowered = backend.lower(converted, example_inputs, target)
        if not check:
            return lowered, None
        calls, state = calls_of(require_converted(converted, "lowering"), example_inputs), _keeps_state(converted)
        found = check_lowered(lowered, calls, keeps_state=state)
        if found.holds:
            return lowered, found
        return _with_float_operators(converted, example_inputs, backend, target, calls, found)


def _keeps_state(converted: GraphModule) -> bool:
    return bool(mutated_attributes(converted))


def _with_float_operators(
    converted: GraphModule,
    example_inputs: tuple[Any, ...],
    backend: Backend,
    target: str,
    calls: tuple[Call, ...],
    found: LoweringCheck,
) -> tuple[nn.Module, LoweringCheck]:
    """Leave the first operators that diverge in float, one by one, until the program agrees.

    Raises: LoweringError: it does not agree.
    """

    def piece(graph: GraphModule) -> nn.Module:
        return backend.lower(graph, example_inputs, target)

    floats: dict[str, str] = {}
    first: str | None = None
    for _ in range(_ATTEMPTS):
        marked = _marked(converted, floats)
        name = first_divergence(marked, example_inputs, piece)
        first = name if first is None else first
        if name is None or name in floats:
            break
        floats[name] = str(found.worst)
        lowered = piece(_marked(converted, floats))
        check = check_lowered(lowered, calls, keeps_state=_keeps_state(converted))
        if check.holds:
            left = tuple(floats.items())
            for node, why in left:
                warnings.warn(f"{node} runs in float on {backend.name!r}: {why}", DivergenceWarning, stacklevel=5)
            return lowered, LoweringCheck(check.deviations, check.refused, left)
    raise _diverged(converted, backend, first, found)


def _marked(converted: GraphModule, floats: Mapping[str, str]) -> GraphModule:
    """A copy in which operators are marked as float, by name."""
    copied = copy_graph_module(converted)
    for node in copied.graph.nodes:
        if node.name in floats:
            node.meta[FLOAT_KEY] = True
    copied.recompile()
    return copied


def _diverged(converted: GraphModule, backend: Backend, name: str | None, found: LoweringCheck) -> LoweringError:
    node = next((node for node in converted.graph.nodes if node.name == name), None)
    where = None if node is None else SourceLocation.of(node)
    operator = "no operator alone" if node is None else f"first at {node.name} ({node.target})"
    return LoweringError(
        f"the lowered program on {backend.name!r} gives other numbers than the converted graph: {operator} diverges"
        if node is None
        else f"the lowered program on {backend.name!r} gives other numbers than the converted graph, {operator}",
        where=where,
        found=str(found.worst),
        expected="results within the bound of the check",
        remedy="leave that module in float with quantizer.set_module_name(path, None), and report it to the backend's "
        "authors; check=False returns the program as it is",
    )
