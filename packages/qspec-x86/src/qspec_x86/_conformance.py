"""Conformance of this backend: sample calls, how a lowered module is read, and how a package is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from qspec_core.patterns import Mode
from qspec_core.testing import SAMPLES as SAMPLES_OF_CORE
from qspec_core.testing import Integers, Kit, Operands, Sample
from qspec_x86._config import get_weight_only_quantization_config
from qspec_x86._lowering._aoti import load_package
from qspec_x86._lowering._flow import LOWERING_KEY, lower_eager
from qspec_x86._target import TARGETS as ALL_TARGETS
from qspec_x86._target import saturates

__all__ = ["KIT"]

# A CPU that cuts sums to 16 bits cannot run what was made for one that does not.
TARGETS = tuple(target for target in ALL_TARGETS if target != "vnni" or not saturates())


_LINEAR = {"input": (3, 8), "weight": (6, 8), "bias": (6,)}
_WEIGHT_ONLY = frozenset({Mode.WEIGHT_ONLY})
_STATIC, _DYNAMIC = frozenset({Mode.STATIC}), frozenset({Mode.DYNAMIC})


def sums_of_errors(operands: Operands) -> Any:  # four tensors, the first of which counts
    """Errors of the rows of a bag add up; the kernel multiplies and adds where the graph subtracts and multiplies."""
    weight = operands.values["weight"].double()
    rounded = 4 * torch.finfo(torch.float32).eps * weight.abs().max()
    return operands.call({"weight": operands.errors["weight"] + rounded})


def convolution(rank: int) -> tuple[Sample, ...]:
    """Core's, of which the depthwise one is not for dynamic quantization."""
    found = SAMPLES_OF_CORE[getattr(torch.ops.aten, f"conv{rank}d").default]
    if not isinstance(found, Sequence):
        raise TypeError(f"core has one sample of conv{rank}d")
    plain, depthwise = found
    grouped = {"input": (2, 4, *(6,) * rank), "weight": (8, 2, *(3,) * rank)}
    strided = Sample(grouped, {"stride": [2] * rank, "groups": 2}, name="grouped, strided, no bias", modes=_DYNAMIC)
    return plain, replace(depthwise, modes=_STATIC), strided


SAMPLES: dict[Any, Sample | Sequence[Sample]] = {
    torch.ops.aten.conv1d.default: convolution(1),
    torch.ops.aten.conv2d.default: convolution(2),
    torch.ops.aten.embedding_bag.padding_idx: Sample(
        {"weight": (10, 4), "indices": Integers((6,), below=10), "offsets": Integers((3,), below=1)},
        # Zeros, and so the first two bags empty: offsets ascend. The schema has no defaults.
        {"scale_grad_by_freq": False, "mode": 0, "sparse": False, "per_sample_weights": None}
        | {"include_last_offset": False, "padding_idx": None},
        error=sums_of_errors,
    ),
    torch.ops.aten.linear.default: (
        Sample(_LINEAR, modes=frozenset(Mode) - _WEIGHT_ONLY),
        Sample({"input": (2, 3, 8), "weight": (6, 8)}, name="rank 3, no bias", modes=frozenset(Mode) - _WEIGHT_ONLY),
        Sample(
            {"input": (3, 16), "weight": (6, 16), "bias": (6,)},
            name="bfloat16",
            dtype=torch.bfloat16,
            modes=_WEIGHT_ONLY,
        ),
        Sample(
            {"input": (3, 64), "weight": (16, 64), "bias": (16,)},
            name="bfloat16, 4 bits in groups",
            dtype=torch.bfloat16,
            modes=_WEIGHT_ONLY,
            config=get_weight_only_quantization_config(32),
        ),
    ),
}


def eager(converted: GraphModule, example_inputs: tuple[Any, ...], target: str) -> nn.Module:
    """The eager form: compiling each case takes a C++ compiler some seconds."""
    return lower_eager(converted, target)


def ran(lowered: nn.Module) -> Mapping[str, str]:
    """Labels of the rows that were lowered."""
    meta: Any = lowered.meta  # a compiled module has the attributes of its graph module
    report: Mapping[str, str] = meta[LOWERING_KEY].lowered
    return report


KIT = Kit(samples=SAMPLES, targets=TARGETS, lower=eager, ran=ran, load=load_package)
"""The object that `Backend.conformance` names."""
