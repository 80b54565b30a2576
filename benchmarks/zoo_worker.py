"""One contender of `zoo.py`: quantizes one architecture after the other, qspec's way or torchao's.

python benchmarks/zoo_worker.py SIDE BACKEND, with SIDE `qspec` or `torchao`, BACKEND `x86`, `xnnpack` or `xpu`.
"""

import sys
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from counting import count_layers
from examples.pictures import sqnr
from flow_worker import QSpec, TorchAO
from serving import serve
from torch.fx import GraphModule
from zoo_models import ZOO, build

from qspec_core._bias_correction import InputMeans, correct_biases

__all__ = ["main"]


def main() -> None:
    """Serve `run`, which quantizes one architecture and answers with the results."""
    side, backend = sys.argv[1:]
    torch.set_num_threads(1)
    flow = QSpec(backend) if side == "qspec" else TorchAO(backend)
    known = {architecture.name: architecture for architecture in ZOO}

    def run(name: str) -> dict[str, Any]:
        model, calls = build(known[name])
        with torch.no_grad():
            exported = torch.export.export(model, calls[0]).module()
            start = time.process_time()
            prepared = flow.prepare(exported)
            means = InputMeans(prepared) if side == "qspec" else None  # as `quantize` does
            seconds = time.process_time() - start
            for call in calls:
                (prepared if means is None else means.module)(*call)
            start = time.process_time()
            converted = flow.convert(prepared)
            converted = converted if means is None else correct_biases(converted, means)
            seconds += time.process_time() - start
            wanted = torch.cat([model(*call).flatten() for call in calls])
            found = torch.cat([converted(*call).flatten() for call in calls])
        quantized, layers = count_layers(converted)
        if (side, backend) == ("qspec", "xpu"):
            quantized = min(quantized, lowered_layers(converted))
        return {
            "seconds": seconds,
            "layers": [quantized, layers],
            "sqnr": sqnr(wanted, found) if quantized else None,
            "skipped": skipped(converted) if side == "qspec" else {},
        }

    serve({"run": run})


def lowered_layers(converted: GraphModule) -> int:
    """Number of layers that run in kernels after lowering for XPU."""
    from qspec_xpu import LOWERING_KEY, lower_portable

    lowered: Mapping[str, str] = lower_portable(converted).meta[LOWERING_KEY].lowered
    return sum(label.startswith(("conv", "linear")) for label in lowered.values())


def skipped(converted: torch.nn.Module) -> dict[str, int]:
    """Number of layers that stay in float, by reason."""
    from qspec_core import CoverageStatus, coverage

    return Counter(str(entry.reason) for entry in coverage(converted).layers if entry.status is CoverageStatus.SKIPPED)


if __name__ == "__main__":
    main()
