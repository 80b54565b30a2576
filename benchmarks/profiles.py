"""Profile of a contender: its operators in the order in which they run, each with its milliseconds."""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Operator", "Profile", "is_layer", "of_module", "of_onnxruntime", "of_openvino", "rows_of"]

Operator = tuple[str, str, float]
"""Kind, name and milliseconds of one operator."""
Profile = Callable[[Tensor], list[Operator]]
"""Function that measures a contender's operators on one input."""
RUNS, WARM = 6, 2
_LAYERS = ("qconv", "conv", "gemm", "matmul", "fullyconnected", "linear", "addmm")
SHOWN = 10


def is_layer(operator: Operator) -> bool:
    """Whether it is a convolution or a matrix product, by the name that its runtime gives to its kind."""
    kind = operator[0].lower()
    return any(word in kind for word in _LAYERS) and not kind.startswith("convert")


def of_module(module: nn.Module, crop: Tensor) -> list[Operator]:
    """Operators of a graph module by torch's profiler; the time of an operator includes those that it calls."""
    runs = []
    with torch.no_grad():
        for _ in range(RUNS):
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
                module(crop)
            events = [event for event in profiler.events() if event.cpu_parent is None]
            runs.append([(event.name, event.name, event.cpu_time_total / 1e3) for event in events])
    return _least(runs)


def of_onnxruntime(path: Path, threads: int, crop: Tensor) -> list[Operator]:
    """Nodes of an ONNX model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.enable_profiling, options.profile_file_prefix = True, str(path.with_suffix(""))
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for _ in range(RUNS):
        session.run(None, {"x": crop.numpy()})
    events = json.loads(Path(session.end_profiling()).read_text())
    nodes = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    found = [(node["args"]["op_name"], node["name"].removesuffix("_kernel_time"), node["dur"] / 1e3) for node in nodes]
    size = len(found) // RUNS
    return _least([found[run * size : (run + 1) * size] for run in range(RUNS)])


def of_openvino(model: Any, threads: int, crop: Tensor) -> list[Operator]:  # a model of openvino
    """Nodes of an OpenVINO model that were executed."""
    import openvino

    hints = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "PERF_COUNT": True}
    request = openvino.Core().compile_model(model, "CPU", hints).create_infer_request()
    runs = []
    for _ in range(RUNS):
        request.infer({0: crop.numpy()})
        nodes = [node for node in request.profiling_info if node.real_time.total_seconds() > 0]
        runs.append([(node.node_type, node.node_name, node.real_time.total_seconds() * 1e3) for node in nodes])
    return _least([run for run in runs if len(run) == len(runs[-1])])


def _least(runs: list[list[Operator]]) -> list[Operator]:
    """Each operator with its least time, without the first runs."""
    kept = runs[WARM:] or runs
    return [(*same[0][:2], min(time for _, _, time in same)) for same in zip(*kept, strict=False)]


def rows_of(name: str, ours: list[Operator], other: str, theirs: list[Operator]) -> Iterator[str]:
    """Two profiles side by side: sums of layers and of the rest, and the layers that differ most if both have as many.

    Args:
        name: of the contender whose time is explained.
        ours: its profile.
        other: name of the contender that it is compared with.
        theirs: the profile of that contender.
    """
    layers = [list(filter(is_layer, found)) for found in (ours, theirs)]
    for title, found, own in zip((name, other), (ours, theirs), layers, strict=True):
        rest = [operator for operator in found if not is_layer(operator)]
        yield f"{title}: {len(own)} layers {_sum(own):.2f} ms, {len(rest)} other operators {_sum(rest):.2f} ms"
        yield from (f"    {kind}: {count} in {time:.2f} ms" for kind, count, time in _by_kind(rest)[:5])
    if len(layers[0]) != len(layers[1]):
        return
    pairs = sorted(enumerate(zip(*layers, strict=True)), key=_difference, reverse=True)
    for index, (mine, found) in itertools.islice(pairs, SHOWN):
        yield f"    layer {index}: {mine[2]:.3f} ms, {other} {found[2]:.3f} ms ({found[1]})"


def _difference(pair: tuple[int, tuple[Operator, Operator]]) -> float:
    return pair[1][0][2] - pair[1][1][2]


def _sum(operators: list[Operator]) -> float:
    return sum(time for _, _, time in operators)


def _by_kind(operators: list[Operator]) -> list[tuple[str, int, float]]:
    kinds = dict.fromkeys(kind for kind, _, _ in operators)
    groups = [[operator for operator in operators if operator[0] == kind] for kind in kinds]
    return sorted(((group[0][0], len(group), _sum(group)) for group in groups), key=_time_of, reverse=True)


def _time_of(kind: tuple[str, int, float]) -> float:
    return kind[2]
