"""`calibrate`: run a prepared module on batches, with errors that name what does not fit."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from qspec_core._errors import CalibrationError

__all__ = ["CalibrationBatch", "calibrate", "describe", "has_numpy"]

CalibrationBatch = tuple[Any, ...] | Mapping[str, Any]  # a model's arguments may be of any type
"""One calibration batch: the model's positional arguments, or its keyword arguments."""


def calibrate(prepared: nn.Module, batches: Iterable[CalibrationBatch] | None) -> int:
    """Run a prepared module on calibration batches.

    Args:
        prepared: from `prepare_pt2e`.
        batches: tuples of positional or mappings of keyword arguments; a lone tensor is one positional argument.
    Returns: how many batches ran.
    Raises: CalibrationError: there is no batch, one does not fit the model, or one is not finite.
    """
    count = 0
    with torch.no_grad():
        for batch in batches if batches is not None else ():
            _run(prepared, batch, count)
            count += 1
    if count == 0:
        raise CalibrationError(
            "static quantization needs calibration, and there is no batch",
            found="calibration=None" if batches is None else "an iterable without batches",
            expected="an iterable of argument tuples or keyword dictionaries",
            remedy="pass calibration=[(x,), ...] with inputs like the model's real ones, or choose mode='dynamic'",
        )
    return count


def _run(prepared: nn.Module, batch: object, index: int) -> None:
    if has_numpy(batch):
        raise CalibrationError(
            f"calibration batch {index} holds a NumPy array",
            found=describe(batch),
            expected="torch tensors",
            remedy="convert each array with torch.from_numpy(x), to the dtype of the example inputs",
        )
    try:
        if isinstance(batch, Mapping):
            prepared(**batch)
        elif isinstance(batch, tuple | list):
            prepared(*batch)
        else:
            prepared(batch)
    except CalibrationError:
        raise
    except Exception as error:  # the model and its guards may raise anything
        if _has_labels(prepared, batch):
            raise _labels(batch, index) from error
        raise CalibrationError(
            f"calibration batch {index} does not fit the model as it was exported",
            found=f"{describe(batch)}; {type(error).__name__}: {error}",
            expected="arguments of the shapes, types and devices of example_inputs",
            remedy="give batches of the example's shapes on the model's device, or export with dynamic_shapes for the "
            "dimensions that vary",
        ) from error


def _has_labels(prepared: nn.Module, batch: object) -> bool:
    """Whether a batch has one more tensor than the model takes, and the last one is a vector of integers."""
    if not isinstance(batch, tuple | list) or not isinstance(prepared, GraphModule):
        return False
    count = len(prepared.graph.find_nodes(op="placeholder"))
    if len(batch) != count + 1 or not all(isinstance(item, Tensor) for item in batch):
        return False
    last: Tensor = batch[-1]
    return last.dim() <= 1 and not last.is_floating_point() and not last.is_complex()


def _labels(batch: Any, index: int) -> CalibrationError:  # a tuple or list, by _has_labels
    count = len(batch) - 1
    return CalibrationError(
        f"calibration batch {index} has {len(batch)} tensors, the model takes {count}: the last one looks like labels",
        found=describe(batch),
        expected=f"a tuple of {count} tensors",
        remedy="leave the labels out: calibration=(batch[:-1] for batch in loader)",
    )


def has_numpy(value: object) -> bool:
    """Whether a value is a NumPy array, or holds one in tuples, lists and mappings."""
    if isinstance(value, Mapping):
        return any(map(has_numpy, value.values()))
    if isinstance(value, tuple | list):
        return any(map(has_numpy, value))
    return type(value).__module__ == "numpy" and hasattr(value, "__array__")


def describe(value: object) -> str:
    """Dtypes and shapes of a model's arguments, for messages."""
    if isinstance(value, Tensor):
        place = "" if value.device.type == "cpu" else f" on {value.device}"
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}{place}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {describe(item)}" for key, item in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(map(describe, value)) + ")"
    return type(value).__qualname__
