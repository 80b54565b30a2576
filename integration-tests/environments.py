"""Virtual environments that the tests of built wheels make."""

import os
import subprocess
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

__all__ = ["Environment", "place"]

CONSTRAINTS = Path(__file__).parents[1] / "constraints" / "torch-2.13.txt"


def place(variable: str) -> Path:
    """Folder that the nox session set in an environment variable."""
    if variable not in os.environ:
        pytest.fail(f"{variable} is not set: run these tests with `nox -s 'tests(integration)'`")
    return Path(os.environ[variable]).resolve()


def _site_packages(environment: Path) -> Path:
    return Path(sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)}))


@dataclass(frozen=True)
class Environment:
    """A virtual environment, to run programs in."""

    folder: Path

    def run(self, program: str, *arguments: str, folder: Path | None = None) -> str:
        """Output of a program of the environment, run in a folder. If it fails, the test fails with the output."""
        command = [str(self.folder / "bin" / program), *arguments]
        # -P and no PYTHONPATH: only installed packages can be imported.
        variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        variables["PYTHONSAFEPATH"] = "1"
        done = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=folder, check=False)
        if done.returncode:
            pytest.fail(f"{' '.join(command)}\nexit code {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def install(self, *arguments: str, folder: Path | None = None) -> None:
        options = ("--quiet", "--no-compile", "--constraint", str(CONSTRAINTS))
        self.run("python", "-m", "pip", "install", *options, *arguments, folder=folder)

    @classmethod
    def make(cls, folder: Path, *, with_torch: bool) -> "Environment":
        """A new environment, with torch or with nothing."""
        venv.create(folder, with_pip=True)
        if with_torch:
            path = _site_packages(place("QSPEC_TORCH_ONLY"))
            (_site_packages(folder) / "torch_only.pth").write_text(f"{path}\n", encoding="utf-8")
        return cls(folder)
