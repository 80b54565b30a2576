"""Results in use: copies, pickles, missing folders, and models quantized from several threads."""

import copy
import io
import pickle
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from core_support import toy_backend
from torch import nn
from torch.fx import GraphModule

from qspec_core import Backend, ExportError, NothingQuantizedError, Result, lower, quantize

X = torch.randn(3, 4)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()


def made(model: nn.Module | None = None, backend: Backend | None = None) -> Result:
    chosen = toy_backend() if backend is None else backend
    return quantize(network() if model is None else model, (X,), backend=chosen, calibration=[(X,)])


def test_copy_computes_the_same_and_shares_no_weights() -> None:
    result = made()
    want = result.lowered(X)
    copied = copy.deepcopy(result)
    assert torch.equal(copied.converted(X), result.converted(X))
    assert torch.equal(copied.lowered(X), want)
    assert copied.coverage == result.coverage
    assert copied.backend is result.backend
    with torch.no_grad():
        for parameter in copied.exported.parameters():
            parameter.zero_()
    assert any(parameter.any() for parameter in result.exported.parameters())


@pytest.mark.parametrize("dump", [pickle.dumps, lambda m: torch.save(m, io.BytesIO())], ids=["pickle", "save"])
def test_pickling_says_what_to_do_instead(dump: Callable[[Result], object]) -> None:
    with pytest.raises(ExportError, match="cannot be pickled") as caught:
        dump(made())
    assert "result.save" in caught.value.remedy
    assert "result.package" in caught.value.remedy


def test_missing_folders_are_found_before_the_work(tmp_path: Path) -> None:
    def refuse(*_: object) -> Any:
        pytest.fail("it was lowered")

    result = made(backend=toy_backend(lower=refuse, package=refuse))
    for write in (result.save, result.package):
        with pytest.raises(ExportError, match="does not exist") as caught:
            write(tmp_path / "absent" / "model.pt2")
        assert "mkdir" in caught.value.remedy


def test_nothing_to_quantize_names_arguments_of_quantize() -> None:
    with pytest.raises(NothingQuantizedError) as caught:
        made(nn.ReLU())
    assert "allow_empty" not in str(caught.value)
    assert "quantizer=" in caught.value.remedy


def test_threads_leave_the_model_as_it_was() -> None:
    """torch.export puts fake tensors into the model while it traces; two exports at once leave them there."""
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    want = made(model).converted(X)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: made(model), range(8)))
    assert all(type(value) is nn.Parameter for value in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(result.converted(X), want) for result in results)


def test_threads_lower_one_after_the_other() -> None:
    result, toy = made(), toy_backend()
    inside: list[bool] = []

    def lower_alone(converted: GraphModule, example_inputs: tuple[Any, ...], target: str) -> nn.Module:
        inside.append(len(inside) % 2 == 0)  # entered while nobody else is inside
        time.sleep(0.02)
        inside.append(len(inside) % 2 == 1)
        return toy.lower(converted, example_inputs, target)

    alone = replace(toy, lower=lower_alone)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: lower(result.converted, (X,), backend=alone), range(4)))
    assert inside == [True] * 8
