"""Whole models through the XNNPACK backend, from their .pte files, beside the same models in float.

    python benchmarks/models_xnnpack.py [--models NAME ...] [--large] [--modes MODE ...]

Small models with random weights, or with --large models of full size. One line for each: layers quantized; calls into
the delegate, and operators outside it; signal to noise in dB, converted against float and .pte against converted; size
of the int8 file over the float file; least milliseconds of one call, int8 and float in turns. The exit code is 1 if the
.pte differs from the converted graph by more than the converted graph differs from float.
"""

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import contest  # noqa: F401  # puts examples on the path
import torch
from contenders_xnnpack import delegated, loaded
from examples.pictures import sqnr
from examples.timing import cpu_line, interleaved
from rich.console import Console
from rich.table import Table
from torch import Tensor
from whole_models import MODELS, Call, Whole, quantized_for_xnnpack, whole

from qspec_xnnpack import XNNPACKProgram

__all__ = ["main"]

MODES = ("static", "dynamic", "4-bit")
PICTURES = ("resnet50", "mobilenet_v2", "segmentation")  # their depthwise layers have no dynamic kernel
ROUNDS, EACH = 5, 4
LOST_DB = 3.0
"""Margin in dB by which the .pte may be further from the converted graph than that is from float. A value in the middle
between two steps may round either way; in a deep network such steps add up to as much as quantization itself."""


@dataclass(frozen=True)
class Found:
    """Results of one model.

    Args:
        layers: number of layers.
        quantized: number of layers that coverage calls quantized.
        delegates: calls into the delegate.
        outside: operators outside it.
        converted: signal to noise of the converted graph against float.
        program: signal to noise of the .pte against the converted graph.
        size: size of the int8 file over the float file.
        int8_ms: least time of an int8 call.
        float_ms: least time of a float call.
    """

    layers: int
    quantized: int
    delegates: int
    outside: int
    converted: float
    program: float
    size: float
    int8_ms: float
    float_ms: float

    @property
    def is_right(self) -> bool:
        """Whether the runtime agrees with the converted graph."""
        return self.program >= self.converted - LOST_DB

    def cells(self) -> Iterator[str]:
        """One line of the table."""
        yield f"{self.quantized} of {self.layers}"
        yield f"{self.delegates}, {self.outside}"
        yield f"{self.converted:.1f}"
        yield f"{self.program:.1f}"
        yield f"{self.size:.2f}"
        yield f"{self.int8_ms:.2f}"
        yield f"{self.float_ms:.2f}"


def main() -> int:
    """Run the models, print the table, return 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--large", action="store_true", help="networks of full size")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")  # torch's and ExecuTorch's own
    console = Console(width=None if Console().is_terminal else 130)
    table = Table(title="XNNPACK")
    table.add_column("model")
    for column in (
        "mode",
        "layers",
        "delegates,\noutside",
        "converted\ndB",
        ".pte\ndB",
        "size",
        "int8\nms",
        "float\nms",
    ):
        table.add_column(column, justify="right")
    wrong = 0
    for name in arguments.models:
        for mode in modes_of(name):
            if mode in arguments.modes:
                found = measure(partial(whole, name, full=arguments.large), mode)
                wrong += not found.is_right
                table.add_row(name, mode, *found.cells())
                console.print(f"{name}, {mode}: {', '.join(found.cells())}", highlight=False)
    console.print(cpu_line(), highlight=False)
    console.print(table)
    return int(wrong > 0)


def modes_of(name: str) -> tuple[str, ...]:
    """How a model is quantized: pictures statically, the decoder by its weights, as is usual for decoders."""
    if name in PICTURES:
        return ("static",)
    return ("dynamic", "4-bit") if name == "llama" else ("static", "dynamic")


def measure(make: Callable[[], Whole], mode: str) -> Found:
    """Quantize a model, write it, and run it beside the float one."""
    made = make()
    with tempfile.TemporaryDirectory() as place, torch.no_grad():
        folder = Path(place)
        result = quantized_for_xnnpack(made, mode)
        program = result.lowered
        if not isinstance(program, XNNPACKProgram):
            raise TypeError(f"not lowered to a program of qspec-xnnpack: {type(program).__name__}")
        path = program.write_package(folder / "int8.pte")
        real = delegated(torch.export.export(made.model, made.calls[0]), folder / "float.pte")
        int8 = loaded(path)
        wanted, converted = outputs(made.model, made.calls), outputs(result.converted, made.calls)
        given = outputs(int8, made.calls)
        ways = {"int8": partial(int8, *made.calls[0]), "float": partial(real.run, *made.calls[0])}
        times = interleaved(ways, ROUNDS, EACH)
        return Found(
            layers=len(result.coverage.layers),
            quantized=len(result.coverage.quantized_layers),
            delegates=program.delegation.delegates,
            outside=len(program.delegation.outside),
            converted=sqnr(wanted, converted),
            program=sqnr(converted, given),
            size=path.stat().st_size / (real.size or 1),
            int8_ms=times["int8"].minimum,
            float_ms=times["float"].minimum,
        )


def outputs(run: Callable[..., Any], calls: list[Call]) -> Tensor:
    """Outputs of a model for its calls, in order."""
    return torch.cat([run(*call).flatten().clone() for call in calls])


if __name__ == "__main__":
    sys.exit(main())
