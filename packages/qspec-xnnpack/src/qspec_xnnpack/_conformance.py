"""Conformance of this backend: sample calls, how a lowered program is read, and how a file is loaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qspec_core.testing import Kit, Sample, Samples
from qspec_xnnpack._lowering._executorch import load_program
from qspec_xnnpack._lowering._program import XNNPACKProgram

__all__ = ["KIT"]

aten = torch.ops.aten


def ran(lowered: nn.Module) -> Mapping[str, str]:
    """Labels of the rows that the delegate took."""
    return lowered.delegation.rows if isinstance(lowered, XNNPACKProgram) else {}


class Loaded(nn.Module):
    """A `.pte` file in ExecuTorch's runtime."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._method = load_program(path.read_bytes())

    def forward(self, *inputs: Any) -> Any:  # of any type that a program takes or returns
        return tuple(self._method(inputs))


# One image: dynamic convolutions take one. Depthwise ones, which are static only, are in rows/test_conv.py.
IMAGE, SIZES = (1, 4, 6, 6), {"weight": (4, 4, 3, 3), "bias": (4,)}
GROUPED = Sample({"input": IMAGE, "weight": (8, 2, 3, 3)}, {"stride": [2, 2], "groups": 2}, name="grouped, strided")
SAMPLES: Samples = {
    aten.conv2d.default: (Sample({"input": IMAGE, **SIZES}, {"padding": [1, 1]}), GROUPED),
    aten.conv_transpose2d.input: Sample({"input": IMAGE, **SIZES}, {"stride": [2, 2]}),
    # With both bounds a clamp is a hardtanh in canonical form.
    aten.clamp.default: Sample({"self": (2, 4, 6, 6)}, {"min": -0.5}),
    # Of the last dimension only, so that convolutions of every rank absorb it.
    aten.pad.default: Sample({"self": (2, 4, 6, 6)}, {"pad": [1, 2]}),
}

KIT = Kit(samples=SAMPLES, ran=ran, load=Loaded)
"""The object that `Backend.conformance` names."""
