"""One side of `xnnpack.py` on one model, in a process of its own.

python benchmarks/xnnpack_worker.py SIDE MODEL FOLDER THREADS, with SIDE a key of `SIDES`.
"""

import itertools
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from contender import Built
from contenders_xnnpack import delegated, loaded
from counting import count_layers
from examples.pictures import sqnr
from serving import serve
from torch import Tensor
from xnnpack_models import MODELS, Bench

import qspec_core as qspec
from qspec_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

__all__ = ["SIDES", "main"]

Made = tuple[Built, float]
"""The program to run, and the seconds of prepare and convert together, without calibration."""


def float_side(bench: Bench, folder: Path) -> Made:
    """The float model through XNNPACK."""
    with torch.no_grad():
        program = torch.export.export(bench.model, (bench.calibration[0],))
    return delegated(program, folder / "model.pte"), 0.0


def executorch_side(bench: Bench, folder: Path) -> Made:
    """ExecuTorch's quantizer in torchao's flow, static, per channel."""
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    config = xnnpack.get_symmetric_quantization_config(is_per_channel=True)
    return _by_flow(bench, folder, prepare_pt2e, convert_pt2e, xnnpack.XNNPACKQuantizer().set_global(config))


def qspec_side(bench: Bench, folder: Path) -> Made:
    """qspec, static, as `quantize(backend="xnnpack")` does it."""
    return _by_qspec(bench, folder, "static", get_symmetric_quantization_config(is_per_channel=True))


def qspec_dynamic(bench: Bench, folder: Path) -> Made:
    """qspec, dynamic, 8-bit weights."""
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    return _by_qspec(bench, folder, "dynamic", config)


def qspec_4bit(bench: Bench, folder: Path) -> Made:
    """qspec, dynamic, 4-bit weights in groups of 32."""
    config = get_symmetric_quantization_config(
        is_per_channel=True, is_dynamic=True, weight_qmin=-8, weight_qmax=7, group_size=32
    )
    return _by_qspec(bench, folder, "dynamic", config)


SIDES: Mapping[str, Callable[[Bench, Path], Made]] = {
    "float": float_side,
    "ExecuTorch": executorch_side,
    "qspec": qspec_side,
    "qspec dynamic": qspec_dynamic,
    "qspec 4-bit": qspec_4bit,
}


def _by_flow(
    bench: Bench, folder: Path, prepare: Callable[..., Any], convert: Callable[..., Any], quantizer: object
) -> Made:
    example = (bench.calibration[0],)
    with torch.no_grad():
        module = torch.export.export(bench.model, example).module()
        start = time.perf_counter()
        prepared = prepare(module, quantizer)
        prepare_seconds = time.perf_counter() - start
        for batch in bench.calibration:
            prepared(batch)
        start = time.perf_counter()
        converted = convert(prepared)
        seconds = prepare_seconds + time.perf_counter() - start
        program = torch.export.export(converted, example)
    layers = "{} of {}".format(*count_layers(converted))
    return delegated(program, folder / "model.pte", layers, converted), seconds


def _by_qspec(bench: Bench, folder: Path, mode: str, config: qspec.QuantizationConfig) -> Made:
    example = (bench.calibration[0],)
    quantizer = XNNPACKQuantizer(element_wise_starts=False).set_global(config)
    with torch.no_grad():
        module = torch.export.export(bench.model, example).module()
        start = time.perf_counter()
        prepared = qspec.prepare_pt2e(module, quantizer)
        prepare_seconds = time.perf_counter() - start
        for batch in bench.calibration if mode == "static" else ():
            prepared(batch)
        start = time.perf_counter()
        converted = qspec.convert_pt2e(prepared)
        seconds = prepare_seconds + time.perf_counter() - start
    program: Any = qspec.get_backend("xnnpack").lower(converted, example, "any")
    path = program.write_package(folder / "model.pte")
    layers = "{} of {}".format(*count_layers(converted))
    return Built(loaded(path), layers, path.stat().st_size, converted, program.delegation.outside), seconds


class Worker:
    """Builds its side, compares it with float, and runs it."""

    def __init__(self, side: str, model: str, folder: Path) -> None:
        torch.manual_seed(0)
        self._side, self._folder, self._bench = side, folder, MODELS[model]()
        self._built: Built | None = None
        self._inputs = itertools.cycle(self._bench.evaluation)

    def build(self) -> dict[str, Any]:
        """Build it; answer with everything except latency."""
        built, seconds = SIDES[self._side](self._bench, self._folder)
        self._built = built
        reference, found = self._results(self._bench.model), self._results(built.run)
        return {
            "layers": built.layers,
            "size": built.size,
            "outside": len(built.outside or ()),
            "sqnr": None if torch.equal(reference, found) else sqnr(reference, found),
            "seconds": seconds,
        }

    def run(self, iterations: int) -> dict[str, Any]:
        """Run it a few times; answer with the milliseconds of each run except the first."""
        if self._built is None:
            raise RuntimeError("run before build")
        times = []
        for given in itertools.islice(self._inputs, iterations + 1):
            start = time.perf_counter()
            self._built.run(given)
            times.append((time.perf_counter() - start) * 1e3)
        return {"ms": times[1:]}

    def _results(self, model: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.no_grad():
            return torch.cat([model(given).flatten(1).clone() for given in self._bench.evaluation])


def main() -> None:
    """Serve `build` and `run`."""
    side, model, folder, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    place = Path(folder) / f"{model}-{side.replace(' ', '-')}"
    place.mkdir()
    worker = Worker(side, model, place)
    serve({"build": worker.build, "run": worker.run})


if __name__ == "__main__":
    main()
