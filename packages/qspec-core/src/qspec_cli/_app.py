"""The commands, defined with typer."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from _qspec_contract import installed_backends, probe

__all__ = ["app", "main"]

app = typer.Typer(help="Quantize exported PyTorch models for the backends installed.", no_args_is_help=True)
onnx_app = typer.Typer(
    help="ONNX files of quantized programs. Exit codes: 0 the file holds; 1 error; 2 wrong usage; 3 the file differs.",
    no_args_is_help=True,
)
app.add_typer(onnx_app, name="onnx")
_console = Console()
_errors = Console(stderr=True)


def main() -> None:
    """Run the command; a qspec error ends it with its message and exit code 1."""
    try:
        app()
    except Exception as error:
        from qspec_core._errors import QSpecError

        if not isinstance(error, QSpecError):
            raise
        _errors.print(f"[bold red]error[/]: {type(error).__name__}")
        _errors.print(str(error), markup=False, highlight=False)
        raise SystemExit(1) from error


@app.command()
def backends(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Import each backend in a process of its own, and show what fails.")
    ] = False,
) -> None:
    """List the backends installed. Only --check imports them. Exit code 1: --check found a backend with a problem."""
    found = installed_backends()
    if check:
        found = tuple(probe(entry) for entry in found)
    failed = check and any(entry.problem for entry in found)
    if as_json:
        typer.echo(json.dumps([asdict(entry) for entry in found], indent=2))
        raise typer.Exit(int(failed))
    table = Table("backend", "distribution", "version", "state", "description")
    state = "ready" if check else "installed"
    for entry in found:
        table.add_row(entry.name, entry.distribution, entry.version, entry.problem or state, entry.description)
    _console.print(table if found else "No backend is installed. Try: pip install qspec-x86")
    raise typer.Exit(int(failed))


@app.command()
def quantize(
    model: Annotated[Path, typer.Argument(help="Float program written by torch.export.save.", exists=True)],
    backend: Annotated[str, typer.Option(help="Name of an installed backend.")],
    output: Annotated[Path, typer.Option(help="Where to write the result.")],
    calibration: Annotated[
        Path | None,
        typer.Option(help="Batches as safetensors, named BATCH.INPUT: 0.0, 0.1, 1.0, ... or 0.image, ...", exists=True),
    ] = None,
    target: Annotated[str | None, typer.Option(help="Class of the deployment device; the backend's default.")] = None,
    mode: Annotated[str, typer.Option(help="static, dynamic or 'weight only'.")] = "static",
    check: Annotated[
        bool, typer.Option(help="Compare the package with the quantized program before it is written.")
    ] = True,
    form: Annotated[str, typer.Option(help="program: portable quantized program; package: the backend's file.")] = (
        "program"
    ),
) -> None:
    """Quantize a program and write it."""
    if form not in ("program", "package"):
        raise typer.BadParameter("choose program or package", param_hint="--form")
    from qspec_cli._job import run_job

    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=_errors, transient=True) as progress:
        task = progress.add_task("load")
        result, written = run_job(
            model,
            backend=backend,
            output=output,
            calibration=calibration,
            target=target,
            mode=mode,
            form=form,
            check=check,
            report=lambda step: progress.update(task, description=step),
        )
    _console.print(result.coverage.summary(), markup=False, highlight=False)
    _console.print(f"wrote {written} ({written.stat().st_size / 2**20:.2f} MiB)", markup=False, highlight=False)


_DIFFERS = 3
"""Exit code for a file that does not compute what its program computes."""

_Program = Annotated[Path, typer.Argument(help="Quantized program, as `qspec quantize` writes it.", exists=True)]
_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@onnx_app.command("export")
def onnx_export(
    program: _Program,
    output: Annotated[Path, typer.Option(help="The ONNX file to write.")],
    opset: Annotated[int | None, typer.Option(help="18 to 25; 21 if left out.")] = None,
    profile: Annotated[str | None, typer.Option(help="onnxruntime, openvino or tensorrt; any if left out.")] = None,
    check: Annotated[bool, typer.Option(help="Compare the file with the program before it is written.")] = True,
    as_json: _AsJson = False,
) -> None:
    """Write a quantized program as an ONNX file. A file that differs from the program is not written: exit code 3."""
    from qspec_cli._onnx import export_program
    from qspec_core.onnx import OnnxCheckError

    try:
        found = export_program(program, output, opset=opset, profile=profile, check=check)
    except OnnxCheckError as error:
        _errors.print(str(error), markup=False, highlight=False)
        raise typer.Exit(_DIFFERS) from error
    written = {"path": str(output), "bytes": output.stat().st_size, "check": found and found.to_dict()}
    if as_json:
        typer.echo(json.dumps(written, indent=2))
        return
    if found is not None:
        _console.print(str(found), markup=False, highlight=False)
    _console.print(f"wrote {output} ({output.stat().st_size / 2**20:.2f} MiB)", markup=False, highlight=False)


@onnx_app.command("check")
def onnx_check(
    program: _Program,
    file: Annotated[Path, typer.Argument(help="The ONNX file.", exists=True)],
    node_by_node: Annotated[bool, typer.Option(help="Compare each operator by itself.")] = False,
    as_json: _AsJson = False,
) -> None:
    """Compare an ONNX file with the quantized program that it was written from. Exit code 3 if it differs."""
    from qspec_cli._onnx import check_file

    found = check_file(program, file, node_by_node=node_by_node)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        _console.print(str(found), markup=False, highlight=False)
    if not found.holds:
        raise typer.Exit(_DIFFERS)
