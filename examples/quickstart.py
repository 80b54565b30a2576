"""A real model on two devices: EfficientNet-Lite0 quantized for x86 and for XNNPACK, beside the float model.

    python examples/quickstart.py

Prints the layers quantized, the agreement with float, the size and the latency. If a backend, ExecuTorch or a C++
compiler is not installed, it says so and leaves that part out.
"""

import importlib.util
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pictures import calibration_crops, evaluation_crops, lite0, sqnr, top1_agreement
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from timing import Latency, cpu_line, has_vnni, interleaved
from torch import Tensor, nn

import qspec_core as qspec

ROUNDS, EACH = 12, 5
MIB = 2**20
REQUIRES = {
    "xnnpack": ("executorch", "pip install qspec-xnnpack[executorch]")
}  # to lower; quantizing needs torch alone
Model = Callable[[Tensor], Tensor]


@dataclass
class Line:
    """One line of the table. A field is None if it could not be measured; a note says why."""

    name: str
    layers: str = "-"
    converted: Tensor | None = None
    lowered: Tensor | None = None
    saved: int | None = None
    packaged: int | None = None
    run: Model | None = None
    latency: Latency | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Quickstart:
    """The float model, its pictures, and the progress bar."""

    model: nn.Module
    crops: list[Tensor]
    progress: Progress
    folder: Path
    start: float

    @property
    def example(self) -> tuple[Tensor]:
        """Arguments of one call."""
        return (self.crops[0],)

    def say(self, step: str) -> None:
        """Show the current step: in the bar, or line by line if the output is not a terminal."""
        if not self.progress.console.is_terminal:
            self.progress.console.print(f"{time.perf_counter() - self.start:6.0f} s  {step}", highlight=False)
        self.progress.update(self.progress.task_ids[0], description=step, completed=0, total=None)

    def logits(self, model: Model, step: str) -> Tensor:
        """Logits of a model for all crops: (crops, classes)."""
        found = []
        self.say(step)
        with torch.no_grad():
            for index, crop in enumerate(self.crops):
                self.progress.update(self.progress.task_ids[0], completed=index, total=len(self.crops))
                found.append(model(crop))
        return torch.cat(found)

    def float_lines(self) -> list[Line]:
        """The float model as it is, and compiled."""
        eager = Line("float eager", run=self.model)
        eager.lowered = self.logits(self.model, "float model: pictures")
        path = self.folder / "float.pt"
        torch.save(self.model.state_dict(), path)
        eager.saved = path.stat().st_size
        compiled = Line("float compiled")
        self.say("float model: torch.compile")
        try:
            run: Model = torch.compile(self.model, options={"freezing": True})
            with torch.no_grad():
                run(*self.example)
            compiled.lowered = self.logits(run, "float model compiled: pictures")
            compiled.run = run
        except Exception as error:  # any error of Inductor, or a missing C++ compiler
            compiled.notes.append(f"torch.compile: {_first_line(error)}")
        return [eager, compiled]

    def quantized_line(self, backend: str, target: str | None, *, run: bool = True) -> Line:
        """The model quantized for a backend, and lowered where this machine can run it."""
        name = backend if target is None else f"{backend}, target {target}"
        line = Line(name)
        batches = [(crop,) for crop in calibration_crops()]
        try:
            result = qspec.quantize(
                self.model,
                self.example,
                calibration=batches,
                backend=backend,
                target=target,
                progress=lambda step: self.say(f"{name}: {step}"),
            )
        except qspec.BackendError as error:
            line.notes.append(str(error))
            return line
        cover = result.coverage
        line.layers = f"{len(cover.quantized_layers)} of {len(cover.layers)}"
        line.notes += [str(entry) for entry in cover.skipped]
        line.converted = self.logits(result.converted, f"{name}: pictures, converted")
        if run:
            line.saved = result.save(self.folder / f"{backend}-program.pt2").stat().st_size
            self.lower(line, result)
        return line

    def lower(self, line: Line, result: qspec.Result) -> None:
        """Run the quantized program on its device and write the device's file."""
        needed, install = REQUIRES.get(result.backend.name, ("torch", ""))
        if importlib.util.find_spec(needed) is None:
            line.notes.append(f"not lowered: {needed} is not installed; {install}")
            return
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                self.say(f"{line.name}: lower")
                line.lowered = self.logits(result.lowered, f"{line.name}: pictures, lowered")
                line.run = result.lowered
                self.say(f"{line.name}: package")
                path = result.package(self.folder / f"{result.backend.name}{result.backend.suffix}")
                line.packaged = path.stat().st_size
            except qspec.QSpecError as error:
                line.notes.append(str(error))
        ours = [entry for entry in caught if entry.category.__module__.startswith("qspec")]
        line.notes += dict.fromkeys(str(entry.message) for entry in ours)

    def time(self, lines: list[Line]) -> None:
        """Measure the latency of each line that runs, in turns."""
        self.say(f"latency: {ROUNDS} rounds in turns")
        ways = {line.name: _bound(line.run, self.crops[0]) for line in lines if line.run is not None}
        with torch.no_grad():
            found = interleaved(ways, ROUNDS, EACH)
        for line in lines:
            line.latency = found.get(line.name)


def _bound(run: Model, crop: Tensor) -> Callable[[], Tensor]:
    def call() -> Tensor:
        return run(crop)

    return call


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def table_of(lines: list[Line]) -> Table:
    """The table that the quickstart prints."""
    reference, compiled = lines[0].lowered, lines[1].latency
    crops = 0 if reference is None else len(reference)
    table = Table(title=f"EfficientNet-Lite0, 1x3x224x224, {crops} crops of pictures not used to calibrate")
    table.add_column("form")
    table.add_column("layers\nquantized", justify="right")
    for stage in ("converted", "lowered"):
        table.add_column(f"{stage}\nSQNR dB", justify="right")
        table.add_column(f"{stage}\ntop-1 = float", justify="right")
    table.add_column("saved\nMiB", justify="right")
    table.add_column("packaged\nMiB", justify="right")
    table.add_column("latency ms\nmin / median", justify="right")
    table.add_column("speed over\nfloat compiled", justify="right")
    for line in lines:
        sizes = ["-" if size is None else f"{size / MIB:.2f}" for size in (line.saved, line.packaged)]
        agreement = [*_agreement(reference, line.converted), *_agreement(reference, line.lowered)]
        timed = "-" if line.latency is None else f"{line.latency.minimum:.2f} / {line.latency.median:.2f}"
        known = line.latency is not None and compiled is not None
        ratio = f"{compiled.minimum / line.latency.minimum:.2f}x" if known else "-"  # type: ignore[union-attr]  # known
        table.add_row(line.name, line.layers, *agreement, *sizes, timed, ratio)
    return table


def _agreement(reference: Tensor | None, found: Tensor | None) -> tuple[str, str]:
    if reference is None or found is None:
        return "-", "-"
    if torch.equal(reference, found):
        return "exact", f"{len(found)} of {len(found)}"
    return f"{sqnr(reference, found):.1f}", f"{top1_agreement(reference, found)} of {len(found)}"


def print_notes(console: Console, lines: list[Line]) -> None:
    """Print below the table every operator left in float with its reason, and everything that was not measured."""
    quantized = [line for line in lines if line.layers != "-"]
    for line in lines:
        if line.notes:
            console.print(f"\n[bold]{line.name}[/]")
            for note in line.notes:
                console.print(f"  {note}", markup=False, highlight=False)
    complete = [line.name for line in quantized if not line.notes]
    if complete:
        console.print(f"\nNo operator was skipped for: {', '.join(complete)}.", highlight=False)


def main() -> None:
    """Run everything and print the table."""
    start = time.perf_counter()
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=140)  # a log: the table on lines of its own
    console.print(cpu_line(), highlight=False)
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with tempfile.TemporaryDirectory() as folder, Progress(*columns, console=console, transient=True) as progress:
        progress.add_task("load", total=None)
        work = Quickstart(lite0(), evaluation_crops(), progress, Path(folder), start)
        lines = work.float_lines()
        lines.append(work.quantized_line("x86", "native"))
        if not has_vnni():
            lines.append(work.quantized_line("x86", "vnni", run=False))
            lines[-1].notes.append("not run: this CPU has no VNNI; 'converted' is the result of a CPU that has it")
        lines.append(work.quantized_line("xnnpack", None))
        work.time(lines)
    console.print(table_of(lines))
    print_notes(console, lines)
    console.print(f"\nTotal: {time.perf_counter() - start:.0f} s", highlight=False)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
