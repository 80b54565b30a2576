"""Facts about a backend that its conformance needs and its table does not hold."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from torch.fx import GraphModule

from qspec_core._errors import BackendError
from qspec_core.backend import Backend
from qspec_core.testing._samples import Samples

__all__ = ["Kit", "Load", "Lower", "Ran", "kit_of"]

Lower = Callable[[GraphModule, tuple[Any, ...], str], nn.Module]
"""As `Backend.lower`."""
Ran = Callable[[nn.Module], Mapping[str, str]]
Load = Callable[[Path], nn.Module]


@dataclass(frozen=True)
class Kit:
    """Facts that the tests of a backend need. `Backend.conformance` names the backend's own.

    Args:
        samples: sample calls of operators of its rows, if core has none or its rows refuse those of core.
        targets: classes of deployment device whose lowered form can run on this machine; None for all targets.
        lower: used in place of the backend's own, if that takes long.
        ran: reads a lowered module and returns the label of each row that runs in integers, by the name of its anchor's
            node. A case fails if its row is missing there. A program whose operators torch does not call needs it.
        load: loads a packaged file as a module; a backend with `package` needs it.
    """

    samples: Samples = field(default_factory=dict)
    targets: tuple[str, ...] | None = None
    lower: Lower | None = None
    ran: Ran | None = None
    load: Load | None = None


def kit_of(backend: Backend) -> Kit:
    """The kit that a backend names, or an empty one.

    Raises: BackendError: the name leads to no kit.
    """
    if not backend.conformance:
        return Kit()
    module, _, name = backend.conformance.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise _no_kit(backend, f"{type(error).__name__}: {error}") from error
    if not isinstance(found, Kit):
        raise _no_kit(backend, type(found).__qualname__)
    return found


def _no_kit(backend: Backend, found: str) -> BackendError:
    return BackendError(
        f"the conformance kit of backend {backend.name!r} does not load from {backend.conformance!r}",
        found=found,
        expected="module:name of a qspec_core.testing.Kit",
        remedy="correct the field `conformance` of the Backend",
    )
