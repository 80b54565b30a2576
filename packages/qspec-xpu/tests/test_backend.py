from importlib.metadata import entry_points

import pytest
import torch
from torch.fx import symbolic_trace

from qspec_core import LoweringError
from qspec_core.backend import ENTRY_POINT_GROUP, backends, get_backend
from qspec_core.patterns import Mode
from qspec_xpu import BACKEND


def test_is_registered_under_its_name() -> None:
    (point,) = entry_points(group=ENTRY_POINT_GROUP, name="xpu")
    assert point.value == "qspec_xpu:BACKEND"
    assert get_backend("xpu") is BACKEND
    assert BACKEND.name == "xpu"


def test_table_is_empty_and_the_distribution_says_so() -> None:
    assert BACKEND.table.rows == ()
    (entry,) = (entry for entry in backends() if entry.name == "xpu")
    assert "empty pattern table" in entry.description


def test_lowering_says_that_the_table_is_empty() -> None:
    with pytest.raises(LoweringError, match="empty pattern table") as caught:
        BACKEND.lower(symbolic_trace(torch.nn.ReLU()), (torch.zeros(1),), "any")
    assert "qspec backends" in caught.value.remedy
    assert isinstance(caught.value, RuntimeError)


def test_quantizer_says_that_the_table_is_empty() -> None:
    with pytest.raises(LoweringError, match="empty pattern table"):
        BACKEND.quantizer(mode=Mode.STATIC, target="any")
