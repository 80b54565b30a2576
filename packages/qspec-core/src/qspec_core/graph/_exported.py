"""Checks that a module is a graph made by `torch.export`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from qspec_core._errors import GraphError

__all__ = ["WrapperModule", "model_is_exported", "require_exported"]


def require_exported(module: object, step: str) -> GraphModule:
    """The module itself, if it is a graph that `torch.export` made.

    Raises: GraphError: it is a plain module, an `ExportedProgram`, or a graph with no operators of torch in it.
    """
    if isinstance(module, GraphModule):
        return module
    if isinstance(module, torch.export.ExportedProgram):
        remedy = f"pass the program's module: {step}(program.module(), ...)"
    else:
        remedy = f"export it first: {step}(torch.export.export(model.eval(), example_inputs).module(), ...)"
    raise GraphError(
        f"{step} takes an exported graph module",
        found=f"{type(module).__module__}.{type(module).__qualname__}",
        expected="torch.fx.GraphModule from torch.export.export(...).module()",
        remedy=remedy,
    )


def model_is_exported(m: nn.Module) -> bool:
    """Whether a module is a graph that `torch.export` made, recognised by the fake tensors on its nodes."""
    return isinstance(m, GraphModule) and any("val" in node.meta for node in m.graph.nodes)


class WrapperModule(nn.Module):
    """A function as a module, so that it can be exported.

    Args:
        fn: called with the module's arguments.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # as the wrapped function's
        """Call the function."""
        return self.fn(*args, **kwargs)
