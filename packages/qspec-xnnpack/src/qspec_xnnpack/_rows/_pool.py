"""Pooling family: means over height and width, and maximum pools."""

import torch
from torch.fx import Node

from qspec_core.graph import argument, expand_integers
from qspec_core.patterns import DELEGATED, Flow, Reason, Row, activation
from qspec_xnnpack._rows._checks import shape_of, static_shape

__all__ = ["ROWS"]

aten = torch.ops.aten


def _batched_image(node: Node) -> Reason | None:
    shape = shape_of(argument(node, "self"))
    return (
        None
        if shape is None or len(shape) == 4
        else Reason.unsupported(f"the input has rank {len(shape)}, the kernel takes 4")
    )


def _over_height_and_width(node: Node) -> Reason | None:
    dims = argument(node, "dim")
    if dims is None or sorted(dim % 4 for dim in dims) != [2, 3]:
        return Reason.unsupported(f"dim={dims}, the kernel averages over (2, 3)")
    if not argument(node, "keepdim"):
        return Reason.unsupported("keepdim=False, the kernel keeps the dimensions")
    return None if argument(node, "dtype") is None else Reason.unsupported("the kernel converts no dtype")


def _to_one_pixel(node: Node) -> Reason | None:
    size = argument(node, "output_size")
    return (
        None
        if list(size) in ([1, 1], [1])
        else Reason.unsupported(f"output_size={size}, the kernel averages to 1 by 1")
    )


def _stride_within_kernel(node: Node) -> Reason | None:
    kernel, stride = expand_integers(argument(node, "kernel_size"), 2), argument(node, "stride")
    stride = expand_integers(stride, 2) if stride else kernel
    if stride[0] > kernel[0] or stride[1] > kernel[1]:
        return Reason.unsupported(f"stride={stride} is larger than kernel_size={kernel}")
    return static_shape(node) if argument(node, "ceil_mode") else None


MEAN = Row(
    name="mean",
    anchor=aten.mean.dim,
    operands=(activation("self"),),
    flow=Flow.JOINS,
    lower=DELEGATED,
    checks=(_batched_image, _over_height_and_width),
)
ADAPTIVE_AVG_POOL2D = Row(
    name="adaptive_avg_pool2d",
    anchor=aten.adaptive_avg_pool2d.default,
    operands=(activation("self"),),
    flow=Flow.JOINS,
    lower=DELEGATED,
    # It decomposes into a mean over height and width, which the delegate takes.
    checks=(_batched_image, _to_one_pixel),
)
MAX_POOL2D = Row(
    name="max_pool2d",
    anchor=aten.max_pool2d.default,
    operands=(activation("self"),),
    flow=Flow.SHARES,
    lower=DELEGATED,
    checks=(_batched_image, _stride_within_kernel),
)
ROWS = (MEAN, ADAPTIVE_AVG_POOL2D, MAX_POOL2D)
