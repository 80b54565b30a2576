"""Whole models from their .pte files, in a process that has ExecuTorch's runtime and nothing that made them."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from test_examples import module_of
from torch import Tensor

import qspec_core as qspec

SOURCE = Path(__file__).parent.parent / "benchmarks" / "whole_models.py"
RUN = """
import sys
import torch
from executorch.runtime import Runtime

before = set(sys.modules)
method = Runtime.get().load_program(sys.argv[1]).load_method("forward")
torch.save([method.execute(call)[0].clone() for call in torch.load(sys.argv[2])], sys.argv[3])
added = [name for name in set(sys.modules) - before if name.startswith(("torch.export", "torch._", "executorch"))]
compilers = [name for name in sys.modules if name.startswith(("qspec", "torchao", "executorch.exir"))]
assert not added + compilers, added + compilers
"""
MODES = {
    "segmentation": "static",
    "mobilenet_v2": "static",
    "llama": "4-bit",
    "lstm": "static",
}
"""One of each kind; the others are in `nox -s bench-models`."""
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


def sqnr(reference: Tensor, found: Tensor) -> float:
    return float(10 * torch.log10(reference.square().sum() / (found - reference).square().sum()))


def where_only_the_runtime_is(program: Path, calls: Sequence[tuple[Tensor, ...]], folder: Path) -> Tensor:
    """What the program gives for these calls, one after the other, in a process of its own."""
    torch.save(calls, folder / "x.pt")
    paths = [str(program), str(folder / "x.pt"), str(folder / "y.pt")]
    done = subprocess.run([sys.executable, "-c", RUN, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return torch.cat([result.flatten() for result in torch.load(folder / "y.pt")])


@pytest.mark.parametrize("name", MODES)
def test_model_runs_from_its_file(name: str, tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    models = module_of(SOURCE)
    torch.manual_seed(0)
    whole = models.MODELS[name](models.Size())
    result = models.quantized(whole, MODES[name])
    assert len(result.coverage.quantized_layers) == len(result.coverage.layers)
    given = where_only_the_runtime_is(result.package(tmp_path / "model.pte"), whole.calls, tmp_path)
    with torch.no_grad():
        # From here the cache of the decoder starts anew: neither of them has been called.
        real = torch.cat([whole.model(*call).flatten() for call in whole.calls])
        wanted = torch.cat([result.converted(*call).flatten() for call in whole.calls])
    assert isinstance(result, qspec.Result)
    # The runtime adds less than quantization does: a value may round to its other side, and is off by a step then.
    assert sqnr(wanted, given) > sqnr(real, wanted) - 3
    assert sqnr(real, given) > (15 if MODES[name] == "4-bit" else 35)
