"""Figures of small packages, counted by hand."""

import json
from pathlib import Path

import pytest

import structure

FILES = {
    "__init__": "from pkg._top import run\n",
    "_top": "from pkg.middle import Thing\nfrom pkg import low\nimport os\n",
    "middle/__init__": "from pkg.middle._parts import Thing\n",
    "middle/_parts": "def f():\n    import pkg.low\n",  # an import inside a function
    "low": "",
    "alone": "from . import low\n",
}


def package(folder: Path, files: dict[str, str]) -> Path:
    root = folder / "src" / "pkg"
    for name, text in files.items():
        path = root / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_figures_of_a_small_package(tmp_path: Path) -> None:
    found = structure.measure(package(tmp_path, FILES))
    assert (found.rooms, found.files, found.files_by_folder) == (4, 6, {".": 4, "middle": 2})
    # _top -> middle, _top -> low, middle -> low, alone -> low; the root's __init__ is no room
    assert (found.layers, found.longest_chain) == (3, ("pkg._top", "pkg.middle", "pkg.low"))
    assert found.room_arrows == 4
    # the same four, with middle/_parts -> low in place of middle -> low; then __init__ -> _top, middle -> middle/_parts
    assert found.file_arrows == 6
    assert (found.room_circles, found.file_circles) == ((), ())


@pytest.mark.parametrize(
    "statement", ["from pkg._top import run", "from pkg import _top", "import pkg._top", "from ._top import run"]
)
def test_circle_is_found_however_the_import_is_written(tmp_path: Path, statement: str) -> None:
    typed = f"from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    {statement}\n"
    root = package(tmp_path, FILES | {"low": typed})
    assert structure.measure(root).file_circles == (("pkg._top", "pkg.low", "pkg.middle", "pkg.middle._parts"),)
    assert structure.measure(root).longest_chain == ("pkg.alone", "pkg._top + pkg.low + pkg.middle")


def test_circle_of_rooms_needs_no_circle_of_files(tmp_path: Path) -> None:
    found = structure.measure(package(tmp_path, FILES | {"middle/_other": "import pkg._top\n"}))
    assert (found.room_circles, found.file_circles) == ((("pkg._top", "pkg.middle"),), ())


def test_command_fails_on_a_circle_and_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package(tmp_path, FILES)
    assert structure.main([str(tmp_path), "--json"]) == 0
    (printed,) = json.loads(capsys.readouterr().out)
    assert (printed["package"], printed["layers"]) == ("pkg", 3)
    package(tmp_path, {"low": "import pkg.alone"})
    assert structure.main([str(tmp_path)]) == 1
    assert "circle of files: pkg.alone <-> pkg.low" in capsys.readouterr().out


def test_command_fails_where_there_is_no_package(tmp_path: Path) -> None:
    assert structure.main([str(tmp_path)]) == 1
