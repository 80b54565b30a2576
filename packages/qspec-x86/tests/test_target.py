"""Classes of CPU: what this machine's kernels do, and that no lowering for "any" depends on it."""

import pytest
import torch
from torch import nn
from x86_support import Grid, Weight, export

from qspec_core import BackendError
from qspec_x86 import LOWERING_KEY, TARGETS, lower_eager, resolve_target, saturates

onednn = torch.ops.onednn


def linear_saturates() -> bool:
    """Ask another kernel than the one that qspec asks."""
    x, w = torch.full((16, 64), 255, dtype=torch.uint8), torch.full((32, 64), 127, dtype=torch.int8)
    packed, one, zero = onednn.qlinear_prepack(w, None), torch.ones(32), torch.zeros(32, dtype=torch.int64)
    arguments = (None, 1.0, 0, torch.float32, "none", [None], "")
    y = onednn.qlinear_pointwise(x, 1.0, 0, packed, one, zero, *arguments)
    return bool(y[0, 0].item() != 255 * 127 * 64)


def test_native_is_what_the_kernels_of_this_machine_do() -> None:
    assert saturates() == linear_saturates()
    assert resolve_target("native") == ("any" if linear_saturates() else "vnni")
    assert [resolve_target(target) for target in TARGETS[:2]] == ["any", "vnni"]


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(BackendError) as caught:
        resolve_target("avx512")
    assert caught.value.found == "avx512"
    assert caught.value.expected == "any, vnni, native"


class Extreme(nn.Module):
    """Inputs of 255 times weights of 127: the sum that 16 bits cut to half."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.grid, self.groups = Grid(1.0), groups
        self.weight = Weight(32, 32 // groups, 3, 3)
        self.weight.integers.fill_(127)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(self.grid(x), self.weight(), None, 1, 1, 1, self.groups)


@pytest.mark.parametrize("groups", [1, 4, 32])
def test_full_range_weights_lowered_for_any_do_not_saturate(groups: int) -> None:
    model, x = Extreme(groups), torch.full((1, 32, 6, 6), 255.0)
    lowered = lower_eager(export(model, x), "any")
    # 127 becomes 63 or 64 at about twice the scale: within half a step of that.
    torch.testing.assert_close(lowered(x), model(x), rtol=0.5 / 63, atol=0)
    depthwise = groups == 32
    assert ("weights quantized again" in lowered.meta[LOWERING_KEY].summary()) is not depthwise
    assert bool(lowered.meta[LOWERING_KEY].narrowed) is not depthwise
    if depthwise:
        torch.testing.assert_close(lowered(x), model(x), rtol=0, atol=0)


def test_full_range_weights_lowered_for_vnni_stay() -> None:
    model, x = Extreme(1), torch.full((1, 32, 6, 6), 255.0)
    lowered = lower_eager(export(model, x), "vnni")
    assert lowered.meta[LOWERING_KEY].narrowed == ()
    wrong = lowered(x)[0, 0, 3, 3].item() < 0.9 * model(x)[0, 0, 3, 3].item()
    assert wrong == saturates()


def test_inputs_of_7_bits_need_no_narrower_weights() -> None:
    model, x = Extreme(1), torch.full((1, 32, 6, 6), 127.0)
    model.grid = Grid(1.0, 0, 0, 127)
    lowered = lower_eager(export(model, x), "any")
    assert lowered.meta[LOWERING_KEY].narrowed == ()
    torch.testing.assert_close(lowered(x), model(x), rtol=0, atol=0)
