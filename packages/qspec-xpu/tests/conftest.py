"""Setup of every test of qspec-xpu."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Test files are imported by path (--import-mode=importlib), so what they share is put on the path once, at its end.
_HERE = str(Path(__file__).parent)
if _HERE not in sys.path:
    sys.path.append(_HERE)


@pytest.fixture(autouse=True)
def _reproducible() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def pytest_configure(config: pytest.Config) -> None:
    """torch 2.13 itself uses the class when it copies an exported module (deepcopy, run_decompositions)."""
    config.addinivalue_line("filterwarnings", "ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning")
