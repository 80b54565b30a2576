"""Operators that a lowered program calls: they show whether a row runs in a kernel of the device or in float."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qspec_core import ops
from qspec_core._torch import DispatchMode, OpOverload, schema_of, tree_leaves
from qspec_core.testing._errors import CheckName, ConformanceError
from qspec_core.testing._probe import Plan, call_positionally, random_value

__all__ = ["check_kernels"]

aten = torch.ops.aten
_PRODUCTS = frozenset(
    {
        *(aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default, aten.mv.default),
        *(aten.addmv.default, aten.dot.default, aten.matmul.default, aten.linear.default, aten.convolution.default),
        *(aten.mkldnn_convolution.default, aten._convolution.default, aten.conv2d.default),
    }
)
"""Products of floats. A layer could be written as any of them."""


@dataclass(frozen=True)
class _Call:
    """An operator call: the sizes of its floating-point tensors, in elements, and whether its result is a view."""

    operator: OpOverload
    floats: frozenset[int]
    is_view: bool


class _Recorder(DispatchMode):  # type: ignore[no-untyped-call]  # torch types no mode
    """Records every operator that is called. Operators inside of a kernel are not seen."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.calls: list[_Call] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:  # the signature is torch's
        given = dict(kwargs) if kwargs is not None else {}
        if isinstance(func, OpOverload):
            tensors = [leaf for leaf in tree_leaves((args, given)) if isinstance(leaf, Tensor)]
            floats = frozenset(tensor.numel() for tensor in tensors if tensor.is_floating_point())
            is_view = any(result.alias_info is not None for result in schema_of(func).returns)
            self.calls.append(_Call(func, floats, is_view))
        return func(*args, **given)


def _float_calls(plan: Plan) -> list[_Call]:
    """The calls that torch makes to compute the anchor of a plan in float. A view costs nothing in any dtype."""
    generator = torch.Generator().manual_seed(0)
    values = {name: random_value(shape, generator, plan.sample.dtype) for name, shape in plan.sample.tensors.items()}
    with torch.no_grad(), _Recorder() as recorder:
        call_positionally(plan.row.anchor, {**values, **plan.sample.constants})
    return [call for call in recorder.calls if call.floats and not call.is_view]


def _in_float(found: list[_Call], of_anchor: list[_Call]) -> list[str]:
    """Operators of a program that do what an anchor does in float: the same on tensors of a size, or any product."""
    operators = {call.operator for call in of_anchor}
    sizes = frozenset[int]().union(*(call.floats for call in of_anchor))
    alike = {c.operator for c in found if c.operator in operators and c.floats & sizes}
    if operators & _PRODUCTS:
        alike |= {call.operator for call in found if call.operator in _PRODUCTS and call.floats}
    return sorted(map(str, alike))


def check_kernels(lowered: nn.Module, inputs: tuple[Tensor, ...], plan: Plan, *, reports: bool) -> None:
    """Check that a lowered program does not compute the anchor of a row in float.

    A program that calls no operator through torch's dispatcher shows nothing, so it must report its rows.

    Args:
        lowered: the program of a probe.
        inputs: its arguments.
        plan: the content of the probe.
        reports: whether the device reports the rows that it runs in integers.
    Raises: ConformanceError: the row runs in float, or nothing shows where it runs.
    """
    given = tuple(value.clone() for value in inputs)
    with torch.no_grad(), _Recorder() as recorder:
        lowered(*given)
    found = _in_float(recorder.calls, _float_calls(plan))
    if found:
        raise ConformanceError(
            f"row {plan.label!r} was quantized, but the lowered program computes it in float",
            check=CheckName.KERNELS,
            found=f"{', '.join(found)} on floating-point tensors",
            expected="a kernel that takes integers: an operator of the device, or a program that torch does not run",
            remedy="lower the call, or add a check to the row that refuses it at annotation; make a kernel of several "
            "operators one operator with torch.library.custom_op",
        )
    own = [call for call in recorder.calls if not call.is_view and call.operator.namespace != ops.QUANTIZE.namespace]
    if not own and not reports:
        raise ConformanceError(
            f"nothing shows whether row {plan.label!r} runs in integers",
            check=CheckName.KERNELS,
            found="a program that calls no operators of torch",
            expected="operators of the device, or a report of the rows that it runs",
            remedy="pass ran=, a function that reads the labels of the rows from the lowered program, to the Kit",
        )
