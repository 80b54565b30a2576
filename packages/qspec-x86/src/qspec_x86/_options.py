"""What the backend hands to its rows while they lower."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from qspec_core.lowering import Lowering

__all__ = ["Form", "Options", "options_of"]

_KEY = "x86"


class Form(Enum):
    """The two forms of a lowered graph."""

    PORTABLE = "portable"  # plain int8 weights, packed by nodes of the graph; nothing mutates: exported, compiled ahead
    EAGER = "eager"  # weights packed now; residual sums inside the kernel: runs as it is


@dataclass(frozen=True)
class Options:
    """Options of one lowering.

    Args:
        form: form of the lowered graph.
        full_range: the deployment CPU sums in 32 bits, so that weights may use all 8 bits.
        narrowed: filled while lowering: names of the anchors whose weights were given coarser scales.
    """

    form: Form
    full_range: bool
    narrowed: list[str] = field(default_factory=list)

    def as_mapping(self) -> Mapping[str, Any]:
        """In the form that `lower_rows` takes."""
        return {_KEY: self}


def options_of(lowering: Lowering) -> Options:
    """The options of the lowering at hand."""
    options: Options = lowering.options[_KEY]
    return options
