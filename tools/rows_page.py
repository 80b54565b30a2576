"""Page of a backend's rows, docs/<backend>.md, generated from its table: what runs in integers, when, and why not.

    python tools/rows_page.py            checks that the pages are current
    python tools/rows_page.py --update   writes them

Text above the line `<!-- rows -->` is written by hand and kept.
"""

import argparse
import importlib
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from qspec_core import Backend
from qspec_core.patterns import Flow, Operand, OtherRole, Outputs, PatternTable, Row

__all__ = ["BACKENDS", "main", "page", "rows_of"]

ROOT = Path(__file__).resolve().parent.parent
BACKENDS = ("x86", "xnnpack", "xpu")
"""Backends that have a page."""
MARK = "<!-- rows -->"
FLOWS = {
    Flow.STARTS: "starts integers",
    Flow.JOINS: "joins where every input is an integer already",
    Flow.SHARES: "joins, and shares its input's scale and zero point",
}
OUTPUTS = {
    Outputs.ALWAYS: "The output of every static row is quantized.",
    Outputs.DEMAND: "An output is quantized only if a reader takes integers.",
}
_WIDTH = 118


def rows_of(table: PatternTable) -> str:
    """The generated part of a page."""
    head = "| row | operator | operands | fused after it, longest first | absorbs | modes | flow |"
    lines = [head, "|---|---|---|---|---|---|---|", *map(_line, table.rows)]
    lines += ["", OUTPUTS[table.outputs], "", "## In float, and why", "", *_floats(table)]
    if table.left_out:
        lines += ["## Left out, and why", "", *(line for item in table.left_out.items() for line in _left_out(*item))]
    return "\n".join(lines)


def _line(row: Row) -> str:
    operands = ", ".join(map(_operand, row.operands))
    chains = "; ".join(" + ".join(op.kernel + _other(op.other) for op in chain) for chain in row.chains if chain)
    absorbed = ", ".join(_code(pre_op.target) for operand in row.operands for pre_op in operand.absorbs)
    modes = ", ".join(sorted(mode.value for mode in row.modes))
    return f"| {' | '.join((row.name, _code(row.anchor), operands, chains, absorbed, modes, FLOWS[row.flow]))} |"


def _operand(operand: Operand) -> str:
    axis = "" if operand.ch_axis is None else f", channels {operand.ch_axis}"
    return f"{operand.name} ({operand.role.value}{axis})"


def _other(role: OtherRole | None) -> str:
    return "" if role is None else f" ({role.value})"


def _code(operator: object) -> str:
    return f"`{operator}`"


def _floats(table: PatternTable) -> Iterator[str]:
    """The operators of each reason, in the order in which the table first gives it."""
    for reason in dict.fromkeys(table.float_only.values()):
        names = sorted(_code(operator) for operator, found in table.float_only.items() if found == reason)
        yield f"{_sentence(reason)}:"
        yield ""
        yield from _wrapped(names)
        yield ""


def _left_out(name: str, reason: str) -> Iterator[str]:
    """Lines of one item of the list."""
    yield from textwrap.wrap(f"- **{name}**: {reason}", _WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _sentence(reason: str) -> str:
    """A reason with a capital, unless it begins with a name."""
    first = reason.partition(" ")[0]
    return reason[:1].upper() + reason[1:] if first.isalpha() and first.islower() else reason


def _wrapped(names: Sequence[str]) -> Iterator[str]:
    line = ""
    for name in names:
        if line and len(line) + len(name) + 2 > _WIDTH:
            yield f"{line},"
            line = name
        else:
            line = f"{line}, {name}" if line else name
    yield f"{line}."


def page(backend: Backend, current: str) -> str:
    """A page with its generated part written again.

    Args:
        backend: backend of the page.
        current: the present text of the page; the part above the mark is kept.
    """
    head = current.partition(MARK)[0].rstrip() or f"# {backend.name}"
    return f"{head}\n\n{MARK}\n\n{rows_of(backend.table).rstrip()}\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Check or write the pages; return the number of pages that are not current."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--update", action="store_true", help="write the pages")
    update = parser.parse_args(arguments).update
    stale = 0
    for name in BACKENDS:
        path = ROOT / "docs" / f"{name}.md"
        current = path.read_text() if path.exists() else ""
        wanted = page(importlib.import_module(f"qspec_{name}").BACKEND, current)
        if update:
            path.write_text(wanted)
        elif current != wanted:
            stale += 1
            sys.stderr.write(f"{path.relative_to(ROOT)} is not current: python tools/rows_page.py --update\n")
    return stale


if __name__ == "__main__":
    sys.exit(main())
