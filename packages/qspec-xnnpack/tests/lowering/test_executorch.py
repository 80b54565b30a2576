"""Calls of ExecuTorch: its errors, its version, its absence."""

import subprocess
import sys
from dataclasses import replace
from importlib import metadata

import pytest
import torch
from torch import nn
from xnnpack_support import IMAGE_INPUT as X
from xnnpack_support import quantized

import qspec_core as qspec
from qspec_core import BackendError, LoweringError, Result
from qspec_xnnpack import (
    BACKEND,
    UntestedExecuTorchWarning,
    XNNPACKProgram,
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)
from qspec_xnnpack._lowering import _executorch, _flow


def test_failure_of_the_runtime_is_an_error(program: XNNPACKProgram) -> None:
    execute = _executorch.load_program(program.buffer)
    with pytest.raises(LoweringError) as caught:
        execute((torch.zeros(1, 3, 999, 999),))
    assert "fails to run" in caught.value.problem


def test_missing_executorch_names_the_extra(result: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "executorch"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "executorch", None)
    with pytest.raises(BackendError) as caught:
        BACKEND.lower(result.converted, (X,), "any")
    assert caught.value.remedy == 'pip install "qspec-xnnpack[executorch]"'


def test_untested_version_warns_once(program: XNNPACKProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", str_version)
    monkeypatch.setattr(_executorch, "_warned", False)
    with pytest.warns(UntestedExecuTorchWarning, match=r"9\.9"):
        _executorch.load_program(program.buffer)
    _executorch.load_program(program.buffer)


def str_version(name: str) -> str:
    assert name == "executorch"
    return "9.9.0"


def leave(*arguments: object) -> None:
    """Change no scales."""


def test_runtime_that_refuses_a_program_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scale of the output far below that of the products: XNNPACK creates no kernel."""
    config = get_symmetric_quantization_config()
    assert config.output_activation is not None
    tiny = qspec.MinMaxObserver.with_args(eps=1e-9)
    spec = replace(config.output_activation, observer_or_fake_quant_ctr=tiny)
    conv = nn.Conv2d(3, 4, 1, bias=False)
    dead = nn.Sequential(conv, nn.ReLU())
    nn.init.constant_(conv.weight, -1e3)
    quantizer = XNNPACKQuantizer().set_global(replace(config, input_activation=spec, output_activation=spec))
    monkeypatch.setattr(_flow, "fit_scales", leave)
    result = quantized(dead.eval(), X.abs(), quantizer=quantizer)
    with pytest.raises(LoweringError) as caught:
        result.lowered  # noqa: B018  # made when asked for
    assert "runtime refuses" in caught.value.problem


def test_import_does_not_load_executorch() -> None:
    code = "import sys, qspec_xnnpack; sys.exit(any(m.partition('.')[0] == 'executorch' for m in sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True)
