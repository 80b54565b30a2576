"""Forms of quantization that other tools have for Intel GPUs and this table does not, with the reason."""

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["LEFT_OUT"]

LEFT_OUT: Mapping[str, str] = MappingProxyType(
    {
        "average pooling, mul and matmul, as torchao's quantizer annotates them": (
            "no kernel runs them in integers, so a quantize and a dequantize around each would only cost accuracy."
        ),
        "a sum of integers after a linear layer": (
            "quantizing the residual sums of transformers cost 5 to 31 dB on CPUs, whose table has the same rows. The "
            "kernel adds a float tensor."
        ),
        "dynamic sums inside the convolution kernel": (
            "the kernel takes the scale of the second tensor as a number, which only static quantization knows before "
            "the model runs."
        ),
        "float16 results of static and dynamic layers": (
            "the kernels write float32, bfloat16 or the dtype of the activation (torch, mkldnn/xpu/qconv.cpp, "
            "qconv_decide_out_dtype). Weight-only layers do write float16."
        ),
        "activations of one dtype and results of another": (
            "a result in integers has the dtype of the activation, so a layer between int8 and uint8 writes float, and "
            "a quantize follows."
        ),
        "dynamic pooling, concatenation, views": (
            "no operator after them reads the integers: the next layer finds its own range."
        ),
        "products of rows with a scale each (_int_mm)": (
            "the kernels of linear layers add the bias and apply the post-op; _int_mm gives int32 without a scale."
        ),
        "fp8 in any form": "torch has no quantized convolution or linear layer in fp8 on XPU.",
        "tables of embeddings in integers": (
            "torch has no integer lookup with scales on XPU. The operator for bags takes floating-point tables."
        ),
    }
)
"""Reasons, by the name that the documentation page gives the form."""
