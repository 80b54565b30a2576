"""Error classes. Each error is built from fields (problem, place, found, expected, remedy) that tests can read."""

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Self

if TYPE_CHECKING:
    from torch.fx import Node

__all__ = [
    "AnnotationError",
    "BackendError",
    "CalibrationError",
    "ExportError",
    "GraphError",
    "LoweringError",
    "NothingQuantizedError",
    "QSpecError",
    "SelectorError",
    "SharingError",
    "SourceLocation",
    "SpecError",
    "TrainingModeError",
    "module_path",
    "module_stack",
]

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)\n\s*(?P<code>.*)')
_INSIDE_TORCH = ("/torch/nn/", "/torch/_", "/torch/fx/", "/torch/utils/", "/torch/functional.py", "/torch/export/")


def module_path(node: "Node") -> str:
    """Path of the module that the node was traced in ("" for the root module), read from `nn_module_stack`."""
    stack = node.meta.get("nn_module_stack")
    return _path(next(reversed(stack.values()))[0]) if stack else ""


def module_stack(node: "Node") -> list[tuple[str, str]]:
    """Path and qualified type name of the modules around a node, the outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    return [(_path(path), _type_name(kind)) for path, kind in stack.values()]


def _path(traced: object) -> str:
    return str(traced).removeprefix("L['self']").removeprefix(".")


def _type_name(kind: object) -> str:
    return f"{kind.__module__}.{kind.__qualname__}" if isinstance(kind, type) else str(kind)


def _source_line(node: "Node") -> str | None:
    """The innermost line of the user's own code in the node's trace, as `file:line: code`."""
    return _own_line(node.meta.get("stack_trace") or "")


@lru_cache(maxsize=1024)  # layers called in a loop have the same trace
def _own_line(trace: str) -> str | None:
    frames = list(_FRAME.finditer(trace))
    own = [frame for frame in frames if not any(part in frame["file"] for part in _INSIDE_TORCH)]
    if not frames:
        return None
    frame = (own or frames)[-1]
    return f"{frame['file']}:{frame['line']}: {frame['code'].strip()}"


class SourceLocation(NamedTuple):
    """A place in the user's model. A field is None if it is not known."""

    node: str | None = None
    module_path: str | None = None
    source_line: str | None = None

    @classmethod
    def of(cls, node: "Node") -> "SourceLocation":
        """The place of a graph node, from the metadata that `torch.export` leaves on it."""
        return cls(node.name, module_path(node) or None, _source_line(node))


class QSpecError(Exception):
    """Base of every error that qspec raises on purpose.

    Args:
        problem: one sentence that says what is wrong.
        remedy: what the user should do next.
        where: the graph node concerned, or its `SourceLocation`.
        found: the value or object found.
        expected: the value or object expected.
    """

    def __init__(
        self,
        problem: str,
        *,
        remedy: str,
        where: "SourceLocation | Node | None" = None,
        found: object = None,
        expected: object = None,
    ) -> None:
        self.problem = problem
        self.remedy = remedy
        self.where = (
            where
            if isinstance(where, SourceLocation)
            else SourceLocation()
            if where is None
            else SourceLocation.of(where)
        )
        self.found = found
        self.expected = expected
        lines = [problem]
        fields: dict[str, object] = dict(zip(("node", "module", "source"), self.where, strict=True))
        fields |= {"found": found, "expected": expected}
        lines += [f"  {label}: {value}" for label, value in fields.items() if value is not None]
        lines.append(f"  what to do: {remedy}")
        super().__init__("\n".join(lines))

    def at(self, where: "SourceLocation | Node | None") -> Self:
        """The same error with another place, for code that knows the place when the raising code does not."""
        return type(self)(self.problem, remedy=self.remedy, where=where, found=self.found, expected=self.expected)

    def __reduce__(self) -> tuple[Any, ...]:
        fields = {name: getattr(self, name) for name in ("remedy", "where", "found", "expected")}
        return _rebuild, (type(self), self.problem, fields)


def _rebuild(cls: type[QSpecError], problem: str, fields: dict[str, Any]) -> QSpecError:
    """Build an error again from its fields, so that it survives pickling between processes."""
    return cls(problem, **fields)


class SpecError(QSpecError, ValueError, AssertionError):
    """A quantization spec or a configuration contradicts itself.

    Also an `AssertionError`, since other implementations of PT2E raise that for some of these.
    """


class AnnotationError(QSpecError, RuntimeError):
    """A quantizer annotated something that cannot carry the annotation."""


class SharingError(AnnotationError, AssertionError):
    """References between quantization points form a cycle or end in a point without a spec.

    Also an `AssertionError`, since other implementations of PT2E raise that.
    """


class GraphError(QSpecError, ValueError):
    """The module is not a graph that this step supports."""


class ExportError(QSpecError, ValueError):
    """The model or its example inputs cannot be exported."""


class SelectorError(QSpecError, ValueError):
    """A selector matches nothing in the model."""


class NothingQuantizedError(QSpecError, RuntimeError):
    """A quantizer with a configuration found nothing to quantize."""


class CalibrationError(QSpecError, RuntimeError):
    """Calibration is missing, does not fit the model, or holds values that are not finite."""


class BackendError(QSpecError, LookupError):
    """A backend is unknown, not installed, or written for another version of the backend contract."""


class LoweringError(QSpecError, RuntimeError):
    """A quantized graph cannot run on the device in the form requested."""


class TrainingModeError(QSpecError, NotImplementedError):
    """`.train()` or `.eval()` was called on a graph, where it has no effect on the traced operators."""
