"""Options that the backend passes to its rows while they lower."""

from dataclasses import dataclass
from enum import Enum

__all__ = ["Form", "Options"]


class Form(Enum):
    """The two forms of a lowered graph."""

    PORTABLE = "portable"  # nodes of the graph pack plain int8 weights; no operator mutates, so it can be exported
    EAGER = "eager"  # weights are packed now, and residual sums run in kernels


@dataclass(frozen=True)
class Options:
    """Options of one lowering.

    Args:
        form: form of the lowered graph.
        full_range: the deployment CPU sums in 32 bits, so that weights can use all 8 bits.
    """

    form: Form
    full_range: bool
