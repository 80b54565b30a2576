"""Checks of one quantized probe."""

import json
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule

from qspec_core._coverage import Coverage, CoverageEntry, CoverageStatus, coverage
from qspec_core.canonical import canonicalize
from qspec_core.graph import constant_value, copy_graph_module
from qspec_core.lowering import match_converted, quantized_operand
from qspec_core.patterns import Match, PatternTable, Role
from qspec_core.testing._errors import CheckName, ConformanceError
from qspec_core.testing._probe import TESTED, Plan, Probe
from qspec_core.testing._walk import Walk

__all__ = [
    "Snapshot",
    "check_agreement",
    "check_coverage",
    "check_ranges",
    "check_weights",
    "require_finite",
    "rounding_slack",
    "tested_match",
]

# A range is at most this many times as wide as its values: a power-of-two scale doubles it, a symmetric range over
# one-sided values doubles it again. A histogram may cut off outliers, up to this part of the values' span.
_WIDEST = 8.0
_MOST_CUT = 0.5
# Error of float32 arithmetic: a few hundred roundings of 2**-24 each, relative to the largest value.
_ROUNDING = 2.0**-14


@dataclass(frozen=True)
class Snapshot:
    """The state of a module: its code, its nodes with their metadata, its tensors by storage and value."""

    code: str
    nodes: tuple[tuple[str, tuple[tuple[str, int], ...]], ...]
    tensors: tuple[tuple[str, int, Tensor], ...]
    metadata: str

    @classmethod
    def of(cls, module: GraphModule) -> "Snapshot":
        """Take a snapshot of a module."""
        nodes = tuple(
            (str(node.format_node()), tuple((key, id(value)) for key, value in node.meta.items()))
            for node in module.graph.nodes
        )
        tensors = tuple((name, value.data_ptr(), value.clone()) for name, value in _tensors(module))
        return cls(module.code, nodes, tensors, repr(module.meta))

    def check(self, module: GraphModule, step: str) -> None:
        """Raises: ConformanceError: the module has changed since the snapshot."""
        now = Snapshot.of(module)
        changed = [name for name in ("code", "nodes", "metadata") if getattr(self, name) != getattr(now, name)]
        before, after = ({name: (at, value) for name, at, value in shot.tensors} for shot in (self, now))
        changed += [f"tensor {name}" for name in before.keys() ^ after.keys()]
        for name in before.keys() & after.keys():
            same = before[name][0] == after[name][0] and torch.equal(before[name][1], after[name][1])
            changed += [] if same else [f"tensor {name}"]
        if changed:
            raise ConformanceError(
                f"{step} changed its input module",
                check=CheckName.UNCHANGED,
                found=", ".join(sorted(changed)),
                expected="the same code, nodes, metadata and tensors",
                remedy=f"make {step} work on a copy: qspec_core.graph.copy_graph_module shares the parameters",
            )


def _tensors(module: torch.nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def check_coverage(converted: GraphModule, plan: Plan) -> None:
    """Check that the row and chain under test quantized every operator under test, and that coverage survives JSON.

    Raises: ConformanceError: either is not so.
    """
    found = coverage(converted)
    tested = [entry for entry in found if entry.module == TESTED]
    wrong = [entry for entry in tested if entry.status is not CoverageStatus.QUANTIZED or entry.row != plan.label]
    absent = [str(operator) for operator in plan.operators if str(operator) not in {e.operator for e in tested}]
    if wrong or absent:
        raise ConformanceError(
            f"row {plan.label!r} did not quantize {_names(wrong) or ', '.join(absent)}",
            check=CheckName.COVERAGE,
            found="; ".join(map(str, tested)) or "no operator in the coverage",
            expected=f"{', '.join(map(str, plan.operators))}: quantized, by row {plan.label}",
            remedy="correct the row, the order of the rows or a check; if the check is right, pass "
            f"samples={{{plan.row.anchor}: Sample(...)}} with a call that the row accepts",
        )
    again = Coverage.from_dict(json.loads(json.dumps(found.to_dict())))
    if again != found:
        raise ConformanceError(
            "coverage does not survive JSON",
            check=CheckName.JSON,
            found="; ".join(str(theirs) for _, theirs in found.compare(again)),
            expected="the same entries",
            remedy="use plain strings for the names of the row and its post-ops, and for the details of its reasons",
        )


def _names(entries: Iterable[CoverageEntry]) -> str:
    return ", ".join(entry.operator for entry in entries)


def tested_match(converted: GraphModule, table: PatternTable, plan: Plan) -> tuple[GraphModule, Match]:
    """The match of the row under test in a canonical copy of the converted graph, and that copy.

    Raises: ConformanceError: the row is not found again, so lowering would not find it either.
    """
    copy = copy_graph_module(converted)
    canonicalize(copy)
    own = {entry.node for entry in coverage(converted) if entry.module == TESTED}
    matches = {match.label: match for match in match_converted(copy, table) if match.anchor.name in own}
    if plan.label not in matches:
        raise ConformanceError(
            f"row {plan.label!r} is not found again in the converted graph",
            check=CheckName.MATCHED_AGAIN,
            found=", ".join(matches) or "no row",
            expected=plan.label,
            remedy="the quantizer must give a spec to each activation and weight of the row, and to each quantized "
            "second operand of its chain; checks must also accept the converted graph",
        )
    return copy, matches[plan.label]


def check_weights(converted: GraphModule, table: PatternTable, probe: Probe) -> None:
    """Check that the row's weights are stored as the nearest integers of a fitting range, and not as floats too.

    Raises: ConformanceError: a weight is not.
    """
    names = [name for name, role in probe.plan.constants.items() if role is Role.WEIGHT]
    if not names:
        return
    copy, match = tested_match(converted, table, probe.plan)
    for name in names:
        original = getattr(probe.tested, name).detach().double()
        quantized = quantized_operand(match, name)
        integers = constant_value(copy, quantized.integers)
        if integers is None or integers.is_floating_point():
            raise ConformanceError(
                f"operand {name!r} of row {probe.plan.row.name} is not stored as integers",
                check=CheckName.WEIGHTS,
                where=match.anchor,
                found=quantized.integers.format_node(),
                expected="a constant tensor of integers, read by a dequantize",
                remedy="give the operand a spec with an integer dtype, and role WEIGHT in the row",
            )
        axis = next(operand.ch_axis for operand in probe.plan.row.operands if operand.name == name)
        if quantized.ch_axis not in (None, axis):
            raise ConformanceError(
                f"operand {name!r} has its channels in another dimension than the row says",
                check=CheckName.CHANNEL_AXIS,
                where=match.anchor,
                found=f"ch_axis={quantized.ch_axis}",
                expected=f"ch_axis={axis}",
                remedy="make the spec's ch_axis and the row's agree",
            )
        low, high = quantized.quant_min, quantized.quant_max
        scale, zero = (
            _parameters(copy, item, quantized.ch_axis, quantized.group_size, original)
            for item in (quantized.scale, _zero(quantized.zero_point))
        )
        stored, group = (integers.double() - zero) * scale, quantized.group_size
        _check_grid(name, original, stored, scale, (low - zero) * scale, (high - zero) * scale, group)
        _check_no_copy(converted, name, original, scale)


def _zero(value: object) -> object:
    return 0 if value is None else value


def _parameters(module: GraphModule, item: object, axis: int | None, group: int | None, like: Tensor) -> Tensor:
    constant = constant_value(module, item)
    value = torch.as_tensor(item if constant is None else constant, dtype=torch.float64)
    if group is not None:  # (outputs, groups) -> (outputs, features)
        return value if value.dim() == 0 else value.repeat_interleave(group, 1)
    return value if axis is None else value.reshape([-1 if dim == axis else 1 for dim in range(like.dim())])


def _largest(original: Tensor, scale: Tensor, group: int | None) -> Tensor:
    """Largest magnitude among the values of each scale, in a shape that broadcasts with the values."""
    if group is not None:  # (outputs, features) -> (outputs, groups) -> (outputs, features)
        return original.reshape(len(original), -1, group).abs().amax(-1).repeat_interleave(group, 1)
    axes = [dim for dim in range(original.dim()) if scale.dim() == 0 or scale.shape[dim] == 1]
    return original.abs().amax(axes, keepdim=True)


def _check_grid(
    name: str, original: Tensor, stored: Tensor, scale: Tensor, low: Tensor, high: Tensor, group: int | None
) -> None:
    """Check that stored weights are the original ones, rounded to the nearest step, and that the range fits them."""
    nearest = torch.minimum(torch.maximum(original, low), high)
    off = ((stored - nearest).abs() / scale).max().item()
    largest = _largest(original, scale, group)
    ratio = torch.maximum(high, -low) / largest
    if off > 0.5 + _ROUNDING or (ratio > _WIDEST).any() or (ratio < _MOST_CUT).any():
        raise ConformanceError(
            f"the integers of operand {name!r} do not represent its values",
            check=CheckName.WEIGHTS,
            found=f"values up to {off:.3g} steps off; the range is {ratio.min():.3g} to {ratio.max():.3g} times as "
            "wide as the values",
            expected=f"at most 0.5 steps; {_MOST_CUT} to {_WIDEST} times",
            remedy="check the observer of the weight's spec, and that ch_axis is the axis of the row's operand",
        )


def _check_no_copy(converted: GraphModule, name: str, original: Tensor, scale: Tensor) -> None:
    for key, value in _tensors(converted):
        is_alike = value.shape == original.shape and value.is_floating_point()
        if is_alike and ((value.double() - original).abs() <= scale).all():
            raise ConformanceError(
                f"the converted module still holds operand {name!r} as floats",
                check=CheckName.FLOAT_COPY,
                found=f"{key}: {value.dtype}{list(value.shape)}",
                expected="only its integers",
                remedy="convert with fold_quantize=True, and make sure that no operator reads the float weight",
            )


def check_agreement(floats: Tensor, run: Walk, plan: Plan) -> None:
    """Check that the converted module is as close to the float one as the steps imply.

    Raises: ConformanceError: it is not.
    """
    require_finite(run.output, "the converted module")
    over = (run.output.double() - floats.double()).abs() - run.bound - rounding_slack(floats)
    if run.output.shape != floats.shape or (over > 0).any():
        raise ConformanceError(
            f"row {plan.label!r}: the converted module is further from the float one than its steps allow",
            check=CheckName.FLOAT,
            found=f"{(over > 0).sum()} of {floats.numel()} elements, up to {over.max():.3g} beyond the bound",
            expected=f"errors of at most {run.bound.max():.3g}, by element",
            remedy="check the specs of the row's operands, and how its parameters are shared",
        )


def check_ranges(runs: Iterable[Walk], plan: Plan) -> None:
    """Check that static ranges fit the values of calibration; else a bound computed from steps means nothing.

    Raises: ConformanceError: a range is far too wide or too narrow.
    """
    seen: dict[tuple[float, int, int, int], list[float]] = {}
    for run in runs:
        for key, values in run.ranges.items():
            seen.setdefault(key, [0.0]).extend((values.low, values.high))
    for (scale, zero, quant_min, quant_max), ends in seen.items():
        low, high = (quant_min - zero) * scale, (quant_max - zero) * scale
        span, cut = max(ends) - min(ends), max(low - min(ends), max(ends) - high)
        if high - low > _WIDEST * span or cut > _MOST_CUT * span:
            raise ConformanceError(
                f"row {plan.label!r}: a range does not fit the values that it was calibrated on",
                check=CheckName.RANGES,
                found=f"{low:.4g}..{high:.4g} for values in {min(ends):.4g}..{max(ends):.4g}",
                expected=f"at most {_WIDEST:g} times as wide, with at most {_MOST_CUT:g} of their span cut off",
                remedy="check the observer of the activations' spec, and which points share parameters",
            )


def rounding_slack(value: Tensor) -> float:
    """Error from rounding only. Narrower floats are summed in float32, and rounded a few times between sums."""
    rounding = _ROUNDING if value.dtype is torch.float32 else 4 * torch.finfo(value.dtype).eps
    return rounding * max(1.0, value.abs().max().item())


def require_finite(value: Tensor, what: str) -> None:
    """Raises: ConformanceError: a value is NaN or infinite."""
    if not torch.isfinite(value).all():
        raise ConformanceError(
            f"{what} gives NaN or infinity",
            check=CheckName.FINITE,
            found=f"{(~torch.isfinite(value)).sum()} of {value.numel()} elements",
            remedy="check the scales and the kernel",
        )
