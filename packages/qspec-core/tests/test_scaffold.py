"""`qspec new-backend` and `qspec scorecard`."""

import json
import sys
from pathlib import Path

import pytest
from generated_device import generated
from typer.testing import CliRunner

from qspec_cli import app
from qspec_cli._scaffold import Kind, render, write_backend
from qspec_core import BackendError
from qspec_core.testing import Scorecard

runner = CliRunner()


def test_writes_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = runner.invoke(app, ["new-backend", "my_chip"])
    assert done.exit_code == 0, done.output
    written = {
        path.relative_to(tmp_path / "qspec-my-chip").as_posix() for path in tmp_path.rglob("*") if path.is_file()
    }
    assert {"pyproject.toml", ".gitignore", ".github/workflows/ci.yml", "src/qspec_my_chip/py.typed"} <= written
    assert "src/qspec_my_chip/_lowering/_compiler.py" not in written
    project = (tmp_path / "qspec-my-chip" / "pyproject.toml").read_text()
    assert '[project.entry-points."qspec.backends.v1"]\nmy_chip = "qspec_my_chip:BACKEND"' in project


def test_another_kind_has_a_compiler() -> None:
    assert "src/qspec_toy/_lowering/_compiler.py" in render("toy", Kind.COMPILER)
    assert runner.invoke(app, ["new-backend", "toy", "--kind", "magic"]).exit_code == 2


@pytest.mark.parametrize("name", ["Toy", "1toy", "toy__x", "", "../toy", "toy-x"])
def test_a_name_must_be_part_of_a_modules_name(name: str) -> None:
    with pytest.raises(BackendError, match="no name of a backend"):
        render(name, Kind.KERNELS)


def test_a_folder_with_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(BackendError, match="is not empty"):
        write_backend("toy", Kind.KERNELS, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_says_what_to_install_for_the_template(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(BackendError) as caught:
        render("toy", Kind.KERNELS)
    assert "qspec-core[new-backend]" in caught.value.remedy


def test_scorecard_writes_files_and_fails_with_the_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    backend = generated("carded", tmp_path / "package")
    cards = [Scorecard("carded", "any", (), {"a": "passed"}, ()), Scorecard("carded", "any", (), {"a": "table"}, ())]
    monkeypatch.setattr("qspec_core.backend.get_backend", lambda name: backend)
    monkeypatch.setattr("qspec_core.testing.scorecard", lambda found: cards.pop(0))
    arguments = ["scorecard", "carded", "--json", str(tmp_path / "card.json"), "--svg", str(tmp_path / "card.svg")]
    assert runner.invoke(app, arguments).exit_code == 0
    assert json.loads((tmp_path / "card.json").read_text())["backend"] == "carded"
    assert (tmp_path / "card.svg").read_text().startswith("<svg")
    done = runner.invoke(app, arguments)
    assert done.exit_code == 1
    assert "a: table" in done.output
