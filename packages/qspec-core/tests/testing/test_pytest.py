"""The kit as tests of pytest, by the name of an installed backend."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from generated_device import generated

KIT = ("--pyargs", "qspec_core.testing")


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = [str(folder), str(folder / "package" / "src"), *sys.path]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=variables, check=False)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with a generated package and the metadata of its distribution."""
    monkeypatch.syspath_prepend(str(tmp_path))
    generated("tested", tmp_path / "package")
    info = tmp_path / "qspec_tested-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: qspec-tested\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[qspec.backends.v1]\ntested = qspec_tested:BACKEND\n")
    return tmp_path


def test_by_the_name_of_an_installed_backend(installed: Path) -> None:
    done = run_pytest(installed, *KIT, "--backend", "tested")
    assert "15 passed" in done.stdout, done.stdout + done.stderr


def test_a_run_needs_a_name(installed: Path) -> None:
    assert "name a backend: pytest --pyargs" in run_pytest(installed, *KIT).stdout
