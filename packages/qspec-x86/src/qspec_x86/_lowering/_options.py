"""What the backend hands to its rows while they lower."""

from dataclasses import dataclass
from enum import Enum

__all__ = ["Form", "Options"]


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
    """

    form: Form
    full_range: bool
