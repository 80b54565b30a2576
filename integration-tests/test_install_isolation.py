"""Each backend installs, imports and quantizes with core alone; core works without any backend."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from environments import Environment

TOY = Path(__file__).with_name("quantize_toy.py")
OTHERS = ("executorch", "torchao", "onnx", "pytest", "scipy", "qspec_x86", "qspec_xnnpack", "qspec_xpu")
# Rounding to 8 bits gives about 50 dB for a tensor at best; a wrong scale, layout or layer gives single digits.
SQNR = 20.0


@dataclass(frozen=True)
class Installation:
    """Requirements that pip installs with core, and modules that must be missing then."""

    backends: tuple[str, ...]
    extras: str = ""
    absent: tuple[str, ...] = OTHERS


ALONE = Installation(backends=())
X86 = Installation(backends=("x86",), absent=tuple(name for name in OTHERS if name != "qspec_x86"))
XNNPACK = Installation(backends=("xnnpack",), extras="[executorch]", absent=("qspec_x86", "qspec_xpu"))
EXPORT = Installation(backends=("xnnpack",), absent=tuple(name for name in OTHERS if name != "qspec_xnnpack"))
XPU = Installation(backends=("xpu",), absent=tuple(name for name in OTHERS if name != "qspec_xpu"))

every = pytest.mark.parametrize(
    "installation", [ALONE, X86, XNNPACK, EXPORT, XPU], ids=["core", "x86", "xnnpack", "export", "xpu"]
)

Installed = Callable[[Installation], Environment]


@pytest.fixture(scope="module")
def installed(make_environment: Callable[..., Environment], wheels: dict[str, Path]) -> Installed:
    """Function that returns the environment of an installation and makes it once."""
    made: dict[Installation, Environment] = {}

    def get(installation: Installation) -> Environment:
        if installation not in made:
            environment = make_environment(with_torch=True)
            wanted = [f"{wheels[f'qspec-{name}']}{installation.extras}" for name in installation.backends]
            environment.install(str(wheels["qspec-core"]), *wanted)
            made[installation] = environment
        return made[installation]

    return get


@every
def test_lists_what_is_installed(installed: Installed, installation: Installation) -> None:
    environment = installed(installation)
    listed = json.loads(environment.run("qspec", "backends", "--json"))
    assert [entry["name"] for entry in listed] == list(installation.backends)
    assert not [entry["problem"] for entry in listed if entry["problem"]]
    assert "No broken requirements" in environment.run("python", "-m", "pip", "check")


@every
def test_imports_without_the_rest(installed: Installed, installation: Installation) -> None:
    modules = ["qspec_core", *(f"qspec_{name}" for name in installation.backends)]
    loads = "\n".join(f"import {name}" for name in modules)
    finds = f"print([name for name in {installation.absent!r} if importlib.util.find_spec(name)])"
    printed = installed(installation).run("python", "-c", f"import importlib.util\n{loads}\n{finds}")
    assert printed.splitlines()[-1] == "[]"


@pytest.mark.parametrize("installation", [X86, XNNPACK], ids=["x86", "xnnpack"])
def test_quantizes_and_runs(installed: Installed, installation: Installation) -> None:
    (backend,) = installation.backends
    printed = installed(installation).run("python", str(TOY), backend, *installation.absent)
    found = json.loads(printed.strip().splitlines()[-1])
    assert found["importable"] == []
    assert found["sqnr"] > SQNR


def test_help_needs_no_torch(make_environment: Callable[..., Environment], wheels: dict[str, Path]) -> None:
    environment = make_environment(with_torch=False)
    environment.install("rich", "typer")
    environment.install("--no-deps", str(wheels["qspec-core"]))
    assert "quantize" in environment.run("qspec", "--help")
