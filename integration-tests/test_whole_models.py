"""Whole models run from their .pte files, in a process that has ExecuTorch's runtime and no qspec."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
RUN = """
import sys
import torch
from executorch.runtime import Runtime

before = set(sys.modules)  # the runtime's own Python module imports much of ExecuTorch
for program, inputs, outputs in zip(*[iter(sys.argv[1:])] * 3, strict=True):
    method = Runtime.get().load_program(program).load_method("forward")
    torch.save([method.execute(call)[0].clone() for call in torch.load(inputs)], outputs)
added = [name for name in set(sys.modules) - before if name.startswith(("torch.export", "executorch"))]
assert not added, added
assert not any(name.startswith("qspec") for name in sys.modules)
"""
MODES = {"segmentation": "static", "lstm": "static", "llama": "4-bit"}
"""Models that differ most from each other; the others are in `nox -s models`."""
LEAST_DB = {"static": 30, "4-bit": 14}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("whole_models")


def sqnr(reference: Tensor, found: Tensor) -> float:
    return float(10 * torch.log10(reference.square().sum() / (found - reference).square().sum()))


def flat(results: list[Tensor]) -> Tensor:
    return torch.cat([result.flatten() for result in results])


def run_where_only_the_runtime_is(folder: Path) -> None:
    """Outputs of each program for its calls, computed in one separate process."""
    paths = [str(folder / f"{name}.{suffix}") for name in MODES for suffix in ("pte", "in", "out")]
    done = subprocess.run([sys.executable, "-c", RUN, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_models_run_from_their_files(models: ModuleType, tmp_path: Path) -> None:
    """One test for all models: importing ExecuTorch, in both processes, takes most of the time."""
    pytest.importorskip("executorch")
    made = {name: models.whole(name) for name in MODES}
    results = {name: models.quantized_for_xnnpack(made[name], mode) for name, mode in MODES.items()}
    for name, result in results.items():
        result.package(tmp_path / f"{name}.pte")
        torch.save(made[name].calls, tmp_path / f"{name}.in")
    run_where_only_the_runtime_is(tmp_path)
    for name, result in results.items():
        assert len(result.coverage.quantized_layers) == len(result.coverage.layers), name
        given = flat(torch.load(tmp_path / f"{name}.out"))
        with torch.no_grad():
            # In these calls the decoder reads only places of its cache that it wrote.
            real = flat([made[name].model(*call) for call in made[name].calls])
            wanted = flat([result.converted(*call) for call in made[name].calls])
        # The runtime adds less error than quantization: a value may round the other way, and is then off by one step.
        assert sqnr(wanted, given) > sqnr(real, wanted) - 3, name
        assert sqnr(real, given) > LEAST_DB[MODES[name]], name
