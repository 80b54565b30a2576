"""Core's own `quantized_decomposed` operators against torch's, and a process that has only core's."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qspec_core import SpecError, ops
from qspec_core._decomposed import OPERATORS, define_quantized_decomposed
from qspec_core._decomposed import _kernels as kernels
from qspec_core._torch import schema_of

WORKER = Path(__file__).with_name("decomposed_without_torch.py")
torchs = torch.ops.quantized_decomposed
assert ops.QUANTIZE is torchs.quantize_per_tensor.default  # torch's own are loaded here

RANGES = {
    torch.int8: ((-128, 127), (-127, 127), (-8, 7)),
    torch.uint8: ((0, 255), (0, 127)),
    torch.int16: ((-32768, 32767),),
    torch.int32: ((-(2**31), 2**31 - 1),),
}


def overload(name: str) -> Any:  # an operator overload, which torch leaves untyped
    packet, _, own = name.partition(".")
    return getattr(getattr(torchs, packet), own or "default")


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, tuple[int, int], torch.dtype, torch.Generator]:
    """A float matrix (rows, columns), a scale and a zero point a row, a range and a dtype."""
    dtype = draw(st.sampled_from(list(RANGES)))
    low, high = draw(st.sampled_from(RANGES[dtype]))
    kind = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rows, columns = draw(st.integers(1, 4)), 4 * draw(st.integers(1, 3))
    x = torch.randn(rows, columns, generator=generator) * 10.0 ** draw(st.integers(-6, 4)) + draw(st.integers(-2, 2))
    scales = torch.rand(rows, generator=generator) * draw(st.sampled_from([1e-5, 0.1, 3.0])) + 1e-7
    zeros = torch.randint(max(low, -100), min(high, 100) + 1, (rows,), generator=generator)
    return x.to(kind), scales, zeros, (low, high), dtype, generator


def check(name: str, own: Callable[..., Any], *arguments: object, **named: object) -> Any:
    """Run both and require bitwise equal results. Returns the result."""
    found, expected = own(*arguments, **named), overload(name)(*arguments, **named)
    for ours, theirs in zip(
        found if isinstance(found, tuple) else (found,),
        expected if isinstance(expected, tuple) else (expected,),
        strict=True,
    ):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), name
        assert torch.equal(ours, theirs), name
    return found


def test_schemas_are_those_of_torch() -> None:
    for name, operator in OPERATORS.items():
        assert str(schema_of(overload(name))) == f"quantized_decomposed::{name}{operator.schema}"


@settings(max_examples=150, deadline=None)
@given(cases())
def test_per_tensor_and_channel(case: Any) -> None:
    x, scales, zeros, (low, high), dtype, _ = case
    scale, zero = scales[:1].item(), zeros[:1].item()
    parameters = torch.tensor(scale), torch.tensor(zero)
    limits, both = (low, high, dtype), (torch.tensor(low), torch.tensor(high), dtype)
    q = check("quantize_per_tensor", kernels.quantize_per_tensor, x, scale, zero, *limits)
    check("quantize_per_tensor.tensor", kernels.quantize_per_tensor_tensor, x, *parameters, *limits)
    check("quantize_per_tensor.tensor2", kernels.quantize_per_tensor_tensor2, x, *parameters, *both)
    for out in (None, torch.float16):
        check("dequantize_per_tensor", kernels.dequantize_per_tensor, q, scale, zero, *limits, out_dtype=out)
        own = kernels.dequantize_per_tensor_tensor
        check("dequantize_per_tensor.tensor", own, q, *parameters, *limits, out_dtype=out)
        check("dequantize_per_tensor.tensor2", own, q, *parameters, *both, out_dtype=out)
    for axis, tensor in ((0, x), (1, x.t())):
        q = check("quantize_per_channel", kernels.quantize_per_channel, tensor, scales, zeros, axis, *limits)
        for zero_points in (zeros, None):
            check("dequantize_per_channel", kernels.dequantize_per_channel, q, scales, zero_points, axis, *limits)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_tokens_and_groups(case: Any) -> None:
    x, scales, zeros, (low, high), dtype, generator = case
    limits = low, high, dtype
    tokens = scales[:, None], zeros[:, None]
    q = check("quantize_per_token", kernels.quantize_per_token, x, *tokens, *limits)
    check("dequantize_per_token", kernels.dequantize_per_token, q, *tokens, *limits, torch.float32)
    check("choose_qparams_per_token", kernels.choose_qparams_per_token, x, torch.int8)
    own = kernels.choose_qparams_per_token_asymmetric
    check("choose_qparams_per_token_asymmetric", own, x, torch.int8)
    groups = torch.rand(x.shape[0], x.shape[1] // 4, generator=generator) + 0.01
    nothing = torch.zeros_like(groups, dtype=torch.int32)
    q = check("quantize_per_channel_group", kernels.quantize_per_channel_group, x, groups, nothing, *limits, 4)
    grouped = kernels.dequantize_per_channel_group
    for zero_points in (nothing, None):
        check("dequantize_per_channel_group", grouped, q, groups, zero_points, *limits, 4, torch.float32)
    rows = scales[:, None], zeros[:, None], *limits, 128  # larger than a row: one group a row
    check("quantize_per_channel_group", kernels.quantize_per_channel_group, x, *rows)
    check("convert_element_type.no_fuse", kernels.convert_element_type, x, torch.bfloat16)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_parameters_are_chosen_as_torch_does(case: Any) -> None:
    x, _, _, (low, high), dtype, _ = case
    check("choose_qparams.tensor", kernels.choose_qparams, x, low, high, 1e-7, dtype)
    check("choose_qparams_symmetric.tensor", kernels.choose_qparams_symmetric, x, low, high, 1e-7, dtype)
    check("choose_qparams.tensor", kernels.choose_qparams, torch.zeros_like(x), low, high, 2.0**-12, dtype)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: kernels.quantize_per_tensor(x, 0.1, 0, -129, 127, torch.int8),
        lambda x: kernels.quantize_per_tensor(x, 0.1, 0, 0, 1, torch.bool),
        lambda x: kernels.quantize_per_tensor(x.double(), 0.1, 0, -128, 127, torch.int8),
        lambda x: kernels.quantize_per_tensor_tensor(x, torch.ones(2), torch.zeros(1), -128, 127, torch.int8),
        lambda x: kernels.dequantize_per_tensor(x, 0.1, 0, -128, 127, torch.int8),
        lambda x: kernels.quantize_per_channel(x, torch.ones(2), torch.zeros(2), 2, -128, 127, torch.int8),
        lambda x: kernels.choose_qparams(x, 1, 255, 1e-7, torch.uint8),
        lambda x: kernels.choose_qparams_per_token(x, torch.uint8),
        lambda x: kernels.quantize_per_token(x, torch.ones(5), torch.zeros(5), -128, 127, torch.int8),
        lambda x: kernels.quantize_per_channel_group(x, torch.ones(2, 2), torch.zeros(2, 2), -8, 7, torch.int8, 3),
        lambda x: kernels.quantize_per_channel_group(x, torch.ones(2, 2), torch.zeros(2, 2), -8, 7, torch.int8, 1),
    ],
)
def test_bad_arguments_are_refused(call: Callable[[Tensor], object]) -> None:
    with pytest.raises(SpecError, match="quantized_decomposed"):
        call(torch.randn(2, 4))


def test_existing_definitions_are_kept() -> None:
    before = [overload(name) for name in OPERATORS]
    define_quantized_decomposed()
    assert before == [overload(name) for name in OPERATORS]
    assert torchs.choose_qparams.tensor(torch.ones(2), 0, 255, 1e-7, torch.uint8)


def test_process_without_torchs_definitions(tmp_path: Path) -> None:
    """The flow runs on core's operators, and its saved program gives the same results here on torch's."""
    run = subprocess.run([sys.executable, "-W", "error", str(WORKER), str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) == {name: str(schema_of(overload(name))) for name in OPERATORS}
    x, expected, gradient = torch.load(tmp_path / "tensors.pt")
    program = torch.export.load(tmp_path / "program.pt2")
    assert {ops.QUANTIZE, ops.QUANTIZE_PER_CHANNEL} <= {node.target for node in program.graph.nodes}
    assert torch.equal(program.module()(x), expected)
    leaf = x.clone().requires_grad_()
    scales, zeros = torch.full((8,), 0.01), torch.zeros(8)
    torchs.fake_quant_per_channel(leaf, scales, zeros, 1, -128, 127).sum().backward()
    assert torch.equal(leaf.grad, gradient)
    assert 0 < gradient.sum() < gradient.numel()
