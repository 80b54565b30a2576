"""A program that moved to qspec by its imports runs, and differs from the original only in its imports."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLE = Path(__file__).parent.parent / "examples" / "moved_from_executorch.py"
RUN = (
    "import sys, torch; from executorch.runtime import Runtime\n"
    "program = Runtime.get().load_program(sys.argv[1]); method = program.load_method('forward')\n"
    "torch.save([method.execute((x,))[0].clone() for x in torch.load(sys.argv[2])], sys.argv[3])\n"
    "assert not any(name.startswith('qspec') for name in sys.modules)"
)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


def module_of(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sqnr_of(example: ModuleType, folder: Path) -> tuple[float, int]:
    """SQNR in dB of the written program, run in a process without qspec, and the number of calls into the delegate."""
    model, delegates = example.main(folder / "model.pte")
    batches = example.inputs(8)
    torch.save(batches, folder / "x.pt")
    paths = [str(folder / name) for name in ("model.pte", "x.pt", "y.pt")]
    subprocess.run([sys.executable, "-c", RUN, *paths], check=True, capture_output=True)
    with torch.no_grad():
        real = torch.cat([model(x) for x in batches])
    given = torch.cat(torch.load(folder / "y.pt"))
    return float(10 * torch.log10(real.square().sum() / (given - real).square().sum())), delegates


def before_it_moved(folder: Path) -> Path:
    """The example with the imports that it had."""
    lines = EXAMPLE.read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith("from qspec")]
    path = folder / "before.py"
    path.write_text("".join(line.removeprefix("# ") if line.startswith("# from") else line for line in kept))
    return path


def test_program_that_changed_its_imports_runs(tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    found, delegates = sqnr_of(module_of(EXAMPLE), tmp_path)
    assert delegates == 1
    assert found > 30


def test_program_was_the_same_before_it_moved(tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    pytest.importorskip("torchao")
    theirs, _ = sqnr_of(module_of(before_it_moved(tmp_path)), tmp_path)
    ours, _ = sqnr_of(module_of(EXAMPLE), tmp_path)
    assert ours > theirs - 0.5
