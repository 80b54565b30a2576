"""Scale and zero point of an activation as plain numbers, which the kernels take."""

import torch
from torch.fx import Node

from qspec_core import LoweringError
from qspec_core.lowering import Quantized
from qspec_core.patterns import Reason

__all__ = ["plain_parameters", "unfit_activation", "unfit_output"]


def unfit_activation(quantized: Quantized) -> Reason | None:
    """Reason why the kernels cannot read an activation with these parameters; None if they can."""
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


def plain_parameters(quantized: Quantized) -> tuple[float, int]:
    """Scale and zero point.

    Raises: LoweringError: they are tensors, which `unfit_activation` refuses.
    """
    scale, zero_point = quantized.scale, quantized.zero_point
    if isinstance(scale, Node) or isinstance(zero_point, Node):
        raise LoweringError(
            "the parameters of a quantized tensor are not plain numbers",
            where=quantized.node,
            found=f"scale {scale}, zero point {zero_point}",
            remedy="quantize the tensor per tensor and statically",
        )
    return float(scale), 0 if zero_point is None else int(zero_point)
