"""Activations that the kernels cannot read or write."""

import torch
from torch.fx import Node

from qspec_core.lowering import Quantized
from qspec_core.patterns import Reason

__all__ = ["unfit_activation", "unfit_output"]


def unfit_activation(quantized: Quantized) -> Reason | None:
    """Reason why the kernels cannot read an activation with these parameters; None if they can."""
    if quantized.by_token:
        return Reason.unsupported("an activation has a scale for each row; the kernel takes one")
    if quantized.ch_axis is not None or (isinstance(quantized.scale, Node) and not quantized.is_dynamic):
        return Reason.unsupported("an activation has a scale for each index of a dimension")
    if quantized.dtype is not torch.uint8:
        return Reason.unsupported(f"an activation is {quantized.dtype}; the kernel takes uint8")
    return None


def unfit_output(quantized: Quantized) -> Reason | None:
    """Reason why the kernels cannot write an activation with these parameters; None if they can."""
    if quantized.is_dynamic:
        return Reason.unsupported("an activation has parameters that are not plain numbers")
    return unfit_activation(quantized)
