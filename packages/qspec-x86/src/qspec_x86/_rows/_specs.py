"""Specs of activations and weights in the form that the kernels compute."""

from dataclasses import replace
from functools import lru_cache

import torch
from torch.fx import Node

from qspec_core import QuantizationSpec
from qspec_core.graph import argument
from qspec_core.observers import PerToken, build_observer
from qspec_x86._config import ONE_RANGE
from qspec_x86._depthwise import is_depthwise
from qspec_x86._observer import with_pair_sums

__all__ = ["narrow_tied_table", "narrow_weight_spec", "one_range"]


def one_range(node: Node, spec: QuantizationSpec, target: str) -> QuantizationSpec:
    """Give the dynamic input of a convolution one range, in place of one for each row of a picture."""
    return ONE_RANGE if spec.is_dynamic and _is_by_row(spec) else spec


@lru_cache
def _is_by_row(spec: QuantizationSpec) -> bool:
    return isinstance(getattr(build_observer(spec), "granularity", None), PerToken)


def narrow_weight_spec(node: Node, spec: QuantizationSpec, target: str) -> QuantizationSpec:
    """Make scales coarser, so that no sum of two products overflows 16 bits.

    CPUs with VNNI and depthwise kernels sum in 32 bits and keep the spec."""
    if target == "vnni" or is_depthwise(node) or spec.dtype not in (torch.int8, torch.qint8):
        return spec
    return replace(spec, observer_or_fake_quant_ctr=with_pair_sums(spec.observer_or_fake_quant_ctr))


def narrow_tied_table(node: Node, spec: QuantizationSpec, target: str) -> QuantizationSpec:
    """The spec of a table of embeddings: that of the layer that has the same weight, so that both read one tensor."""
    table = argument(node, "weight")
    layers = (reader for reader in table.users if reader.target is not node.target)
    layer = next(layers, None)
    return spec if layer is None else narrow_weight_spec(layer, spec, target)
