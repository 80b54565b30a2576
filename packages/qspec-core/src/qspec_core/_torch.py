"""All uses of private parts of torch, each with its purpose. Tested on torch 2.13.0 and 2.14.1."""

import importlib
import importlib.util
import threading
from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

import torch
from torch import FunctionSchema, Tensor, nn
from torch._ops import OpOverload, OpOverloadPacket
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import _PyTreeCodeGen
from torch.fx.traceback import NodeSource, NodeSourceAction
from torch.utils._python_dispatch import TorchDispatchMode as DispatchMode
from torch.utils._pytree import tree_flatten_with_path, tree_leaves, tree_map, tree_structure, tree_unflatten

from qspec_core._errors import ExportError, TrainingModeError

__all__ = [
    "EXPORTER_LOGGER",
    "EXPORT_LOCK",
    "DispatchMode",
    "FakeTensors",
    "OpOverload",
    "OpOverloadPacket",
    "copy_persistence",
    "evaluate_size",
    "forbid_mode_switch",
    "forbid_pickling",
    "has_vnni",
    "history_after",
    "is_unlifted",
    "load_quantized_decomposed",
    "move_codegen",
    "output_keys",
    "return_one_value",
    "run_on_copies",
    "schema_of",
    "size_hint",
    "symbol_range",
    "tree_leaves",
    "tree_map",
    "uncompiled",
]

EXPORT_LOCK = threading.RLock()
"""Held while `torch.export` runs: it puts fake tensors into the model while it traces, and patches global state."""

EXPORTER_LOGGER = "torch.onnx._internal.exporter._registration"
"""Name of the logger that reports packages which torch's ONNX exporter does not need."""

_DEFINITIONS = "torch.ao.quantization.fx._decomposed"


def load_quantized_decomposed() -> bool:
    """Register the `quantized_decomposed` operators from torch's own definitions, if torch has them.

    Defining an operator twice fails, so torch's definitions are used first.

    Returns: whether torch has the definitions. If not, the caller must define the operators.
    """
    try:
        found = importlib.util.find_spec(_DEFINITIONS) is not None
    except ModuleNotFoundError:
        return False
    if found:
        importlib.import_module(_DEFINITIONS)
    return found


def move_codegen(source: Graph, target: Graph) -> None:
    """Give `target` the calling convention (pytree inputs and outputs) of `source`. Graph has no public getter for it.

    Both graphs share the object. It holds the names and the tree of inputs and outputs, which no pass changes.
    """
    target.set_codegen(source._codegen)


def return_one_value(graph: Graph) -> None:
    """Let a graph whose output node has one value return that value, with the calling convention for its inputs."""
    codegen = graph._codegen
    if isinstance(codegen, _PyTreeCodeGen):
        graph.set_codegen(_PyTreeCodeGen(codegen.pytree_info._replace(out_spec=tree_structure(0))))


def uncompiled(root: nn.Module | dict[str, object], graph: Graph, class_name: str) -> GraphModule:
    """`GraphModule(root, graph, class_name)` whose code is generated when something reads it: a call, `torch.export`,
    `code`, `print`, or `recompile()`.

    A graph that a pass edits further, or that is only saved or lowered, needs no code. Generating it takes a third of
    the time of a pass.
    """
    module = GraphModule.__new__(GraphModule, root, graph)
    kind = type(module)  # each GraphModule has a class of its own
    vars(module)["recompile"] = _nothing  # __init__ calls it; vars() since Module.__setattr__ needs Module.__init__
    GraphModule.__init__(module, root, graph, class_name)
    del vars(module)["recompile"]
    replacements: dict[str, object] = {name: _Uncompiled(name) for name in _CODE}
    for name, value in {**replacements, "recompile": _first_recompile}.items():
        setattr(kind, name, value)
    return module


_CODE = ("forward", "__call__", "_code", "_in_spec", "_out_spec", "_lineno_map", "_prologue_start")
"""Attributes that generated code gives to a graph module and to its class."""


class _Uncompiled:
    """Attribute of a graph module without code: reading it generates the code."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, module: GraphModule | None, kind: type) -> Any:  # an attribute of any type
        if module is None:
            return self
        module.recompile()
        return getattr(module, self._name)


def _first_recompile(module: GraphModule) -> Any:  # what GraphModule.recompile returns is private
    kind = type(module)
    for name in ("recompile", *_CODE):
        delattr(kind, name)
    return module.recompile()


def _nothing() -> None:
    """Replacement for `recompile`."""


def _raise_on_switch(
    self: GraphModule, mode: bool = True
) -> Any:  # the signature of Module.train, which never returns here
    raise TrainingModeError(
        "train() and eval() have no effect on operators that are already traced",
        found=f"{type(self).__name__}.train({mode}) or .eval()",
        remedy="call qspec_core.move_exported_model_to_train or qspec_core.move_exported_model_to_eval on it",
    )


def run_on_copies(module: nn.Module, hook: Callable[[nn.Module], None]) -> None:
    """Call a function with each deep copy of a graph module, after the functions registered before."""
    module._register_deepcopy_hook(hook)  # type: ignore[operator]  # a method of GraphModule


def forbid_mode_switch(module: GraphModule) -> None:
    """Make `.train()` and `.eval()` of a graph module and its copies raise `TrainingModeError`."""
    _replace_switches(module)
    module._register_deepcopy_hook(_replace_switches)


def _replace_switches(module: GraphModule) -> None:
    module.train = MethodType(_raise_on_switch, module)  # type: ignore[method-assign]  # of this instance only, as in torch.export
    module.eval = MethodType(_raise_on_switch, module)  # type: ignore[method-assign]  # as above


def _raise_on_pickle(self: GraphModule, protocol: object = None) -> Any:  # as above
    raise ExportError(
        "an exported graph cannot be pickled: torch.export leaves guards in it that Python cannot pickle",
        found=f"pickle or torch.save of {type(self).__name__}",
        remedy="save a converted module with torch.export.save(torch.export.export(module, inputs), path); save the "
        "calibration of a prepared one as its state_dict(); copy either with copy.deepcopy",
    )


def forbid_pickling(module: GraphModule) -> None:
    """Make pickling of a graph module and its copies raise an `ExportError` that says what to do instead."""
    _replace_pickling(module)
    module._register_deepcopy_hook(_replace_pickling)


def _replace_pickling(module: GraphModule) -> None:
    module.__reduce_ex__ = MethodType(_raise_on_pickle, module)  # type: ignore[method-assign]  # of this instance only


_UNLIFTED = "ExportedProgram.module().unlift()"


def is_unlifted(history: list[NodeSource]) -> bool:
    """Whether `meta["from_node"]` says that a node reads a parameter or buffer that the exported program had lifted."""
    return bool(history) and history[-1].pass_name == _UNLIFTED


def history_after(node: Node, pass_name: str) -> list[NodeSource]:
    """`meta["from_node"]` for a node made from another node.

    A node made from a parameter keeps the parameter's entry at the end, by which tools tell it from operators.
    torch's constructor copies the whole history of the node, which takes 0.1 ms; this function refers to it.
    """
    history: list[NodeSource] = node.meta.get("from_node") or []
    source = NodeSource(None, pass_name, NodeSourceAction.CREATE)
    source.node_info = NodeSource.NodeInfo(node.name, str(node.target), id(node.graph))
    source.from_node = history
    return [source, history[-1]] if is_unlifted(history) else [source]


class FakeTensors:
    """Fake tensors for the metadata of nodes, made once for each shape and dtype.

    Calls the constructor of FakeTensor: the public ways (`FakeTensorMode.from_tensor`, an operator on a fake tensor)
    take 0.3 ms each, a third of the time of converting a small model.

    Args:
        example: a fake tensor of the graph, whose mode the new ones get; None makes tensors on the device "meta".
    """

    def __init__(self, example: Tensor | None) -> None:
        self._mode: Any = getattr(example, "fake_mode", None)  # FakeTensorMode, which torch does not export
        self._made: dict[tuple[object, ...], Tensor] = {}

    def like(self, value: object) -> object:
        """A fake tensor with shape, strides, dtype and device of a real one. Other values are returned as they are."""
        return self.cast(value, value.dtype) if isinstance(value, Tensor) else value

    def cast(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """A fake tensor like `value` with another dtype. `value` may be a fake tensor with symbolic sizes."""
        if not all(isinstance(size, int) for size in (*value.shape, *value.stride())):
            key: tuple[object, ...] = (id(value), dtype)
            return self._made[key] if key in self._made else self._made.setdefault(key, value.to(dtype))
        key = tuple(value.shape), value.stride(), dtype, value.device
        if key not in self._made:
            plain = torch.empty_strided(value.shape, value.stride(), dtype=dtype, device="meta")
            self._made[key] = plain if self._mode is None else FakeTensor(self._mode, plain, value.device)
        return self._made[key]


def size_hint(size: int | torch.SymInt) -> int | None:
    """A size of a shape as a number: a symbolic size has its value in the example inputs, if that is known."""
    if isinstance(size, int):
        return size
    hint = size.node.hint
    return hint if isinstance(hint, int) else None


def schema_of(target: OpOverload) -> FunctionSchema:
    """Schema of an operator overload; there is no public attribute for it."""
    return target._schema


def copy_persistence(source: nn.Module, target: nn.Module) -> None:
    """Make the buffers that are not persistent in `source` not persistent in `target` either."""
    target._non_persistent_buffers_set.update(source._non_persistent_buffers_set & set(target._buffers))


def symbol_range(size: torch.SymInt) -> tuple[str, int, int | None] | None:
    """Name and inclusive limits of a symbolic size that is a symbol of its own; None if it is computed from others.

    A lower limit of 2 is what export assumes while it traces, so that it does not take a size for a broadcast one. Its
    graphs hold for 1 as well, by its contract.
    """
    node = size.node
    if not node.expr.is_Symbol:
        return None
    limits = node.shape_env.bound_sympy(node.expr)
    lower = int(limits.lower)
    return str(node.expr), 1 if lower <= 2 else lower, int(limits.upper) if limits.upper.is_Integer else None


def evaluate_size(size: torch.SymInt, symbols: Mapping[str, int]) -> int:
    """A symbolic size as a number, for these values of its symbols."""
    expression = size.node.expr
    return int(expression.subs({symbol: symbols.get(str(symbol), symbol) for symbol in expression.free_symbols}))


def has_vnni() -> bool:
    """Whether this CPU sums products of uint8 and int8 in 32 bits. Torch has no public way to ask."""
    return bool(torch.cpu._is_vnni_supported())


def output_keys(program: torch.export.ExportedProgram) -> list[list[str]]:
    """For each result of a program, the keys, names and indices that lead to it in what the model returns."""
    spec = program.call_spec.out_spec
    if spec is None:
        return [[]]
    paths, _ = tree_flatten_with_path(tree_unflatten(list(range(spec.num_leaves)), spec))
    return [[_key(part) for part in path] for path, _ in paths]


def _key(part: object) -> str:
    """The key of a dictionary, the name of a field or the index of a list, in a path of torch's trees."""
    found = (getattr(part, name) for name in ("key", "name", "idx") if hasattr(part, name))
    return str(next(found, part))
