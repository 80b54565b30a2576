"""Lowering: from a converted graph to a .pte program that ExecuTorch's runtime executes."""

from qspec_xnnpack._lowering._executorch import UntestedExecuTorchWarning
from qspec_xnnpack._lowering._flow import TARGETS, lower, package
from qspec_xnnpack._lowering._program import Delegation, XNNPACKProgram

__all__ = ["TARGETS", "Delegation", "UntestedExecuTorchWarning", "XNNPACKProgram", "lower", "package"]
