"""The conformance kit in training, on the small device."""

import pytest
import torch
from core_support import toy_backend
from qat_support import TABLE, qat_quantizer

from qspec_core import BackendError
from qspec_core.testing import ConformanceError, training_cases
from qspec_core.testing._training import _check_trained


def test_every_row_of_a_device_is_trained_and_converted() -> None:
    backend = toy_backend(table=TABLE, training_quantizer=lambda **_: qat_quantizer())
    cases = [case for case in training_cases(backend) if "static" in str(case)]
    assert {case.plan.row.name for case in cases} == {row.name for row in TABLE.rows}
    assert all(str(case).endswith(", trained") for case in cases)
    for case in cases[::4]:
        assert case.converted("any").row is case.plan.row


def test_a_converted_graph_that_differs_is_an_error() -> None:
    backend = toy_backend(table=TABLE, training_quantizer=lambda **_: qat_quantizer())
    plan = training_cases(backend)[0].plan
    trained = torch.linspace(-1, 1, 100)
    _check_trained(trained, trained + 0.01, plan)
    with pytest.raises(ConformanceError) as caught:
        _check_trained(trained, trained + 0.1, plan)
    assert caught.value.check.value == "converted"


def test_a_backend_without_training_has_no_cases() -> None:
    with pytest.raises(BackendError) as caught:
        training_cases(toy_backend())
    assert "training_quantizer" in caught.value.remedy
