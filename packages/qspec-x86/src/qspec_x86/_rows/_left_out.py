"""Forms of quantization that other tools have for x86 and this table does not, with the reason."""

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["LEFT_OUT"]

LEFT_OUT: Mapping[str, str] = MappingProxyType(
    {
        "float16 weights of linears": (
            "oneDNN's kernel (linear_dynamic_fp16) took 63 ms for 128 rows of 768 by 768, and 316 ms for one of 2048 "
            "by 2048, where float took 2.1 and 0.9, on a CPU without float16 arithmetic. FBGEMM's took 1.9 and 0.3, "
            "but it is deprecated, and a compiled package cannot store its packed weights. For few rows, int8 weights "
            "with bfloat16 activations are as fast."
        ),
        "fp8 in any form": (
            "the kernels convert to another type first: 128 rows of 768 by 768 took 33 ms, where float took 2.1. "
            "It was not measured on a CPU with fp8 instructions."
        ),
        "a sum after a linear layer inside its kernel": (
            "quantizing the residual sums of transformers cost 5 to 31 dB, and the float sum of the kernel gives wrong "
            "numbers for strided operands. The compiler fuses the sum with the next operator."
        ),
        "gelu, tanh and leaky_relu inside the linear kernel": (
            "on AVX2 that kernel took 1.3 to 6 times as long as the convolution kernel that runs linear layers. The "
            "convolution kernel has no such post-ops; the compiler fuses them with the quantize after them. With VNNI "
            "both took as long."
        ),
        "products of two activations (mul, matmul, bmm)": (
            "torch has no correct kernel for them: onednn.qmul gives wrong numbers, and integer matmul and bmm return "
            "8-bit integers without requantizing."
        ),
        "lone sums and average pooling": (
            "a sum or average between two integer layers runs in float, which costs time: onednn.qadd gives wrong "
            "numbers, and torch does not average plain uint8 tensors."
        ),
        "dynamic pooling, concatenation, views and products": (
            "no operator after them reads the integers: the next layer finds its own range."
        ),
        "dynamic sums inside the convolution kernel": (
            "the kernel takes the scale of the second operand as a number, which only static quantization knows before "
            "the model runs. The compiler adds it."
        ),
        "dynamic depthwise convolutions, and dynamic ones of three dimensions": (
            "finding the range of the input takes longer than integers save."
        ),
        "int8 by int8 products with a scale for each row (_int_mm)": (
            "the convolution kernel gives the same sums in float, and the compiler multiplies them with the scales."
        ),
        "int4 weights with int8 activations, and integer attention": (
            "the operators of torchao (da8w4_linear_cpu, qscaled_dot_product) have no kernels in its packages; "
            "torch's own (_dyn_quant_matmul_4bit) took 8.4 ms for one row of 2048 by 2048 on AVX2, where float took "
            "0.94."
        ),
        "int8 bags of embeddings with an int8 result (_scaled_embedding_bag)": (
            "an operator of torchao without a kernel in its packages; torch's own kernel sums rows of 8 or 4 bits."
        ),
        "several linear layers of one input joined into one": (
            "they share one quantized input; each has its own call."
        ),
        "a pass that moves quantizes before a transpose or reshape": (
            "rows that share parameters between input and output have the same effect, also for concatenation."
        ),
        "templates tuned by max_autotune": ("an option of Inductor, which also applies to the compiled forms."),
        "Arm and XPU": ("oneDNN's Arm builds and GPUs have backends of their own."),
    }
)
"""Reasons, by the name that the documentation page gives the form."""
