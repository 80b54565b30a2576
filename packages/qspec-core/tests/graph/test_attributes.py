"""The tensors that graphs read: names, constants and what is missing."""

import torch
from core_support import aten, calls, export
from torch import nn

from qspec_core.graph import (
    add_constant,
    constant_value,
    copy_graph_module,
    fresh_attribute_name,
)


def test_fresh_names_skip_those_taken() -> None:
    module = nn.Module()
    module.register_buffer("x1", torch.ones(1))
    names = [fresh_attribute_name(module, "x") for _ in range(3)]
    assert names == ["x0", "x2", "x3"]
    assert fresh_attribute_name(module, "y") == "y0"


def test_constants_keep_their_kind_and_get_a_fake() -> None:
    module = copy_graph_module(export(nn.Linear(4, 3), torch.randn(2, 4)))
    (linear,) = calls(module, aten.linear.default)
    for value in (nn.Parameter(torch.ones(3)), torch.arange(3)):
        node = add_constant(module, "made_", value, before=linear)
        assert constant_value(module, node) is value
        assert node.meta["val"].shape == (3,)
        assert node.meta["val"].dtype == value.dtype
    assert set(dict(module.named_parameters())) == {"weight", "bias", "made_0"}
    assert set(dict(module.named_buffers())) == {"made_1"}
    assert constant_value(module, linear) is None
    assert constant_value(module, 3) is None
