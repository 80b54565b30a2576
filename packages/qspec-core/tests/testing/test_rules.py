"""Error rules against the operators: disturbed operands never give a result outside of the bound."""

import pytest
import torch
from torch import Tensor

from qspec_core.testing import SAMPLES, Integers, Operands, Sample
from qspec_core.testing._rules import RULES
from qspec_core.testing._walk import Other, walk

aten = torch.ops.aten
SAMPLED = [operator for operator in RULES if operator in SAMPLES]


def first(sample: object) -> Sample:
    found = sample if isinstance(sample, Sample) else sample[0]  # type: ignore[index]  # else a sequence
    assert isinstance(found, Sample)
    return found


def defaults(operator: torch._ops.OpOverload) -> dict[str, object]:
    return {a.name: a.default_value for a in operator._schema.arguments if a.has_default_value()}


def make(shape: object) -> Tensor | list[Tensor]:
    if isinstance(shape, Integers):
        return torch.randint(shape.below, shape.shape)
    assert isinstance(shape, tuple)
    if isinstance(shape[0], tuple):
        return [torch.randn(item, dtype=torch.float64) for item in shape]
    return torch.randn(shape, dtype=torch.float64)


def disturbed(value: Tensor | list[Tensor], error: Tensor | list[Tensor], corner: bool) -> Tensor | list[Tensor]:
    if isinstance(value, list):
        return [value[i] + error[i] * (2 * torch.rand_like(value[i]) - 1) for i in range(len(value))]
    assert isinstance(error, Tensor)
    pattern = 2 * torch.rand_like(value) - 1
    return value + error * (pattern.sign() if corner else pattern)


@pytest.mark.parametrize("operator", SAMPLED, ids=str)
def test_no_disturbance_leaves_the_bound(operator: torch._ops.OpOverload) -> None:
    sample = first(SAMPLES[operator])
    tensors = {name: make(shape) for name, shape in sample.tensors.items()}
    errors = {
        name: [0.3 * torch.rand_like(v) for v in value] if isinstance(value, list) else 0.3 * torch.rand_like(value)
        for name, value in tensors.items()
        if isinstance(value, list) or value.is_floating_point()
    }
    values = {**defaults(operator), **sample.constants, **tensors}
    bound = RULES[operator](Operands(operator, values, errors))
    exact = operator(**values)
    largest = torch.zeros_like(exact)
    for trial in range(200):
        moved = {name: disturbed(tensors[name], error, trial % 2 == 0) for name, error in errors.items()}
        largest = torch.maximum(largest, (operator(**{**values, **moved}) - exact).abs())
    assert bound.shape == exact.shape
    assert (largest <= bound + 1e-12).all()
    assert (largest > 0.02 * bound).any()  # and the bound is no mere large number


def test_the_bound_of_a_linear_layer_is_reached() -> None:
    """Errors with the signs of the weights add up: the worst case is the bound itself."""
    x, w, e = torch.randn(5, 8).double(), torch.randn(6, 8).double(), torch.rand(5, 8).double()
    values = {**defaults(aten.linear.default), "input": x, "weight": w}
    bound = RULES[aten.linear.default](Operands(aten.linear.default, values, {"input": e}))
    for row in range(6):
        worst = ((x + e * w[row].sign()) @ w[row] - x @ w[row]).abs()
        torch.testing.assert_close(bound[:, row], worst)


def test_a_quantized_linear_layer_by_hand() -> None:
    """|W| s_x / 2 + s_w / 2 (|x| + s_x / 2), summed, against float; a step of the input against the lowered form."""
    import core_support as core

    layer = torch.nn.Linear(8, 6)
    batch = torch.randn(5, 8)
    converted = core.quantized(core.export(layer, batch), (batch,))
    scale, zero = core.affine_parameters(batch)
    x = core.simulate(batch, scale, zero, 0, 255).double()
    scales = core.symmetric_scales(layer.weight)
    w = core.simulate(layer.weight.detach(), scales, 0, -128, 127).double()
    found = walk(converted, (batch,), RULES, Other.FLOAT)
    # The largest value may lie up to half a step of the zero point's rounding outside of the range.
    low, high = (0 - zero) * scale, (255 - zero) * scale
    off = scale / 2 + torch.clamp(torch.maximum(low - batch.double(), batch.double() - high), min=0)
    by_hand = off @ w.abs().T + (x.abs() + off) @ (scales.double() / 2).expand(6, 8).T
    torch.testing.assert_close(found.bound, by_hand, rtol=1e-5, atol=0)
    assert found.step is None
    lowered = walk(converted, (batch,), RULES, Other.LOWERED)
    torch.testing.assert_close(lowered.bound, scale * w.abs().sum(1).expand(5, 6), rtol=1e-5, atol=0)
