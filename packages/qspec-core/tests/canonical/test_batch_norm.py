"""Batch norms folded into the layer before them: the values of the float model stay, and the user's model too."""

from typing import Any

import pytest
import torch
from core_support import Frozen, Net, aten, calls, canonical, export, settled, targets
from torch import Tensor, nn
from torch.fx import GraphModule

from qspec_core.canonical import FOLDED_KEY, fold_batch_norms
from qspec_core.graph import argument, constant_value, copy_graph_module

CONVS: dict[str, Any] = {  # module classes, by name
    "conv1d": (nn.Conv1d, nn.BatchNorm1d, 1),
    "conv2d": (nn.Conv2d, nn.BatchNorm2d, 2),
    "conv3d": (nn.Conv3d, nn.BatchNorm3d, 3),
    "conv_transpose1d": (nn.ConvTranspose1d, nn.BatchNorm1d, 1),
    "conv_transpose2d": (nn.ConvTranspose2d, nn.BatchNorm2d, 2),
    "conv_transpose3d": (nn.ConvTranspose3d, nn.BatchNorm3d, 3),
}


def fold(exported: GraphModule) -> GraphModule:
    module = copy_graph_module(exported)
    fold_batch_norms(module)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    return module


def check(model: nn.Module, *inputs: Tensor, left: int = 0) -> GraphModule:
    """Fold, compare with the float model, and count the batch norms left."""
    want = settled(model)(*inputs)
    exported = export(model, *inputs)
    frozen = Frozen(exported)
    module = fold(exported)
    torch.testing.assert_close(module(*inputs), want, rtol=1e-5, atol=1e-5)
    assert len(calls(module, aten.batch_norm.default)) == left
    frozen.check()
    return module


@pytest.mark.parametrize("name", CONVS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions(name: str, bias: bool, groups: int) -> None:
    kind, norm, rank = CONVS[name]
    model = nn.Sequential(kind(4, 6, 3, bias=bias, groups=groups), norm(6))
    module = check(model, torch.randn(2, 4, *[5] * rank))
    assert list(module.meta[FOLDED_KEY].values()) == [f"folded into {calls(module)[0].name}"]


@pytest.mark.parametrize("options", [{"affine": False}, {"eps": 0.1}], ids=str)
def test_norm_without_affine_or_with_a_large_eps(options: dict[str, Any]) -> None:
    check(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, **options)), torch.randn(2, 3, 6, 6))


def test_named_padding_is_folded_too() -> None:
    check(nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.BatchNorm2d(4)), torch.randn(2, 3, 6, 6))


def test_linear_of_rank_2_is_folded_and_of_rank_3_not() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))
    check(model, torch.randn(5, 4))
    check(model, torch.randn(5, 6, 4), left=1)


def test_convolution_without_a_batch_dimension_is_not() -> None:
    check(nn.Sequential(nn.Conv1d(4, 6, 1), nn.BatchNorm1d(6)), torch.randn(4, 6), left=1)


def test_convolution_with_two_readers_is_not() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:  # submodules by name
        y: Tensor = self.conv(x)
        result: Tensor = self.norm(y) + y
        return result

    check(Net(forward, conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4)), torch.randn(2, 3, 6, 6), left=1)


def test_norm_after_something_else_is_not() -> None:
    check(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), torch.randn(2, 3, 6, 6), left=1)


def test_two_norms_in_a_row_are_both_folded() -> None:
    check(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)), torch.randn(2, 3, 6, 6))


def test_norm_without_running_statistics_is_not() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    exported = export(model, torch.randn(2, 3, 6, 6))
    assert len(calls(fold(exported), aten.batch_norm.default)) == 1


def test_one_convolution_before_two_norms_gets_two_weights() -> None:
    def forward(self: Any, x: Tensor, y: Tensor) -> Tensor:  # as above
        result: Tensor = self.first(self.conv(x)) + self.second(self.conv(y))
        return result

    norms = {"first": nn.BatchNorm2d(4), "second": nn.BatchNorm2d(4)}
    model = Net(forward, conv=nn.Conv2d(3, 4, 3), **norms)
    module = check(model, torch.randn(2, 3, 6, 6), torch.randn(2, 3, 6, 6))
    weights = [constant_value(module, argument(node, "weight")) for node in calls(module, aten.conv2d.default)]
    assert weights[0] is not weights[1]


def test_two_layers_with_one_weight() -> None:
    first, second = nn.Conv2d(4, 4, 3, bias=False), nn.Conv2d(4, 4, 3, bias=False)
    second.weight = first.weight
    check(nn.Sequential(first, nn.BatchNorm2d(4), second), torch.randn(2, 4, 8, 8))


def test_decomposed_norm_is_folded() -> None:
    model = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    x = torch.randn(2, 3, 6, 6)
    exported = torch.export.export(model, (x,)).run_decompositions().module()
    assert isinstance(exported, GraphModule)
    module = canonical(exported)
    torch.testing.assert_close(module(x), model(x), rtol=1e-5, atol=1e-5)
    assert targets(module) == ["aten.conv2d.default", "aten.relu.default"]


def test_decomposed_transposed_convolution_is_folded() -> None:
    model = settled(nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)))
    x = torch.randn(2, 4, 6, 6)
    exported = torch.export.export(model, (x,)).run_decompositions().module()
    assert isinstance(exported, GraphModule)
    module = canonical(exported)
    torch.testing.assert_close(module(x), model(x), rtol=1e-5, atol=1e-5)
    assert targets(module) == ["aten.conv_transpose2d.input"]


def test_weight_keeps_its_name_and_dtype() -> None:
    model = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    exported = export(model, torch.randn(2, 3, 6, 6))
    module = fold(exported)
    (conv,) = calls(module)
    assert [str(argument(conv, name).target) for name in ("weight", "bias")] == ["0.weight", "0.bias"]
    assert module.get_parameter("0.weight").dtype == torch.float32
    assert not torch.equal(module.get_parameter("0.weight"), exported.get_parameter("0.weight"))


def test_weight_that_the_graph_computes_is_not_folded() -> None:
    def forward(self: Any, x: Tensor, w: Tensor) -> Tensor:  # as above
        result: Tensor = self.norm(nn.functional.conv2d(x, w))
        return result

    check(Net(forward, norm=nn.BatchNorm2d(4)), torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3), left=1)


def test_dropout_in_evaluation_is_no_obstacle_unless_something_else_reads_it() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.Dropout2d(), nn.BatchNorm2d(4))
    module = check(model, torch.randn(2, 3, 6, 6))
    assert targets(module) == ["aten.conv2d.default"]
    assert list(module.meta[FOLDED_KEY].values()).count("identity in evaluation") == 2

    def read_twice(m: Any, x: Tensor) -> Tensor:  # submodules by name
        y = m.drop(m.conv(x))
        return m.norm(y) + y  # type: ignore[no-any-return]  # as above

    parts: dict[str, nn.Module] = {"conv": nn.Conv2d(3, 4, 3), "drop": nn.Dropout(), "norm": nn.BatchNorm2d(4)}
    check(Net(read_twice, **parts), torch.randn(2, 3, 6, 6), left=1)
