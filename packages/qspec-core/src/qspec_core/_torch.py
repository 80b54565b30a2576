"""The only place that touches private parts of torch, each with what it is for. Tested on torch 2.13.0 and 2.14.1."""

import importlib
import importlib.util
from types import MethodType
from typing import Any

import torch
from torch import FunctionSchema, Tensor, nn
from torch._ops import OpOverload, OpOverloadPacket
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.traceback import NodeSource, NodeSourceAction

from qspec_core._errors import ExportError, TrainingModeError

__all__ = [
    "FakeTensors",
    "OpOverload",
    "OpOverloadPacket",
    "copy_persistence",
    "forbid_mode_switch",
    "forbid_pickling",
    "history_after",
    "is_unlifted",
    "load_quantized_decomposed",
    "move_codegen",
    "schema_of",
    "uncompiled",
]

_DEFINITIONS = "torch.ao.quantization.fx._decomposed"


def load_quantized_decomposed() -> bool:
    """Register the `quantized_decomposed` operators with torch's own definitions, where torch has them.

    A second definition of the same operators would make whichever import comes later fail, so torch's come first.

    Returns: whether torch has the definitions; the caller defines the operators itself where it does not.
    """
    try:
        found = importlib.util.find_spec(_DEFINITIONS) is not None
    except ModuleNotFoundError:
        return False
    if found:
        importlib.import_module(_DEFINITIONS)
    return found


def move_codegen(source: Graph, target: Graph) -> None:
    """Give `target` the calling convention (pytree inputs and outputs) of `source`: Graph has no public getter.

    The object is shared: it holds the names and the tree of inputs and outputs, which no pass changes.
    """
    target.set_codegen(source._codegen)


def uncompiled(root: nn.Module | dict[str, object], graph: Graph, class_name: str) -> GraphModule:
    """`GraphModule(root, graph, class_name)` without code: for a graph that a pass goes on to edit.

    Writing and compiling code is a third of the time of a pass. `recompile()` does it; so does the first call.
    """
    module = GraphModule.__new__(GraphModule, root, graph)
    vars(module)["recompile"] = _nothing  # __init__ calls it; vars() since Module.__setattr__ needs Module.__init__
    GraphModule.__init__(module, root, graph, class_name)
    del vars(module)["recompile"]
    type(module).forward = _compile_and_call  # each GraphModule has a class of its own, whose forward is its code
    return module


def _nothing() -> None:
    """In place of `recompile`."""


def _compile_and_call(self: GraphModule, *args: Any, **kwargs: Any) -> Any:  # a model's arguments may be of any type
    self.recompile()
    return self(*args, **kwargs)


def _no_switch(self: GraphModule, mode: bool = True) -> Any:  # the signature of Module.train, which never returns here
    raise TrainingModeError(
        "train() and eval() have no effect on a graph whose operators are already traced",
        found=f"{type(self).__name__}.train({mode}) or .eval()",
        remedy="call qspec_core.move_exported_model_to_train or qspec_core.move_exported_model_to_eval on it",
    )


def forbid_mode_switch(module: GraphModule) -> None:
    """Make `.train()` and `.eval()` of a graph module and of its copies raise `TrainingModeError`."""
    _replace_switches(module)
    module._register_deepcopy_hook(_replace_switches)


def _replace_switches(module: GraphModule) -> None:
    module.train = MethodType(_no_switch, module)  # type: ignore[method-assign]  # one instance, as torch.export does
    module.eval = MethodType(_no_switch, module)  # type: ignore[method-assign]  # as above


def _no_pickle(self: GraphModule, protocol: object = None) -> Any:  # as above
    raise ExportError(
        "an exported graph cannot be pickled: Python cannot pickle the guards that torch.export leaves in it",
        found=f"pickle or torch.save of {type(self).__name__}",
        remedy="save a converted module with torch.export.save(torch.export.export(module, inputs), path); keep the "
        "calibration of a prepared one as its state_dict(); copy either with copy.deepcopy",
    )


def forbid_pickling(module: GraphModule) -> None:
    """Make pickling of a graph module and of its copies raise `ExportError` with what to do instead."""
    _replace_pickling(module)
    module._register_deepcopy_hook(_replace_pickling)


def _replace_pickling(module: GraphModule) -> None:
    module.__reduce_ex__ = MethodType(_no_pickle, module)  # type: ignore[method-assign]  # one instance


_UNLIFTED = "ExportedProgram.module().unlift()"


def is_unlifted(history: list[NodeSource]) -> bool:
    """Whether a node, by its `meta["from_node"]`, reads a parameter or buffer that an exported program had lifted."""
    return bool(history) and history[-1].pass_name == _UNLIFTED


def history_after(node: Node, pass_name: str) -> list[NodeSource]:
    """`meta["from_node"]` of a node made from another.

    What is made from a parameter keeps the parameter's mark at the end, by which tools tell it from operators: its
    history leads on to the operator that reads it. torch's constructor copies the whole history of the node, 0.1 ms
    each; this refers to it.
    """
    history: list[NodeSource] = node.meta.get("from_node") or []
    source = NodeSource(None, pass_name, NodeSourceAction.CREATE)
    source.node_info = NodeSource.NodeInfo(node.name, str(node.target), id(node.graph))
    source.from_node = history
    return [source, history[-1]] if is_unlifted(history) else [source]


class FakeTensors:
    """Tensors without data for the metadata of nodes, made once for each shape and dtype.

    They are made from their parts: the public ways (`FakeTensorMode.from_tensor`, an operator on a fake tensor) take
    0.3 ms each, a third of the time of converting a small model.

    Args:
        example: a fake tensor of the graph, whose mode the others join; None makes tensors on the device "meta".
    """

    def __init__(self, example: Tensor | None) -> None:
        self._mode: Any = getattr(example, "fake_mode", None)  # FakeTensorMode, which torch does not export
        self._made: dict[tuple[object, ...], Tensor] = {}

    def like(self, value: object) -> object:
        """A fake tensor of the shape, strides, dtype and device of a real one; anything else as it is."""
        return self.cast(value, value.dtype) if isinstance(value, Tensor) else value

    def cast(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """The same with another dtype; of a fake tensor with symbolic sizes too."""
        if not all(isinstance(size, int) for size in (*value.shape, *value.stride())):
            key: tuple[object, ...] = (id(value), dtype)
            return self._made[key] if key in self._made else self._made.setdefault(key, value.to(dtype))
        key = tuple(value.shape), value.stride(), dtype, value.device
        if key not in self._made:
            plain = torch.empty_strided(value.shape, value.stride(), dtype=dtype, device="meta")
            self._made[key] = plain if self._mode is None else FakeTensor(self._mode, plain, value.device)
        return self._made[key]


def schema_of(target: OpOverload) -> FunctionSchema:
    """Schema of an operator overload, which has no public attribute for it."""
    return target._schema


def copy_persistence(source: nn.Module, target: nn.Module) -> None:
    """Keep out of `target`'s state dict the buffers that `source` keeps out of its own."""
    target._non_persistent_buffers_set.update(source._non_persistent_buffers_set & set(target._buffers))
