"""Packages that `qspec new-backend` writes, as backends of a test."""

import importlib
import sys
from pathlib import Path

from qspec_cli._scaffold import Kind, write_backend
from qspec_core.backend import Backend


def generated(name: str, folder: Path, kind: Kind = Kind.KERNELS, edit: tuple[str, str, str] | None = None) -> Backend:
    """Write a package, edit a file of it, and import it. The test puts `sys.path` back.

    Args:
        name: of the backend; each one is imported once.
        folder: where to write the package.
        kind: of the device.
        edit: a file below the package's module, a text that occurs there once, and what replaces it.
    """
    write_backend(name, kind, folder)
    if edit is not None:
        file, old, new = edit
        path = folder / "src" / f"qspec_{name}" / file
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))
    sys.path.append(str(folder / "src"))
    importlib.invalidate_caches()
    backend: Backend = importlib.import_module(f"qspec_{name}").BACKEND
    return backend
