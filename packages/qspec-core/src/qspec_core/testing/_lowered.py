"""Checks of a lowered probe against its converted graph."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from qspec_core._errors import BackendError
from qspec_core.testing._checks import require_finite, rounding_slack
from qspec_core.testing._errors import CheckName, ConformanceError
from qspec_core.testing._probe import Plan
from qspec_core.testing._walk import Walk, first_tensor

__all__ = ["check_same", "raises_are_failures", "require_useful_sample", "run_lowered"]

# Share of elements that a device must round to the same integer. Few may differ, by intermediate rounding.
_SAME = 0.75
# Share of elements that must lie on the grid of the result's integers, and how far from it, in steps.
_ON_GRID = 0.99
_OFF_GRID = 0.02
# A result in proportion to the expected one, up to this factor and three standard errors of the rounding noise.
_GAIN = 0.0075
_FEWEST = 4
"""Elements that a result needs for the checks to prove something."""


def require_useful_sample(floats: Tensor, plan: Plan) -> None:
    """Raises: ConformanceError: the sample's result is empty, tiny or constant, so that comparing it proves nothing."""
    if floats.numel() < _FEWEST or bool((floats == floats.flatten()[0]).all()):
        raise ConformanceError(
            f"the sample of row {plan.label!r} proves nothing",
            check=CheckName.SAMPLE,
            found=f"a result of shape {list(floats.shape)}" + (", all of one value" if floats.numel() else ""),
            expected=f"{_FEWEST} or more elements of different values",
            remedy=f"pass a larger Sample of {plan.row.anchor}",
        )


@contextmanager
def raises_are_failures(plan: Plan) -> Iterator[None]:
    """Turn what the device's own code raises into a failed check. A `BackendError` says that the device is missing.

    Raises: ConformanceError: the code inside raised another error.
    """
    try:
        yield
    except (BackendError, ConformanceError):
        raise
    except Exception as error:  # a broken device can raise anything
        raise ConformanceError(
            f"row {plan.label!r}: the device raises an error",
            check=CheckName.RUNS,
            found=f"{type(error).__name__}: {error}",
            expected="a program that runs on the example inputs",
            remedy="add a check to the row that refuses the call at annotation, or correct its lowering",
        ) from error


def run_lowered(lowered: nn.Module, inputs: tuple[Tensor, ...], plan: Plan) -> Tensor:
    """First output of a lowered probe.

    Raises: ConformanceError: a call changes its arguments, or a second call gives another result.
    """
    given = tuple(value.clone() for value in inputs)
    with torch.no_grad():
        first = first_tensor(lowered(*given)).clone()
        changed = [index for index, value in enumerate(given) if not torch.equal(value, inputs[index])]
        if changed:
            raise ConformanceError(
                f"row {plan.label!r}: the lowered program changes its arguments",
                check=CheckName.UNCHANGED,
                found=f"argument {changed[0]} has other values after the call",
                expected="the same values",
                remedy="let the kernel write to a tensor of its own",
            )
        second = first_tensor(lowered(*given))
    off = 0.0 if first.shape != second.shape else (first.double() - second.double()).abs().nan_to_num().max().item()
    if first.shape != second.shape or off > rounding_slack(first):
        raise ConformanceError(
            f"row {plan.label!r}: a second call of the lowered program gives another result",
            check=CheckName.REPEATS,
            found=f"shape {list(second.shape)}, values that differ by up to {off:.3g}",
            expected="the same result",
            remedy="keep no state between calls, except buffers that the model mutates",
        )
    return first


def check_same(lowered: Tensor, run: Walk, plan: Plan) -> None:
    """Check that the lowered module computes what the converted one does, up to few integers that are off by one.

    Raises: ConformanceError: it does not.
    """
    require_finite(lowered, "the lowered module")
    if lowered.shape != run.output.shape:
        raise ConformanceError(
            f"row {plan.label!r}: the lowered module returns a tensor of another shape",
            check=CheckName.SHAPE,
            found=list(lowered.shape),
            expected=list(run.output.shape),
            remedy="check the row's lowering",
        )
    if run.step is not None:
        _check_gain(lowered, run, plan)
        _check_grid(lowered, run.step, plan)
    off = (lowered.double() - run.output.double()).abs()
    slack = rounding_slack(run.output)
    rounded = slack if run.step is None else run.step / 2
    same = (off <= rounded)[_inside(run.output)].double().mean().item()
    over = off - run.bound - slack
    if (over > 0).any() or same < _SAME:
        unit = "" if run.step is None else f", or {off.max().item() / run.step:.3g} steps"
        raise ConformanceError(
            f"row {plan.label!r}: the lowered module does not compute what the converted one does",
            check=CheckName.CONVERTED,
            found=f"{same:.0%} of the elements between the ends agree; they differ by up to {off.max():.3g}{unit}",
            expected=f"{_SAME:.0%} or more agree to {rounded:.3g}, and none differs by more than {run.bound.max():.3g}",
            remedy="check the row's lowering: order of operands, zero points, scales, padding, clamps",
        )


def _check_grid(lowered: Tensor, step: float, plan: Plan) -> None:
    """Check that a result which the converted graph dequantizes consists of whole steps."""
    steps = lowered.double() / step
    on = ((steps - steps.round()).abs() <= _OFF_GRID).double().mean().item()
    if on < _ON_GRID:
        raise ConformanceError(
            f"row {plan.label!r}: the lowered module returns floats where the converted graph has integers",
            check=CheckName.GRID,
            found=f"{on:.0%} of the elements are multiples of the step {step:.3g}",
            expected=f"{_ON_GRID:.0%} or more",
            remedy="quantize the result in the kernel; do not run the float model",
        )


def _check_gain(lowered: Tensor, run: Walk, plan: Plan) -> None:
    """Check that a result is not a multiple of the expected one: a scale that is slightly off changes few integers."""
    expected, inside = run.output.double(), _inside(run.output)
    expected, found = expected[inside], lowered.double()[inside]
    power = expected.square().sum()
    if power == 0:
        return
    gain = ((found * expected).sum() / power).item()
    noise = (found - gain * expected).square().mean().sqrt() / power.sqrt()
    if abs(gain - 1) > _GAIN + 3 * noise.item():
        raise ConformanceError(
            f"row {plan.label!r}: the lowered module returns {gain:.4f} times what the converted one does",
            check=CheckName.GAIN,
            found=f"a factor of {gain:.4f}, with a standard error of {noise.item():.4f}",
            expected=f"1, up to {_GAIN} and three standard errors",
            remedy="check the scales that the row's lowering passes to the kernel",
        )


def _inside(value: Tensor) -> Tensor:
    """Mask of the elements strictly between the smallest and the largest: a clamp makes the ends agree by itself."""
    inside = (value > value.min()) & (value < value.max())
    return inside if inside.any() else torch.ones_like(inside)
