"""One contender of `x86.py` in a process of its own.

python benchmarks/x86_worker.py NAME FOLDER THREADS MODEL, with NAME a key of `CONTENDERS`.
"""

import importlib
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from contender import Built, Model, Setting
from examples.pictures import sqnr, top1_agreement
from serving import serve
from torch import Tensor

__all__ = ["CONTENDERS", "Worker", "main"]

CONTENDERS = {
    "float eager": "contenders_torch:float_eager",
    "float Inductor": "contenders_torch:float_inductor",
    "qspec x86 lowered": "contenders_torch:qspec_lowered",
    "qspec x86 compiled": "contenders_torch:qspec_compiled",
    "qspec x86 eager": "contenders_torch:qspec_eager",
    "qspec x86 for VNNI": "contenders_torch:qspec_vnni",
    "torchao x86": "contenders_torch:torchao_x86",
    "torchao, Inductor's": "contenders_torch:torchao_inductor",
    "ONNX Runtime f32": "contenders_peers:onnxruntime_f32",
    "ONNX Runtime int8": "contenders_peers:onnxruntime_int8",
    "qspec in ONNX Runtime": "contenders_peers:onnxruntime_qspec",
    "OpenVINO f32": "contenders_peers:openvino_f32",
    "OpenVINO int8": "contenders_peers:openvino_int8",
    "qspec in OpenVINO": "contenders_peers:openvino_qspec",
    "ExecuTorch f32": "contenders_xnnpack:executorch_f32",
    "ExecuTorch int8": "contenders_xnnpack:executorch_int8",
    "qspec XNNPACK": "contenders_xnnpack:qspec_xnnpack",
}
"""Function that builds each contender, as `module:function`: only the module of the chosen one is imported."""


class Worker:
    """Builds its contender with `module:function`, compares it with float, and runs it."""

    def __init__(self, function: str, setting: Setting) -> None:
        self._function, self._setting = function, setting
        self._built: Built | None = None
        self._crops = itertools.cycle(setting.evaluation)

    def build(self) -> dict[str, Any]:
        """Build it; answer with everything except times."""
        start = time.perf_counter()
        module, _, function = self._function.partition(":")
        make: Callable[[Setting], Built] = getattr(importlib.import_module(module), function)
        built = self._built = make(self._setting)
        reference = self._results(self._setting.model)
        lowered = self._results(built.run)
        answer = {
            "layers": built.layers,
            "size": built.size,
            "outside": built.outside,
            "notes": built.notes,
            "lowered": self.agreement(reference, lowered),
            "seconds": time.perf_counter() - start,
        }
        if built.converted is not None:
            answer["converted"] = self.agreement(reference, self._results(built.converted))
        return answer

    def run(self, iterations: int) -> dict[str, Any]:
        """Run it a few times; answer with the milliseconds of each run except the first."""
        if self._built is None:
            raise RuntimeError("run before build")
        times = []
        with torch.no_grad():
            for crop in itertools.islice(self._crops, iterations + 1):
                start = time.perf_counter()
                self._built.run(crop)
                times.append((time.perf_counter() - start) * 1e3)
        return {"ms": times[1:]}

    def profile(self) -> dict[str, Any]:
        """Answer with its operators on one input, in the order in which they run: kind, name and milliseconds."""
        if self._built is None or self._built.profile is None:
            return {"operators": None}
        return {"operators": self._built.profile(self._setting.evaluation[0])}

    def _results(self, model: Model) -> Tensor:
        with torch.no_grad():
            return torch.cat([model(crop) for crop in self._setting.evaluation])

    def agreement(self, reference: Tensor, found: Tensor) -> dict[str, Any]:
        """How close results are to those of the float model."""
        exact = torch.equal(reference, found)
        top1 = top1_agreement(reference, found) if self._setting.is_trained else None
        return {"sqnr": None if exact else sqnr(reference, found), "top1": top1}


def main() -> None:
    """Serve `build`, `run` and `profile`."""
    name, folder, threads, model = sys.argv[1:]
    torch.set_num_threads(int(threads))
    worker = Worker(CONTENDERS[name], Setting(Path(folder), int(threads), model))
    serve({"build": worker.build, "run": worker.run, "profile": worker.profile})


if __name__ == "__main__":
    main()
