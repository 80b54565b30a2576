"""One contender of `flow.py`: prepares and converts one model, qspec's way or torchao's.

python benchmarks/flow_worker.py SIDE MODEL, with SIDE `qspec` or `torchao`, MODEL a name that `flow_models` knows.
"""

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from counting import count_layers
from flow_models import BACKEND_OF, SMALL, exported, float_model
from serving import serve
from torch.fx import GraphModule

__all__ = ["QSpec", "TorchAO", "main"]

BATCH, BATCHES = 8, 8


class Flow(Protocol):
    """The flow of one library for one backend: prepare and convert."""

    def prepare(self, module: GraphModule) -> Any:
        """Return a module with observers. Each library has its own type."""
        ...

    def prepare_with_histograms(self, module: GraphModule) -> Any:
        """Prepare with the x86 configuration that both libraries have, whose observers are histograms."""
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
        # torchao's default has the full range, which is right where products are summed in 32 bits. So use it here too.
        self._target = "vnni" if "vnni" in self._backend.targets else self._backend.targets[0]

    def prepare(self, module: GraphModule) -> GraphModule:
        """Prepare as users do: with a new quantizer each time."""
        quantizer = self._backend.quantizer(mode=self._mode, target=self._target)
        return self._prepare(module, quantizer)

    def prepare_with_histograms(self, module: GraphModule) -> GraphModule:
        """Prepare with the configuration of the PT2E name."""
        from qspec_x86 import X86InductorQuantizer, get_default_x86_inductor_quantization_config

        quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
        return self._prepare(module, quantizer)


class TorchAO:
    """torchao's flow: its own x86 quantizer, ExecuTorch's for XNNPACK."""

    def __init__(self, backend: str) -> None:
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        self._prepare, self.convert = prepare_pt2e, convert_pt2e
        self._quantizer = {"x86": _x86_quantizer, "xnnpack": _xnnpack_quantizer, "xpu": _xpu_quantizer}[backend]

    def prepare(self, module: GraphModule) -> Any:
        """Prepare as users do: with a new quantizer each time."""
        return self._prepare(module, self._quantizer())

    def prepare_with_histograms(self, module: GraphModule) -> Any:
        """Prepare with its x86 configuration, which has histograms."""
        return self._prepare(module, _x86_quantizer())


def _x86_quantizer() -> Any:
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    return x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())


def _xnnpack_quantizer() -> Any:
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack

    return xnnpack.XNNPACKQuantizer().set_global(xnnpack.get_symmetric_quantization_config(is_per_channel=True))


def _xpu_quantizer() -> Any:
    from torchao.quantization.pt2e.quantizer import xpu_inductor_quantizer as xpu

    return xpu.XPUInductorQuantizer().set_global(xpu.get_default_xpu_inductor_quantization_config())


def main() -> None:
    """Serve `build` (export and warm up), `run` (time prepare and convert), `calibrate` and `memory`."""
    side, model = sys.argv[1:]
    torch.set_num_threads(1)
    backend = BACKEND_OF[model.partition(":")[0]]
    flow: Flow = QSpec(backend) if side == "qspec" else TorchAO(backend)
    programs: dict[str, torch.export.ExportedProgram] = {}
    batches: dict[str, list[tuple[torch.Tensor, ...]]] = {}

    def once(name: str) -> tuple[float, float, Any]:
        # A new graph module of the same program each time: torchao changes the one that it is given.
        module = programs[name].module()
        prepare, prepared = _timed(flow.prepare, module)
        # Several batches: a histogram of fewer values than quantized ones is not searched.
        with torch.no_grad():
            for batch in batches[name]:
                prepared(*batch)
        convert, converted = _timed(flow.convert, prepared)
        return prepare, convert, converted

    def build() -> dict[str, Any]:
        for name in (SMALL, model):
            programs[name], inputs = exported(name)
            batches[name] = [tuple(torch.randn_like(x) for x in inputs) for _ in range(BATCHES)]
            if name == SMALL:
                once(SMALL)  # leave imports and first calls out of the comparison
        return {}

    def run() -> dict[str, Any]:
        prepare, convert, converted = once(model)
        return {"prepare": [prepare], "convert": [convert], "layers": [list(count_layers(converted))]}

    def calibrate() -> dict[str, Any]:
        """Time of calibrating with histograms, in units of float forwards over the same batches."""
        floating, batch = float_model(model, BATCH)
        with torch.no_grad():
            prepared = flow.prepare_with_histograms(torch.export.export(floating, batch).module())
            batches = [tuple(torch.randn_like(x) for x in batch) for _ in range(BATCHES)]
            for run in (floating, prepared):
                run(*batch)
            plain = min(sum(_timed(floating, *b)[0] for b in batches) for _ in range(2))
            observed = min(sum(_timed(prepared, *b)[0] for b in batches) for _ in range(2))
        return {"float": [plain], "observed": [observed]}

    def memory() -> dict[str, Any]:
        """Bytes that prepare, one calibration batch and convert add to the peak memory of float inference."""
        floating, batch = float_model(model, BATCH)
        with torch.no_grad():
            exported_module = torch.export.export(floating, batch).module()
            _forget_peak()  # that of export
            exported_module(*batch)
            before = _peak()
            prepared = flow.prepare(exported_module)
            prepared(*batch)
            converted = flow.convert(prepared)
            del converted
        weights = sum(tensor.nbytes for tensor in floating.state_dict().values())
        return {"peak": [_peak() - before], "weights": [weights]}

    serve({"build": build, "run": run, "calibrate": calibrate, "memory": memory})


def _peak() -> int:
    """Peak memory of the process, in bytes; Linux counts it in KiB, macOS in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _forget_peak() -> None:
    """Reset the peak to the memory held now; only Linux can."""
    forget = Path("/proc/self/clear_refs")
    if forget.exists():
        forget.write_text("5")


def _timed(step: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """CPU seconds of a step, and its result. It runs on one thread, so that other load does not count."""
    start = time.process_time()
    found = step(*arguments)
    return time.process_time() - start, found


if __name__ == "__main__":
    main()
