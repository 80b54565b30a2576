"""The lowered module: the inputs that it takes, copies, and the file that it writes."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from xnnpack_support import IMAGE_INPUT as X
from xnnpack_support import lowered, quantized, sqnr

from qspec_core import GraphError, Result, quantize
from qspec_xnnpack import XNNPACKProgram


def test_outputs_of_two_calls_are_apart(program: XNNPACKProgram) -> None:
    first = program(X)
    kept = first.clone()
    program(-X)
    assert torch.equal(first, kept)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch 2.13 warns of its own class
def test_program_copies_and_pickles(program: XNNPACKProgram) -> None:
    wanted = program(X)
    assert torch.equal(copy.deepcopy(program)(X), wanted)
    assert torch.equal(pickle.loads(pickle.dumps(program))(X), wanted)


@pytest.mark.parametrize(
    "inputs",
    [(X[..., :8],), (X.double(),), (X[0],), (), (X, X), (1.0,)],
    ids=["shape", "dtype", "rank", "0", "2", "number"],
)
def test_unfit_input_raises(program: XNNPACKProgram, inputs: tuple[object, ...]) -> None:
    with pytest.raises(GraphError) as caught:
        program(*inputs)
    assert "lower again" in caught.value.remedy


def test_package_runs_where_only_the_runtime_is(result: Result, tmp_path: Path) -> None:
    path = result.package(tmp_path / "block.pte")
    torch.save(X, tmp_path / "x.pt")
    code = (
        "import sys, torch; from executorch.runtime import Runtime\n"
        "program = Runtime.get().load_program(sys.argv[1]); method = program.load_method('forward')\n"
        "torch.save(method.execute((torch.load(sys.argv[2]),))[0], sys.argv[3]); assert 'qspec_core' not in sys.modules"
    )
    paths = [str(path), str(tmp_path / "x.pt"), str(tmp_path / "y.pt")]
    subprocess.run([sys.executable, "-c", code, *paths], check=True, capture_output=True)
    assert torch.equal(torch.load(tmp_path / "y.pt"), result.lowered(X))


@pytest.mark.parametrize(
    "x",
    [torch.randn(7, 5, 1).permute(2, 0, 1)[None], torch.randn(1, 1, 1, 1).expand(1, 1, 1, 1)],
    ids=["gray", "pixel"],
)
def test_inputs_with_strides_of_either_order(x: Tensor) -> None:
    """A dimension of size 1 may have any stride, and ExecuTorch reads the order of dimensions from the strides."""
    result = quantized(nn.Conv2d(1, 4, 3, padding=1).eval(), x)
    program = lowered(result)
    with torch.no_grad():
        assert sqnr(result.converted(x), program(x)) > 45
        assert torch.equal(program(x.clone(memory_format=torch.channels_last)), program(x))


class Counter(nn.Module):
    """State that starts at another number than zero."""

    h: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("h", torch.full((1,), 3.0))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.h.add_(1)
        return x + self.linear(x), x * self.h


def test_state_starts_at_its_value_in_the_model() -> None:
    x = torch.randn(2, 4)
    program = quantize(Counter(), (x,), calibration=[(x,)], backend="xnnpack").lowered
    for count in (4.0, 5.0):
        torch.testing.assert_close(program(x)[1], x * count)


class Writes(nn.Module):
    """A model that writes to its second input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        y.mul_(2)
        result: Tensor = self.linear(torch.relu(self.linear(x))) + y
        return result


def test_inputs_that_the_model_writes_to_are_written_to() -> None:
    x, y = torch.randn(2, 4), torch.randn(2, 4)
    result = quantize(Writes(), (x, y.clone()), calibration=[(x, y.clone())], backend="xnnpack")
    given = y.t().contiguous().t()  # the caller's own tensor, whatever its layout
    found, expected = result.lowered(x, given), result.converted(x, y.clone())
    assert torch.equal(given, 2 * y)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)
