"""Graph modules that qspec owns: what is shared with the caller's, and what is not."""

import copy
import gc
import inspect
from collections.abc import Callable

import pytest
import torch
from core_support import aten, calls, export, quantizer
from torch import Tensor, nn
from torch.fx import GraphModule

from qspec_core import convert_pt2e, prepare_pt2e
from qspec_core.graph import (
    copy_graph_module,
    gc_paused,
)


def test_collector_is_paused_and_put_back_as_it_was() -> None:
    was = gc.isenabled()
    try:
        for enabled in (True, False):
            (gc.enable if enabled else gc.disable)()
            try:
                with gc_paused():
                    assert not gc.isenabled()
                    raise KeyError
            except KeyError:
                assert gc.isenabled() is enabled
    finally:
        (gc.enable if was else gc.disable)()


def test_copy_computes_the_same_over_the_same_parameters() -> None:
    exported = export(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.randn(2, 4))
    exported.meta["note"] = {"a": 1}
    copied = copy_graph_module(exported)
    x = torch.randn(2, 4)
    assert torch.equal(copied(x), exported(x))
    assert copied.get_parameter("0.weight") is exported.get_parameter("0.weight")
    assert copied.meta["note"] == {"a": 1}
    copied.meta["note"]["b"] = 2
    calls(copied)[0].meta["mine"] = 1
    calls(copied)[0].target = aten.matmul.default
    assert exported.meta["note"] == {"a": 1}
    assert "mine" not in calls(exported)[0].meta
    assert calls(exported)[0].target is aten.linear.default


def test_buffers_that_are_not_saved_stay_so() -> None:
    class Masked(nn.Module):
        mask: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.ones(4), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.mask

    copied = copy_graph_module(export(nn.Sequential(Masked()), torch.randn(2, 4)))
    assert copied.state_dict() == {}
    assert set(dict(copied.named_buffers())) == {"0.mask"}


def _compiled(module: GraphModule, x: Tensor) -> Tensor:
    torch._dynamo.reset()
    found: Tensor = torch.compile(module, backend="eager")(x)
    return found


def _compiled_inside(module: GraphModule, x: Tensor) -> Tensor:
    torch._dynamo.reset()
    found: Tensor = torch.compile(nn.Sequential(module, nn.Identity()), backend="eager", fullgraph=True)(x)
    return found


def _exported(module: GraphModule, x: Tensor) -> Tensor:
    found: Tensor = torch.export.export(module, (x,)).module()(x)
    return found


def _edited(module: GraphModule, x: Tensor) -> Tensor:
    """The negative of a result that was edited to be the negative."""
    calls(module)[-1].target = aten.neg.default
    module.recompile()
    found: Tensor = -module(x)
    return found


def _read(module: GraphModule, x: Tensor) -> Tensor:
    assert "def forward(self" in module.code
    assert "torch.ops.aten.linear" in str(module)
    found: Tensor = module(x)
    return found


USES: dict[str, Callable[[GraphModule, Tensor], Tensor]] = {
    "call": lambda module, x: module(x),
    "forward": lambda module, x: module.forward(x),
    "code": _read,
    "signature": lambda module, x: module(**dict.fromkeys(inspect.signature(module.forward).parameters, x)),
    "torch.compile": _compiled,
    "torch.compile of a model that holds it": _compiled_inside,
    "torch.export": _exported,
    "copy": lambda module, x: copy.copy(module)(x),
    "deepcopy": lambda module, x: copy.deepcopy(module)(x),
    "functional_call": lambda module, x: torch.func.functional_call(module, dict(module.named_parameters()), (x,)),
    "edit": _edited,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch, in compile and export
@pytest.mark.parametrize("use", USES)
def test_code_is_generated_when_something_reads_it(use: str) -> None:
    exported = export(nn.Sequential(nn.Linear(4, 3), nn.ReLU6(), nn.ReLU()), torch.randn(2, 4))
    copied, x = copy_graph_module(exported), torch.randn(2, 4)
    assert "_code" not in vars(copied)
    expected = exported(x).clamp(0, 6)
    assert torch.equal(USES[use](copied, x), expected)
    assert ("_code" in vars(copied)) is ("copy" not in use)


def test_prepared_and_converted_graphs_without_a_call_have_no_code() -> None:
    exported = export(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.randn(2, 4))
    prepared = prepare_pt2e(exported, quantizer())
    assert "_code" not in vars(prepared)
    prepared(torch.randn(2, 4))
    assert "_code" not in vars(convert_pt2e(prepared))
