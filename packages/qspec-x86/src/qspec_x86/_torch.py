"""All uses of private parts of torch, each with its purpose; tested on torch 2.13.0."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch._dynamo.exc import UserError
from torch._inductor import aoti_compile_and_package, aoti_load_package
from torch._inductor.constant_folding import ConstantFolder
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map, tree_structure, tree_unflatten

__all__ = [
    "compile_package",
    "load_runner",
    "not_compiled",
    "read_metadata",
    "size_hint",
    "symbols_of",
    "torch_version",
    "tree_leaves",
    "tree_map",
    "tree_structure",
    "tree_unflatten",
]


def _packed_like(
    weight: Tensor,
    w_scales: Tensor,
    x_scale: float,
    x_zp: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    x_shape: Sequence[int] | None = None,
) -> Tensor:
    """Shape of a packed convolution weight: that of the plain weight."""
    return weight.new_empty(weight.shape)


@contextmanager
def _state_stays() -> Iterator[None]:
    """Keep buffers that the graph writes to out of constant folding, which takes every buffer for a constant.

    Freezing folded `h * 0.5` of a buffer `h` that the same graph updates: each call computed with the first value.
    """
    folder: Any = ConstantFolder  # the method is replaced while Inductor runs
    run = folder.run_node

    def run_node(self: Any, node: Node) -> Any:  # a folder, and whatever the node computes
        return self.unknown_value if node.op == "get_attr" and _is_written(node) else run(self, node)

    folder.run_node = run_node
    try:
        yield
    finally:
        folder.run_node = run


def _is_written(buffer: Node) -> bool:
    """Whether the graph of a node that reads a buffer writes to that buffer, at this node or at another."""
    copy = torch.ops.aten.copy_.default
    written = (node.args[0] for node in buffer.graph.find_nodes(op="call_function", target=copy))
    return any(isinstance(node, Node) and node.target == buffer.target for node in written)


@contextmanager
def _packing_known() -> Iterator[None]:
    """Register a fake kernel for weight packing, which torch lacks, while export and Inductor run."""
    with torch.library._scoped_library("onednn", "FRAGMENT") as library:
        torch.library.register_fake("onednn::qconv_prepack", _packed_like, lib=library, allow_override=True)
        yield


def _exported(module: torch.nn.Module, inputs: tuple[Any, ...], dynamic_shapes: Any) -> torch.export.ExportedProgram:
    """Export a module. Conditions on sizes that export cannot prove, and all sizes fulfil, are checked in each call.

    A sequence whose second dimension is the batch gives such a condition: 35 * s >= 5 * s * min(7, 7 * s).
    """
    try:
        return torch.export.export(module, inputs, dynamic_shapes=dynamic_shapes)
    except UserError:
        return torch.export.export(
            module, inputs, dynamic_shapes=dynamic_shapes, prefer_deferred_runtime_asserts_over_guards=True
        )


def compile_package(
    module: torch.nn.Module,
    example_inputs: tuple[Any, ...],  # a model's arguments may be of any type
    dynamic_shapes: Any,  # as torch.export takes it
    path: Path,
    metadata: Mapping[str, str],
    *,
    for_avx2: bool,
) -> None:
    """Export a portable lowered module and compile it ahead of time into the package at `path`.

    Freezing folds the packing nodes into packed constants. Torch switches it off, silently, while gradients are on.

    Args:
        for_avx2: compile for every CPU with AVX2, instead of for all instructions of this CPU.
    """
    with torch.no_grad(), _packing_known(), _state_stays(), warnings.catch_warnings():
        # Warnings of torch about its own deprecated parts differ between versions. Failures raise.
        warnings.simplefilter("ignore")
        program = _exported(module, example_inputs, dynamic_shapes)
        configs: dict[str, Any] = {"freezing": True, "aot_inductor.metadata": dict(metadata)}
        configs["aot_inductor.enable_line_tables"] = False  # 1.2 of 3.2 MB of a package of three LSTM layers
        if for_avx2:
            configs |= {"cpp.simdlen": 256, "cpp.march": "x86-64-v3"}
        aoti_compile_and_package(program, package_path=str(path), inductor_configs=configs)


def read_metadata(path: Path) -> Mapping[str, str]:
    """A package's metadata, read without loading its code."""
    loader: Any = torch._C._aoti.AOTIModelPackageLoader  # the method is missing from torch's stubs
    found: Mapping[str, str] = loader.load_metadata_from_package(str(path), "model")
    return found


def torch_version() -> str:
    """Major and minor version of torch: compiled code calls its C interface, which differs between versions."""
    return ".".join(torch.__version__.split(".")[:2])


def load_runner(path: Path) -> Callable[..., Any]:
    """Load a package as a callable."""
    return cast(Callable[..., Any], aoti_load_package(str(path)))


def size_hint(size: int | torch.SymInt) -> int | None:
    """A size as a number; for a symbolic size, that of the example inputs. None if it depends on data."""
    if isinstance(size, int):
        return size
    return int(size.node.hint) if size.node.has_hint() else None


def symbols_of(size: int | torch.SymInt) -> tuple[str, ...]:
    """Names of the symbols in a size; none for a number."""
    return () if isinstance(size, int) else tuple(sorted(map(str, size.node.expr.free_symbols)))


def not_compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let torch.compile call a function as it is, between two compiled parts."""
    disable: Callable[..., Any] = torch.compiler.disable
    return cast(Callable[..., Any], disable(function))
