"""Conformance of this backend: how a lowered module is read, and how a package is loaded."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from qspec_core.testing import Kit
from qspec_xpu._lowering._flow import LOWERING_KEY
from qspec_xpu._torch import load_package

__all__ = ["KIT"]


def ran(lowered: nn.Module) -> Mapping[str, str]:
    """Labels of the rows that were lowered."""
    meta: Any = lowered.meta
    report: Mapping[str, str] = meta[LOWERING_KEY].lowered
    return report


KIT = Kit(ran=ran, load=load_package)
"""The object that `Backend.conformance` names."""
