"""Each operator in a file against the operator itself, in ONNX's reference evaluator."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from core_support import export
from onnx.reference import ReferenceEvaluator
from onnx_support import Module, run_reference, written
from torch import Tensor

from qspec_core import ops
from qspec_core.onnx import OnnxExportError

X = torch.linspace(-3.0, 5.0, 4 * 8).reshape(4, 8)
SCALES, ZEROS = torch.tensor([0.02, 0.03, 0.05, 0.01]), torch.tensor([3, 0, -7, 1])
GROUPS, GROUP_ZEROS = torch.linspace(0.3, 0.9, 8).reshape(4, 2), torch.arange(8).reshape(4, 2) - 4
FLOATS = torch.tensor([1.25, 0.5, -3.75, 2.0])
KERNEL = torch.arange(32, dtype=torch.int8).reshape(4, 8) - 9
Function = Callable[..., Any]


def per_tensor(zero: int, low: int, high: int, dtype: torch.dtype) -> Function:
    def run(self: Module, x: Tensor) -> tuple[Tensor, Tensor]:
        integers = ops.QUANTIZE(x, 0.03, zero, low, high, dtype)
        return integers, ops.DEQUANTIZE(integers, 0.03, zero, low, high, dtype)

    return run


def dynamic(choose: Any, low: int, high: int, dtype: torch.dtype) -> Function:
    def run(self: Module, x: Tensor) -> tuple[Tensor, Tensor]:
        scale, zero = choose(x, low, high, 1e-5, dtype)
        integers = ops.QUANTIZE_DYNAMIC(x, scale, zero, low, high, dtype)
        return integers, ops.DEQUANTIZE_DYNAMIC(integers, scale, zero, low, high, dtype)

    return run


def per_token(choose: Any) -> Function:
    def run(self: Module, x: Tensor) -> tuple[Tensor, Tensor]:
        scale, zero = choose(x, torch.int8)
        integers = ops.QUANTIZE_PER_TOKEN(x, scale, zero, -128, 127, torch.int8)
        return integers, ops.DEQUANTIZE_PER_TOKEN(integers, scale, zero, -128, 127, torch.int8, torch.float32)

    return run


def per_channel(self: Module, x: Tensor) -> tuple[Tensor, Tensor]:
    limits = 0, -100, 120, torch.int8
    integers = ops.QUANTIZE_PER_CHANNEL(x, self.scales, self.zeros, *limits)
    return integers, ops.DEQUANTIZE_PER_CHANNEL(integers, self.scales, self.zeros, *limits)


def per_group(self: Module, x: Tensor) -> tuple[Tensor, Tensor]:
    limits = -8, 7, torch.int8, 4
    integers = ops.QUANTIZE_PER_GROUP(x, self.groups, self.group_zeros, *limits)
    return integers, ops.DEQUANTIZE_PER_GROUP(integers, self.groups, self.group_zeros, *limits, torch.float32)


def constants(self: Module, x: Tensor) -> tuple[Tensor, ...]:
    """Constants of 4 bits, of 8 bits with zero points that are real numbers, without zero points, in float16."""
    four = ops.DEQUANTIZE_PER_GROUP(self.four, self.groups, self.group_zeros, -8, 7, torch.int8, 4, torch.float32)
    limits = 0, -128, 127, torch.int8
    return (
        x + four,
        ops.DEQUANTIZE_PER_CHANNEL(self.kernel, self.scales, self.floats, *limits),
        ops.DEQUANTIZE_PER_CHANNEL(self.kernel, self.scales, None, *limits),
        ops.DEQUANTIZE_PER_CHANNEL(self.kernel, self.scales, self.zeros, *limits, out_dtype=torch.float16),
    )


FORMS: dict[str, Function] = {
    "uint8": per_tensor(100, 0, 255, torch.uint8),
    "int8": per_tensor(-5, -128, 127, torch.int8),
    "uint8 in 7 bits": per_tensor(50, 0, 127, torch.uint8),
    "int8 in 4 bits": per_tensor(1, -8, 7, torch.int8),
    "int16": per_tensor(-300, -32768, 32767, torch.int16),
    "uint16": per_tensor(3000, 0, 65535, torch.uint16),
    "int32": per_tensor(0, -(2**31), 2**31 - 1, torch.int32),
    "by channel": per_channel,
    "by group": per_group,
    "constants": constants,
    "dynamic uint8": dynamic(ops.CHOOSE_QPARAMS, 0, 255, torch.uint8),
    "dynamic uint8 in 7 bits": dynamic(ops.CHOOSE_QPARAMS, 0, 127, torch.uint8),
    "dynamic int8": dynamic(ops.CHOOSE_QPARAMS, -128, 127, torch.int8),
    "dynamic symmetric": dynamic(ops.CHOOSE_QPARAMS_SYMMETRIC, -127, 127, torch.int8),
    "dynamic symmetric uint8": dynamic(ops.CHOOSE_QPARAMS_SYMMETRIC, 0, 255, torch.uint8),
    "by token": per_token(ops.CHOOSE_QPARAMS_PER_TOKEN),
    "by token, asymmetric": per_token(ops.CHOOSE_QPARAMS_PER_TOKEN_ASYMMETRIC),
}


def every_form(self: Module, x: Tensor) -> list[Any]:
    return [form(self, x) for form in FORMS.values()]


def module(function: Function) -> Module:
    buffers = {"scales": SCALES, "zeros": ZEROS, "groups": GROUPS, "group_zeros": GROUP_ZEROS, "floats": FLOATS}
    return Module(function, kernel=KERNEL, four=KERNEL.clamp(-8, 7), **buffers)


@pytest.fixture(scope="module", params=[18, 21, 25])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of all forms in one file, and those of torch."""
    made = module(every_form)
    path = written(export(made, X), (X,), tmp_path_factory.mktemp("forms"), opset=request.param)
    onnx.checker.check_model(str(path), full_check=True)
    found = iter(run_reference(path, X))
    return {name: [(next(found), want) for want in form(made, X)] for name, form in FORMS.items()}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_computes_what_its_operators_do(results: dict[str, Any], form: str) -> None:
    for found, want in results[form]:
        assert found.dtype == want.dtype
        assert found.shape == want.shape
        if want.is_floating_point():
            step = 0.06 if form not in ("constants", "by group") else 1e-6
            tight = (found.double() - want.double()).abs() <= 1e-5 + 2e-3 * (want.dtype == torch.float16)
            assert tight.double().mean() > 0.9, "a scale or zero point is off"
            torch.testing.assert_close(found.float(), want.float(), rtol=1e-3, atol=step)
        else:
            off = (found.long() - want.long()).abs()
            assert off.max() <= 1, "more than one step off"
            assert (off > 0).double().mean() < 0.1, "a zero point or the rounding is off"


def test_forms_become_quantize_operators_where_the_opset_has_them(tmp_path: Path) -> None:
    """One pair for each form, no plain arithmetic; parameters by token have no operator."""
    plain = {"by token", "by token, asymmetric", "int32", "constants"}
    chosen = [form for name, form in FORMS.items() if name not in plain]
    path = written(export(module(lambda self, x: [form(self, x) for form in chosen]), X), (X,), tmp_path)
    counts = [node.op_type for node in onnx.load(path).graph.node]
    # One QuantizeLinear is part of a DynamicQuantizeLinear.
    assert counts.count("QuantizeLinear") == len(chosen) - 1
    assert counts.count("DequantizeLinear") == len(chosen)
    assert counts.count("DynamicQuantizeLinear") == 1


def test_constants_of_a_4_bit_range_are_stored_in_4_bits(tmp_path: Path) -> None:
    path = written(export(module(constants), X), (X,), tmp_path)
    tensors = onnx.load(path).graph.initializer
    assert onnx.TensorProto.INT4 in {tensor.data_type for tensor in tensors}
    floats = [tensor for tensor in tensors if tensor.data_type == onnx.TensorProto.FLOAT]
    assert all(torch.Size(tensor.dims).numel() < KERNEL.numel() for tensor in floats), "a constant became floats"


def float8(self: Module, x: Tensor) -> Tensor:
    integers = ops.QUANTIZE(x, 0.5, 0, -448, 448, torch.float8_e4m3fn)
    result: Tensor = ops.DEQUANTIZE(integers, 0.5, 0, -448, 448, torch.float8_e4m3fn)
    return result


def test_float8(tmp_path: Path) -> None:
    path = written(export(Module(float8), X), (X,), tmp_path)
    (found,) = ReferenceEvaluator(str(path)).run(None, {"x": X.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), float8(Module(float8), X))


def test_float8_in_an_old_opset_names_the_opset_that_has_it(tmp_path: Path) -> None:
    with pytest.raises(OnnxExportError) as raised:
        written(export(Module(float8), X), (X,), tmp_path, opset=18)
    assert "19" in str(raised.value.expected)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("x", [torch.zeros(4, 8), X.half(), X.bfloat16()], ids=["zeros", "float16", "bfloat16"])
def test_dynamic_parameters_of_special_tensors(tmp_path: Path, x: Tensor) -> None:
    def run(self: Module, x: Tensor) -> Any:
        return dynamic(ops.CHOOSE_QPARAMS, 0, 255, torch.uint8)(self, x)[1] * 2

    path = written(export(Module(run), x), (x,), tmp_path)
    evaluator = ReferenceEvaluator(str(path))
    given = x.numpy() if x.dtype is not torch.bfloat16 else bfloat16(x)
    (found,) = evaluator.run(None, {"x": given})
    torch.testing.assert_close(torch.from_numpy(found), run(Module(run), x), rtol=0, atol=0.07)


def bfloat16(x: Tensor) -> Any:
    import ml_dtypes

    return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
