"""Error rules: for each operator, a bound on the error of its result, from bounds on the errors of its operands.

With a computed operand c and the true one f, |f - c| <= e for each element:

- operators that move elements, take maxima or average (coefficients >= 0 that sum to at most one): the operator on e;
- functions of one variable with Lipschitz constant L: L e;
- sums: e_a + |alpha| e_b;
- bilinear operators (mul, matmul, linear, convolutions): op(e_a, |c_b| + e_b) + op(|c_a|, e_b), because
  f_a f_b - c_a c_b = (f_a - c_a) f_b + c_a (f_b - c_b) and |f_b| <= |c_b| + e_b.
"""

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from qspec_core._torch import OpOverload
from qspec_core.graph._layers import LAYERS
from qspec_core.testing._samples import ErrorRule, Operands

__all__ = ["RULES"]

aten = torch.ops.aten


def _on_errors(call: Operands) -> Tensor:
    result: Tensor = call.call(call.errors)
    return result


def _pad(call: Operands) -> Tensor:
    """The padding value is exact, so constant padding has no error."""
    value = 0.0 if call.values["mode"] == "constant" else call.values["value"]
    result: Tensor = call.call({**call.errors, "value": value})
    return result


def _lipschitz(call: Operands, *, constant: float) -> Tensor:
    result: Tensor = constant * call.errors["self"]
    return result


def _slope(call: Operands) -> Tensor:
    result: Tensor = max(1.0, abs(call.values["negative_slope"])) * call.errors["self"]
    return result


def _slopes(call: Operands) -> Tensor:
    slope, error = call.values["weight"].double().abs().max(), call.errors["weight"].max()
    result: Tensor = (slope + error).clamp(min=1.0) * call.errors["self"] + error * call.values["self"].double().abs()
    return result


def _elu(call: Operands) -> Tensor:
    alpha, scale, input_scale = (float(call.values[name]) for name in ("alpha", "scale", "input_scale"))
    result: Tensor = scale * max(1.0, alpha * input_scale) * call.errors["self"]
    return result


def _sum(call: Operands) -> Tensor:
    result: Tensor = call.errors["self"] + abs(call.values["alpha"]) * call.errors.get("other", 0.0)
    return result


def _extremum(call: Operands) -> Tensor:
    return torch.maximum(call.errors["self"], call.errors["other"])


def _bilinear(call: Operands, *, first: str, second: str) -> Tensor:
    """Bound for an operator that is linear in `first` and in `second`, and adds an operand `bias`."""
    size_a, size_b = (_size(call.values[name]) for name in (first, second))
    error_a, error_b = (_or_zero(call.errors.get(n), size) for n, size in ((first, size_a), (second, size_b)))
    has_bias = call.values.get("bias") is not None
    none = {"bias": None} if "bias" in call.values else {}
    own = {"bias": call.errors["bias"]} if has_bias else none
    left: Tensor = call.call({first: error_a, second: size_b + error_b, **own})
    right: Tensor = call.call({first: size_a, second: error_b, **none})
    return left + right


def _size(value: Tensor | float) -> Tensor:
    return torch.as_tensor(value).double().abs()


def _or_zero(error: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if error is None else error


_MOVES: tuple[OpOverload, ...] = (
    *(aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default),
    *(aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default),
    *(aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.mean.dim, aten.mean.default),
    *(aten.cat.default, aten.stack.default, aten.view.default, aten.reshape.default, aten.flatten.using_ints),
    *(aten.unflatten.int, aten.permute.default, aten.transpose.int, aten.t.default, aten.unsqueeze.default),
    *(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.expand.default, aten.slice.Tensor),
    *(aten.select.int, aten.contiguous.default, aten.clone.default, aten.embedding.default),
)
# Largest slope, rounded up: gelu 1.1290 in either form, silu 1.0999, mish 1.0885.
_CONSTANTS: Mapping[OpOverload, float] = {
    **dict.fromkeys((aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default), 1.0),
    **dict.fromkeys((aten.tanh.default, aten.abs.default, aten.neg.default), 1.0),
    aten.sigmoid.default: 0.25,
    aten.hardsigmoid.default: 1 / 6,
    aten.hardswish.default: 1.5,
    aten.gelu.default: 1.13,
    aten.silu.default: 1.1,
    aten.mish.default: 1.1,
}

RULES: Mapping[OpOverload, ErrorRule] = MappingProxyType(
    {
        **dict.fromkeys(_MOVES, _on_errors),
        **{operator: partial(_lipschitz, constant=constant) for operator, constant in _CONSTANTS.items()},
        **dict.fromkeys(LAYERS, partial(_bilinear, first="input", second="weight")),
        **dict.fromkeys((aten.mul.Tensor, aten.matmul.default), partial(_bilinear, first="self", second="other")),
        aten.bmm.default: partial(_bilinear, first="self", second="mat2"),
        aten.pad.default: _pad,
        aten.leaky_relu.default: _slope,
        aten.prelu.default: _slopes,
        aten.elu.default: _elu,
        aten.add.Tensor: _sum,
        aten.sub.Tensor: _sum,
        aten.maximum.default: _extremum,
        aten.minimum.default: _extremum,
    }
)
"""Error rules of the operators that core has samples of."""
