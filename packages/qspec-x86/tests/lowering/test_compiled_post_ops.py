"""Activation functions in kernels and after them, and 1d and 3d convolutions, compiled in both ways."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from qspec_core import convert_pt2e, prepare_pt2e
from qspec_x86 import LOWERING_KEY, default_quantizer, load_package, lower_eager, package

F = nn.functional


class Curves(nn.Module):
    """Each kernel that no other compiled test runs."""

    def __init__(self) -> None:
        super().__init__()
        self.volume, self.plane = nn.Conv3d(2, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.depthwise, self.line = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv1d(16, 12, 3)
        self.head, self.wide, self.last = nn.Linear(30, 24), nn.Linear(24, 16), nn.Linear(16, 5)
        self.point = nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.plane(F.relu(self.volume(x)).flatten(2, 3)))
        y = F.leaky_relu(self.point(F.hardswish(self.depthwise(y))), 0.2)
        y = F.hardswish(self.head(F.silu(self.line(y[..., 0]))))
        return torch.tanh(self.last(F.gelu(self.wide(F.gelu(y)), approximate="tanh")))


@torch.no_grad()
def test_compiled_forms_equal_eager(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Curves().eval(), torch.randn(2, 2, 4, 8, 8)
    exported = torch.export.export(model, (x,)).module()
    assert isinstance(exported, GraphModule)
    prepared = prepare_pt2e(exported, default_quantizer())
    prepared(x)
    converted = convert_pt2e(prepared)
    eager = lower_eager(converted)
    lowered = set(eager.meta[LOWERING_KEY].lowered.values())
    assert lowered >= {"conv3d + relu", "conv2d + swish", "conv2d + hardswish", "conv1d + swish", "linear + hardswish"}
    loaded = load_package(package(converted, (x,), tmp_path / "curves.pt2"))
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Inductor's own, which differ between versions of torch
        compiled = torch.compile(eager)(x)
    expected = eager(x)
    for found in (compiled, loaded(x)):
        # The same kernels in each; between them compiled curves may take a value over the middle of two steps.
        torch.testing.assert_close(found, expected, rtol=0, atol=0.02 * float(expected.abs().max()))
        assert (found - expected).abs().mean() < 0.002 * expected.abs().max()
    noise = (expected - model(x)).pow(2).mean() / model(x).pow(2).mean()
    assert noise < 1e-3
