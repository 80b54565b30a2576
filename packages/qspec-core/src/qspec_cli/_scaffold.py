"""The work of `qspec new-backend`: a package from the template in this wheel."""

import re
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from qspec_core._errors import BackendError
from qspec_core.backend import ENTRY_POINT_GROUP

__all__ = ["Kind", "render", "write_backend"]

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


class Kind(StrEnum):
    """The kinds of device that there are templates for."""

    KERNELS = "kernels"  # its kernels are operators that a graph calls
    COMPILER = "compiler"  # a compiler makes a program of the graph, in a file


@dataclass(frozen=True)
class _File:
    """A file of the template: its path in the package, and its text before it is rendered."""

    path: str
    text: str


def render(name: str, kind: Kind) -> dict[str, str]:
    """The files of a new package, by path.

    Args:
        name: name of the backend.
        kind: the kind of device.
    Raises: BackendError: the name is no name of a backend, or jinja2 is missing.
    """
    if not _NAME.fullmatch(name):
        raise BackendError(
            f"{name!r} is no name of a backend",
            found=name,
            expected="lower-case letters, digits and single underscores, a letter first",
            remedy="choose such a name: it becomes part of a module's name",
        )
    try:
        import jinja2
    except ImportError as error:
        raise BackendError(
            "qspec new-backend renders a template with jinja2, which is not installed",
            found=str(error),
            remedy="pip install 'qspec-core[new-backend]'",
        ) from error
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    major, minor = version("qspec-core").split(".")[:2]
    words = {
        "name": name,
        "module": f"qspec_{name}",
        "distribution": f"qspec-{name.replace('_', '-')}",
        "kind": kind.value,
        "group": ENTRY_POINT_GROUP,
        "core": f"{major}.{minor}",
        "next_core": f"{major}.{int(minor) + 1}",
    }
    rendered = {}
    for file in _files(files("qspec_cli") / "_templates" / "backend", ""):
        text = environment.from_string(file.text).render(words)
        if text or not file.text.strip():  # a file of another kind renders to nothing
            # A folder named "tests" has no place in a wheel.
            rendered[file.path.replace("MODULE", words["module"]).replace("TESTS", "tests")] = text
    return rendered


def _files(folder: Traversable, prefix: str) -> list[_File]:
    found = []
    for entry in sorted(folder.iterdir(), key=_name):
        name = entry.name.replace("dot_", ".", 1) if entry.name.startswith("dot_") else entry.name
        if entry.is_dir():
            found += _files(entry, f"{prefix}{name}/")
        elif name.endswith(".jinja"):
            found.append(_File(f"{prefix}{name.removesuffix('.jinja')}", entry.read_text(encoding="utf-8")))
    return found


def _name(entry: Traversable) -> str:
    return entry.name


def write_backend(name: str, kind: Kind, folder: Path) -> tuple[Path, ...]:
    """Write a new package.

    Args:
        name: name of the backend.
        kind: the kind of device.
        folder: where to write it; it must not exist, or be empty.
    Returns: the paths of the files.
    Raises: BackendError: as `render`, or the folder has files.
    """
    rendered = render(name, kind)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BackendError(
            f"{folder} is not empty", found=str(folder), expected="a new folder", remedy="pass another path as --output"
        )
    paths = []
    for path, text in rendered.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        paths.append(target)
    return tuple(paths)
