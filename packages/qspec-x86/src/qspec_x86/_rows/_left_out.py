"""Forms of quantization that other tools have for x86 and no row has, with the reason that the documentation gives."""

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["LEFT_OUT"]

LEFT_OUT: Mapping[str, str] = MappingProxyType(
    {
        "float16 weights of linears": (
            "oneDNN's kernel (linear_dynamic_fp16) took 63 ms for 128 rows of 768 by 768, and 316 ms for one of 2048 "
            "by 2048, where float took 2.1 and 0.9, on a CPU without float16 arithmetic. FBGEMM's took 1.9 and 0.3, "
            "but is deprecated, and what it packs cannot be stored in a compiled package. Few rows are as fast with "
            "int8 weights in bfloat16."
        ),
        "fp8 in any form": (
            "the kernels run, by conversion: 128 rows of 768 by 768 took 33 ms, where float took 2.1. No CPU at hand "
            "has the instructions."
        ),
        "a sum behind a linear inside its kernel": (
            "quantizing residual streams of transformers cost 5 to 31 dB, and the kernel's own float sum gives wrong "
            "numbers for strided operands. The compiler joins the sum with what follows."
        ),
        "gelu, tanh and leaky_relu inside the linear kernel": (
            "that kernel took 1.3 to 6 times as long on AVX2 as the convolution kernel that linears run in, which has "
            "no such tails: the compiler joins them with the quantize behind. With VNNI both took as long."
        ),
        "products of two activations (mul, matmul, bmm)": (
            "torch has no kernel for them that is right: onednn.qmul gives wrong numbers, and integer matmul and bmm "
            "return integers of 8 bits without requantizing."
        ),
        "lone sums and average pooling": (
            "a float operator between two integer ones is a loss: onednn.qadd gives wrong numbers, and torch averages "
            "no plain uint8 tensor."
        ),
        "dynamic pooling, concatenation, views and products": (
            "nothing behind them reads the integers, whose range the next layer would find anew."
        ),
        "dynamic sums inside the convolution kernel": (
            "the kernel takes the second operand's scale as a number, which is known beforehand in static "
            "quantization alone. The compiler adds it."
        ),
        "dynamic depthwise convolutions, and dynamic ones of three dimensions": (
            "finding the range of the input costs more than integers save."
        ),
        "int8 by int8 products with a scale for each row (_int_mm)": (
            "dynamic quantization takes one scale for the tensor, through a kernel that adds the bias and applies the "
            "tail."
        ),
        "int4 weights with int8 activations, and integer attention": (
            "the operators of torchao (da8w4_linear_cpu, qscaled_dot_product) have no kernels in its packages; "
            "torch's own (_dyn_quant_matmul_4bit) took 8.4 ms for one row of 2048 by 2048 on AVX2, where float took "
            "0.94."
        ),
        "int8 bags of embeddings with an int8 result (_scaled_embedding_bag)": (
            "an operator of torchao without a kernel in its packages; torch's own kernel sums rows of 8 or 4 bits."
        ),
        "several linears of one input joined into one": ("they share one quantized input; each has its own call."),
        "a pass that lifts quantizes above a transpose or reshape": (
            "rows that share have that effect without one, as they have that of quantize and dequantize pairs removed "
            "around concatenation."
        ),
        "templates tuned by max_autotune": ("an option of Inductor that applies to the compiled forms as it is."),
        "quantization-aware training": ("not there yet; `is_qat=True` raises."),
        "Arm and XPU": ("oneDNN's Arm builds and GPUs have backends of their own."),
    }
)
"""By the name that the page gives it."""
