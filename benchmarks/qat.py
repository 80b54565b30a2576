"""Quantization-aware training beside torchao's, on the same graph: prepare, convert, and the training step over float.

    python benchmarks/qat.py [--layers 3]

Times are CPU seconds of one thread. torchao takes about 20 s for three layers. Needs qspec-xnnpack, torchao
and ExecuTorch, whose quantizer torchao's flow gets.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

ROUNDS = 7


class Flow(NamedTuple):
    """One stack: its steps, and its quantizer."""

    name: str
    prepare: Callable[..., Any]  # of another stack, which has no types
    convert: Callable[..., Any]  # as above
    quantizer: Any  # as above


def network(layers: int, channels: int = 32) -> nn.Sequential:
    """Convolutions, each with batch norm and ReLU."""
    torch.manual_seed(0)
    widths = [3, *[channels] * layers]
    parts = [
        (nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU())
        for before, after in pairwise(widths)
    ]
    return nn.Sequential(*(part for layer in parts for part in layer)).train()


def ours() -> Flow:
    """qspec."""
    from qspec_core import convert_pt2e, prepare_qat_pt2e
    from qspec_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

    config = get_symmetric_quantization_config(is_per_channel=True, is_qat=True)
    return Flow("qspec", prepare_qat_pt2e, convert_pt2e, XNNPACKQuantizer().set_global(config))


def theirs() -> Flow:
    """torchao, with ExecuTorch's quantizer."""
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e

    config = xnnpack.get_symmetric_quantization_config(is_per_channel=True, is_qat=True)
    return Flow("torchao", prepare_qat_pt2e, convert_pt2e, xnnpack.XNNPACKQuantizer().set_global(config))


def seconds(function: Callable[[], Any]) -> tuple[Any, float]:  # whatever the function returns
    """The result of a call, and the CPU time that it took."""
    start = time.process_time()
    found = function()
    return found, time.process_time() - start


def step_time(module: nn.Module, x: Tensor) -> float:
    """The median CPU time of a training step, after the first."""
    optimizer = torch.optim.SGD(module.parameters(), 0.01)

    def step() -> None:
        loss = module(x).square().mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()

    step()
    return sorted(seconds(step)[1] for _ in range(ROUNDS))[ROUNDS // 2]


def main() -> None:
    """Measure both flows, and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=3)
    layers = parser.parse_args().layers
    torch.set_num_threads(1)
    x = torch.randn(8, 3, 32, 32)
    plain = step_time(network(layers), x)
    print(f"{layers} layers; float: step {plain * 1000:.1f} ms")
    for flow in (ours(), theirs()):
        graph = torch.export.export(network(layers), (x,)).module()
        prepared, before = seconds(partial(flow.prepare, graph, flow.quantizer))
        step = step_time(prepared, x)
        with torch.no_grad():
            _, after = seconds(partial(flow.convert, prepared))
        print(f"{flow.name}: prepare {before:.3f} s, convert {after:.3f} s, step {step / plain:.2f} x float")


if __name__ == "__main__":
    main()
