"""Graph modules that qspec owns: what is shared with the caller's, and what is not."""

import gc

import torch
from core_support import aten, calls, export
from torch import Tensor, nn

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
