"""Size check: no file over 400 lines, no function over 50 lines of code, no nesting past 4.

Docstrings, comments and blank lines are not code. Exceptions are listed in the root pyproject.toml under
`tool.qspec.size.exceptions`, each with its reason. An exception that is no longer needed is an error too.
"""

import ast
import io
import sys
import tokenize
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["Finding", "findings_of", "main"]

FILE_LINES = 400
FUNCTION_LINES = 50
NESTING = 4
FOLDERS = ("benchmarks", "docs", "examples", "integration-tests", "packages", "tools")
SKIPPED = {"build", "dist", "__pycache__", ".venv", ".nox"}

Function = ast.FunctionDef | ast.AsyncFunctionDef
_BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.TryStar, ast.Match)
_NOT_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


class Finding(NamedTuple):
    """One limit that is exceeded. `key` is the path, or path:function, that an exception would name."""

    key: str
    text: str


def _docstring_lines(tree: ast.AST) -> set[int]:
    """Line numbers that docstrings occupy."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | Function) or ast.get_docstring(node, clean=False) is None:
            continue
        first = node.body[0]
        lines.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return lines


def _code_lines(source: str, tree: ast.AST) -> set[int]:
    """Line numbers that hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NOT_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return lines - _docstring_lines(tree)


def _nesting(node: ast.AST, *, is_elif: bool = False) -> int:
    """Deepest nesting of blocks in a node, with itself. An `elif` is as deep as its `if`; inner functions are apart."""
    own = int(isinstance(node, _BLOCKS) and not is_elif)
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef):
            continue
        chained = isinstance(node, ast.If) and node.orelse == [child] and isinstance(child, ast.If)
        deepest = max(deepest, _nesting(child, is_elif=chained))
    return own + deepest


def _functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function]]:
    """Every function with its qualified name."""
    for child in ast.iter_child_nodes(tree):
        named = isinstance(child, Function | ast.ClassDef)
        name = f"{prefix}{child.name}" if isinstance(child, Function | ast.ClassDef) else ""
        if isinstance(child, Function):
            yield name, child
        yield from _functions(child, f"{name}." if named else prefix)


def findings_of(path: str, source: str) -> list[Finding]:
    """The limits that one source file exceeds."""
    found = []
    lines = source.count("\n")
    if lines > FILE_LINES:
        found.append(Finding(path, f"{path}: {lines} lines, {FILE_LINES} allowed"))
    tree = ast.parse(source)
    code = _code_lines(source, tree)
    for name, function in _functions(tree):
        key, place = f"{path}:{name}", f"{path}:{function.lineno}: {name}"
        length = len(code & set(range(function.lineno, (function.end_lineno or function.lineno) + 1)))
        if length > FUNCTION_LINES:
            found.append(Finding(key, f"{place}: {length} lines of code, {FUNCTION_LINES} allowed"))
        depth = _nesting(function)
        if depth > NESTING:
            found.append(Finding(key, f"{place}: nested {depth} deep, {NESTING} allowed"))
    return found


def _sources(root: Path) -> Iterator[Path]:
    """Python files of the repository, in a fixed order."""
    yield from sorted(root.glob("*.py"))
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            if not SKIPPED & set(path.parts):
                yield path


def main(arguments: Sequence[str]) -> int:
    """Check the repository at the folder given, or at the current one; print findings, return the exit code."""
    root = Path(arguments[0] if arguments else ".").resolve()
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    exceptions: dict[str, str] = settings["tool"]["qspec"]["size"]["exceptions"]
    paths = list(_sources(root))
    found = [f for p in paths for f in findings_of(p.relative_to(root).as_posix(), p.read_text(encoding="utf-8"))]
    problems = [finding.text for finding in found if finding.key not in exceptions]
    stale = sorted(set(exceptions) - {finding.key for finding in found})
    problems += [f"pyproject.toml: the size exception of {key} is no longer needed" for key in stale]
    print("\n".join(problems) if problems else f"size: {len(paths)} files within the limits")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
