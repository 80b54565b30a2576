"""Errors: their fields, messages, built-in bases and pickling."""

import pickle

import pytest
import torch
from core_support import Net, calls, export
from torch import nn

from qspec_core import GraphError, QSpecError, SourceLocation
from qspec_core import _errors as errors
from qspec_core._errors import module_path

BUILT_IN = {
    "AnnotationError": RuntimeError,
    "BackendError": LookupError,
    "CalibrationError": RuntimeError,
    "ExportError": ValueError,
    "GraphError": ValueError,
    "LoweringError": RuntimeError,
    "NothingQuantizedError": RuntimeError,
    "SelectorError": ValueError,
    "SharingError": RuntimeError,
    "SpecError": ValueError,
    "TrainingModeError": NotImplementedError,
}


def test_every_error_is_listed_with_its_built_in() -> None:
    found = {name for name in errors.__all__ if name.endswith("Error") and name != "QSpecError"}
    assert found == set(BUILT_IN)


@pytest.mark.parametrize("name", BUILT_IN)
def test_error_is_a_qspec_error_and_the_built_in_that_users_catch(name: str) -> None:
    kind = getattr(errors, name)
    assert issubclass(kind, QSpecError)
    assert issubclass(kind, BUILT_IN[name])


@pytest.mark.parametrize("name", BUILT_IN)
def test_error_survives_pickling(name: str) -> None:
    where = SourceLocation("conv", "features.0", "model.py:3: self.conv(x)")
    error = getattr(errors, name)("it broke", remedy="mend it", where=where, found=3, expected=(1, 2))
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    fields = ("problem", "remedy", "where", "found", "expected")
    assert [getattr(again, field) for field in fields] == ["it broke", "mend it", where, 3, (1, 2)]


def test_message_has_problem_place_and_remedy_in_order() -> None:
    error = GraphError(
        "it broke", remedy="mend it", where=SourceLocation("n", None, "a.py:1: x"), found=0, expected="one"
    )
    assert str(error).splitlines() == [
        "it broke",
        "  node: n",
        "  source: a.py:1: x",
        "  found: 0",
        "  expected: one",
        "  what to do: mend it",
    ]
    assert str(QSpecError("p", remedy="r")) == "p\n  what to do: r"


def forward(self: Net, x: torch.Tensor) -> torch.Tensor:
    return self.body(x) + 1  # type: ignore[no-any-return,operator]  # a submodule by name


def test_node_gives_its_name_module_and_the_users_own_line() -> None:
    exported = export(Net(forward, body=nn.Sequential(nn.Linear(3, 3))), torch.randn(2, 3))
    linear, add = calls(exported, torch.ops.aten.linear.default, torch.ops.aten.add.Tensor)
    where = GraphError("p", remedy="r", where=linear).where
    assert (where.node, where.module_path) == (linear.name, "body.0")
    assert where.source_line is not None  # linear is called inside torch; the line is the user's call of the module
    assert "test_errors.py" in where.source_line
    assert "self.body(x)" in where.source_line
    assert (module_path(linear), module_path(add)) == ("body.0", "")
    assert SourceLocation.of(add).module_path is None


def test_node_without_metadata_still_has_a_name() -> None:
    graph = torch.fx.Graph()
    assert SourceLocation.of(graph.placeholder("x")) == SourceLocation("x", None, None)


def test_trace_with_only_torch_frames_gives_the_innermost_one() -> None:
    node = torch.fx.Graph().placeholder("x")
    frames = (f'File "/a/torch/nn/{name}.py", line 1, in f\n  {name}()\n' for name in ("one", "two"))
    node.meta["stack_trace"] = "".join(frames)
    assert SourceLocation.of(node).source_line == "/a/torch/nn/two.py:1: two()"
