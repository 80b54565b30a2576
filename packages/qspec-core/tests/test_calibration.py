"""Batches that do not fit: the error names the cause that a user can see."""

from typing import Any

import numpy as np
import pytest
import torch
from core_support import CONFIG, Net, export, quantizer, toy_backend
from torch import nn

from qspec_core import CalibrationError, ExportError, calibrate, prepare_pt2e, quantize

X = torch.randn(3, 4)
LABELS = torch.tensor([0, 1, 1])


def prepared(**parts: Any) -> torch.fx.GraphModule:
    return prepare_pt2e(export(nn.Linear(4, 2), X), quantizer(CONFIG))


@pytest.mark.parametrize("batch", [(X, LABELS), [X, LABELS], (X, LABELS[0])], ids=["tuple", "list", "number"])
def test_labels_are_named(batch: Any) -> None:
    with pytest.raises(CalibrationError, match="batch 1 has 2 tensors, the model takes 1: the last one") as caught:
        calibrate(prepared(), [(X,), batch])
    assert "leave the labels out" in caught.value.remedy
    assert calibrate(prepared(), (batch[:-1] for batch in [(X, LABELS)])) == 1


@pytest.mark.parametrize("batch", [(X, X), (X, LABELS.float()), (X, LABELS, LABELS), (LABELS,), (X, LABELS[None])])
def test_other_tensors_are_not_called_labels(batch: Any) -> None:
    with pytest.raises(CalibrationError, match="batch 0 does not fit"):
        calibrate(prepared(), [batch])


def test_a_model_of_two_inputs_takes_integers_second() -> None:
    model = Net(lambda m, x, i: m.layer(x)[i], layer=nn.Linear(4, 2))
    module = prepare_pt2e(export(model, X, LABELS), quantizer(CONFIG))
    assert calibrate(module, [(X, LABELS)]) == 1
    with pytest.raises(CalibrationError, match="has 3 tensors, the model takes 2"):
        calibrate(module, [(X, LABELS, LABELS)])


@pytest.mark.parametrize("batch", [X.numpy(), (X.numpy(),), [X.numpy()], {"input": X.numpy()}, ([X.numpy()],)])
def test_numpy_batches_say_how_to_convert(batch: Any) -> None:
    with pytest.raises(CalibrationError, match="batch 0 holds a NumPy array") as caught:
        calibrate(prepared(), [batch])
    assert "torch.from_numpy" in caught.value.remedy
    assert "ndarray" in str(caught.value.found)


def test_numpy_example_inputs_say_how_to_convert() -> None:
    with pytest.raises(ExportError, match="holds a NumPy array") as caught:
        quantize(nn.Linear(4, 2), (np.zeros((3, 4), np.float32),), backend=toy_backend())
    assert "torch.from_numpy" in caught.value.remedy
