import sys
from pathlib import Path

import pytest

import api_snapshot
from api_snapshot import SnapshotError, main, snapshot

TIERS = {"demo_api.public": "backend authors"}

SOURCE = """
__all__ = ["LIMIT", "Box", "grow"]
LIMIT = 3
def grow(x: int, *, by: int = 1) -> int: return x + by
def hidden() -> None: ...
class Box(dict):
    @property
    def size(self) -> int: return 1
    def open(self, wide: bool) -> None: ...
    def _close(self) -> None: ...
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "pkg" / "src" / "demo_api"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(SOURCE)
    (folder / "public.py").write_text('__all__ = ["Box"]\nfrom demo_api import Box\n')
    (folder / "_private.py").write_text("raise RuntimeError('never imported')\n")
    monkeypatch.syspath_prepend(folder.parent)
    for name in ("demo_api", "demo_api.public"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(api_snapshot, "tiers", lambda: TIERS)
    return tmp_path / "pkg"


def test_lists_public_names_with_signatures(package: Path) -> None:
    assert snapshot(["demo_api"], TIERS).splitlines() == [
        "# users",
        "",
        "[demo_api]",
        "class demo_api.Box(...) < dict",
        "    .open(self, wide: bool) -> None",
        "    .size  [property]",
        "value demo_api.LIMIT: int",
        "def demo_api.grow(x: int, *, by: int = 1) -> int",
        "",
        "# backend authors",
        "",
        "[demo_api.public]",
        "same demo_api.public.Box = demo_api.Box",
    ]


def test_difference_fails_until_updated(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(package)]) == 1
    assert "+def demo_api.grow(x: int, *, by: int = 1) -> int" in capsys.readouterr().out
    assert main(["--update", str(package)]) == 0
    assert main([str(package)]) == 0


@pytest.mark.parametrize(("body", "message"), [("x = 1", "no __all__"), ('__all__ = ["gone"]', "lists gone")])
def test_unlisted_and_missing_names_are_errors(package: Path, body: str, message: str) -> None:
    (package / "src" / "demo_api" / "public.py").write_text(body)
    with pytest.raises(SnapshotError, match=message):
        snapshot(["demo_api"], TIERS)


def test_public_module_without_a_tier_is_an_error(package: Path) -> None:
    with pytest.raises(SnapshotError, match=r"demo_api\.public is public and has no tier"):
        snapshot(["demo_api"], {})
