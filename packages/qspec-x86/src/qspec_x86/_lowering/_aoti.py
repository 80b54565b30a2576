"""Compiled packages: files that run with torch alone, and the module that runs one with checks."""

import os
import shutil
import tempfile
import weakref
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import GraphModule

from qspec_core import LoweringError
from qspec_x86._lowering._flow import LOWERING_KEY, LoweringReport, lower_portable
from qspec_x86._lowering._kernels import PACK_FOUR_BITS
from qspec_x86._lowering._signature import Signature, signature_of
from qspec_x86._target import lacks, resolve_target, saturates
from qspec_x86._torch import (
    compile_package,
    load_runner,
    read_metadata,
    torch_version,
    tree_leaves,
    tree_structure,
    tree_unflatten,
)

__all__ = ["X86Package", "compile_module", "has_compiler", "load_package", "package"]

_CPP_LIBRARY = b"libstdc++.so"
"""C++ library that torch loads. A second copy, linked into a package, crashes the process."""

_LARGEST = 64 << 20
"""Bytes of the largest package that is compressed."""
_METADATA_KEY, _REPORT_KEY, _TORCH_KEY = "qspec_x86", "qspec_x86_report", "qspec_x86_torch"


def has_compiler() -> bool:
    """Whether Inductor can find a C++ compiler."""
    return any(shutil.which(name) is not None for name in (os.environ.get("CXX") or "g++", "clang++"))


class X86Package(nn.Module):
    """A compiled package as a module. It checks each call, because the compiled code does not.

    Args:
        runner: the loaded package.
        signature: its inputs.
        report: of its lowering; also in `meta["qspec_x86_lowering"]`, as in lowered graphs.
        file: the package's file.
        folder: temporary folder of the file, kept while a module runs it; None if the user chose the file.
    """

    def __init__(
        self,
        runner: Callable[..., Any],  # a model may return anything
        signature: Signature,
        report: LoweringReport,
        file: Path,
        folder: "_Folder | None" = None,
    ) -> None:
        super().__init__()
        self._runner = runner
        self.signature = signature
        self.report = report
        self.meta = {LOWERING_KEY: report}
        self._file = file
        self._folder = folder

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:  # the model's own arguments and results
        """Run the model.

        Raises: LoweringError: a tensor has another shape, dtype or device than the package was compiled for.
        """
        structure = tree_structure((args, kwargs))
        fitted = self.signature.fitted(tree_leaves((args, kwargs)))
        args, kwargs = tree_unflatten(fitted, structure)
        return self._runner(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> "X86Package":
        """Load the package again: buffers that the model mutates are in the compiled code, in their first state."""
        return X86Package(load_runner(self._file), self.signature, self.report, self._file, self._folder)

    def __reduce__(self) -> tuple[Any, ...]:  # a function and its arguments
        """Pickle the module as its compiled file, which `load_package` reads with all its checks."""
        return _from_bytes, (self._file.read_bytes(),)

    def write_package(self, path: str | Path) -> Path:
        """Copy the compiled file to `path`.

        Raises: LoweringError: the name does not end in `.pt2`.
        """
        return Path(shutil.copyfile(self._file, _checked_name(Path(path))))

    def extra_repr(self) -> str:
        """Inputs and lowering report, for `repr`."""
        inputs = ", ".join(f"{entry.name}: {entry.describe()}" for entry in self.signature.inputs)
        return f"{inputs}\n{self.report.summary()}"


def package(
    converted: GraphModule,
    example_inputs: tuple[Any, ...],  # a model's arguments may be of any type
    path: Path,
    target: str = "any",
) -> Path:
    """Compile a quantized graph ahead of time into a file that needs torch alone.

    `aoti_load_package(path)` of torch's Inductor loads it; `load_package` adds checks of each call.

    Args:
        converted: from `convert_pt2e`. It is not changed.
        example_inputs: positional arguments of one call, with the memory layout of later calls.
        path: file to write; its name ends in `.pt2`.
        target: class of the deployment CPU: "any", "vnni" or "native". The code of the first two runs on every CPU with
            AVX2; "native" uses all instructions of this CPU.
    Returns: the path.
    Raises: LoweringError: the example inputs do not fit the graph, the file's name, there is no C++ compiler, or it
        links its library statically.
    """
    path = _checked_name(Path(path))
    if not has_compiler():
        raise LoweringError(
            "a package needs a C++ compiler, and there is none",
            found="neither $CXX, g++ nor clang++ on the path",
            remedy="install one, or use result.lowered, which runs without",
        )
    resolved = resolve_target(target)
    lowered = lower_portable(converted, resolved)
    leaves = [leaf.cpu() if isinstance(leaf, Tensor) else leaf for leaf in tree_leaves(example_inputs)]
    structure = tree_structure(example_inputs)
    for_avx2 = target != "native"
    instructions = "AVX2" if for_avx2 else torch.backends.cpu.get_cpu_capability()
    packed_for = torch.backends.cpu.get_cpu_capability() if _packs_four_bits(lowered) else None
    signature = signature_of(lowered, leaves, resolved, instructions, packed_for)
    laid_out = tree_unflatten(signature.fitted(leaves), structure)
    shapes = tree_unflatten(_dynamic_shapes(signature), structure)
    notes = {_METADATA_KEY: signature.to_json(), _REPORT_KEY: lowered.meta[LOWERING_KEY].to_json()}
    notes[_TORCH_KEY] = torch_version()
    compile_package(lowered, laid_out, shapes, path, notes, for_avx2=for_avx2)
    _compress(path)
    try:
        _refuse_second_library(path)
    except LoweringError:
        path.unlink()
        raise
    return path


def _compress(path: Path) -> None:
    """Compress the files of a package, and leave out its sources, which nothing loads. Torch stores them as they are.

    Packages over `_LARGEST` stay as they are: compressing takes 30 ms for each MiB.
    """
    if path.stat().st_size > _LARGEST:
        return
    smaller = path.with_suffix(".smaller")
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED) as compressed:
        for name in archive.namelist():
            if not name.endswith(".cpp"):
                compressed.writestr(name, archive.read(name))
    smaller.replace(path)


def _refuse_second_library(path: Path) -> None:
    """Refuse a package with a C++ library of its own. A library names those that it needs before its code."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".so") and _CPP_LIBRARY not in archive.open(name).read(1 << 20):
                raise LoweringError(
                    "the C++ compiler linked its library statically; loading the package would crash the process",
                    found=f"no {_CPP_LIBRARY.decode()} among the libraries that {Path(name).name} needs",
                    remedy="set CXX to a compiler that links it dynamically, or unset CXX, and package again",
                )


def _packs_four_bits(lowered: GraphModule) -> bool:
    """Whether 4-bit weights are packed. Their order depends on the class of CPU, and the kernel does not check it."""
    return bool(lowered.graph.find_nodes(op="call_function", target=PACK_FOUR_BITS))


def _checked_name(path: Path) -> Path:
    if path.suffix != ".pt2":
        raise LoweringError(
            "the name of a compiled package must end in .pt2",
            found=str(path),
            remedy=f"write to {path.with_suffix('.pt2')}",
        )
    return path


class _Folder:
    """A temporary folder that is deleted with its last reference."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="qspec_x86_"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def _dynamic_shapes(signature: Signature) -> list[dict[int, Dim]]:
    """Dynamic dimensions of each input. Sizes of one name are one `Dim`, as in the exported model."""
    dims: dict[str, Dim] = {}
    shapes: list[dict[int, Dim]] = []
    for entry in signature.inputs:
        varying: dict[int, Dim] = {}
        for position, size in enumerate(entry.sizes):
            if not isinstance(size, int):
                name, low, high = size
                varying[position] = dims.setdefault(name, Dim(name, min=low, max=high))
        shapes.append(varying)
    return shapes


def load_package(path: str | Path) -> X86Package:
    """Load a package that `package` wrote.

    Raises: LoweringError: the file is not such a package or is cut short, another version of torch compiled it, its
        code needs instructions that this CPU lacks, this CPU would saturate where the package's target does not, or it
        has a C++ library of its own.
    """
    metadata = _notes(Path(path))
    _refuse_second_library(Path(path))
    signature = Signature.from_json(metadata[_METADATA_KEY])
    if lacks(signature.instructions):
        raise LoweringError(
            "the package was compiled for instructions that this CPU does not have",
            found=f"{signature.instructions} needed; this CPU has {torch.backends.cpu.get_cpu_capability()}",
            expected="a package for target 'any' or 'vnni', which needs AVX2 alone",
            remedy="package the model again with target='any', or on a CPU like this one",
        )
    here = torch.backends.cpu.get_cpu_capability()
    if signature.packed_for not in (None, here):
        raise LoweringError(
            "the package's 4-bit weights were packed for another class of CPU",
            found=signature.packed_for,
            expected=here,
            remedy="package the model again on a CPU like this one",
        )
    if signature.target == "vnni" and saturates():
        raise LoweringError(
            "the package was made for CPUs with VNNI; this one sums products in 16 bits and would be wrong",
            found="target 'vnni'",
            expected="target 'any' on this CPU",
            remedy="package the model again with target='any'",
        )
    return X86Package(load_runner(Path(path)), signature, LoweringReport.from_json(metadata[_REPORT_KEY]), Path(path))


def _notes(path: Path) -> Mapping[str, str]:
    """Read the metadata of a package, which must be of this version of qspec_x86 and torch.

    Raises: LoweringError: as `load_package`.
    """
    remedy = "package the model again with result.package(path)"
    try:
        metadata = read_metadata(path)
    except RuntimeError as error:
        raise LoweringError(
            "the file is not a compiled package, or it is cut short" if path.is_file() else "there is no such package",
            found=f"{path}: {str(error).partition(chr(10))[0]}",
            expected="a file of result.package",
            remedy=remedy,
        ) from error
    if not {_METADATA_KEY, _REPORT_KEY, _TORCH_KEY} <= set(metadata):
        raise LoweringError(
            "the package was not written by this version of qspec_x86",
            found=f"metadata {sorted(metadata)}",
            remedy=f"{remedy}, or load it with aoti_load_package of torch's Inductor",
        )
    if metadata[_TORCH_KEY] != torch_version():
        raise LoweringError(
            "the package was compiled with another version of torch",
            found=f"torch {metadata[_TORCH_KEY]}",
            expected=f"torch {torch_version()}",
            remedy=remedy,
        )
    return metadata


def compile_module(
    converted: GraphModule,
    example_inputs: tuple[Any, ...],  # as in `package`
    target: str,
) -> X86Package:
    """Package a quantized graph in a temporary folder and load it."""
    folder = _Folder()
    return _kept(package(converted, example_inputs, folder.path / "model.pt2", target), folder)


def _from_bytes(data: bytes) -> X86Package:
    """Load a package from the content of its file."""
    folder = _Folder()
    path = folder.path / "model.pt2"
    path.write_bytes(data)
    return _kept(path, folder)


def _kept(path: Path, folder: _Folder) -> X86Package:
    """Load a package from a temporary folder, which stays as long as the module."""
    loaded = load_package(path)
    loaded._folder = folder
    return loaded
