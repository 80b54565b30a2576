"""The only place that touches private parts of torch, each with what it is for. Tested on torch 2.13.0 and 2.14.1."""

import importlib
import importlib.util
from types import MethodType
from typing import Any

from torch import FunctionSchema, Tensor, nn
from torch._ops import OpOverload, OpOverloadPacket
from torch.fx import Graph, GraphModule

from qspec_core.errors import TrainingModeError

__all__ = [
    "OpOverload",
    "OpOverloadPacket",
    "copy_persistence",
    "fake_like",
    "forbid_mode_switch",
    "load_quantized_decomposed",
    "move_codegen",
    "schema_of",
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


def _no_switch(self: GraphModule, mode: bool = True) -> Any:  # the signature of Module.train, which never returns here
    raise TrainingModeError(
        "train() and eval() have no effect on a graph whose operators are already traced",
        found=f"{type(self).__name__}.train({mode}) or .eval()",
        remedy="call qspec_core.move_exported_model_to_train or qspec_core.move_exported_model_to_eval on it",
    )


def forbid_mode_switch(module: GraphModule) -> None:
    """Make `.train()` and `.eval()` of a graph module raise `TrainingModeError`, as exported modules do."""
    module.train = MethodType(_no_switch, module)  # type: ignore[method-assign]  # one instance, as torch.export does
    module.eval = MethodType(_no_switch, module)  # type: ignore[method-assign]  # as above


def fake_like(example: Tensor | None, value: Tensor) -> Tensor:
    """A tensor without data that stands for `value` beside `example`, a fake tensor of the same graph."""
    mode = getattr(example, "fake_mode", None)
    if mode is None:
        return value.detach().to("meta")
    fake: Tensor = mode.from_tensor(value.detach(), static_shapes=True)
    return fake


def schema_of(target: OpOverload) -> FunctionSchema:
    """Schema of an operator overload, which has no public attribute for it."""
    return target._schema


def copy_persistence(source: nn.Module, target: nn.Module) -> None:
    """Keep out of `target`'s state dict the buffers that `source` keeps out of its own."""
    target._non_persistent_buffers_set.update(source._non_persistent_buffers_set & set(target._buffers))
