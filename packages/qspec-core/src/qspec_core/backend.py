"""The backend contract: the object that a hardware package registers, and functions that find the installed ones."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch.fx import GraphModule

from qspec_core._errors import BackendError
from qspec_core._quantizer import Quantizer
from qspec_core.patterns import Mode, PatternTable

__all__ = ["ENTRY_POINT_GROUP", "Backend", "InstalledBackend", "Packaged", "backends", "get_backend"]

ENTRY_POINT_GROUP = "qspec.backends.v1"
_ANY_VERSION = "qspec.backends."


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
        lower: `(converted, example_inputs, target) -> module` that runs on the device. A module that holds its
            deployable file is a `Packaged`.
        package: `(converted, example_inputs, path, target) -> path` of a deployable file; None if it has none.
        targets: classes of deployment device, the default first.
        modes: when activations can be quantized.
        suffix: ending of a packaged file's name, which `Result.package` adds to a path without one.
    """

    name: str
    table: PatternTable
    quantizer: QuantizerFactory
    lower: Callable[[GraphModule, tuple[Any, ...], str], torch.nn.Module]
    package: Callable[[GraphModule, tuple[Any, ...], Path, str], Path] | None = None
    targets: tuple[str, ...] = ("any",)
    modes: frozenset[Mode] = frozenset({Mode.STATIC})
    suffix: str = ".pt2"

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


@dataclass(frozen=True)
class InstalledBackend:
    """A backend that some installed distribution registers, loaded or not.

    Args:
        name: the entry point's name.
        distribution: distribution that registers it.
        version: that distribution's version.
        description: the distribution's summary, one line.
        problem: why it cannot be used; empty if it can.
    """

    name: str
    distribution: str
    version: str
    description: str = ""
    problem: str = ""


def _registered() -> list[EntryPoint]:
    groups = [group for group in entry_points().groups if group.startswith(_ANY_VERSION)]
    return [point for group in groups for point in entry_points(group=group)]


def backends() -> tuple[InstalledBackend, ...]:
    """Every registered backend, by name. None of them is imported."""
    found = []
    for point in _registered():
        problem = (
            "" if point.group == ENTRY_POINT_GROUP else f"made for contract {point.group!r}: upgrade one of the two"
        )
        found.append(InstalledBackend(point.name, *_distribution(point), problem))
    return tuple(sorted(set(found), key=_by_name))


def _distribution(point: EntryPoint) -> tuple[str, str, str]:
    """Name, version and summary of the distribution that registers an entry point."""
    if point.dist is None:
        return "?", "?", ""
    summaries = point.dist.metadata.get_all("Summary") or ("",)
    return point.dist.name, point.dist.version, summaries[0]


def _by_name(entry: InstalledBackend) -> tuple[str, str]:
    return entry.name, entry.distribution


def get_backend(name: str) -> Backend:
    """Load the backend that a distribution registered under `name`.

    Raises: BackendError: none has that name; it is made for another contract version; it does not load.
    """
    points = {point.name: point for point in _registered() if point.group == ENTRY_POINT_GROUP}
    if name not in points:
        raise _unknown(name)
    point = points[name]
    owner = point.dist.name if point.dist is not None else point.value
    try:
        loaded = point.load()
    except ImportError as error:
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


def _unknown(name: str) -> BackendError:
    installed = backends()
    unfit = [entry for entry in installed if entry.name == name]
    if unfit:
        return BackendError(
            f"backend {name!r} of {unfit[0].distribution} {unfit[0].version} cannot be used with this qspec-core",
            found=unfit[0].problem,
            expected=f"an entry point in the group {ENTRY_POINT_GROUP!r}",
            remedy=f"pip install --upgrade {unfit[0].distribution} qspec-core",
        )
    usable = ", ".join(entry.name for entry in installed if not entry.problem) or "none"
    return BackendError(
        f"no backend named {name!r} is installed",
        found=name,
        expected=f"one of those installed: {usable}",
        remedy=f"pip install qspec-{name}, or whichever package registers a backend of that name",
    )
