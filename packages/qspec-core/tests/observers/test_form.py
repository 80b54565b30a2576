"""Constants quantized block by block against one call of the operator, and the memory that it takes."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from core_support import CONFIG, Net, export, quantizer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from qspec_core import convert_pt2e, ops, prepare_pt2e
from qspec_core.observers import ConvertedForm

LIMITS = (-128, 127, torch.int8)
ROWS, COLUMNS = 1000, 1024
"""A million elements: several blocks, the last of them shorter."""


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def forms() -> dict[str, ConvertedForm]:
    per_row, per_column = numbers(ROWS).abs() / 100 + 1e-3, numbers(COLUMNS).abs() / 100 + 1e-3
    groups = numbers(ROWS, COLUMNS // 32).abs() / 100 + 1e-3
    channel = ops.QUANTIZE_PER_CHANNEL, ops.DEQUANTIZE_PER_CHANNEL, torch.int8
    group = ops.QUANTIZE_PER_GROUP, ops.DEQUANTIZE_PER_GROUP, torch.int8
    zeros = {size: torch.arange(size) % 5 for size in (ROWS, COLUMNS)}
    return {
        "tensor": ConvertedForm(ops.QUANTIZE, ops.DEQUANTIZE, torch.int8, LIMITS, 0.02, 3),
        "rows": ConvertedForm(*channel, (0, *LIMITS), per_row, zeros[ROWS]),
        "rows, float zero points": ConvertedForm(*channel, (0, *LIMITS), per_row, zeros[ROWS] + 0.3),
        "columns": ConvertedForm(*channel, (1, *LIMITS), per_column, zeros[COLUMNS]),
        "groups": ConvertedForm(*group, (*LIMITS, 32), groups, torch.zeros_like(groups, dtype=torch.int64)),
    }


@pytest.mark.parametrize("name", forms())
def test_blocks_give_the_integers_of_one_call(name: str) -> None:
    form, x = forms()[name], numbers(ROWS, COLUMNS)
    found = form.integers(x)
    zero_point: Any = form.zero_point  # a tensor or a number
    if name == "rows, float zero points":
        shifted = x + (zero_point * form.scale)[:, None]
        expected = form.quantize(shifted, form.scale, torch.zeros(ROWS), *form.limits)
    else:
        expected = form.quantize(x, form.scale, zero_point, *form.limits)
    assert found.dtype == torch.int8
    assert torch.equal(found, expected)


class Allocated(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its hook untyped
    """Adds up the storages of 2 MiB and more that operators allocate; keeps the largest tensor quantized in one call.

    What an operator of `quantized_decomposed` allocates within is not seen: some copies of its input.
    """

    bytes = largest = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],  # Any: operators return anything
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if str(func).startswith("quantized_decomposed."):
            self.largest = max(self.largest, args[0].nbytes)
        result = func(*args, **(kwargs or {}))
        given = {arg.untyped_storage().data_ptr() for arg in args if type(arg) in (Tensor, nn.Parameter)}
        for value in result if isinstance(result, tuple | list) else [result]:
            if type(value) is Tensor and value.device.type == "cpu":
                storage = value.untyped_storage()
                self.bytes += storage.nbytes() * (storage.nbytes() >= 2 << 20 and storage.data_ptr() not in given)
        return result


def test_converting_allocates_nothing_large_but_the_integers() -> None:
    layers = {f"layer{index}": nn.Linear(2048, 2048) for index in range(3)}
    x = torch.randn(2, 2048)
    exported = export(Net(lambda m, x: m.layer2(m.layer1(m.layer0(x))), **layers), x)
    with Allocated() as allocated:  # type: ignore[no-untyped-call]  # as above
        prepared = prepare_pt2e(exported, quantizer(CONFIG))
        prepared(x)
        convert_pt2e(prepared)
    assert allocated.bytes == 3 * 2048 * 2048
    assert 0 < allocated.largest <= 1 << 20
