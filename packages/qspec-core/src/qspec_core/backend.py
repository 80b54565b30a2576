"""The backend contract: the object that a hardware package registers, and functions that find the installed ones."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch.fx import GraphModule

from _qspec_contract import ENTRY_POINT_GROUP, InstalledBackend, installed_backends, registered
from qspec_core._errors import BackendError
from qspec_core._quantizer import Quantizer
from qspec_core.patterns import Mode, PatternTable

__all__ = ["ENTRY_POINT_GROUP", "Backend", "InstalledBackend", "Packaged", "backends", "get_backend"]


class QuantizerFactory(Protocol):
    """Builds a backend's default quantizer."""

    def __call__(self, *, mode: Mode, target: str) -> Quantizer:
        """A quantizer with its global configuration set.

        Args:
            mode: when activations are quantized.
            target: class of the deployment device, one of the backend's `targets`.
        """
        ...


@runtime_checkable
class Packaged(Protocol):
    """A lowered module that holds its deployable file."""

    def write_package(self, path: Path) -> Path:
        """Write the file and return its path."""
        ...


@dataclass(frozen=True)
class Backend:
    """The description of one kind of hardware, which its package registers.

    Args:
        name: the name that users pass as `backend=`.
        table: its operator patterns.
        quantizer: builds its default quantizer.
        training_quantizer: builds its default quantizer for training, whose configuration has fake-quantizes; None if
            the backend has none.
        lower: `(converted, example_inputs, target) -> module` that runs on the device. A module that holds its
            deployable file is a `Packaged`.
        package: `(converted, example_inputs, path, target) -> path` of a deployable file; None if it has none.
        targets: classes of deployment device, the default first.
        modes: when activations can be quantized.
        suffix: ending of a packaged file's name, which `Result.package` adds to a path without one.
        conformance: `module:name` of the package's `qspec_core.testing.Kit`, which only the conformance kit imports;
            empty if it needs none.
    """

    name: str
    table: PatternTable
    quantizer: QuantizerFactory
    lower: Callable[[GraphModule, tuple[Any, ...], str], torch.nn.Module]
    package: Callable[[GraphModule, tuple[Any, ...], Path, str], Path] | None = None
    targets: tuple[str, ...] = ("any",)
    modes: frozenset[Mode] = frozenset({Mode.STATIC})
    suffix: str = ".pt2"
    training_quantizer: QuantizerFactory | None = None
    conformance: str = ""

    def resolve_target(self, target: str | None) -> str:
        """The target named, or the default.

        Raises: BackendError: the backend has no such target.
        """
        if target is None:
            return self.targets[0]
        if target not in self.targets:
            raise BackendError(
                f"backend {self.name!r} has no target {target!r}",
                found=target,
                expected=", ".join(self.targets),
                remedy="name one of the targets listed, or leave target out for the first",
            )
        return target


def backends() -> tuple[InstalledBackend, ...]:
    """Every registered backend, by name. None of them is imported."""
    return installed_backends()


def get_backend(name: str) -> Backend:
    """Load the backend that a distribution registered under `name`.

    Raises: BackendError: none has that name; two have it; it is made for another version of the contract; it does not
        load.
    """
    point, entry = _usable(name)
    owner = entry.distribution
    try:
        loaded = point.load()
    # Anything that a backend's module raises, or its attempt to end the process, must not look like an error of qspec.
    except (Exception, SystemExit) as error:
        raise BackendError(
            f"backend {name!r} does not import",
            found=f"{type(error).__name__}: {error}",
            remedy=f"repair or upgrade the distribution {owner!r}, which registers it",
        ) from error
    if not isinstance(loaded, Backend):
        raise BackendError(
            f"the object that distribution {owner!r} registers as backend {name!r} is not a qspec_core.Backend",
            found=type(loaded).__qualname__,
            expected="a qspec_core.Backend",
            remedy=f"point its entry point in the group {ENTRY_POINT_GROUP!r} at a Backend",
        )
    return loaded


def _usable(name: str) -> tuple[EntryPoint, InstalledBackend]:
    """The entry point of a backend that this core can load.

    Raises: BackendError: there is none, or it has a problem that its distribution's metadata shows.
    """
    known = registered()
    named = [(point, entry) for point, entry in known if entry.name == name]
    usable = [pair for pair in named if not pair[1].problem]
    if usable:
        return usable[0]
    if named:
        entry = named[0][1]
        raise BackendError(
            f"backend {name!r} of {entry.distribution} {entry.version} cannot be used with this qspec-core",
            found=entry.problem,
            expected=f"one entry point in the group {ENTRY_POINT_GROUP!r}",
            remedy="do what the line above says; `qspec backends` lists what is installed",
        )
    names = ", ".join(dict.fromkeys(entry.name for _, entry in known if not entry.problem)) or "none"
    raise BackendError(
        f"no backend named {name!r} is installed",
        found=name,
        expected=f"one of those installed: {names}",
        remedy=f"pip install qspec-{name}, or whichever package registers a backend of that name",
    )
