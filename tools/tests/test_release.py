"""The release tool: versions, contents of archives, and a whole release of a small repository."""

import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

import release
from release import Package, content_problems, next_version

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "qspec-toy"
version = "0.1.0"
description = "A toy"
readme = "README.md"
license = "Apache-2.0"
requires-python = ">=3.11"
license-files = ["LICENSE"]

[tool.hatch.build.targets.wheel]
packages = ["src/qspec_toy"]
"""
SHARED = (release.ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("version", "kinds", "released", "wanted"),
    [
        ("0.1.0", {"breaking"}, False, "0.1.0"),
        ("0.1.0", {"fix"}, True, "0.1.1"),
        ("0.1.9", {"feature", "fix"}, True, "0.1.10"),
        ("0.1.3", {"fix", "breaking"}, True, "0.2.0"),
        ("1.2.3", {"fix", "change"}, True, "1.2.4"),
        ("1.2.3", {"feature", "fix"}, True, "1.3.0"),
        ("1.2.3", {"breaking"}, True, "2.0.0"),
    ],
)
def test_version_follows_from_the_kinds_of_changes(version: str, kinds: set[str], released: bool, wanted: str) -> None:
    assert next_version(version, kinds, released=released) == wanted


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def git(root: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository of one package, whose version 0.1.0 is released; it has one fix since."""
    folder = tmp_path / "packages" / "qspec-toy"
    write(tmp_path / "pyproject.toml", SHARED)
    write(folder / "pyproject.toml", PYPROJECT)
    write(folder / "CHANGELOG.md", "# Changelog\n\n<!-- releases -->\n")
    for name in ("README.md", "LICENSE", "src/qspec_toy/py.typed"):
        write(folder / name, "text")
    write(folder / "src/qspec_toy/__init__.py", '__all__ = ["run", "stop"]\ndef run(x): ...\ndef stop(): ...\n')
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    git(tmp_path, "tag", "qspec-toy-v0.1.0")
    write(folder / "changelog.d/7.fix.md", "`run` works.")
    return tmp_path


def commit(repository: Path) -> None:
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "second")


def test_dry_run_builds_and_changes_nothing(repository: Path, capfd: pytest.CaptureFixture[str]) -> None:
    commit(repository)
    assert release.main(["toy"], repository) == 0
    printed = capfd.readouterr().out
    assert "0.1.0 -> 0.1.1" in printed
    assert "`run` works. (#7)" in printed
    assert {path.name for path in (repository / "dist").iterdir()} == {
        "qspec_toy-0.1.0-py3-none-any.whl",
        "qspec_toy-0.1.0.tar.gz",
    }
    (repository / "dist").rename(repository.parent / f"{repository.name}-dist")
    done = subprocess.run(["git", "status", "--short"], cwd=repository, check=True, capture_output=True, text=True)
    assert done.stdout == ""


def test_name_that_is_gone_needs_a_breaking_fragment(repository: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = repository / "packages" / "qspec-toy"
    write(folder / "src/qspec_toy/__init__.py", '__all__ = ["run"]\ndef run(x): ...\n')
    commit(repository)
    assert release.main(["toy"], repository) == 1
    printed = capfd.readouterr().out
    assert "no fragment in changelog.d is of the kind breaking" in printed
    assert "stop" in printed
    write(folder / "changelog.d/8.breaking.md", "`stop` is gone.")
    commit(repository)
    assert release.main(["toy", "--write"], repository) == 0
    assert Package(repository, "toy").version == "0.2.0"
    text = (folder / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## 0.2.0 (" in text
    assert "`stop` is gone. (#8)" in text
    assert not list((folder / "changelog.d").glob("[0-9]*"))


def test_contents_that_have_no_place_in_a_wheel(repository: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "bad.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ("qspec_toy/__init__.py", "qspec_toy/tests/test_a.py", "other/__init__.py"):
            archive.writestr(name, "")
    found = "\n".join(content_problems(Package(repository, "toy"), wheel))
    assert "holds ['other', 'qspec_toy'], not ['qspec_toy']" in found
    assert "qspec_toy/tests/test_a.py has no place" in found
    assert "lacks qspec_toy/py.typed" in found
    assert "lacks .dist-info/licenses/LICENSE" in found


def test_contents_that_an_sdist_lacks(repository: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(repository / "packages/qspec-toy/LICENSE", "qspec_toy-0.1.0/LICENSE")
    found = list(content_problems(Package(repository, "toy"), path))
    assert [problem.partition("lacks ")[2] for problem in found] == ["/README.md", "/CHANGELOG.md", "/pyproject.toml"]
