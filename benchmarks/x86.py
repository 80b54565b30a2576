"""Models on this CPU: qspec beside torch, torchao, ONNX Runtime, OpenVINO and ExecuTorch.

    python benchmarks/x86.py [--models NAME ...] [--only NAME ...] [--rounds N] [--iterations N] [--threads N]
        [--json FILE]

Batch 1, one process per contender, in turns. All calibrate on the same inputs, and are compared with float on other
inputs, the same for all: 32 and 64 crops of pictures for EfficientNet-Lite0, noise for models with random weights. The
minimum counts; the median is printed beside it. Compare ratios within one run only. If another contender is faster than
qspec, the operators of both are printed with their times.
"""

import argparse
from pathlib import Path
from typing import Any

from contest import Contender, Contest, Steps, pin_to_cores, write_json
from examples.timing import Latency, cpu_line, has_vnni
from profiles import rows_of
from rich.console import Console
from rich.table import Table
from x86_worker import CONTENDERS

__all__ = ["main"]

MODELS = {
    "lite0": "EfficientNet-Lite0",
    "resnet50": "ResNet-50, random weights",
    "mobilenet_v2:settled": "MobileNetV2, random weights",
    "bert": "BERT-base, 128 tokens, random weights",
}
BASE = "float Inductor"
OURS = "qspec x86 lowered"
ONLY_WITHOUT_VNNI = "qspec x86 for VNNI"  # shows the result of a CPU that has it
NOT_TIMED = (ONLY_WITHOUT_VNNI,)
MIB = 2**20


def main() -> None:
    """Measure all contenders and print the table."""
    arguments = _arguments()
    cores = pin_to_cores(arguments.threads)
    console = Console(width=None if Console().is_terminal else 160)
    console.print(f"{cpu_line()}; {arguments.threads} threads on cores {cores}", highlight=False)
    names = [name for name in arguments.only or CONTENDERS if name != ONLY_WITHOUT_VNNI or not has_vnni()]
    found: dict[str, Any] = {}
    for model in arguments.models:
        found[model] = measure(console, model, names, arguments)
        console.print(table_of(MODELS[model], found[model]))
        _print_notes(console, found[model])
    write_json(arguments.json, {"cpu": cpu_line(), "threads": arguments.threads, "models": found})


def measure(console: Console, model: str, names: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Build every contender for one model, then time them in turns."""
    threads = {name: str(arguments.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    with console.status("start") as status, Contest(threads) as contest:
        say = Steps(console, status).say
        found = {name: _enter(contest, name, model, arguments.threads, say) for name in names}
        contest.contenders = [one for one in contest.contenders if one.name not in NOT_TIMED]
        contest.turns(arguments.rounds, say, do="run", iterations=arguments.iterations)
        for contender in contest.contenders:
            found[contender.name] |= {"ms": contender.times.get("ms", []), "problem": contender.problem}
        found.get(OURS, {})["profiles"] = _profiles_if_slower(contest, found, say)
    return found


def _profiles_if_slower(contest: Contest, found: dict[str, Any], say: Any) -> list[str]:
    """Times operator by operator beside the fastest contender that has a profile, if one is faster than qspec."""
    latencies = {name: latency for name, entry in found.items() if (latency := _latency(entry))}
    ours = latencies.get(OURS)
    faster = [name for name, latency in latencies.items() if ours and latency.minimum < ours.minimum]
    if not faster:
        return []
    profiles: dict[str, Any] = {}
    for contender in contest.contenders:
        if contender.name in (OURS, *faster):
            say(f"profile {contender.name}")
            profiles[contender.name] = (contender.attempt(do="profile") or {}).get("operators")
    known = [name for name in faster if profiles.get(name)]
    if not known or not profiles.get(OURS):
        return [f"faster: {', '.join(faster)}; none has a profile"]
    best = min(known, key=lambda name: latencies[name].minimum)
    return [f"{best} is faster; time by operator:", *rows_of(OURS, profiles[OURS], best, profiles[best])]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), help="only these models")
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), default=None, help="only these contenders")
    parser.add_argument("--rounds", type=int, default=20, help="turns of each contender")
    parser.add_argument("--iterations", type=int, default=10, help="timed runs in a turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=None, help="write the results to this file as JSON")
    return parser.parse_args()


def _enter(contest: Contest, name: str, model: str, threads: int, say: Any) -> dict[str, Any]:
    """Build a contender while no other runs; return its answer, or its problem."""
    say(f"{model}: build {name}")
    worker = str(Path(__file__).parent / "x86_worker.py")
    contender: Contender = contest.add(name, worker, name, str(contest.folder), str(threads), model)
    answer = contender.attempt(do="build")
    if name in NOT_TIMED:
        contender.end()
    return {**(answer or {}), "problem": contender.problem}


def table_of(title: str, found: dict[str, Any]) -> Table:
    """One line per contender."""
    table = Table(title=f"{title}, batch 1")
    table.add_column("contender")
    for title in (
        "layers\nquantized",
        "converted\nSQNR dB",
        "converted\ntop-1",
        "as it runs\nSQNR dB",
        "as it runs\ntop-1 of 64",
        "file\nMiB",
        "outside\ndelegate",
        "ms min",
        "ms median",
        f"time of\n{BASE}",
    ):
        table.add_column(title, justify="right")
    base = _latency(found.get(BASE, {}))
    for name, entry in found.items():
        if entry["problem"] and "lowered" not in entry:
            table.add_row(name, "failed")
            continue
        size, outside = entry.get("size"), entry.get("outside")
        latency = _latency(entry)
        table.add_row(
            name,
            entry.get("layers") or "-",
            *_agreement(entry.get("converted")),
            *_agreement(entry.get("lowered")),
            "-" if size is None else f"{size / MIB:.2f}",
            "-" if outside is None else str(len(outside)),
            *(("-", "-") if latency is None else (f"{latency.minimum:.2f}", f"{latency.median:.2f}")),
            "-" if latency is None or base is None else f"{latency.minimum / base.minimum:.2f}x",
        )
    return table


def _latency(entry: dict[str, Any]) -> Latency | None:
    return Latency.of(entry["ms"]) if entry.get("ms") else None


def _agreement(found: dict[str, Any] | None) -> tuple[str, str]:
    if found is None:
        return "-", "-"
    return "exact" if found["sqnr"] is None else f"{found['sqnr']:.1f}", "-" if found["top1"] is None else str(
        found["top1"]
    )


def _print_notes(console: Console, found: dict[str, Any]) -> None:
    for name, entry in found.items():
        notes = [*entry.get("notes", ()), *entry.get("profiles", ()), *filter(None, [entry["problem"]])]
        if entry.get("outside"):
            notes.append(f"outside the delegate: {', '.join(entry['outside'])}")
        for note in notes:
            console.print(f"{name}: {note}", markup=False, highlight=False)


if __name__ == "__main__":
    main()
