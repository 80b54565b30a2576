"""The backend as core sees it: what it names, and the form in which a graph runs that is not compiled."""

import pytest
import torch
from torch import nn
from torch.fx import GraphModule
from x86_support import convert

import qspec_x86._backend as backend_module
from qspec_core import Mode
from qspec_x86 import BACKEND, NotCompiledWarning, default_quantizer, lower, lower_eager


@pytest.fixture
def converted() -> GraphModule:
    return convert(default_quantizer(), nn.Conv2d(3, 8, 3), torch.randn(3, 3, 8, 8))


def no_compiler() -> bool:
    return False


def test_without_a_compiler_the_eager_form_runs(converted: GraphModule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_module, "has_compiler", no_compiler)
    x = torch.randn(3, 3, 8, 8)
    with pytest.warns(NotCompiledWarning, match="no C\\+\\+ compiler"):
        lowered = lower(converted, (x,), "any")
    with torch.no_grad():
        torch.testing.assert_close(lowered(x), lower_eager(converted)(x), rtol=0, atol=0)


def test_a_graph_that_does_not_compile_runs_in_the_eager_form(
    converted: GraphModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("the compiler said no")

    monkeypatch.setattr(backend_module, "compile_module", fails)
    x = torch.randn(3, 3, 8, 8)
    with pytest.warns(NotCompiledWarning, match="the compiler said no"):
        lowered = BACKEND.lower(converted, (x,), "any")
    with torch.no_grad():
        torch.testing.assert_close(lowered(x), lower_eager(converted)(x), rtol=0, atol=0)


def test_the_backend_names_its_parts() -> None:
    assert BACKEND.name == "x86"
    assert BACKEND.resolve_target(None) == "any"
    assert BACKEND.modes == frozenset(Mode)
    assert BACKEND.suffix == ".pt2"
