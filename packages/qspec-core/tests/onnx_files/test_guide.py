"""The code of docs/onnx.md runs."""

import re
from pathlib import Path
from typing import Any

import pytest

GUIDE = Path(__file__).parents[4] / "docs" / "onnx.md"


@pytest.mark.skipif(not GUIDE.exists(), reason="the guide is not in the sdist")
def test_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("qspec_xnnpack")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL):
        exec(compile(code, str(GUIDE), "exec"), names)
    assert names["check"].holds
    assert {entry.name for entry in tmp_path.iterdir()} == {"model.onnx", "for_openvino.onnx"}
    assert "True 0" in capsys.readouterr().out
