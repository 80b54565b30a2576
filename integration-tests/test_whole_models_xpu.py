"""Whole models through the XPU lowering without a GPU: numbers, form of each call, kernels, memory.

The snapshot lists the kernels and the edges in 8 bits of each lowered graph. QSPEC_SNAPSHOT=write writes it again.
"""

import importlib
import json
import os
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import qspec_core as qspec
import qspec_xpu
from qspec_core import CoverageStatus
from qspec_core.graph import graph_modules, tensor_value

ROOT = Path(__file__).parent.parent
SNAPSHOT = Path(__file__).parent / "xpu_snapshot.json"
NAMES = ("resnet50", "mobilenet_v2", "segmentation", "vit", "bert", "gpt2", "llama", "whisper_encoder", "lstm")
CASES = [*((name, mode) for name in NAMES for mode in ("static", "dynamic")), ("llama", "weight only")]
EIGHT_BITS = (torch.int8, torch.uint8)
LEAST_SHARE = 0.98


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("whole_models")


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "packages" / "qspec-xpu" / "tests")
    return importlib.import_module("xpu_reference")


def kernels_of(lowered: GraphModule) -> dict[str, int]:
    """Calls of each kernel, and edges that carry 8-bit tensors."""
    found: Counter[str] = Counter()
    for _, body in graph_modules(lowered):
        for node in body.graph.nodes:
            name = getattr(node.target, "__name__", str(node.target))
            if str(node.target).startswith(("onednn.", "quantized.", "aten._weight_int")) or name == "qconv_sum":
                found[name] += 1
            value = tensor_value(node)
            if value is not None and value.dtype in EIGHT_BITS and node.op == "call_function":
                found["8-bit edges"] += len(node.users)
    return dict(sorted(found.items()))


def float_weights(lowered: GraphModule, model: nn.Module) -> list[str]:
    """Float tensors of the lowered graph that have the values of a layer's weight."""
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)]
    state = {**dict(lowered.named_parameters()), **dict(lowered.named_buffers())}
    return [
        name
        for name, value in state.items()
        if value.is_floating_point() and any(value.shape == w.shape and bool((value == w).all()) for w in weights)
    ]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(("name", "mode"), CASES, ids=lambda value: str(value))
def test_model_lowers_without_a_gpu(models: ModuleType, reference: ModuleType, name: str, mode: str) -> None:
    made = models.whole(name)
    calibration = made.calls if mode == "static" else None
    result = qspec.quantize(made.model, made.calls[0], calibration=calibration, backend="xpu", mode=mode)
    layers = result.coverage.layers
    quantized = [entry for entry in layers if entry.status is CoverageStatus.QUANTIZED]
    assert len(quantized) >= LEAST_SHARE * len(layers)

    lowered = qspec_xpu.lower_portable(result.converted)
    report = lowered.meta[qspec_xpu.LOWERING_KEY]
    assert report.declined == {}
    assert len([label for label in report.lowered.values() if label.startswith(("conv", "linear"))]) == len(quantized)
    assert float_weights(lowered, made.model) == []

    # Traces the graph on fake tensors of the device, runs it on the reference and compares: an operator outside of the
    # bound would be left in float with a warning.
    on_reference = replace(qspec_xpu.BACKEND, lower=reference.lower_to_reference)
    with warnings.catch_warnings():
        warnings.simplefilter("error", qspec.DivergenceWarning)
        qspec.lower(result.converted, made.calls[0], backend=on_reference)

    known = json.loads(SNAPSHOT.read_text()) if SNAPSHOT.exists() else {}
    key = f"{name}, {mode}"
    if os.environ.get("QSPEC_SNAPSHOT") == "write":
        SNAPSHOT.write_text(json.dumps({**known, key: kernels_of(lowered)}, indent=1, sort_keys=True) + "\n")
    else:
        assert kernels_of(lowered) == known[key]
