"""Load saved programs without running what a file says: `torch.export.load` unpickles and evaluates parts of it.

Read in torch 2.13.0: constants and weights may be pickles (`torch/export/pt2_archive/_package.py`), example inputs are
unpickled without limits if the safe way fails, sizes are strings that sympy evaluates, and an operator may be any
attribute of torch, `torch.os.system` too (`torch/_export/serde/serialize.py`).
"""

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from qspec_core._errors import ExportError

__all__ = ["load_program"]

_MODEL, _WEIGHTS, _CONSTANTS, _INPUTS = "models/", "data/weights/", "data/constants/", "data/sample_inputs/"
_PLAIN = ("extra/", ".data/", "archive_format", "archive_version", "byteorder")
_NESTING = 200  # levels of lists and objects; the graphs of torch.export have about 20
_SIZE_LENGTH, _LARGEST_POWER = 10_000, 64
_POWERS = frozenset({"FloatPow", "LShift", "Pow", "PowByNatural"})
_SIZE_FUNCTIONS = _POWERS | {
    *("Abs", "Add", "And", "CeilDiv", "CeilToInt", "CleanDiv", "Eq", "Equality", "FloatTrueDiv", "FloorDiv"),
    *("FloorToInt", "Ge", "GreaterThan", "Gt", "Identity", "IntTrueDiv", "Le", "LessThan", "Lt", "Max", "Min", "Mod"),
    *("ModularIndexing", "Mul", "Ne", "Not", "Or", "PythonMod", "RShift", "Rational", "RoundDecimal", "RoundToInt"),
    *("StrictGreaterThan", "StrictLessThan", "ToFloat", "TruncToFloat", "TruncToInt", "Unequality", "Where"),
    *("ceiling", "floor", "Integer", "Float", "Symbol"),
}
_SIZE_NAMES = re.compile(r"[a-z]+\d+|oo|int_oo|true|false")
_SIZE_NODES = (
    *(ast.Expression, ast.Call, ast.Name, ast.Constant, ast.keyword, ast.Load, ast.UnaryOp, ast.BinOp, ast.Compare),
    *(ast.unaryop, ast.operator, ast.cmpop),
)
_OPERATORS = re.compile(
    r"torch\.ops\.(?!aten\.from_file\b)[a-z]\w*\.(?!__)\w+(\.\w+)?"
    r"|torch\.ops\.aten\.__i?(and|or|xor|lshift|rshift)__\.\w+"
    r"|torch\._?sym_\w+|math\.(ceil|floor|trunc|sqrt|pow)"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|pos|pow|eq|ne|lt|le|gt|ge|and_|or_|xor|not_|inv|abs"
    r"|lshift|rshift|index)"
)


def load_program(path: str | Path) -> torch.export.ExportedProgram:
    """Load a program that `torch.export.save` or `Result.save` wrote, from a file that nobody vouches for.

    The file is checked first, and refused if loading it would unpickle more than tensors, evaluate text, import
    modules or load compiled code. The program may be run afterwards: it calls registered operators alone. Running it
    may still take any time and memory.

    Args:
        path: a file.
    Returns: the program.
    Raises: ExportError: the file is of another format, damaged, or holds what is refused; it says what.
    Cost: O(size of the file), in time and in memory. A file cannot ask for more memory than a few times its size,
        except for weights that are views of each other.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            problem = next(_problems(archive, path.stat().st_size), None)
        if problem is None:
            return torch.export.load(path)
    except Exception as error:  # zip, json and torch raise dozens of types for a damaged file
        raise _refused(path, f"{type(error).__name__}: {error}") from error
    raise _refused(path, problem)


def _refused(path: Path, found: str) -> ExportError:
    return ExportError(
        f"{path} is not a program that can be loaded",
        found=found,
        expected="a file of torch.export.save, with tensors and registered operators alone",
        remedy="write it with torch.export.save(torch.export.export(model, inputs), path); load a file that you trust "
        "with torch.export.load",
    )


def _problems(archive: zipfile.ZipFile, size: int) -> Iterator[str]:
    """Why an archive is refused."""
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    roots = {name.partition("/")[0] for name in names}
    if len(roots) != 1 or not all("/" in name for name in names):
        yield "its entries lie in more than one folder"
        return
    (root,) = roots
    if archive.read(f"{root}/archive_format") != b"pt2":
        yield "its format is not pt2"
    yield from _size_problems(entries, size)
    for entry in entries:
        yield from _entry_problems(archive, root, entry.filename.removeprefix(f"{root}/"))


def _size_problems(entries: list[zipfile.ZipInfo], size: int) -> Iterator[str]:
    if len({entry.filename for entry in entries}) != len(entries):
        yield "two of its entries have one name"
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        yield "its entries are compressed, which torch.export.save does not do"
    if sum(entry.file_size for entry in entries) > size:
        yield "its entries claim more bytes than the file has"


def _entry_problems(archive: zipfile.ZipFile, root: str, name: str) -> Iterator[str]:
    if name.startswith(_PLAIN):
        return
    if not name.startswith((_MODEL, _WEIGHTS, _CONSTANTS, _INPUTS)):
        yield f"entry {name}, which is no part of a program"
        return
    place = f"{root}/{name}"
    if name.startswith(_MODEL):
        yield from _graph_problems(json.loads(archive.read(place)))
    elif name.endswith("_config.json"):
        yield from _payload_problems(archive, place, json.loads(archive.read(place)))
    elif name.startswith(_INPUTS) or name.endswith(".pt"):
        yield from _pickle_problems(name, archive.read(place))


def _payload_problems(archive: zipfile.ZipFile, place: str, config: Mapping[str, Any]) -> Iterator[str]:
    """Problems of the weights or constants that a configuration lists. Any: values of JSON."""
    folder = place.rpartition("/")[0]
    for name, payload in config["config"].items():
        file = payload["path_name"]
        if not re.fullmatch(r"(weight|tensor)_\d+", file):
            yield f"{name} is an object in {file}, not a tensor"
        elif payload["use_pickle"]:
            yield from _pickle_problems(file, archive.read(f"{folder}/{file}"))


def _pickle_problems(name: str, data: bytes) -> Iterator[str]:
    """Problems of a file of torch.save: it must load as tensors and plain containers."""
    if not data:
        return
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as inner:
            yield from (f"{name}: {problem}" for problem in _size_problems(inner.infolist(), len(data)))
    torch.load(io.BytesIO(data), weights_only=True)


def _graph_problems(program: object) -> Iterator[str]:
    """Problems of a program's JSON: its operators, sizes, and structures of arguments."""
    for key, value in _items(program, 0):
        if key == "expr_str":
            yield from _size_expression_problems(value)
        elif key == "target" and isinstance(value, str) and not _OPERATORS.fullmatch(value):
            yield f"operator {value[:80]}, which is not registered with torch"
        elif isinstance(value, str) and ("__enum__" in value or "default_factory_module" in value):
            yield "a structure of arguments that imports modules"


def _items(value: object, level: int) -> Iterator[tuple[str, object]]:
    """Every key of JSON with its value, at any level.

    Raises: ValueError: too many levels.
    """
    if level > _NESTING:
        raise ValueError(f"more than {_NESTING} levels")
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from _items(inner, level + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _items(inner, level + 1)


def _size_expression_problems(text: object) -> Iterator[str]:
    """Problems of the expression of a size, which sympy evaluates as Python."""
    if not isinstance(text, str) or len(text) > _SIZE_LENGTH:
        yield f"a size that is no expression: {str(text)[:80]}"
        return
    tree = ast.parse(text, mode="eval")
    called = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = {id(node.func) for node in called}
    texts = {id(node.args[0]) for node in called if node.args and ast.unparse(node.func) in ("Symbol", "Float")}
    for node in ast.walk(tree):
        known = _SIZE_FUNCTIONS.__contains__ if id(node) in names else _SIZE_NAMES.fullmatch
        if not isinstance(node, _SIZE_NODES) or (isinstance(node, ast.Call) and not isinstance(node.func, ast.Name)):
            yield f"a size with {type(node).__name__.lower()}: {text[:80]}"
        elif isinstance(node, ast.Name) and not known(node.id):
            yield f"a size that calls or reads {node.id}: {text[:80]}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts:
            yield f"a size with a text that is no name: {text[:80]}"
        elif _is_power(node) and not _is_small_power(node):
            yield f"a size without bound: {text[:80]}"


def _is_power(node: ast.AST) -> bool:
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.Pow | ast.LShift)
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _POWERS


def _is_small_power(node: ast.AST) -> bool:
    """Whether a power has a small constant exponent, and no other power in its base."""
    parts = [node.left, node.right] if isinstance(node, ast.BinOp) else node.args if isinstance(node, ast.Call) else []
    if len(parts) != 2 or any(_is_power(inner) for part in parts for inner in ast.walk(part)):
        return False
    numbers = [inner.value for inner in ast.walk(parts[1]) if isinstance(inner, ast.Constant)]
    calls = [inner for inner in ast.walk(parts[1]) if isinstance(inner, ast.BinOp)]
    return len(numbers) == 1 and not calls and isinstance(numbers[0], int) and numbers[0] <= _LARGEST_POWER
