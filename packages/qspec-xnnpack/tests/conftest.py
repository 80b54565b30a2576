"""Setup of all tests of this package."""

import sys
from pathlib import Path

import pytest
import torch

# Test files are imported by path (--import-mode=importlib), so the folder of their shared module is put on the path.
_HERE = str(Path(__file__).parent)
if _HERE not in sys.path:
    sys.path.append(_HERE)


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
