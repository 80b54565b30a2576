"""A device that simulates a converted graph: torch sees none of its operators, so it reports its rows."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.fx import GraphModule
from torch.utils._python_dispatch import _disable_current_modes

from qspec_core.canonical import canonicalize
from qspec_core.graph import copy_graph_module
from qspec_core.lowering import match_converted
from qspec_core.patterns import PatternTable
from qspec_core.testing import Kit


class Simulated(nn.Module):
    """A program whose operators torch's dispatcher does not show."""

    def __init__(self, program: GraphModule, rows: Mapping[str, str]) -> None:
        super().__init__()
        self.program = program
        self.rows = rows

    def forward(self, *inputs: Any) -> Any:
        with _disable_current_modes():
            return self.program(*inputs)


def simulate(converted: GraphModule, table: PatternTable) -> Simulated:
    """Simulate a converted graph, and report the rows of the table in it."""
    canonical = copy_graph_module(converted)
    canonicalize(canonical)
    rows = {match.anchor.name: match.label for match in match_converted(canonical, table)}
    return Simulated(copy_graph_module(converted), rows)


def ran(lowered: nn.Module) -> Mapping[str, str]:
    return lowered.rows if isinstance(lowered, Simulated) else {}


KIT = Kit(ran=ran)
