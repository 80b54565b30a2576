"""Samples of the conformance kit for the XPU table: configurations, geometries and layouts that core's do not have."""

from typing import Any

import torch

from qspec_core import Mode
from qspec_core.testing import SAMPLES as SAMPLES_OF_CORE
from qspec_core.testing import Sample
from qspec_xpu import get_default_xpu_inductor_quantization_config, get_weight_only_quantization_config

__all__ = ["SAMPLES"]

_WEIGHT_ONLY, _STATIC, _DYNAMIC = (frozenset({mode}) for mode in (Mode.WEIGHT_ONLY, Mode.STATIC, Mode.DYNAMIC))
_LINEAR = {"input": (3, 64), "weight": (8, 64), "bias": (8,)}
_PLANE = {"input": (2, 4, 6, 6), "weight": (4, 4, 3, 3), "bias": (4,)}
_SYMMETRIC = get_default_xpu_inductor_quantization_config(symmetric=True)
_UNSIGNED = get_default_xpu_inductor_quantization_config(dtype=torch.uint8)
_UNSIGNED_DYNAMIC = get_default_xpu_inductor_quantization_config(is_dynamic=True, dtype=torch.uint8)
_SYMMETRIC_DYNAMIC = get_default_xpu_inductor_quantization_config(is_dynamic=True, symmetric=True)


def own_samples(operator: Any, *own: Sample) -> tuple[Sample, ...]:
    """Samples of core, and others."""
    found = SAMPLES_OF_CORE[operator]
    return (*((found,) if isinstance(found, Sample) else found), *own)


SAMPLES: dict[Any, tuple[Sample, ...]] = {
    torch.ops.aten.linear.default: own_samples(
        torch.ops.aten.linear.default,
        Sample(_LINEAR, name="symmetric", modes=_STATIC, config=_SYMMETRIC),
        Sample(_LINEAR, name="uint8", modes=_STATIC, config=_UNSIGNED),
        Sample(_LINEAR, name="uint8", modes=_DYNAMIC, config=_UNSIGNED_DYNAMIC),
        Sample(_LINEAR, name="symmetric", modes=_DYNAMIC, config=_SYMMETRIC_DYNAMIC),
        Sample(_LINEAR, name="bfloat16", dtype=torch.bfloat16, modes=_WEIGHT_ONLY),
        Sample(_LINEAR, name="float16", dtype=torch.float16, modes=_WEIGHT_ONLY),
        Sample(
            _LINEAR,
            name="bfloat16, 4 bits in groups",
            dtype=torch.bfloat16,
            modes=_WEIGHT_ONLY,
            config=get_weight_only_quantization_config(32),
        ),
    ),
    torch.ops.aten.conv2d.default: own_samples(
        torch.ops.aten.conv2d.default,
        Sample(_PLANE, name="symmetric", modes=_STATIC, config=_SYMMETRIC),
        Sample(_PLANE, name="uint8", modes=_STATIC, config=_UNSIGNED),
        Sample(_PLANE, name="uint8", modes=_DYNAMIC, config=_UNSIGNED_DYNAMIC),
        Sample({"input": (2, 1, 6, 6), "weight": (4, 1, 3, 3)}, name="one channel"),
        Sample({"input": (2, 4, 1, 1), "weight": (4, 4, 3, 3)}, {"padding": [1, 1]}, name="one pixel"),
        Sample(
            {"input": (2, 4, 7, 6), "weight": (6, 2, 3, 2)},
            {"stride": [2, 1], "padding": [1, 2], "dilation": [1, 2], "groups": 2},
            name="unequal geometry, groups",
        ),
    ),
}
