"""Backends of broken distributions: each is written to disk, and imported by `probe` in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from _qspec_contract import InstalledBackend, probe

BROKEN = {
    "raises": ("raise RuntimeError('no driver is installed')", "no driver is installed"),
    "dies": ("import os; os._exit(7)", "ended the process with code 7"),
    "hangs": ("import time; time.sleep(600)", "did not end within 8 s"),
}


def distribution(folder: Path, name: str, source: str) -> InstalledBackend:
    """Write a distribution whose module is `source`, which registers a backend of that name."""
    (folder / f"vendor_{name}.py").write_text(source)
    metadata = folder / f"vendor_{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vendor-{name}\nVersion: 1.0\nSummary: A device\n")
    (metadata / "entry_points.txt").write_text(f"[qspec.backends.v1]\n{name} = vendor_{name}:BACKEND\n")
    return InstalledBackend(name, f"vendor-{name}", "1.0", "A device")


@pytest.mark.parametrize("name", ["dies", "hangs"])
def test_broken_backend_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    source, problem = BROKEN[name]
    entry = distribution(tmp_path, name, source)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    assert problem in probe(entry, timeout_s=8 if name == "hangs" else 60).problem


def test_entry_with_a_problem_is_not_imported(tmp_path: Path) -> None:
    unfit = InstalledBackend("relic", "vendor-relic", "1.0", problem="made for contract v0")
    assert probe(unfit) is unfit


def test_command_checks_all_backends_and_fails_for_one(tmp_path: Path) -> None:
    distribution(tmp_path, "raises", BROKEN["raises"][0])
    places = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    command = [sys.executable, "-c", "import qspec_cli; qspec_cli.main()", "backends", "--json"]
    listed = subprocess.run(command, capture_output=True, text=True, env=places, check=True)
    assert {entry["name"]: entry["problem"] for entry in json.loads(listed.stdout)}["raises"] == ""
    checked = subprocess.run([*command, "--check"], capture_output=True, text=True, env=places, check=False)
    found = {entry["name"]: entry["problem"] for entry in json.loads(checked.stdout)}
    assert checked.returncode == 1
    assert "no driver is installed" in found.pop("raises")
    assert set(found.values()) <= {""}


def test_listing_backends_imports_no_torch() -> None:
    code = "import sys, qspec_cli, _qspec_contract; _qspec_contract.installed_backends(); print('torch' in sys.modules)"
    places = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=places, check=True)
    assert done.stdout.strip() == "False"
