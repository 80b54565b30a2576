"""Calibrate on several processes, each with a part of the data, with the same result as one process with all of it.

    torchrun --nproc-per-node 4 examples/calibrate_distributed.py

Each process prepares the same model and runs its batches; `sync_observers` makes their observers agree, and each
converts. Needs only qspec-core; the two rows below stand for a device.
"""

import os
import sys

import torch
from torch import Tensor, distributed, nn
from torch.fx import GraphModule

from qspec_core import QuantizationConfig, QuantizationSpec, TableQuantizer, convert_pt2e, prepare_pt2e
from qspec_core.observers import HistogramObserver, PerChannelMinMaxObserver, sync_observers
from qspec_core.patterns import (
    DELEGATED,
    Flow,
    Outputs,
    PatternTable,
    PostOp,
    Row,
    activation,
    bias,
    weight,
)

BATCHES = 32
aten = torch.ops.aten
LAYER = (activation("input"), weight("weight", ch_axis=0), bias("bias"))
CHAINS = ((PostOp(aten.relu.default, "relu"),), ())
ROWS = (
    Row("conv2d", aten.conv2d.default, LAYER, Flow.STARTS, DELEGATED, chains=CHAINS),
    Row("linear", aten.linear.default, LAYER, Flow.STARTS, DELEGATED, chains=CHAINS),
)
ACTIVATIONS = QuantizationSpec(torch.uint8, HistogramObserver, 0, 255, torch.per_tensor_affine)
WEIGHTS = QuantizationSpec(torch.int8, PerChannelMinMaxObserver, -128, 127, torch.per_channel_symmetric, 0)
CONFIG = QuantizationConfig(ACTIVATIONS, ACTIVATIONS, WEIGHTS, None)


def small_model() -> GraphModule:
    """The same exported model on every process."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10)
    )
    return torch.export.export(model.eval(), (torch.randn(4, 3, 16, 16),)).module()


def batch(index: int) -> Tensor:
    """One batch of calibration data, (4, 3, 16, 16); a dataset would be read here."""
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(index)) * (1 + index % 5)


def prepared_model() -> GraphModule:
    """The model with an observer at every quantization point."""
    table = PatternTable(ROWS, Outputs.DEMAND, {})
    return prepare_pt2e(small_model(), TableQuantizer(table).set_global(CONFIG))


def main() -> int:
    """Quantize with all processes, and compare with the result of one process. Returns the exit status."""
    if "RANK" not in os.environ:
        print(f"launch with: torchrun --nproc-per-node 4 {sys.argv[0]}")
        return 2
    torch.set_num_threads(1)  # the processes share the cores
    distributed.init_process_group("gloo")
    rank, ranks = distributed.get_rank(), distributed.get_world_size()

    prepared = prepared_model()
    with torch.no_grad():
        for index in range(rank, BATCHES, ranks):
            prepared(batch(index))
    sync_observers(prepared)
    quantized = convert_pt2e(prepared)

    agree = 0
    if rank == 0:
        alone = prepared_model()
        with torch.no_grad():
            for index in range(BATCHES):
                alone(batch(index))
        expected = convert_pt2e(alone)
        agree = int(expected.code == quantized.code and torch.equal(expected(batch(0)), quantized(batch(0))))
        print(f"{ranks} processes, {BATCHES} batches: {'the same' if agree else 'NOT the same'} as one process")
    distributed.destroy_process_group()
    return 0 if agree or rank else 1


if __name__ == "__main__":
    sys.exit(main())
