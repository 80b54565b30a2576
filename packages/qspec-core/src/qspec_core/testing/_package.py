"""The case of a packaged file: it is written, moved, loaded and compared."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.fx import GraphModule

from qspec_core._agreement import calls_of, check_lowered
from qspec_core._errors import BackendError
from qspec_core.backend import Backend
from qspec_core.testing._checks import Snapshot
from qspec_core.testing._errors import CheckName, ConformanceError, DeviceMissingError
from qspec_core.testing._general import converted_layers
from qspec_core.testing._kit import Load

__all__ = ["PackageCase"]


@dataclass(frozen=True)
class PackageCase:
    """A file that the backend packages must load, in another folder, and compute what the converted graph does."""

    backend: Backend
    target: str
    load: Load | None

    def __str__(self) -> str:
        return f"package for {self.target}"

    @classmethod
    def all(cls, backend: Backend, targets: tuple[str, ...], load: Load | None) -> "tuple[PackageCase, ...]":
        """One case for the first target, if the backend has a file."""
        return () if backend.package is None else (cls(backend, targets[0], load),)

    def check(self) -> None:
        """Raises: ConformanceError, DeviceMissingError: as `Case.check`."""
        if self.load is None:
            raise self._failed("nothing loads it", "pass load=, a function that loads the file, to the Kit")
        inputs = (torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0)),)
        converted = converted_layers(self.backend, self.target, inputs)
        before = Snapshot.of(converted)
        try:
            with tempfile.TemporaryDirectory() as folder:
                moved = self._written(converted, inputs, Path(folder))
                check = check_lowered(self.load(moved), calls_of(converted, inputs), keeps_state=False)
        except BackendError as error:
            raise DeviceMissingError(
                f"not packaged: {error.problem}", found=error.found, remedy=error.remedy
            ) from error
        except ConformanceError:
            raise
        except Exception as error:  # a file that does not load can raise anything
            found = f"{type(error).__name__}: {error}"
            raise self._failed(found, "load the file with the functions that a user has") from error
        before.check(converted, "packaging")
        if not check.holds:
            raise self._failed(str(check.worst), "compare what was written with what is lowered")

    def _written(self, converted: GraphModule, inputs: tuple[torch.Tensor, ...], folder: Path) -> Path:
        """Package, and move the file to a folder where nothing else is."""
        wanted, elsewhere = folder / "written" / f"model{self.backend.suffix}", folder / "elsewhere"
        wanted.parent.mkdir()
        elsewhere.mkdir()
        package = self.backend.package
        path = None if package is None else package(converted, inputs, wanted, self.target)
        if path is None or not path.is_file() or not path.stat().st_size:
            raise self._failed(f"no file at {path}", "return the path of the file that was written")
        return path.rename(elsewhere / path.name)

    def _failed(self, found: str, remedy: str) -> ConformanceError:
        return ConformanceError(
            f"the packaged file of backend {self.backend.name!r} does not load or computes something else",
            check=CheckName.PACKAGE,
            found=found,
            expected="a file that loads by itself and computes what the converted graph does",
            remedy=remedy,
        )
