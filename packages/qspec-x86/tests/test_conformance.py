"""The conformance kit on the x86 table, in the eager form, and in the compiled one where QSPEC_SLOW is set: that takes
a C++ compiler for each case."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from qspec_core.patterns import Mode
from qspec_core.testing import SAMPLES as SAMPLES_OF_CORE
from qspec_core.testing import Case, Integers, Operands, Sample, conformance_cases
from qspec_x86 import BACKEND, LOWERING_KEY, get_weight_only_quantization_config, lower_eager, saturates

# A CPU that cuts sums to 16 bits cannot run what was made for one that does not.
TARGETS = tuple(target for target in BACKEND.targets if target != "vnni" or not saturates())


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
    assert isinstance(found, Sequence)
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
    return lower_eager(converted, target)


def compiled(converted: GraphModule, example_inputs: tuple[Any, ...], target: str) -> nn.Module:
    """Compiled for this very case at its first call, and called: some cases look at the module alone."""
    torch._dynamo.reset()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Inductor's own, which differ between versions of torch
        lowered = torch.compile(lower_eager(converted, target), dynamic=False)
        lowered(*example_inputs)
    assert isinstance(lowered, nn.Module)
    return lowered


def ran(lowered: nn.Module) -> Mapping[str, str]:
    meta: Any = lowered.meta  # a compiled module has the attributes of its graph module
    report: Mapping[str, str] = meta[LOWERING_KEY].lowered
    return report


def cases(lower: Callable[[GraphModule, tuple[Any, ...], str], nn.Module]) -> tuple[Case, ...]:
    return conformance_cases(BACKEND, samples=SAMPLES, targets=TARGETS, lower=lower, ran=ran)


@pytest.mark.parametrize("case", cases(eager), ids=str)
def test_conformance(case: Case) -> None:
    case.check()


@pytest.mark.skipif("QSPEC_SLOW" not in os.environ, reason="compiles each case for itself: set QSPEC_SLOW")
@pytest.mark.parametrize("case", cases(compiled), ids=str)
def test_conformance_compiled(case: Case) -> None:
    case.check()
