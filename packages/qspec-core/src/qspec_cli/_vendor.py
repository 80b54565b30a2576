"""Commands for anyone who writes a backend: a new package, and the scorecard of one."""

from pathlib import Path
from typing import Annotated

import typer

from qspec_cli._app import app

__all__ = ["new_backend", "scorecard"]


@app.command("new-backend")
def new_backend(
    name: Annotated[str, typer.Argument(help="Name of the backend, such as toy.")],
    kind: Annotated[
        str, typer.Option(help="kernels: its kernels are operators; compiler: a compiler writes a file.")
    ] = "kernels",
    output: Annotated[Path | None, typer.Option(help="A new folder; qspec-NAME by default.")] = None,
) -> None:
    """Write a complete package of a new backend: rows, kernels, lowering and tests."""
    from qspec_cli._scaffold import Kind, write_backend

    if kind not in {known.value for known in Kind}:
        raise typer.BadParameter(f"choose {' or '.join(known.value for known in Kind)}", param_hint="--kind")
    folder = Path(f"qspec-{name.replace('_', '-')}") if output is None else output
    paths = write_backend(name, Kind(kind), folder)
    typer.echo(f"wrote {len(paths)} files to {folder}")
    typer.echo(f"next: cd {folder} && pip install --editable '.[test]' && pytest")


@app.command()
def scorecard(
    backend: Annotated[str, typer.Argument(help="Name of an installed backend.")],
    json_path: Annotated[Path | None, typer.Option("--json", help="Write it as JSON.")] = None,
    svg_path: Annotated[Path | None, typer.Option("--svg", help="Write a badge.")] = None,
    text_path: Annotated[Path | None, typer.Option("--text", help="Write it as text.")] = None,
) -> None:
    """Run the conformance kit and small whole models on a backend, and print what it covers.

    The exit code is 1 if a case fails.
    """
    from qspec_core.backend import get_backend
    from qspec_core.testing import scorecard as make

    card = make(get_backend(backend))
    for path, text in ((json_path, card.to_json()), (svg_path, card.to_svg()), (text_path, f"{card}\n")):
        if path is not None:
            path.write_text(text, encoding="utf-8")
    typer.echo(str(card))
    if card.failures:
        raise typer.Exit(1)
