"""A program written for ExecuTorch's XNNPACK quantizer, moved to qspec by changing its imports.

    python examples/moved_from_executorch.py model.pte

Quantizes a small mobile network, leaves one layer in float, and writes a .pte file.
"""

import sys
from pathlib import Path

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from torch import Tensor, nn
from torch.fx import Node

# from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer
# from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import get_symmetric_quantization_config
# from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from qspec_core import convert_pt2e, prepare_pt2e
from qspec_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

INPUT = (1, 3, 32, 32)
SEED = 0


class Mobile(nn.Module):
    """An inverted residual block between a stem and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.expand = nn.Sequential(nn.Conv2d(16, 64, 1), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, groups=64), nn.ReLU6())
        self.project = nn.Conv2d(64, 16, 1)
        self.classifier = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (1, 10) of a float32 picture (1, 3, 32, 32)."""
        x = self.stem(x)
        x = x + self.project(self.depthwise(self.expand(x)))
        result: Tensor = self.classifier(x.mean((2, 3)))
        return result


def inputs(count: int) -> list[Tensor]:
    """Batches to calibrate with."""
    generator = torch.Generator().manual_seed(SEED)
    return [torch.randn(INPUT, generator=generator) for _ in range(count)]


def is_before_the_end(node: Node) -> bool:
    """Whether a node comes before the last layer, which stays in float."""
    return node.name != "linear_1"


def main(path: Path) -> tuple[nn.Module, int]:
    """Quantize the network and write it; returns the float network and the number of calls into the delegate."""
    torch.manual_seed(SEED)
    model, batches = Mobile().eval(), inputs(8)
    quantizer = XNNPACKQuantizer()
    quantizer.set_global(get_symmetric_quantization_config(is_per_channel=True))
    quantizer.set_operator_type(torch.ops.aten.linear.default, get_symmetric_quantization_config())
    quantizer.set_filter_function(is_before_the_end)

    with torch.no_grad():
        prepared = prepare_pt2e(torch.export.export(model, (batches[0],)).module(), quantizer)
        for batch in batches:
            prepared(batch)
        converted = convert_pt2e(prepared)
        program = torch.export.export(converted, (batches[0],))

    edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    calls = [str(node.target) for node in edge.exported_program().graph.nodes]
    path.write_bytes(edge.to_executorch().buffer)
    return model, sum("call_delegate" in call for call in calls)


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "model.pte")
    _, delegates = main(target)
    print(f"{target}: {target.stat().st_size} bytes, {delegates} calls into the delegate")
