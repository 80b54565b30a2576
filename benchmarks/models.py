"""Whole models through the three forms of the x86 backend: which layers run in integers, and whether the forms agree.

    python benchmarks/models.py [--models NAME ...] [--large] [--modes MODE ...]

Small models with random weights, or with --large models of full size, and EfficientNet-Lite0 with its own weights. One
line for each: layers quantized, quantized layers that were not lowered, and signal to noise in dB: converted against
float, then each lowered form against converted. The exit code is 1 if a quantized layer was not lowered, or a form
differs.
"""

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import contest  # noqa: F401  # puts examples on the path
import torch
from examples.pictures import calibration_crops, lite0, sqnr
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from whole_models import MODELS, Whole, whole

import qspec_core as qspec
from qspec_x86 import LOWERING_KEY, lower_eager

__all__ = ["main"]

WITH_WEIGHTS = "lite0"
FORMS = ("eager", "torch.compile", "package")
AGREES_DB = 20.0
"""Least signal to noise of a lowered form against the converted graph. Weights may be narrowed again, and a value
midway between two steps may round either way; in a deep network such steps add up."""


@dataclass(frozen=True)
class Found:
    """Results of one model.

    Args:
        layers: number of layers.
        quantized: number of layers that coverage calls quantized.
        missed: names of quantized layers that were not lowered.
        ranges: signal to noise in dB, by the two things compared.
    """

    layers: int
    quantized: int
    missed: tuple[str, ...]
    ranges: dict[str, float]

    @property
    def is_right(self) -> bool:
        """Whether every quantized layer runs in integers, with the same result in every form."""
        return not self.missed and all(self.ranges[form] >= AGREES_DB for form in FORMS)


def main() -> int:
    """Run the models, print the table, return 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=[*MODELS, WITH_WEIGHTS], default=None)
    parser.add_argument("--large", action="store_true", help="networks of full size")
    parser.add_argument("--modes", nargs="+", choices=["static", "dynamic"], default=["static"])
    arguments = parser.parse_args()
    console = Console(width=None if Console().is_terminal else 150)
    table = Table(title="x86, dB")
    for column in ("model", "mode", "layers", "not lowered", "converted", *FORMS):
        table.add_column(column, justify="left" if column == "model" else "right")
    wrong = 0
    for name in arguments.models or (*MODELS, *((WITH_WEIGHTS,) if arguments.large else ())):
        for mode in arguments.modes:
            found = measure(made(name, full=arguments.large), mode)
            wrong += not found.is_right
            numbers = [f"{found.ranges[key]:.1f}" for key in ("converted", *FORMS)]
            missed = ", ".join(found.missed) or "0"
            table.add_row(name, mode, f"{found.quantized} of {found.layers}", missed, *numbers)
            console.print(f"{name}, {mode}: done", highlight=False)
    console.print(table)
    return int(wrong > 0)


def measure(given: Whole, mode: str) -> Found:
    """Quantize a model, lower it in each form, and compare."""
    model, calls = given.model, given.calls
    with torch.no_grad():
        result = qspec.quantize(model, calls[0], calibration=calls, backend="x86", mode=mode, target="native")
        eager = lower_eager(result.converted, "native")
        layers, quantized = result.coverage.layers, result.coverage.quantized_layers
        lowered = eager.meta[LOWERING_KEY].lowered
        ran = dict(_forms(result, eager))
        wanted, converted = _outputs(model, calls), _outputs(result.converted, calls)
        ranges = {"converted": sqnr(wanted, converted)}
        ranges |= {form: sqnr(converted, _outputs(run, calls)) for form, run in ran.items()}
    missed = tuple(entry.node for entry in quantized if entry.node not in lowered)
    return Found(len(layers), len(quantized), missed, ranges)


def _forms(result: qspec.Result, eager: nn.Module) -> Iterator[tuple[str, Callable[..., Any]]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own while it compiles
        torch._dynamo.reset()
        yield "eager", eager
        yield "torch.compile", torch.compile(eager)
        yield "package", result.lowered


def _outputs(run: Callable[..., Any], calls: list[tuple[Tensor, ...]]) -> Tensor:
    return torch.cat([run(*call).float().flatten() for call in calls])


def made(name: str, *, full: bool) -> Whole:
    """A model with its data."""
    if name == WITH_WEIGHTS:
        return Whole(lite0(), [(crop,) for crop in calibration_crops(4)])
    return whole(name, full=full)


if __name__ == "__main__":
    sys.exit(main())
