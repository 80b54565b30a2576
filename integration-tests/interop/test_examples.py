"""The programs in docs/migrating.md run."""

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parent.parent.parent / "docs" / "migrating.md"
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)

pytest.importorskip("torchao")
pytestmark = pytest.mark.filterwarnings("default")  # torchao and ExecuTorch warn about their own code


def test_both_directions_are_shown() -> None:
    assert len(PROGRAMS) == 2


@pytest.mark.parametrize("program", PROGRAMS, ids=["theirs", "ours"])
def test_program(program: str) -> None:
    pytest.importorskip("executorch")
    pytest.importorskip("qspec_x86")
    names: dict[str, Any] = {}
    exec(program, names)
    assert any("quantize_per_tensor" in str(node.target) for node in names["converted"].graph.nodes)
