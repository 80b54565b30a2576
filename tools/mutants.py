"""Mutation testing of core's sharing and observers: change one operator at a time and see whether a test notices.

    python tools/mutants.py --sample 300 --seed 0            # resumes where results.jsonl ends
    python tools/mutants.py --list                           # the survivors found so far

The tests of a mutant are those of its own file first (`observers/_minmax.py`: `tests/observers/test_minmax.py`), then
those of its folder, then those of the code that uses its results. A mutant is killed when a test fails or runs out of
time.
"""

import argparse
import ast
import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "packages" / "qspec-core"
SOURCE = CORE / "src" / "qspec_core"
FOLDERS = ("_sharing", "observers")

READERS = MappingProxyType({"_sharing": "prepare", "observers": "convert"})
"""For each folder, the tests of the code that uses its results. They run last."""
SLOW = "test_sync.py"
"""Tests that launch processes: run for the file of their name only."""

COMPARISONS: Mapping[type[ast.cmpop], type[ast.cmpop]] = MappingProxyType(
    {
        ast.Lt: ast.LtE,
        ast.LtE: ast.Lt,
        ast.Gt: ast.GtE,
        ast.GtE: ast.Gt,
        ast.Eq: ast.NotEq,
        ast.NotEq: ast.Eq,
        ast.Is: ast.IsNot,
        ast.IsNot: ast.Is,
        ast.In: ast.NotIn,
        ast.NotIn: ast.In,
    }
)
ARITHMETIC: Mapping[type[ast.operator], type[ast.operator]] = MappingProxyType(
    {
        ast.Add: ast.Sub,
        ast.Sub: ast.Add,
        ast.Mult: ast.Div,
        ast.Div: ast.Mult,
        ast.FloorDiv: ast.Mult,
        ast.Mod: ast.Mult,
        ast.Pow: ast.Mult,
    }
)


@dataclass(frozen=True)
class Mutant:
    """One change of one expression.

    Args:
        path: the file, under `qspec_core`.
        line: first line of the expression, from 1.
        start: offset of the expression in the file, in characters.
        end: offset of its end.
        before: the expression.
        after: what replaces it.
    """

    path: str
    line: int
    start: int
    end: int
    before: str
    after: str

    def applied(self, text: str) -> str:
        """The file with the change."""
        return text[: self.start] + self.after + text[self.end :]

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.before}  ->  {self.after}"


def mutants(path: str, text: str) -> Iterator[Mutant]:
    """Every mutant of a file, in order."""
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line.encode()))
    raw = text.encode()
    tree = ast.parse(text)
    skipped = {id(part) for place in _unread(tree) for part in ast.walk(place)}
    for node in ast.walk(tree):
        if id(node) in skipped or not isinstance(node, ast.expr):
            continue
        for after in _changes(node):
            begin = starts[node.lineno - 1] + node.col_offset
            stop = starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
            start, end = len(raw[:begin].decode()), len(raw[:stop].decode())
            yield Mutant(path, node.lineno, start, end, text[start:end], f"({ast.unparse(after)})")


def _unread(tree: ast.AST) -> Iterator[ast.AST]:
    """Parts that no test should notice: type annotations, and the text of errors."""
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign | ast.arg) and node.annotation is not None:
            yield node.annotation
        elif isinstance(node, ast.FunctionDef) and node.returns is not None:
            yield node.returns
        if _is_unread(node):
            yield node


def _is_unread(node: ast.AST) -> bool:
    if isinstance(node, ast.Assign):
        return "__all__" in _names(node)
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    if isinstance(node, ast.FunctionDef):
        return node.name in ("__repr__", "extra_repr")
    return isinstance(node, ast.Raise) or (
        isinstance(node, ast.keyword) and node.arg in ("stacklevel", "strict", "frozen")
    )


def _names(node: ast.Assign) -> set[str]:
    return {target.id for target in node.targets if isinstance(target, ast.Name)}


def _changes(node: ast.expr) -> Iterator[ast.expr]:
    """Replacements of an expression, each a mutant of its own."""
    if isinstance(node, ast.Compare):
        for index, operator in enumerate(node.ops):
            changed = [*node.ops[:index], COMPARISONS[type(operator)](), *node.ops[index + 1 :]]
            yield ast.Compare(node.left, changed, node.comparators)
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        yield ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield node.operand
    elif isinstance(node, ast.IfExp):
        yield ast.IfExp(node.test, node.orelse, node.body)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield ast.Constant(node.value + 1)


def everything() -> list[Mutant]:
    """The mutants of all files, in order."""
    paths = sorted(path for folder in FOLDERS for path in (SOURCE / folder).glob("*.py"))
    return [found for path in paths for found in mutants(str(path.relative_to(SOURCE)), path.read_text())]


def tests_of(path: str) -> list[list[str]]:
    """Arguments of pytest, by stage: the tests of the file, where it has its own, then those of its folder."""
    folder, name = path.split("/")
    tests = CORE / "tests" / folder.removeprefix("_")
    own = tests / f"test_{name.removeprefix('_')}"
    stages = [[str(own)]] if own.exists() else []
    return [*stages, [str(tests), f"--ignore={tests / SLOW}"], [str(CORE / "tests" / READERS[folder])]]


def is_killed(mutant: Mutant, sources: Path, timeout: float) -> bool:
    """Whether a test notices the mutant, in a copy of the sources."""
    place = sources / "qspec_core" / mutant.path
    text = place.read_text()
    place.write_text(mutant.applied(text))
    try:
        return any(not _passes(tests, sources, timeout) for tests in tests_of(mutant.path))
    finally:
        place.write_text(text)


def _passes(tests: list[str], sources: Path, timeout: float) -> bool:
    """Run tests in a fork of this process, which has loaded torch."""
    child = os.fork()
    if child == 0:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        os.dup2(1, 2)
        sys.path.insert(0, str(sources))
        os.environ |= {"PYTHONPATH": str(sources), "PYTHONDONTWRITEBYTECODE": "1"}
        # The tests need no plugin, and loading the installed plugins takes longer than most tests.
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        sys.dont_write_bytecode = True
        code = 1
        try:
            import hypothesis
            import pytest

            # One failing example is enough; do not search for the smallest.
            phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
            hypothesis.settings.register_profile("mutants", phases=phases, database=None)
            hypothesis.settings.load_profile("mutants")
            code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), *tests]))
        finally:
            os._exit(code)
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.1)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def _preload() -> None:
    """Import the packages that the tests need before forking: importing them is most of the time of a short run."""
    code = "import sys, qspec_core; print(*(name for name in sys.modules if name.split('.')[0] in ('torch', 'numpy')))"
    environment = {**os.environ, "PYTHONPATH": str(CORE / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    tools = ("pytest", "hypothesis", "torch.export", "torch.fx.experimental.symbolic_shapes")
    for name in (*tools, *done.stdout.split()):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def results_in(path: Path) -> list[dict[str, object]]:
    """Results of earlier runs."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def report(results: list[dict[str, object]]) -> str:
    """The rate and the survivors."""
    killed = sum(bool(result["killed"]) for result in results)
    survivors = [str(Mutant(**result["mutant"])) for result in results if not result["killed"]]  # type: ignore[arg-type]  # as run() wrote it
    rate = f"{killed} of {len(results)} mutants killed ({killed / max(len(results), 1):.1%})"
    return "\n".join([*survivors, rate])


def run(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Test the sample; resume where the results of the same seed and sources end."""
    pool = everything()
    sample = random.Random(arguments.seed).sample(pool, min(arguments.sample, len(pool)))
    known = {json.dumps(result["mutant"], sort_keys=True) for result in results_in(arguments.results)}
    rest = [mutant for mutant in sample if json.dumps(asdict(mutant), sort_keys=True) not in known]
    os.environ["OMP_NUM_THREADS"] = "1"
    _preload()
    _require_green(rest, arguments.timeout)
    workers = []
    for part in range(arguments.jobs):
        workers.append(os.fork())
        if workers[-1] == 0:
            _work(rest[part :: arguments.jobs], arguments)
            os._exit(0)
    for worker in workers:
        if os.waitpid(worker, 0)[1] != 0:
            raise SystemExit("a worker ended early; its results are kept")
    wanted = {json.dumps(asdict(mutant), sort_keys=True) for mutant in sample}
    return [found for found in results_in(arguments.results) if json.dumps(found["mutant"], sort_keys=True) in wanted]


def _require_green(rest: list[Mutant], timeout: float) -> None:
    """Stop if tests fail without a mutant: they would kill every mutant."""
    stages = {tuple(stage) for mutant in rest for stage in tests_of(mutant.path)}
    failed = [stage for stage in sorted(stages) if not _passes(list(stage), CORE / "src", timeout)]
    if failed:
        raise SystemExit(f"fail without a mutant: {failed}")


def _work(part: list[Mutant], arguments: argparse.Namespace) -> None:
    """Test some mutants, one after another, and write the results."""
    with tempfile.TemporaryDirectory() as folder:
        sources = Path(folder) / "src"
        shutil.copytree(CORE / "src", sources, ignore=shutil.ignore_patterns("__pycache__"))
        for mutant in part:
            killed = is_killed(mutant, sources, arguments.timeout)
            with arguments.results.open("a") as file:
                file.write(json.dumps({"mutant": asdict(mutant), "killed": killed}) + "\n")
            print("killed  " if killed else "SURVIVED", mutant, flush=True)


def main() -> int:
    """Run the command; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for each stage of tests")
    parser.add_argument("--results", type=Path, default=ROOT / ".mutants" / "results.jsonl")
    parser.add_argument("--jobs", type=int, default=1, help="mutants tested at the same time")
    parser.add_argument("--list", action="store_true", help="show the results, run no tests")
    parser.add_argument("--at-least", type=float, default=0.9, help="rate below which the command fails")
    arguments = parser.parse_args()
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    results = results_in(arguments.results) if arguments.list else run(arguments)
    print(report(results))
    return int(sum(bool(result["killed"]) for result in results) < arguments.at_least * len(results))


if __name__ == "__main__":
    sys.exit(main())
