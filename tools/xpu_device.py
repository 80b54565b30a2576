"""Checks that need an Intel GPU: conformance cases, whole models, memory and speed on the device, in a results file.

    python tools/xpu_device.py            runs everything, writes the results file and the README's table
    python tools/xpu_device.py --page     writes the table from the results file

Without a GPU it prints one line that says what is missing, and leaves both files. Needs packages/qspec-xpu/tests and
benchmarks on the path.
"""

import argparse
import copy
import importlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import qspec_core as qspec
from qspec_core.testing import conformance_cases
from qspec_xpu import BACKEND, missing_device

__all__ = ["main", "page", "table_of"]

PACKAGE = Path(__file__).resolve().parent.parent / "packages" / "qspec-xpu"
RESULTS, README = PACKAGE / "device-results.json", PACKAGE / "README.md"
START, END = "<!-- device -->", "<!-- /device -->"
NOT_YET = "Not yet: no result of `nox -s xpu-device` is in this repository."
RUNS, WARM = 30, 5
Call = Callable[..., Any]


def table_of(results: Mapping[str, Any] | None) -> str:
    """The part of the README that says what ran on hardware.

    Args:
        results: content of the results file; None if there is none.
    """
    if results is None:
        return NOT_YET
    conformance = results["conformance"]
    lines = [
        f"{results['device']}, torch {results['torch']}: {conformance['passed']} of {conformance['cases']} conformance "
        "cases pass.",
        "",
        "| model, mode | SQNR to converted, dB | ms: lowered, compiled | float32 | bfloat16 | MiB: lowered, float |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    lines += [_line(name, model) for name, model in sorted(results["models"].items())]
    lines += [f"\nFailed: {name}: {problem}" for name, problem in sorted(conformance["failed"].items())]
    return "\n".join(lines)


def _line(name: str, model: Mapping[str, Any]) -> str:
    if "problem" in model:
        return f"| {name} | failed: {model['problem']} | | | | |"
    ms, mib = model["ms"], model["mib"]
    pairs = [f"{ms[kind]:.2f}, {ms[kind + ' compiled']:.2f}" for kind in ("lowered", "float32", "bfloat16")]
    return f"| {name} | {model['sqnr']:.1f} | {' | '.join(pairs)} | {mib['lowered']:.0f}, {mib['float32']:.0f} |"


def page(readme: str, results: Mapping[str, Any] | None) -> str:
    """The README with its table written again."""
    head, _, rest = readme.partition(START)
    return f"{head}{START}\n{table_of(results)}\n{END}{rest.partition(END)[2]}"


def _saved() -> Mapping[str, Any] | None:
    found: Mapping[str, Any] | None = json.loads(RESULTS.read_text()) if RESULTS.exists() else None
    return found


def _conformance() -> dict[str, Any]:
    samples = importlib.import_module("xpu_samples").SAMPLES
    failed: dict[str, str] = {}
    cases = conformance_cases(BACKEND, samples=samples)
    for case in cases:
        try:
            case.check()
        except Exception as error:  # an operator may raise anything on a device
            failed[str(case)] = f"{type(error).__name__}: {error}".partition("\n")[0]
    return {"cases": len(cases), "passed": len(cases) - len(failed), "failed": failed}


def _model(name: str, mode: str) -> dict[str, Any]:
    models = importlib.import_module("whole_models")
    made = models.whole(name, full=True)
    calibration = made.calls if mode == "static" else None
    result = qspec.quantize(made.model, made.calls[0], calibration=calibration, backend="xpu", mode=mode)
    lowered = result.lowered
    with torch.no_grad():
        given = lowered(*_on_device(made.calls[0])).cpu()
        wanted = result.converted(*made.calls[0])
    noise = (wanted - given).double().square().sum().clamp(min=1e-30)
    sqnr = float(10 * torch.log10(wanted.double().square().sum() / noise))
    forms = {
        "lowered": (lowered, made.calls[0]),
        "float32": (copy.deepcopy(made.model).to("xpu"), made.calls[0]),
        "bfloat16": (copy.deepcopy(made.model).to("xpu", torch.bfloat16), _in_bfloat16(made.calls[0])),
    }
    ms: dict[str, float] = {}
    mib: dict[str, float] = {}
    for form, (module, call) in forms.items():
        inputs = _on_device(call)
        torch.xpu.reset_peak_memory_stats()
        ms[form] = _milliseconds(module, inputs)
        mib[form] = torch.xpu.max_memory_allocated() / 2**20
        ms[f"{form} compiled"] = _milliseconds(torch.compile(module), inputs)
    return {"sqnr": sqnr, "ms": ms, "mib": mib}


def _on_device(call: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(value.to("xpu") for value in call)


def _in_bfloat16(call: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(value.to(torch.bfloat16) if value.is_floating_point() else value for value in call)


def _milliseconds(module: nn.Module | Call, inputs: tuple[Tensor, ...]) -> float:
    """Least time of one call."""
    best = float("inf")
    with torch.no_grad():
        for run in range(WARM + RUNS):
            torch.xpu.synchronize()
            start = time.perf_counter()
            module(*inputs)
            torch.xpu.synchronize()
            best = min(best, time.perf_counter() - start) if run >= WARM else best
    return 1000 * best


def _run() -> dict[str, Any]:
    models: dict[str, Any] = {}
    for name in importlib.import_module("whole_models").MODELS:
        for mode in ("static", "dynamic"):
            try:
                models[f"{name}, {mode}"] = _model(name, mode)
            except Exception as error:  # the other models run nevertheless
                models[f"{name}, {mode}"] = {"problem": f"{type(error).__name__}: {error}".partition("\n")[0]}
    device = torch.xpu.get_device_name()
    return {"torch": torch.__version__, "device": device, "conformance": _conformance(), "models": models}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run on the device, or say what is missing; write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--page", action="store_true", help="write the README's table and run nothing")
    if not parser.parse_args(arguments).page:
        missing = missing_device()
        if missing is not None:
            sys.stdout.write(f"xpu-device: skipped: {missing}\n")
            return 0
        RESULTS.write_text(json.dumps(_run(), indent=1, sort_keys=True) + "\n")
    README.write_text(page(README.read_text(), _saved()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
