"""Time of prepare and convert: qspec beside torchao, one process each, in turns.

    python benchmarks/flow.py [--quick] [--rounds N] [--json FILE]

Seconds are CPU seconds on one thread; compare ratios within one run only. The minimum over the rounds counts.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contest import Contender, Contest, Steps, write_json
from rich.console import Console
from rich.table import Table

__all__ = ["main"]

SIDES = ("qspec", "torchao")
FULL, QUICK = (400, 1600), (50, 200)
PASSES = ("prepare", "convert")
GROWTH = 4.6  # allowed growth of the time of a pass for 4 times the layers
REQUIRED = {"chain": 20.0, "mobilenet_v2": 20.0, "lite0": 10.0}  # required speed-up over the other side
POINTS = 1_000_000
SEARCHED = ("mobilenet_v2:created", "mobilenet_v2:settled", "resnet50", "bert", "lite0")
SEARCH = 50.0  # required speed-up of the range search, over all of these models
TITLES = {
    "mobilenet_v2:created": "MobileNetV2 as its constructor leaves it, x86",
    "mobilenet_v2:settled": "MobileNetV2 with settled batch norms, x86",
    "lite0": "EfficientNet-Lite0, XNNPACK (torchao with ExecuTorch's quantizer)",
    "resnet50": "ResNet-50, settled",
    "bert": "BERT-base, 128 tokens",
}

ONE_THREAD = {"OMP_NUM_THREADS": "1"}
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
"""For glibc: freed memory leaves the process, so that its size is the memory in use, not the memory once used."""


def main() -> None:
    """Measure all models and print the table."""
    arguments = _arguments()
    console = Console(width=None if Console().is_terminal else 140)
    short, long = QUICK if arguments.quick else FULL
    groups = ((f"chain:{short}", f"chain:{long}"), ("mobilenet_v2:created", "mobilenet_v2:settled"), ("lite0",))
    found: dict[str, Any] = {}
    with console.status("start") as status:
        for models in groups:
            found |= measure(models, arguments.rounds, Steps(console, status).say)
        calibration = measure_calibration(Steps(console, status).say)
        searches = measure_searches(Steps(console, status).say)
        status.update(f"sharing, {POINTS:,} points")
        seconds = sharing_seconds(POINTS)
    console.print(table_of(found))
    console.print(growth_table(found, f"chain:{short}", f"chain:{long}"))
    console.print(calibration_table(calibration))
    console.print(search_table(searches))
    console.print(f"sharing solver, a chain of {POINTS:,} points: {seconds:.1f} s (required: under 10)")
    for name, sides in found.items():
        for side, entry in sides.items():
            if entry["problem"]:
                console.print(f"{name}, {side}: {entry['problem']}", markup=False, highlight=False)
    rest = {"resnet50": calibration, "searches": searches, "sharing": {"points": POINTS, "seconds": seconds}}
    write_json(arguments.json, found | rest)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help=f"chains of {QUICK} layers in place of {FULL}")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each contender")
    parser.add_argument("--json", type=Path, default=None, help="write the results to this file as JSON")
    return parser.parse_args()


def measure(models: tuple[str, ...], rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Prepare and convert the models, each side in its own process, in turns."""
    worker = str(Path(__file__).parent / "flow_worker.py")
    with Contest(ONE_THREAD) as contest:
        pairs = {
            (model, side): contest.add(f"{model} {side}", worker, side, model)
            for model, side in itertools.product(models, SIDES)
        }
        for contender in contest.contenders:
            say(f"{contender.name}: export")
            contender.attempt(do="build")
        contest.turns(rounds, say, do="run")
        return {model: {side: _entry(pairs[model, side]) for side in SIDES} for model in models}


def measure_calibration(say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Calibration time and peak memory of ResNet-50, each measured in a process of its own."""
    worker = str(Path(__file__).parent / "flow_worker.py")
    found: dict[str, dict[str, Any]] = {side: {} for side in SIDES}
    for task, environment in (("calibrate", ONE_THREAD), ("memory", ONE_THREAD | GIVES_BACK)):
        with Contest(environment) as contest:
            for side in SIDES:
                contender = contest.add(f"resnet50 {side} {task}", worker, side, "resnet50")
                say(contender.name)
                found[side] |= contender.attempt(do=task) or {"problem": contender.problem}
                contender.end()
    return found


def measure_searches(say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Time of the range search over the histograms of all activations, both sides in one process for each model."""
    worker = str(Path(__file__).parent / "range_search.py")
    found: dict[str, dict[str, Any]] = {}
    with Contest(ONE_THREAD) as contest:
        for model in SEARCHED:
            say(f"{model}: search")
            contender = contest.add(f"{model} search", worker)
            found[model] = contender.attempt(do="search", model=model) or {"problem": contender.problem}
            contender.end()
    return found


def sharing_seconds(points: int) -> float:
    """CPU seconds of the sharing solver on a chain in which every point shares with the point before it."""
    from sharing_chain import chain

    from qspec_core import resolve_sharing

    graph = chain(points // 2)
    start = time.process_time()
    resolution = resolve_sharing(graph)
    seconds = time.process_time() - start
    if len(resolution.groups) != 1:
        raise AssertionError(f"one group expected, found {len(resolution.groups)}")
    return seconds


def _entry(contender: Contender) -> dict[str, Any]:
    times = {name: min(contender.times[name]) for name in PASSES if contender.times.get(name)}
    layers: Any = contender.times.get("layers", [None])[0]
    return {**times, "layers": layers, "problem": contender.problem, "all": contender.times}


def _total(entry: dict[str, Any]) -> float | None:
    return sum(entry[name] for name in PASSES) if all(name in entry for name in PASSES) else None


def table_of(found: dict[str, Any]) -> Table:
    """One line per model: both sides, and the ratio of their times."""
    table = Table(title="prepare + convert, CPU seconds on one thread, minimum")
    table.add_column("model")
    for side in SIDES:
        table.add_column(f"{side}\nprepare + convert", justify="right")
        table.add_column(f"{side}\nlayers", justify="right")
    table.add_column("times faster", justify="right")
    table.add_column("required", justify="right")
    for name, sides in found.items():
        cells = [cell for side in SIDES for cell in (_seconds(sides[side]), _layers(sides[side]))]
        ours, theirs = (_total(sides[side]) for side in SIDES)
        ratio = "-" if ours is None or theirs is None else f"{theirs / ours:.1f}"
        table.add_row(_title(name), *cells, ratio, f"{REQUIRED[name.partition(':')[0]]:.0f}")
    return table


def growth_table(found: dict[str, Any], short: str, long: str) -> Table:
    """Growth of the time of each pass with the length of the chain."""
    table = Table(title=f"growth from {short.partition(':')[2]} to {long.partition(':')[2]} layers, 4 times as many")
    for column in ("pass", *SIDES, "allowed"):
        table.add_column(column, justify="left" if column == "pass" else "right")
    for name in PASSES:
        cells = []
        for side in SIDES:
            few, many = (found[model][side].get(name) for model in (short, long))
            cells.append("-" if not few or not many else f"{many / few:.1f}")
        table.add_row(name, *cells, f"{GROWTH}")
    return table


def calibration_table(found: dict[str, dict[str, Any]]) -> Table:
    """ResNet-50: time of calibration in float forwards, and memory that the flow adds."""
    table = Table(title="ResNet-50, batch 8: calibration with histograms, 8 batches; peak memory of prepare + convert")
    for column in ("", *SIDES, "required"):
        table.add_column(column, justify="right" if column else "left")
    ratios = [_share(found[side], "observed", "float") for side in SIDES]
    peaks = [_share(found[side], "peak", "weights") for side in SIDES]
    table.add_row("calibration / float forward", *ratios, "<= 1.5")
    table.add_row("memory on top of float inference / weights", *peaks, "<= 1.3")
    return table


def search_table(found: dict[str, dict[str, Any]]) -> Table:
    """Time of the range search, for each model and over all."""
    table = Table(title="search for the ranges of all activations, x86, ms of CPU time on one thread, minimum")
    for column in ("model", "histograms", *SIDES, "times faster", "required"):
        table.add_column(column, justify="left" if column == "model" else "right")
    measured = [entry for entry in found.values() if "problem" not in entry]
    for model, entry in found.items():
        cells = _search_cells([entry]) if entry in measured else [str(entry["problem"])]
        table.add_row(TITLES[model].removesuffix(", x86").partition(", XNN")[0], *cells)
    table.add_row("all of these", *_search_cells(measured), f"{SEARCH:.0f}")
    return table


def _search_cells(entries: list[dict[str, Any]]) -> list[str]:
    count = sum(entry["observers"][0] for entry in entries)
    ours, theirs = (sum(entry[side][0] for entry in entries) for side in SIDES)
    return [str(count), f"{ours * 1e3:.1f}", f"{theirs * 1e3:.0f}", f"{theirs / ours:.0f}" if ours else "-"]


def _share(entry: dict[str, Any], part: str, whole: str) -> str:
    return f"{entry[part][0] / entry[whole][0]:.2f}" if part in entry else "failed"


def _title(name: str) -> str:
    kind, _, layers = name.partition(":")
    return f"chain of {layers} linear + relu, x86" if kind == "chain" else TITLES[name]


def _seconds(entry: dict[str, Any]) -> str:
    if _total(entry) is None:
        return "failed"
    return f"{entry['prepare']:.2f} + {entry['convert']:.2f}"


def _layers(entry: dict[str, Any]) -> str:
    return "-" if entry["layers"] is None else f"{entry['layers'][0]} of {entry['layers'][1]}"


if __name__ == "__main__":
    main()
