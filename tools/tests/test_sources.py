"""Rules about names in sources that neither ruff nor the import linter can state."""

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
