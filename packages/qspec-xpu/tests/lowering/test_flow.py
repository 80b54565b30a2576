"""Whole graphs: memory, saving, and the form that torch.compile traces."""

import copy
import gc
import weakref
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule
from xpu_reference import OnReference, Reference, trace_on_xpu
from xpu_support import convert

from qspec_core import Mode
from qspec_xpu import (
    LOWERING_KEY,
    XPUInductorQuantizer,
    default_quantizer,
    get_default_xpu_inductor_quantization_config,
    lower_portable,
)


class Residual(nn.Module):
    """Convolutions with a sum that the kernel takes, pooling, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        y = torch.relu(self.second(y) + y)
        result: Tensor = self.head(F.max_pool2d(y, 2).flatten(1))
        return result


def lowered_and_converted(model: nn.Module, x: Tensor) -> tuple[GraphModule, GraphModule]:
    converted = convert(default_quantizer(), model, x)
    return lower_portable(converted), converted


def test_no_float_copy_of_a_weight_stays_and_each_weight_is_stored_once() -> None:
    model, x = Residual(), torch.randn(2, 3, 8, 8)
    weights = [weakref.ref(layer.weight) for layer in (model.first, model.second, model.head)]
    lowered, converted = lowered_and_converted(model, x)
    sizes = [layer.weight.numel() for layer in (model.first, model.second, model.head)]
    del model, converted
    gc.collect()
    assert [weight() for weight in weights] == [None] * 3
    state = {**dict(lowered.named_parameters()), **dict(lowered.named_buffers())}
    stored = [value for value in state.values() if value.dtype is torch.int8]
    assert sorted(value.numel() for value in stored) == sorted(sizes)
    assert len({value.untyped_storage().data_ptr() for value in stored}) == 3
    assert sum(value.untyped_storage().nbytes() for value in stored) == sum(sizes)
    assert all(value.dim() == 1 for value in state.values() if value.is_floating_point())


def test_a_tied_weight_is_read_by_both_layers() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    model[2].weight = model[0].weight
    x = torch.randn(3, 16)
    lowered, converted = lowered_and_converted(model, x)
    with torch.no_grad():
        torch.testing.assert_close(OnReference(lowered)(x), converted(x), rtol=0, atol=0.02)


def test_the_sum_runs_in_the_kernel_and_leaves_the_other_tensor_as_it_is() -> None:
    lowered, converted = lowered_and_converted(Residual(), x := torch.randn(2, 3, 8, 8))
    assert "conv2d + sum + relu" in lowered.meta[LOWERING_KEY].lowered.values()
    _, calls = trace_on_xpu(lowered, (x,))
    assert calls == {
        "onednn.qconv_pointwise": 1,
        "onednn.qconv2d_pointwise": 1,
        "onednn.qlinear_pointwise": 1,
        "quantized.max_pool2d": 1,
    }
    with torch.no_grad():
        torch.testing.assert_close(OnReference(lowered)(x), converted(x), rtol=0, atol=0.02)


def test_exported_saved_and_loaded(tmp_path: Path) -> None:
    """While it traces, the sum is in float operators: an operator that writes to its input could not be exported."""
    lowered, converted = lowered_and_converted(Residual(), x := torch.randn(2, 3, 8, 8))
    with torch.no_grad():
        program = torch.export.export(lowered, (x,))
    torch.export.save(program, tmp_path / "lowered.pt2")
    loaded = torch.export.load(tmp_path / "lowered.pt2").module()
    targets = {str(node.target) for node in loaded.graph.nodes}
    assert "onednn.qconv_pointwise.default" in targets
    assert not any("binary" in target for target in targets)
    with torch.no_grad(), Reference():
        torch.testing.assert_close(loaded(x), converted(x), rtol=0, atol=0.02)


def test_a_lowered_module_can_be_copied() -> None:
    lowered, _ = lowered_and_converted(Residual(), x := torch.randn(2, 3, 8, 8))
    copied = copy.deepcopy(lowered)
    with torch.no_grad():
        torch.testing.assert_close(OnReference(copied)(x), OnReference(lowered)(x), rtol=0, atol=0)


@pytest.mark.parametrize("mode", list(Mode), ids=str)
def test_dynamic_batch(mode: Mode) -> None:
    model = nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 8))
    x, larger = torch.randn(4, 64), torch.randn(7, 64)
    batch = torch.export.Dim("batch", min=2, max=16)
    converted = convert(default_quantizer(mode=mode), model, x, dynamic_shapes=[{0: batch}])
    lowered = lower_portable(converted)
    trace_on_xpu(lowered, (larger,))
    with torch.no_grad():
        torch.testing.assert_close(OnReference(lowered)(larger), converted(larger), rtol=0, atol=0.02)


@pytest.mark.parametrize("dtypes", [(torch.int8, torch.uint8), (torch.uint8, torch.int8)], ids=str)
def test_a_result_of_another_dtype_than_the_input_is_float(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    """The kernel would write the dtype of its input."""
    first, second = (get_default_xpu_inductor_quantization_config(dtype=dtype) for dtype in dtypes)
    quantizer = XPUInductorQuantizer().set_module_name("0", first).set_module_name("1", second)
    converted = convert(quantizer, nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 8)), x := torch.randn(3, 16))
    lowered = lower_portable(converted)
    kernels = [node for node in lowered.graph.nodes if "qlinear" in str(node.target)]
    assert [node.args[9] for node in kernels] == [torch.float32, torch.float32]
    with torch.no_grad():
        torch.testing.assert_close(OnReference(lowered)(x), converted(x), rtol=0, atol=0.02)
