"""The backend that this package registers, and its default quantizer."""

from qspec_core import Backend, Mode
from qspec_xnnpack._config import get_symmetric_quantization_config
from qspec_xnnpack._lowering._flow import TARGETS, lower, package
from qspec_xnnpack._quantizer import XNNPACKQuantizer
from qspec_xnnpack._rows import TABLE

__all__ = ["BACKEND", "default_quantizer", "training_quantizer"]


def default_quantizer(*, mode: Mode, target: str) -> XNNPACKQuantizer:
    """The quantizer of `quantize(backend="xnnpack")`: int8 affine activations, and int8 weights with a scale for each
    output channel. Sums and products join integers and do not start them. Linear layers between float operators are
    dynamic in static mode too. Tables of embeddings are int8.

    Args:
        mode: when activations are quantized.
        target: class of the deployment device; there is one.
    """
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=mode is Mode.DYNAMIC)
    return XNNPACKQuantizer(element_wise_starts=False, dynamic_linear=True, embeddings=True).set_global(config)


def training_quantizer(*, mode: Mode, target: str) -> XNNPACKQuantizer:
    """The quantizer of `quantize_aware(backend="xnnpack")`: as `default_quantizer`, with fake-quantizes. Tables of
    embeddings stay in float.

    Args:
        mode: when activations are quantized.
        target: class of the deployment device; there is one.
    """
    config = get_symmetric_quantization_config(is_per_channel=True, is_qat=True, is_dynamic=mode is Mode.DYNAMIC)
    return XNNPACKQuantizer(element_wise_starts=False, dynamic_linear=True).set_global(config)


BACKEND = Backend(
    name="xnnpack",
    table=TABLE,
    quantizer=default_quantizer,
    training_quantizer=training_quantizer,
    lower=lower,
    package=package,
    targets=TARGETS,
    modes=frozenset({Mode.STATIC, Mode.DYNAMIC}),
    suffix=".pte",
    conformance="qspec_xnnpack._conformance:KIT",
)
