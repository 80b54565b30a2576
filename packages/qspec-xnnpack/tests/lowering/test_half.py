"""Models of float16: results are float16, and lie where the program has memory for them."""

import pytest
import torch
from torch import Tensor, nn
from xnnpack_support import lowered, quantized, sqnr


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        # ExecuTorch reorders these results.
        (nn.Conv2d(2, 2, 2, bias=False), (1, 2, 3, 16)),
        (nn.Sequential(nn.Conv2d(1, 8, 5, padding=1), nn.BatchNorm2d(8), nn.GELU()), (1, 1, 8, 8)),
        (nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Conv1d(4, 4, 1)), (2, 3, 9)),
        # The range of the result is far smaller than that of the input.
        (nn.Sequential(nn.Linear(8, 8), nn.Hardtanh(-1e-4, 1e-4)), (4, 8)),
    ],
    ids=["conv2d", "conv2d, gelu", "conv1d", "linear"],
)
@torch.no_grad()
def test_a_float16_model_gives_the_results_of_the_converted_graph(model: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x: Tensor = torch.randn(shape).half()
    model = model.half().eval()
    result = quantized(model, x)
    program = lowered(result)
    assert len(program.delegation.rows) >= 1
    found, wanted = program(x), result.converted(x)
    assert found.dtype is wanted.dtype is torch.float16
    assert sqnr(wanted.float(), found.float()) > 35
    assert sqnr(model(x).float(), found.float()) > 28
