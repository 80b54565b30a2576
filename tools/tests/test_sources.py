"""Rules about names in sources that neither ruff nor the import linter can state."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(ROOT.glob("packages/*/src/**/*.py"))
CORE_TORCH = ROOT / "packages/qspec-core/src/qspec_core/_torch.py"
PRIVATE_TORCH = re.compile(r"\btorch(?!\.ops\b)(?:\.[A-Za-z]\w*)*\._[A-Za-z]\w*(?: import \(?[\w, ]+)?")
# The types of every operator; torch offers them under no public name.
PERMITTED = re.compile(r"torch\._ops import (OpOverload|OpOverloadPacket)(, OpOverloadPacket)?")


def occurrences(pattern: re.Pattern[str], path: Path) -> Iterator[str]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        for match in pattern.finditer(line):
            yield f"{path.relative_to(ROOT)}:{number}: {match[0]}"


def identify(path: Path) -> str:
    return path.relative_to(ROOT / "packages").as_posix()


def test_there_are_sources() -> None:
    assert {path.relative_to(ROOT).parts[1] for path in SOURCES} == {path.name for path in ROOT.glob("packages/*")}


@pytest.mark.parametrize("path", [path for path in SOURCES if path != CORE_TORCH], ids=identify)
def test_torch_ao_is_named_nowhere_but_in_cores_torch_module(path: Path) -> None:
    assert list(occurrences(re.compile(r"torch\.ao\b"), path)) == []


@pytest.mark.parametrize("path", [path for path in SOURCES if path.name != "_torch.py"], ids=identify)
def test_private_parts_of_torch_stay_in_the_torch_module(path: Path) -> None:
    assert [found for found in occurrences(PRIVATE_TORCH, path) if not PERMITTED.fullmatch(found.split(": ")[1])] == []


@pytest.mark.parametrize("path", [p for p in SOURCES if "qspec-core" not in p.parts], ids=identify)
def test_backends_use_cores_public_names(path: Path) -> None:
    assert list(occurrences(re.compile(r"\bqspec_core(?:\.\w+)*\._\w+"), path)) == []


@pytest.mark.parametrize(
    "line",
    ["import torch._dynamo", "from torch._ops import HigherOrderOperator", "torch.fx._lazy_graph_module.x", "torch._C"],
)
def test_private_pattern_finds(line: str) -> None:
    found = PRIVATE_TORCH.search(line)
    assert found is not None
    assert PERMITTED.fullmatch(found[0]) is None


@pytest.mark.parametrize(
    "line", ["torch.ops.aten._softmax.default", "torch.__version__", "qspec_core._torch", "torch.nn.Module"]
)
def test_private_pattern_leaves_alone(line: str) -> None:
    assert PRIVATE_TORCH.search(line) is None


# The files of rows, one for each family of operators and one for each kind of what rows share: alike in every backend.
ROW_FILES = frozenset(
    f"_{name}.py"
    for name in (
        *("conv", "linear", "pool", "shape", "elementwise", "embedding"),  # families
        *("checks", "specs", "post_ops", "float_only", "left_out"),  # what rows are made of, and operators without rows
    )
)
# What every backend has, with the names that the file defines.
BACKEND_FILES: dict[str, tuple[str, ...]] = {
    "__init__.py": (),
    "_backend.py": ("BACKEND", "default_quantizer"),
    "_config.py": (),
    "_quantizer.py": (),
    "_rows/__init__.py": ("TABLE",),
    "_lowering/__init__.py": ("lower",),
    "_lowering/_flow.py": (),
}
# Files that one backend names otherwise, and names that it defines elsewhere ("path:name"), each with the reason.
EXCEPTIONS: dict[str, str] = {
    "qspec-x86/_lowering/__init__.py:lower": "rows import this package, and lower reads their table; see _backend.py",
    "qspec-xnnpack/_lowering/__init__.py:lower": "as in qspec-x86; see _lowering/_flow.py",
    "qspec-xpu/_lowering/__init__.py:lower": "as in qspec-x86",
}
BACKENDS = [path for path in sorted(ROOT.glob("packages/qspec-*")) if path.name != "qspec-core"]


def source_folder(package: Path) -> Path:
    (folder,) = (path.parent for path in package.glob("src/*/__init__.py"))
    return folder


def top_level_names(path: Path) -> set[str]:
    """Names that a module defines, or that it lists in `__all__`."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            targets = {target.id for target in node.targets if isinstance(target, ast.Name)}
            names |= targets | (set(ast.literal_eval(node.value)) if "__all__" in targets else set())
    return names


@pytest.mark.parametrize("package", BACKENDS, ids=lambda path: path.name)
def test_row_files_are_named_alike_in_every_backend(package: Path) -> None:
    found = {path.name for path in (source_folder(package) / "_rows").glob("*.py")} - {"__init__.py"}
    listed = {key.rpartition("/")[2] for key in EXCEPTIONS if key.startswith(f"{package.name}/_rows/")}
    assert found - ROW_FILES == listed


@pytest.mark.parametrize(
    ("package", "name"),
    [(package, name) for package in BACKENDS for name in BACKEND_FILES],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_modules_are_named_alike_in_every_backend(package: Path, name: str) -> None:
    path = source_folder(package) / name
    defined = top_level_names(path) if path.is_file() else set()
    missing = {f"{name}:{wanted}" for wanted in BACKEND_FILES[name] if wanted not in defined}
    missing |= set() if path.is_file() else {name}
    excepted = {key.removeprefix(f"{package.name}/") for key in EXCEPTIONS if key.startswith(f"{package.name}/{name}")}
    assert missing == excepted


@pytest.mark.parametrize("package", BACKENDS, ids=lambda path: path.name)
def test_a_backend_with_several_targets_defines_them_in_target(package: Path) -> None:
    folder = source_folder(package)
    path = folder / "_target.py"
    has_targets = len(importlib.import_module(folder.name).BACKEND.targets) > 1
    assert path.is_file() == has_targets
    assert not has_targets or "TARGETS" in top_level_names(path)


def test_every_family_is_used() -> None:
    used = {path.name for package in BACKENDS for path in (source_folder(package) / "_rows").glob("*.py")}
    assert used >= ROW_FILES
