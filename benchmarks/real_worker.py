"""One contender of `real.py` in a process of its own.

python benchmarks/real_worker.py NAME FOLDER THREADS TASK, with NAME a key of `CONTENDERS` and TASK one of `TASKS`.
"""

import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from contender import Setting
from real_tasks import TASKS, Task
from serving import serve
from torch import Tensor, nn
from x86_worker import Worker

__all__ = ["CONTENDERS", "main"]

CONTENDERS = {
    "float eager": "contenders_torch:float_eager",
    "float Inductor": "contenders_torch:float_inductor",
    "qspec static": "contenders_torch:qspec_lowered",
    "qspec dynamic": "contenders_torch:qspec_dynamic",
    "torchao static": "contenders_torch:torchao_x86",
    "torchao dynamic": "contenders_torch:torchao_dynamic",
    "ONNX Runtime f32": "contenders_peers:onnxruntime_f32",
    "ONNX Runtime static": "contenders_peers:onnxruntime_int8",
    "ONNX Runtime dynamic": "contenders_peers:onnxruntime_dynamic",
    "OpenVINO f32": "contenders_peers:openvino_f32",
    "qspec in ONNX Runtime": "contenders_peers:onnxruntime_qspec",
    "OpenVINO, NNCF": "contenders_peers:openvino_int8",
    "qspec in OpenVINO": "contenders_peers:openvino_qspec",
}
"""Function that builds each contender, as `module:function`."""


class TrainedSetting(Setting):
    """The network and the data of a task."""

    @cached_property
    def task(self) -> Task:
        """The task of this name."""
        return TASKS[self.name]

    @cached_property
    def model(self) -> nn.Module:
        """The float model."""
        return self.task.network().eval().requires_grad_(False)

    @cached_property
    def calibration(self) -> list[Tensor]:
        """Inputs to calibrate with."""
        return self.task.inputs(False)

    @cached_property
    def evaluation(self) -> list[Tensor]:
        """Inputs not used to calibrate."""
        return self.task.inputs(True)


class TrainedWorker(Worker):
    """Measures the task, too."""

    def __init__(self, name: str, setting: TrainedSetting) -> None:
        super().__init__(CONTENDERS[name], setting)
        self._trained = setting

    def agreement(self, reference: Tensor, found: Tensor) -> dict[str, Any]:
        """Signal to noise, and the task's measure."""
        score = self._trained.task.score(self._trained.evaluation, reference, found)
        return {**super().agreement(reference, found), "score": score}


def main() -> None:
    """Serve `build` and `run`."""
    name, folder, threads, task = sys.argv[1:]
    torch.set_num_threads(int(threads))
    worker = TrainedWorker(name, TrainedSetting(Path(folder), int(threads), task))
    serve({"build": worker.build, "run": worker.run})


if __name__ == "__main__":
    main()
