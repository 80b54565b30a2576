"""The command `qspec`. Imports qspec_core inside its commands, so that `--help` needs no torch."""

from qspec_cli import _vendor as _vendor  # adds its commands
from qspec_cli._app import app, main

__all__ = ["app", "main"]
