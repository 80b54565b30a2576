"""One contender of `flow.py`: prepares and converts one model, qspec's way or torchao's.

python benchmarks/flow_worker.py SIDE MODEL, with SIDE `qspec` or `torchao`, MODEL a key of `MODELS` or `chain:LAYERS`.
"""

import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from counting import count_layers
from flow_models import BACKEND_OF, SMALL, exported
from serving import serve
from torch.fx import GraphModule

__all__ = ["main"]


class Flow(Protocol):
    """Prepare and convert of one library, for one backend."""

    def prepare(self, module: GraphModule) -> Any:
        """A module with observers. Each library has its own type."""
        ...

    def convert(self, prepared: Any) -> Any:
        """The quantized module."""
        ...


class QSpec:
    """qspec's flow with a backend's default quantizer."""

    def __init__(self, backend: str) -> None:
        from qspec_core import Mode, convert_pt2e, get_backend, prepare_pt2e

        self._prepare, self.convert = prepare_pt2e, convert_pt2e
        self._backend, self._mode = get_backend(backend), Mode.STATIC

    def prepare(self, module: GraphModule) -> GraphModule:
        """As users call it: the quantizer is made anew."""
        quantizer = self._backend.quantizer(mode=self._mode, target=self._backend.targets[0])
        return self._prepare(module, quantizer)


class TorchAO:
    """torchao's flow: its own x86 quantizer, ExecuTorch's for XNNPACK."""

    def __init__(self, backend: str) -> None:
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        self._prepare, self.convert = prepare_pt2e, convert_pt2e
        self._quantizer = _x86_quantizer if backend == "x86" else _xnnpack_quantizer

    def prepare(self, module: GraphModule) -> Any:
        """As users call it: the quantizer is made anew."""
        return self._prepare(module, self._quantizer())


def _x86_quantizer() -> Any:
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    return x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())


def _xnnpack_quantizer() -> Any:
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack

    return xnnpack.XNNPACKQuantizer().set_global(xnnpack.get_symmetric_quantization_config(is_per_channel=True))


def main() -> None:
    """Serve `build`, which exports and warms up, and `run`, which times one prepare and one convert."""
    side, model = sys.argv[1:]
    torch.set_num_threads(1)
    backend = BACKEND_OF[model.partition(":")[0]]
    flow: Flow = QSpec(backend) if side == "qspec" else TorchAO(backend)
    programs: dict[str, torch.export.ExportedProgram] = {}
    inputs: dict[str, tuple[torch.Tensor, ...]] = {}

    def once(name: str) -> tuple[float, float, Any]:
        # Each time another graph module of the same program: torchao changes the one that it is given.
        module = programs[name].module()
        prepare, prepared = _timed(flow.prepare, module)
        with torch.no_grad():
            prepared(*inputs[name])
        convert, converted = _timed(flow.convert, prepared)
        return prepare, convert, converted

    def build() -> dict[str, Any]:
        programs[SMALL], inputs[SMALL] = exported(SMALL)
        once(SMALL)  # imports and first calls are not what is compared
        programs[model], inputs[model] = exported(model)
        return {}

    def run() -> dict[str, Any]:
        prepare, convert, converted = once(model)
        return {"prepare": [prepare], "convert": [convert], "layers": [list(count_layers(converted))]}

    serve({"build": build, "run": run})


def _timed(step: Callable[[Any], Any], argument: Any) -> tuple[float, Any]:
    """CPU seconds of a step, and what it returns. It runs on one thread, so what else the machine does stays out."""
    start = time.process_time()
    found = step(argument)
    return time.process_time() - start, found


if __name__ == "__main__":
    main()
