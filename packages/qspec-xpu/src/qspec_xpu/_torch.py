"""All uses of private parts of torch, each with its purpose; tested on torch 2.13.0."""

from pathlib import Path
from typing import Any

import torch
from torch._inductor import aoti_compile_and_package, aoti_load_package
from torch.utils._pytree import tree_map_only

__all__ = ["compile_package", "load_package", "tensors_on"]


def tensors_on(device: str, values: Any) -> Any:  # a model's arguments may be of any type
    """The same arguments, with all tensors on a device."""

    def move(value: torch.Tensor) -> torch.Tensor:
        return value.to(device)

    return tree_map_only(torch.Tensor, move, values)


def compile_package(
    module: torch.nn.Module,
    example_inputs: tuple[Any, ...],  # a model's arguments may be of any type
    path: Path,
) -> None:
    """Export a lowered module that is on the device, and compile it ahead of time into the package at `path`."""
    with torch.no_grad():
        program = torch.export.export(module, example_inputs)
        aoti_compile_and_package(program, package_path=str(path))


class _Loaded(torch.nn.Module):
    """A loaded package, which torch gives no module for."""

    def __init__(self, runner: Any) -> None:  # torch exports no type of it
        super().__init__()
        self._runner = runner

    def forward(self, *inputs: Any) -> Any:  # a model's own arguments and results
        return self._runner(*inputs)


def load_package(path: Path) -> torch.nn.Module:
    """Load a package that `compile_package` wrote."""
    return _Loaded(aoti_load_package(str(path)))
