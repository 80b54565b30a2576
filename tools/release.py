"""Release of one package: the files that go to an index, checked; a dry run unless `--write` is given.

    python tools/release.py core             build, check, show the changelog and the version that follows from it
    python tools/release.py core --write     the same, and write the version and the changelog into the package

Nothing is uploaded or tagged: the last lines say the commands. A release is a tag `qspec-core-v0.1.0`; packages are
released one by one.
"""

import argparse
import filecmp
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Package", "content_problems", "main", "next_version", "reproducible_build"]

ROOT = Path(__file__).resolve().parent.parent
_UNWANTED = re.compile(r"(^|/)(__pycache__|\.[a-z]+_cache|conftest\.py|tests?)(/|$)|\.pyc$")
_IGNORED = shutil.ignore_patterns("__pycache__", "dist", ".*_cache", ".hypothesis")


@dataclass(frozen=True)
class Package:
    """One package of the repository.

    Args:
        root: the repository's folder.
        name: its short name: "core", "x86".
    """

    root: Path
    name: str

    @property
    def folder(self) -> Path:
        """The folder that holds it."""
        return self.root / "packages" / f"qspec-{self.name}"

    @property
    def version(self) -> str:
        """The version in its pyproject.toml."""
        project = tomllib.loads((self.folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return str(project["version"])

    @property
    def modules(self) -> list[str]:
        """Its top-level packages."""
        return sorted(path.parent.name for path in self.folder.glob("src/*/__init__.py"))

    @property
    def kinds(self) -> set[str]:
        """Kinds of the changes since the last release."""
        return {path.name.split(".")[1] for path in (self.folder / "changelog.d").glob("[0-9]*.md")}

    @property
    def last_release(self) -> str | None:
        """The newest tag of the package, None before its first release."""
        tags = _output("git", "tag", "--list", f"qspec-{self.name}-v*", "--sort=-v:refname", at=self.root).split()
        return tags[0] if tags else None


def next_version(version: str, kinds: set[str], *, released: bool) -> str:
    """The version of the next release, by semantic versioning.

    Args:
        version: the present one, three numbers.
        kinds: kinds of the changes since.
        released: whether the present version was released; one that was not is the next.
    """
    major, minor, patch = map(int, version.split("."))
    if not released:
        return version
    if "breaking" in kinds:  # before 1.0 the minor version may break
        return f"{major + 1}.0.0" if major else f"0.{minor + 1}.0"
    if "feature" in kinds and major:
        return f"{major}.{minor + 1}.0"
    return f"{major}.{minor}.{patch + 1}"


def reproducible_build(package: Package, out: Path) -> list[Path]:
    """Build the sdist and the wheel twice, in two folders, and keep the first.

    Raises: SystemExit: the two differ.
    """
    # Both builds get the time of the commit: a wheel stores a time with each file.
    stamp = _output("git", "log", "-1", "--format=%ct", at=package.root).strip()
    built = []
    for place in ("first", "second"):
        copy = out / place / "source"
        shutil.copytree(package.folder, copy, ignore=_IGNORED)
        env = {**os.environ, "SOURCE_DATE_EPOCH": stamp}
        command = [
            sys.executable,
            "-m",
            "build",
            "--quiet",
            "--no-isolation",
            "--outdir",
            str(out / place / "dist"),
            str(copy),
        ]
        subprocess.run(command, check=True, env=env)
        built.append(sorted((out / place / "dist").iterdir()))
    for first, second in zip(*built, strict=True):
        if not filecmp.cmp(first, second, shallow=False):
            raise SystemExit(f"{first.name}: two builds of the same sources differ")
    return built[0]


def content_problems(package: Package, path: Path) -> Iterator[str]:
    """Files that an archive lacks, and files that it must not hold."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            names = wheel.namelist()
        own = {name.split("/")[0] for name in names if ".dist-info/" not in name}
        if own != set(package.modules):
            yield f"{path.name}: holds {sorted(own)}, not {package.modules}"
        yield from (f"{path.name}: {name} has no place in a wheel" for name in names if _UNWANTED.search(name))
        wanted = [*(f"{name}/py.typed" for name in package.modules), ".dist-info/licenses/LICENSE"]
    else:
        with tarfile.open(path) as sdist:
            names = sdist.getnames()
        unwanted = [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
        yield from (f"{path.name}: {name} is a cache" for name in unwanted)
        wanted = ["/LICENSE", "/README.md", "/CHANGELOG.md", "/pyproject.toml"]
    yield from (f"{path.name}: lacks {ending}" for ending in wanted if not any(name.endswith(ending) for name in names))


def _api_problems(package: Package, kinds: set[str]) -> list[str]:
    """Breaking changes of the public names since the last release that no changelog fragment announces."""
    last = package.last_release
    if last is None:
        print("api: no release to compare with")
        return []
    found = []
    for module in package.modules:
        if module.startswith("_"):
            continue
        # A relative path: griffe looks there in the tree of each of the two versions.
        place = str((package.folder / "src").relative_to(package.root))
        command = ("griffe", "check", module, "--against", last, "--search", place)
        done = subprocess.run(command, capture_output=True, text=True, cwd=package.root, check=False)
        found += [line for line in (done.stdout + done.stderr).splitlines() if line.strip()] if done.returncode else []
    print(f"api: {len(found)} breaking changes since {last}", *found, sep="\n  ")
    if found and "breaking" not in kinds:
        return [f"names broke since {last}, and no fragment in changelog.d is of the kind breaking"]
    return []


def _changelog(package: Package, version: str, *, write: bool) -> None:
    """Show the release's changelog, or write it and remove the fragments."""
    options = ["--yes"] if write else ["--draft"]
    place = ("--config", str(package.root / "pyproject.toml"), "--dir", str(package.folder))
    named = ("--name", f"qspec-{package.name}", "--version", version)
    subprocess.run(["towncrier", "build", *options, *place, *named], check=True, cwd=package.root)


def _output(*command: str, at: Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=at).stdout


def _write_version(package: Package, version: str) -> None:
    path = package.folder / "pyproject.toml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(f'version = "{package.version}"', f'version = "{version}"', 1), encoding="utf-8")


def _checked_files(package: Package) -> list[str]:
    """Build, check, and copy the files to the folder `dist`; return the problems."""
    target = package.root / "dist"
    target.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        files = reproducible_build(package, Path(folder))
        print("build: equal, byte for byte, in two folders")
        subprocess.run(["twine", "check", "--strict", *map(str, files)], check=True)
        for path in files:
            shutil.copy(path, target)
            print(f"{target / path.name}  {path.stat().st_size / 1024:.0f} KiB")
        return [problem for path in files for problem in content_problems(package, path)]


def main(arguments: Sequence[str], root: Path = ROOT) -> int:
    """Check one package for release; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("package", choices=sorted(path.name[6:] for path in (root / "packages").glob("qspec-*")))
    parser.add_argument("--write", action="store_true", help="write the version and the changelog")
    given = parser.parse_args(arguments)
    package, kinds = Package(root, given.package), Package(root, given.package).kinds
    version = next_version(package.version, kinds, released=package.last_release is not None)
    print(f"qspec-{package.name}: {package.version} -> {version}; last release: {package.last_release or 'none'}")
    problems = _api_problems(package, kinds)
    if given.write:
        _write_version(package, version)
    _changelog(package, version, write=given.write)
    problems += _checked_files(package)
    print(*problems, sep="\n")
    if not problems:
        tag = f"qspec-{package.name}-v{version}"
        print(f"ready. To release: git tag {tag}; git push --tags; twine upload dist/qspec_{package.name}-{version}*")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
