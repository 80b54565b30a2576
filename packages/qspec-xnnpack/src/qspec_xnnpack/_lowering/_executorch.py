"""Calls of ExecuTorch, which is imported inside functions only: quantizing and converting need torch alone."""

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
from torch.fx import GraphModule, Node

from qspec_core import BackendError, LoweringError, SourceLocation
from qspec_xnnpack._lowering._partitioner import (
    CUSTOM_KEY,
    DELEGATE_LOGGER,
    OUTSIDE_KEY,
    make_partitioner,
    split_dequantizes,
)

__all__ = ["TESTED", "Compiled", "Refusal", "UntestedExecuTorchWarning", "compile_program", "load_program"]

TESTED = ((1, 5), (1, 6))
"""Versions of ExecuTorch that this package is tested on: from the first, below the second."""
_OPERATOR = re.compile(r"(?:torch\._ops\.|EdgeOpOverload: )(aten\.\w+)\.(\w+)")
_CONTROL_FLOW = ("cond", "while_loop", "map_impl", "scan")
_LONGEST = 300
"""Characters of ExecuTorch's message that an error quotes: some list hundreds of operators."""
_DELEGATE_CALL = "executorch_call_delegate"
_WEIGHT_DEQUANTIZES = ("dequantize_per_channel", "dequantize_per_channel_group", "dequantize_affine")


class UntestedExecuTorchWarning(UserWarning):
    """The installed ExecuTorch is outside the range that this package is tested on."""


@dataclass(frozen=True)
class Refusal:
    """A quantized operator that the delegate does not run in integers.

    Args:
        anchor: name of the row's anchor in the converted graph; None if the operator belongs to no row.
        operator: the edge operator.
        cause: the partitioner's reason if it logged one.
        node: the node in the edge program.
    """

    anchor: str | None
    operator: str
    cause: str
    node: Node


@dataclass(frozen=True)
class Compiled:
    """An edge program after partitioning.

    Args:
        manager: ExecuTorch's program manager.
        delegates: number of calls into the delegate.
        outside: operators that run outside it.
        refusals: quantized operators that do not run in integers.
    """

    manager: Any  # executorch.exir.EdgeProgramManager; this module imports without ExecuTorch
    delegates: int
    outside: tuple[str, ...]
    refusals: tuple[Refusal, ...]

    @property
    def written_inputs(self) -> tuple[int, ...]:
        """Indices of the inputs that the program writes to. It returns their values before its own results."""
        signature = self.manager.exported_program().graph_signature
        names = list(signature.user_inputs)
        return tuple(names.index(name) for name in signature.user_inputs_to_mutate.values())

    def serialize(self) -> bytes:
        """Content of the .pte file.

        Raises: LoweringError: ExecuTorch, or its runtime, has no kernel for an operator outside the delegate.
        """
        from executorch.exir import ExecutorchBackendConfig
        from executorch.exir.passes.init_mutable_pass import InitializedMutableBufferPass

        try:
            with _quiet():
                # Without the pass, buffers that the program mutates start at zero. Export names them "b_...".
                config = ExecutorchBackendConfig(passes=[InitializedMutableBufferPass(["b_"])])
                written = self.manager.to_executorch(config)
        except RuntimeError as error:
            raise LoweringError(
                "ExecuTorch cannot write the program",
                found=str(error),
                expected=f"portable kernels for the operators outside the delegate: {', '.join(self.outside)}",
                remedy="rewrite the operators that ExecuTorch has no kernel for",
            ) from error
        self._require_kernels(written.executorch_program)
        return bytes(written.buffer)

    def _require_kernels(self, program: Any) -> None:  # an executorch.exir.schema.Program
        """Check that the runtime has a kernel for each operator of a program. Raises: LoweringError: it does not."""
        from executorch.runtime import Runtime

        known = Runtime.get().operator_registry.operator_names
        operators = [op for plan in program.execution_plan for op in plan.operators]
        called = {f"{op.name}.{op.overload}" if op.overload else op.name: op.name for op in operators}
        for kernel, operator in called.items():
            if kernel in known or not known:
                continue
            nodes = self.manager.exported_program().graph.nodes
            short = operator.rpartition("::")[2]
            node = next((node for node in nodes if node.op == "call_function" and _name(node) == short), None)
            raise LoweringError(
                f"ExecuTorch's runtime has no kernel for the operator {operator}",
                where=SourceLocation.of(node) if node is not None else None,
                found=kernel,
                expected=f"one of the {len(known)} operators that are registered in the runtime",
                remedy="compute that part outside the program, or write it with other operators",
            )


def compile_program(program: torch.export.ExportedProgram) -> Compiled:
    """Lower an exported program to ExecuTorch's edge dialect and partition it for XNNPACK's delegate.

    Args:
        program: quantized program; its rows' nodes carry their anchor's name under `CUSTOM_KEY`.
    Raises:
        BackendError: ExecuTorch is not installed.
        LoweringError: ExecuTorch does not take an operator of the program.
    """
    _require()
    with _quiet(), _refusal_causes() as causes:
        from executorch.exir import to_edge_transform_and_lower

        try:
            manager = to_edge_transform_and_lower(
                program, transform_passes=[split_dequantizes], partitioner=[make_partitioner()]
            )
        except Exception as error:  # ExecuTorch raises bare exceptions, and dozens of types
            raise _uncompiled(program, error) from error
        module = manager.exported_program().graph_module
        calls = [node for node in module.graph.nodes if node.op == "call_function"]
        delegates = [node for node in calls if _name(node) == _DELEGATE_CALL]
        outside = [node for node in calls if _name(node) not in (_DELEGATE_CALL, "getitem")]
        refusals = [*_refused_outside(outside, causes), *_computed_in_float(module, delegates)]
    return Compiled(manager, len(delegates), tuple(_name(node) for node in outside), tuple(refusals))


def _uncompiled(program: torch.export.ExportedProgram, error: Exception) -> LoweringError:
    """The error for a program that ExecuTorch refuses, with the operator that its first cause names."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    found = " ".join(str(cause).split()) or type(cause).__name__
    named = _OPERATOR.search(found)
    target = f"{named[1]}.{named[2]}" if named is not None else ""
    nodes = (node for node in program.graph.nodes if str(node.target) == target)
    operator = f"the operator {target}" if target else "the program"
    flow = next((node for node in program.graph.nodes if _name(node) in _CONTROL_FLOW), None)
    if flow is not None and "was not decomposed or delegated" in found:
        return LoweringError(
            "ExecuTorch's XNNPACK backend takes no layers in the bodies of control flow, nor in float",
            where=SourceLocation.of(flow),
            found=f"{operator} in a body of {flow.name}",
            expected="bodies without convolutions and linear layers",
            remedy="choose the branch outside the program, and lower one program for each",
        )
    return LoweringError(
        f"ExecuTorch does not take {operator}",
        where=SourceLocation.of(node) if (node := next(nodes, None)) is not None else None,
        found=f"{type(cause).__name__}: {found[:_LONGEST]}",
        expected="operators of ExecuTorch's core set, or operators that decompose into it",
        remedy="compute that part outside the program, or write it with other operators",
    )


def load_program(buffer: bytes) -> "_Method":
    """Load a .pte program into ExecuTorch's runtime.

    Raises:
        BackendError: ExecuTorch is not installed.
        LoweringError: the runtime refuses the program.
    """
    _require()
    with _quiet():
        from executorch.runtime import Runtime, Verification

        program = Runtime.get().load_program(buffer, verification=Verification.Minimal)
        try:
            method = program.load_method("forward")
        except RuntimeError as error:
            raise LoweringError(
                "ExecuTorch's runtime refuses the program",
                found=str(error),
                remedy="exclude layers whose input and output scales are far apart: XNNPACK creates no kernel for them",
            ) from error
    return _Method(buffer, program, method)


class _Method:
    """A loaded program. It keeps the buffer alive, which the runtime reads from."""

    def __init__(self, buffer: bytes, program: Any, method: Any) -> None:  # ExecuTorch's own classes
        self._held = (buffer, program)
        self._method = method

    def __call__(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Execute on flat inputs; returns flat outputs, which belong to the caller.

        Raises: LoweringError: the runtime fails.
        """
        try:
            outputs: Sequence[Any] = self._method.execute(inputs)
        except RuntimeError as error:
            raise LoweringError(
                "ExecuTorch's runtime fails to run the program",
                found=str(error),
                remedy="its log on stderr names the operator; leave that operator's module out of quantization",
            ) from error
        return outputs


_warned = False


def _require() -> None:
    """Check that ExecuTorch is installed; warn once if its version was not tested."""
    global _warned  # once for each process
    try:
        with _quiet(), _muted():
            import executorch.backends.xnnpack.partition.xnnpack_partitioner
            import executorch.exir
            import executorch.runtime  # noqa: F401
        version = metadata.version("executorch")
    except ImportError as error:
        raise BackendError(
            "lowering to XNNPACK needs ExecuTorch, which is not installed",
            found=f"{type(error).__name__}: {error}",
            expected=f"executorch {_range()}",
            remedy='pip install "qspec-xnnpack[executorch]"',
        ) from error
    parts = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if not _warned and not TESTED[0] <= parts < TESTED[1]:
        _warned = True
        warnings.warn(
            f"qspec-xnnpack is tested on executorch {_range()}, and {version} is installed",
            UntestedExecuTorchWarning,
            stacklevel=3,
        )


def _range() -> str:
    low, high = (".".join(map(str, version)) for version in TESTED)
    return f">={low},<{high}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Ignore warnings of ExecuTorch and its imports, which a user cannot act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """Disable logging up to warnings: importing ExecuTorch logs which libraries of torchao it could not load."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


class _Listener(logging.Handler):
    """Log handler that collects why the partitioner's rules refused nodes."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.causes: dict[str, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Read the node and the reason from the logged object; both are public attributes."""
        node, reason = getattr(record.msg, "node", None), getattr(record.msg, "reason", "")
        if isinstance(node, Node) and reason:
            self.causes.setdefault(node.name, str(reason))


@contextlib.contextmanager
def _refusal_causes() -> Iterator[Mapping[str, str]]:
    """Collect why the partitioner refused nodes, by node name."""
    logger = logging.getLogger(DELEGATE_LOGGER)
    listener, level, propagate = _Listener(), logger.level, logger.propagate
    logger.addHandler(listener)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield listener.causes
    finally:
        logger.removeHandler(listener)
        logger.setLevel(level)
        logger.propagate = propagate


def _name(node: Node) -> str:
    """Short name of an edge operator: `convolution` for `aten.convolution.default`."""
    schema = getattr(node.target, "_schema", None)  # edge operators have no public name for it
    name = getattr(node.target, "__name__", str(node.target)) if schema is None else schema.name
    return str(name).rpartition("::")[2]


def _anchor(node: Node) -> str | None:
    found = _custom(node).get(CUSTOM_KEY)
    return None if found is None else str(found)


def _custom(node: Node) -> Mapping[str, object]:
    custom = node.meta.get("custom")
    return custom if isinstance(custom, dict) else {}


def _refused_outside(outside: Sequence[Node], causes: Mapping[str, str]) -> Iterator[Refusal]:
    for node in outside:
        cause = causes.get(node.name, "the partitioner left it outside the delegate")
        if _anchor(node) is not None:
            yield Refusal(_anchor(node), _name(node), cause, node)
        elif _name(node) in _WEIGHT_DEQUANTIZES:
            users = (user for user in node.users if _anchor(user) is None and not _custom(user).get(OUTSIDE_KEY))
            yield from (Refusal(None, _name(user), cause, user) for user in users)


def _computed_in_float(module: GraphModule, delegates: Sequence[Node]) -> Iterator[Refusal]:
    """Operators of rows inside a delegate whose quantizes and dequantizes are separate nodes there: the delegate
    computes in float between them."""
    from executorch.backends.xnnpack.utils.quant_utils import is_dequant, is_quant, is_tagged_as_implicit_q_dq

    for call in delegates:
        lowered = getattr(module, str(call.args[0].target))  # type: ignore[union-attr]  # a get_attr of the submodule
        for node in lowered.original_module.graph.nodes:
            if node.op != "call_function" or _anchor(node) is None:
                continue
            around = [*filter(is_dequant, node.all_input_nodes), *filter(is_quant, node.users)]
            if not all(is_tagged_as_implicit_q_dq(near) for near in around):
                yield Refusal(_anchor(node), _name(node), "the delegate takes it and computes it in float", node)
