"""Every subset of the packages installs, imports and quantizes without the others."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pytest
from environments import Environment

TOY = Path(__file__).with_name("quantize_toy.py")
FOLDERS = Path(__file__).parents[1].glob("packages/qspec-*/pyproject.toml")
BACKENDS = tuple(
    sorted(path.parent.name.removeprefix("qspec-") for path in FOLDERS if path.parent.name != "qspec-core")
)
# What no package of ours brings unless an extra asks for it.
LIBRARIES = ("executorch", "torchao", "onnx", "pytest", "scipy")
EXTRAS = {"xnnpack": "[executorch]"}
"""Extras that a backend needs to run what it lowers."""
# Rounding to 8 bits gives about 50 dB for a tensor at best; a wrong scale, layout or layer gives single digits.
SQNR = 20.0


@dataclass(frozen=True)
class Installation:
    """Backends that pip installs with core, with the libraries of their devices or without."""

    backends: tuple[str, ...]
    runs: bool = False

    def __str__(self) -> str:
        return "+".join(("core", *self.backends)) + ("+libraries" if self.runs else "")

    @property
    def requirements(self) -> tuple[tuple[str, str], ...]:
        """Backends, each with its extras."""
        return tuple((name, EXTRAS.get(name, "") if self.runs else "") for name in self.backends)

    @property
    def absent(self) -> tuple[str, ...]:
        """Modules that must be missing. A device's library brings whatever it wants."""
        libraries = LIBRARIES if not any(extras for _, extras in self.requirements) else ()
        return (*libraries, *(f"qspec_{name}" for name in BACKENDS if name not in self.backends))

    @property
    def runnable(self) -> str | None:
        """The backend whose device is the CPU that runs the tests, where it is alone and has all that it needs."""
        alone = self.backends[0] if len(self.backends) == 1 else None
        return alone if alone in RUNS_HERE and (self.runs or alone not in EXTRAS) else None


RUNS_HERE = ("x86", "xnnpack")
SUBSETS = [Installation(chosen) for count in range(len(BACKENDS) + 1) for chosen in combinations(BACKENDS, count)]


# One test for each installation: its environment takes longer to make than to use.
@pytest.mark.parametrize("installation", [*SUBSETS, *(Installation((name,), runs=True) for name in EXTRAS)], ids=str)
def test_installation_lists_imports_and_runs_what_it_has_and_no_more(
    make_environment: Callable[..., Environment], wheels: dict[str, Path], installation: Installation
) -> None:
    environment = make_environment(with_torch=True)
    wanted = [f"{wheels[f'qspec-{name}']}{extras}" for name, extras in installation.requirements]
    environment.install(str(wheels["qspec-core"]), *wanted)
    listed = json.loads(environment.run("qspec", "backends", "--json"))
    assert [entry["name"] for entry in listed] == list(installation.backends)
    assert not [entry["problem"] for entry in listed if entry["problem"]]
    assert "No broken requirements" in environment.run("python", "-m", "pip", "check")

    loads = "\n".join(f"import {name}" for name in ("qspec_core", *(f"qspec_{name}" for name in installation.backends)))
    finds = f"print([name for name in {installation.absent!r} if importlib.util.find_spec(name)])"
    printed = environment.run("python", "-c", f"import importlib.util\n{loads}\n{finds}")
    assert printed.splitlines()[-1] == "[]"

    if installation.runnable is not None:
        printed = environment.run("python", str(TOY), installation.runnable, *installation.absent)
        found = json.loads(printed.strip().splitlines()[-1])
        assert found["importable"] == []
        assert found["sqnr"] > SQNR


def test_help_and_the_list_of_backends_need_no_torch(
    make_environment: Callable[..., Environment], wheels: dict[str, Path]
) -> None:
    environment = make_environment(with_torch=False)
    environment.install("rich", "typer")
    environment.install("--no-deps", str(wheels["qspec-core"]))
    assert "quantize" in environment.run("qspec", "--help")
    assert json.loads(environment.run("qspec", "backends", "--json")) == []
