"""Contents of the wheels."""

import zipfile
from pathlib import Path

import pytest

FOLDERS = Path(__file__).parents[1].glob("packages/qspec-*/pyproject.toml")
TOP_LEVEL = {path.parent.name: {path.parent.name.replace("-", "_")} for path in sorted(FOLDERS)}
TOP_LEVEL["qspec-core"] |= {"qspec_cli", "_qspec_contract"}


def names_in(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def text_in(wheel: Path, ending: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(ending))
        return archive.read(name).decode()


def test_every_package_has_a_wheel(wheels: dict[str, Path]) -> None:
    assert set(wheels) == set(TOP_LEVEL)


@pytest.mark.parametrize("package", TOP_LEVEL)
def test_wheel_holds_its_packages_typed_and_licensed(wheels: dict[str, Path], package: str) -> None:
    names = names_in(wheels[package])
    own = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert own == TOP_LEVEL[package]
    assert {f"{name}/py.typed" for name in own} <= set(names)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert not [
        name
        for name in names
        if "cache" in name or (not name.endswith((".py", ".jinja", "py.typed")) and ".dist-info/" not in name)
    ]


@pytest.mark.parametrize("package", [name for name in TOP_LEVEL if name != "qspec-core"])
def test_backend_registers_itself_and_asks_for_a_range_of_core(wheels: dict[str, Path], package: str) -> None:
    name = package.removeprefix("qspec-")
    entry_points = text_in(wheels[package], "entry_points.txt")
    assert entry_points.split() == ["[qspec.backends.v1]", name, "=", f"qspec_{name}:BACKEND"]
    assert "Requires-Dist: qspec-core<0.2,>=0.1\n" in text_in(wheels[package], "METADATA")


def test_core_asks_for_four_distributions(wheels: dict[str, Path]) -> None:
    lines = text_in(wheels["qspec-core"], "METADATA").splitlines()
    required = [line.split()[1] for line in lines if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert sorted(name.split(">")[0] for name in required) == ["rich", "safetensors", "torch", "typer"]
