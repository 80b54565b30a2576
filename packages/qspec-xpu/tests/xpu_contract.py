"""Contract of each kernel: dtypes, shapes, layouts and names that torch's XPU operators take.

Written from torch's sources under aten/src/ATen/native/mkldnn/xpu (qconv.cpp, qlinear.cpp, detail/QConv.cpp,
detail/QMatmul.cpp, detail/Attr.h, Blas.cpp) and from torch-xpu-ops (QuantizedMaxPool2d.cpp), not from the lowering.
Much of it the operators do not check: another layout, or a result of another dtype, gives wrong numbers without an
error.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Contract", "ContractError", "arguments_of", "kernel_of"]

EIGHT_BITS = (torch.int8, torch.uint8)
FLOATS = (torch.float32, torch.bfloat16)
ROW_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
# detail/Attr.h, construct_attr_for_unary; qconv.cpp, run_pointwise.
CONVOLUTION_POST_OPS = ("none", "relu", "hardtanh", "hardswish", "swish")
LINEAR_POST_OPS = (*CONVOLUTION_POST_OPS, "gelu", "tanh", "leaky_relu")
SCALARS = {"hardtanh": 2, "leaky_relu": 1}
Arguments = Mapping[str, Any]  # of a kernel, by name: tensors, numbers and names


class ContractError(AssertionError):
    """A call that the kernel does not take, or that it computes wrongly."""


def require(holds: bool, what: str) -> None:
    """Raise unless a rule holds."""
    if not holds:
        raise ContractError(what)


def arguments_of(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments:
    """Arguments of a call by their names in the schema."""
    names = [argument.name for argument in func._schema.arguments]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def kernel_of(func: Any) -> str:
    """Name of an operator without its overload: `onednn.qconv_pointwise`."""
    return str(func).rpartition(".")[0]


def _one_device(given: Arguments) -> None:
    devices = {str(value.device) for value in given.values() if isinstance(value, Tensor)}
    require(len(devices) == 1, f"tensors on {sorted(devices)}")


def _written(given: Arguments) -> None:
    """Result: float with scale 1, or integers of the dtype of the activation, whatever dtype the call names."""
    dtype, x = given["output_dtype"], given["qx"]
    require(dtype in FLOATS or dtype is x.dtype, f"writes {dtype} for an input of {x.dtype}")
    plain = (given["output_scale"], given["output_zero_point"]) == (1.0, 0)
    require(dtype not in FLOATS or plain, "a float result has a scale")
    require(given["output_scale"] > 0, "an output scale that is not positive")
    if dtype in EIGHT_BITS:
        limits = torch.iinfo(dtype)
        require(limits.min <= given["output_zero_point"] <= limits.max, "an output zero point outside of its dtype")


def _read(given: Arguments, outputs: int) -> None:
    x, weight, bias = given["qx"], given["qw"], given["bias"]
    require(x.dtype in EIGHT_BITS, f"an input of {x.dtype}")
    require(weight.dtype is torch.int8 and weight.is_contiguous(), "a weight that is not dense int8")
    require(given["w_scale"].dtype is torch.float32, "weight scales that are not float32")
    require(given["w_scale"].shape == (outputs,), "another number of weight scales than outputs")
    require(given["w_zero_point"].numel() == outputs, "another number of weight zero points than outputs")
    fits = bias is None or (bias.dtype is torch.float32 and bias.shape == (outputs,) and bias.is_contiguous())
    require(fits, "a bias that is not float32, one for each output")
    scale, zero_point = given["x_scale"], given["x_zero_point"]
    if isinstance(scale, Tensor):
        require(scale.numel() == 1 and zero_point.numel() == 1, "an input with several scales")
        return
    limits = torch.iinfo(x.dtype)
    require(scale > 0 and limits.min <= zero_point <= limits.max, "an input zero point outside of its dtype")


def _post_op(name: str, scalars: list[Any], algorithm: str, known: tuple[str, ...]) -> None:
    require(name in known, f"post-op {name!r}")
    numbers = [number for number in scalars if number is not None]
    require(len(numbers) == SCALARS.get(name, 0), f"{name} with {len(numbers)} numbers")
    require(name != "hardtanh" or numbers[0] <= numbers[1], "limits in the wrong order")
    require((algorithm in ("none", "tanh")) if name == "gelu" else not algorithm, f"{name} with {algorithm!r}")


def _suggests_channels_last(x: Tensor) -> bool:
    """Whether torch takes the layout for channels-last. Source: torch, c10/core/MemoryFormat.h.

    The strides of one channel or one pixel may be those of both layouts; torch then takes it for the other one.
    """
    least = 0
    if x.stride(1) == 0:
        return False
    for dim in (1, *range(x.dim() - 1, 1, -1), 0):
        if x.stride(dim) < least or (dim == 0 and least == x.stride(1)):
            return False
        least = x.stride(dim) * max(int(x.shape[dim]), 1)
    return True


def _convolution(given: Arguments) -> None:
    _one_device(given)
    x, weight = given["qx"], given["qw"]
    require(x.dim() in LAYOUTS and weight.dim() == x.dim(), f"an input of rank {x.dim()}")
    dense = x.is_contiguous(memory_format=LAYOUTS[x.dim()]) and _suggests_channels_last(x)
    require(dense, f"an input with strides {x.stride()}")
    require(x.shape[1] == weight.shape[1] * given["groups"], "another number of channels than the weight has")
    require(weight.shape[0] % given["groups"] == 0, "outputs that the groups do not divide")
    _read(given, weight.shape[0])
    _written(given)
    if "attr" in given:
        known = CONVOLUTION_POST_OPS if x.dim() == 4 else ("none",)
        _post_op(given["attr"], given["scalars"], given["algorithm"], known)


def _convolution_sum(given: Arguments) -> None:
    _convolution(given)
    x, accumulated = given["qx"], given["qaccum"]
    require(x.dim() == 4, "a sum of another rank than 4")
    require(given["binary_attr"] == "sum" and given["unary_attr"] in ("none", "relu"), "a sum with another post-op")
    require(given["alpha"] == 1.0, "a scaled sum")
    require(accumulated.dtype is given["output_dtype"], "an accumulator of another dtype than the result")
    require(accumulated.is_contiguous(memory_format=torch.channels_last), "an accumulator in another layout")


def _linear(given: Arguments) -> None:
    _one_device(given)
    x, weight = given["qx"], given["qw"]
    require(x.dim() == 2 and weight.dim() == 2, f"an input of rank {x.dim()}")
    require(x.shape[1] == weight.shape[0], "a weight that is not (features, outputs)")
    _read(given, weight.shape[1])
    _written(given)
    if "post_op_name" in given:
        _post_op(given["post_op_name"], given["post_op_args"], given["post_op_algorithm"], LINEAR_POST_OPS)


def _linear_add(given: Arguments) -> None:
    _linear(given)
    x, weight, other = given["qx"], given["qw"], given["other"]
    names = (given["binary_post_op"], given["unary_post_op"])
    require(names[0] == "add" and names[1] in ("none", "relu"), f"post-ops {names}")
    require(other.dtype in FLOATS, "a second tensor in integers: the kernel knows no scale of it")
    require(other.shape == (x.shape[0], weight.shape[1]), "a second tensor of another shape than the result")
    require((given["binary_alpha"], given["other_scale"], given["other_zp"]) == (1.0, 1.0, 0), "a scaled sum")


def _weight_only_8(given: Arguments) -> None:
    _one_device(given)
    x, weight, scales = given["self"], given["mat2"], given["scales"]
    require(x.dim() == 2 and x.is_contiguous() and x.dtype in ROW_FLOATS, "an input that is not a dense float matrix")
    require(weight.dtype is torch.int8 and weight.is_contiguous(), "a weight that is not dense int8")
    require(weight.shape[1] == x.shape[1], "a weight that is not (outputs, features)")
    require(scales.shape == (weight.shape[0],), "another number of scales than outputs")


def _weight_only_4(given: Arguments) -> None:
    _one_device(given)
    x, words, group = given["self"], given["mat2"], given["qGroupSize"]
    scales, zeros = given["qScale"], given["qZeros"]
    require(x.dim() == 2 and x.is_contiguous(), "an input that is not a dense matrix")
    require(x.dtype in ROW_FLOATS[1:], f"an input of {x.dtype}")
    require(words.dtype is torch.int32 and words.is_contiguous(), "weights that are not packed")
    require(words.shape[1] * 8 == x.shape[1], "a weight that is not (outputs, features / 8)")
    require(group > 1 and group % 32 == 0 and x.shape[1] % group == 0, f"groups of {group}")
    shape = (x.shape[1] // group, words.shape[0])
    require(scales.shape == shape and scales.is_contiguous() and scales.dtype is x.dtype, "scales of another form")
    require(zeros.shape == shape and zeros.is_contiguous() and zeros.dtype is torch.int8, "zeros of another form")


def _max_pool(given: Arguments) -> None:
    x = given["qx"]
    require(x.dim() == 4 and x.dtype in EIGHT_BITS, f"an input of rank {x.dim()} and {x.dtype}")
    halves = zip(given["kernel_size"], given["padding"], strict=True)
    require(all(size // 2 >= side for size, side in halves), "padding of more than half of the kernel")


CONTRACTS: Mapping[Any, Callable[[Arguments], None]] = {
    torch.ops.onednn.qconv_pointwise.default: _convolution,
    torch.ops.onednn.qconv_pointwise.tensor: _convolution,
    torch.ops.onednn.qconv2d_pointwise.binary: _convolution_sum,
    torch.ops.onednn.qlinear_pointwise.default: _linear,
    torch.ops.onednn.qlinear_pointwise.tensor: _linear,
    torch.ops.onednn.qlinear_pointwise.binary: _linear_add,
    torch.ops.onednn.qlinear_pointwise.binary_tensor: _linear_add,
    torch.ops.aten._weight_int8pack_mm.default: _weight_only_8,
    torch.ops.aten._weight_int4pack_mm_with_scales_and_zeros.default: _weight_only_4,
    torch.ops.quantized.max_pool2d.default: _max_pool,
}
"""By operator; each raises if a call breaks a rule."""


class Contract(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's class has no types
    """Check every call of a kernel, and count them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's class has no types
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Check a call, then run it."""
        kwargs = kwargs if kwargs is not None else {}
        check = CONTRACTS.get(func)
        require(check is not None or not str(func).startswith("onednn."), f"{func} is not registered for XPU")
        if check is None:
            return func(*args, **kwargs)
        given = arguments_of(func, args, kwargs)
        check(given)
        self.calls[kernel_of(func)] = self.calls.get(kernel_of(func), 0) + 1
        return self.compute(func, given, args, kwargs)

    def compute(self, func: Any, given: Arguments, args: Any, kwargs: Any) -> Any:
        """Run a kernel."""
        return func(*args, **kwargs)
