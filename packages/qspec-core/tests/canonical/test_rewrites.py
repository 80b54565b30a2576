"""Each pass of the canonical form against the float model: the same values, fewer spellings."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from core_support import Frozen, Net, aten, calls, canonical, export, targets
from torch import Tensor, nn

from qspec_core.graph import argument, constant_value

Function = Callable[..., Any]  # a forward of each test's own


def same(model: nn.Module, *inputs: Tensor, decompose: bool = False, **options: Any) -> torch.fx.GraphModule:
    """Bring a model to canonical form and compare with it; return the canonical module."""
    want = model.eval()(*(x.clone() for x in inputs))
    program = torch.export.export(model, inputs, **options)
    exported = (program.run_decompositions() if decompose else program).module()
    assert isinstance(exported, torch.fx.GraphModule)
    frozen = Frozen(exported)
    module = canonical(exported)
    torch.testing.assert_close(module(*(x.clone() for x in inputs)), want, rtol=1e-5, atol=1e-5)
    frozen.check()
    return module


@pytest.mark.parametrize(
    ("function", "low", "high"),
    [
        (F.relu6, 0.0, 6.0),
        (lambda x: x.clamp(-0.5, 0.5), -0.5, 0.5),
        (lambda x: x.clamp(0, 1), 0.0, 1.0),
        (lambda x: F.hardtanh(x, -2, 0.25), -2.0, 0.25),
        (lambda x: F.hardtanh_(x + 0), -1.0, 1.0),
        (lambda x: (x + 0).clamp_(-0.5, 0.5), -0.5, 0.5),
    ],
)
def test_clamps_between_two_bounds_become_hardtanh(function: Function, low: float, high: float) -> None:
    module = same(Net(lambda _, x: function(3 * x)), torch.randn(5, 7))
    (node,) = calls(module, aten.hardtanh.default)
    assert (argument(node, "min_val"), argument(node, "max_val")) == (low, high)
    assert all(isinstance(bound, float) for bound in node.args[1:])


@pytest.mark.parametrize(
    "function",
    [
        F.relu,
        lambda x: x.clamp(min=0),
        lambda x: x.clamp_min(0.0),
        lambda x: x.clamp(0, float("inf")),
        lambda x: F.hardtanh(x, 0, float("inf")),
        lambda x: (x + 0).relu_(),
        lambda x: F.relu(x + 0, inplace=True),
    ],
)
def test_clamps_at_zero_alone_become_relu(function: Function) -> None:
    module = same(Net(lambda _, x: function(x * 1.5)), torch.randn(5, 7))
    assert targets(module)[-1] == "aten.relu.default"


@pytest.mark.parametrize(
    ("function", "kept"),
    [
        (lambda x: x.clamp(max=0.5), aten.clamp.default),
        (lambda x: x.clamp_min(-0.5), aten.clamp.default),
        (lambda x: x.clamp_max(0.5), aten.clamp.default),
        (lambda x: x.clamp(x - 1, x + 1), aten.clamp.Tensor),
        (lambda x: x.to(torch.int64).clamp(0.5, 2.5), aten.clamp.default),
        (lambda x: x.to(torch.int64).clamp(0, 2), aten.clamp.default),
        (lambda x: x.to(torch.int64).clamp_min(0), aten.clamp_min.default),
    ],
)
def test_other_clamps_stay(function: Function, kept: Any) -> None:
    module = same(Net(lambda _, x: function(x * 3)), torch.randn(5, 7))
    assert len(calls(module, kept)) == 1


def test_clamp_keeps_its_name_and_metadata() -> None:
    exported = export(Net(lambda _, x: F.relu6(x)), torch.randn(3))
    (before,) = calls(exported, aten.relu6.default, aten.hardtanh.default)
    (after,) = calls(canonical(exported), aten.hardtanh.default)
    assert after.name == before.name
    assert after.meta["val"] is before.meta["val"]


@pytest.mark.parametrize("function", [F.dropout, F.feature_dropout if hasattr(F, "feature_dropout") else F.dropout2d])
def test_dropout_in_evaluation_leaves(function: Function) -> None:
    module = same(Net(lambda _, x: function(x * 2, 0.5, False) + 1), torch.randn(2, 3, 4, 4))
    assert not [target for target in targets(module) if "dropout" in target]
    assert list(module.meta["qspec_folded"].values()) == ["identity in evaluation"]


@pytest.mark.parametrize(
    ("function", "stays"),
    [
        (lambda x: x.to(torch.float32), False),
        (lambda x: x.float(), False),
        (lambda x: x.type_as(x), False),
        (lambda x: x.to("cpu", torch.float32), False),
        (lambda x: x.to(torch.float32, copy=True), True),
        (lambda x: x.to(memory_format=torch.channels_last), True),
        (lambda x: x.double().float(), True),
    ],
)
def test_cast_to_what_a_tensor_is_leaves(function: Function, stays: bool) -> None:
    module = same(Net(lambda _, x: function(x * 2) + 1), torch.randn(2, 3, 4, 4))
    casts = [target for target in targets(module) if "aten.to." in target or "type_as" in target]
    assert bool(casts) is stays


@pytest.mark.parametrize(
    ("pad", "padding", "want"),
    [
        ((1, 1, 1, 1), 0, [1, 1]),
        ((1, 1, 2, 2), 0, [2, 1]),  # the last dimension comes first in a pad, the first one in a convolution
        ((2, 2), 0, [0, 2]),
        ((1, 1, 1, 1), (2, 3), [3, 4]),
        ((0, 0, 3, 3), 1, [4, 1]),
    ],
)
def test_even_pads_go_into_the_convolution(pad: tuple[int, ...], padding: Any, want: list[int]) -> None:
    model = Net(lambda self, x: self.conv(F.pad(x, pad)), conv=nn.Conv2d(3, 4, 3, padding=padding))
    module = same(model, torch.randn(2, 3, 9, 8))
    (conv,) = calls(module, aten.conv2d.default)
    assert argument(conv, "padding") == want
    assert calls(module, aten.pad.default) == []


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_even_pads_of_every_rank(rank: int) -> None:
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1](2, 3, 3)
    sides = [side for n in range(rank) for side in (n + 1, n + 1)]
    module = same(Net(lambda self, x: self.conv(F.pad(x, sides)), conv=conv), torch.randn(1, 2, *[5] * rank))
    assert len(targets(module)) == 1


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.pad(x, (0, 1, 0, 1)),
        lambda x: F.pad(x, (1, 1, 1, 0)),
        lambda x: F.pad(x, (1, 1), value=0.5),
        lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
        lambda x: F.pad(x, (-1, -1)),
        lambda x: F.pad(x, (0, 0, 0, 0, 0, 0, 1, 1)),
    ],
)
def test_other_pads_stay(function: Function) -> None:
    module = same(Net(lambda self, x: self.conv(function(x)), conv=nn.Conv2d(3, 4, 3)), torch.randn(2, 3, 9, 8))
    assert len(targets(module)) == 2


def test_pad_that_something_else_reads_too_stays_for_it() -> None:
    def forward(self: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        padded = F.pad(x, (1, 1, 1, 1))
        return self.conv(padded), padded + 1  # type: ignore[operator]  # a submodule by name

    module = same(Net(forward, conv=nn.Conv2d(3, 4, 3)), torch.randn(2, 3, 9, 8))
    (conv,) = calls(module, aten.conv2d.default)
    assert argument(conv, "padding") == [1, 1]
    assert len(calls(module, aten.pad.default)) == 1


def test_constant_pad_of_a_decomposed_graph_becomes_pad() -> None:
    module = same(Net(lambda _, x: F.pad(x, (0, 1), value=0.5)), torch.randn(2, 3), decompose=True)
    (pad,) = calls(module)
    assert pad.target is aten.pad.default
    assert argument(pad, "value") == 0.5


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch pads a copy for even kernels, and says so once
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (2, 1), (4, 3)])
def test_padding_by_a_word_becomes_numbers(rank: int, padding: str, kernel: int, dilation: int) -> None:
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    conv = kind(2, 3, kernel, padding=padding, dilation=dilation)
    module = same(conv, torch.randn(1, 2, *[11] * rank))
    assert targets(module)[-1] == f"aten.conv{rank}d.default"
    uneven = padding == "same" and dilation * (kernel - 1) % 2
    assert len(calls(module, aten.pad.default)) == uneven
    for pad in calls(module, aten.pad.default):
        assert pad.meta["val"].shape == (1, 2, *[11 + dilation * (kernel - 1)] * rank)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_padding_by_a_word_with_one_even_and_one_uneven_side() -> None:
    module = same(nn.Conv2d(2, 3, (2, 3), padding="same"), torch.randn(1, 2, 7, 6))
    (pad,) = calls(module, aten.pad.default)
    assert argument(pad, "pad") == [1, 1, 0, 1]


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_padding_by_a_word_without_a_batch_dimension() -> None:
    module = same(nn.Conv1d(2, 3, 2, padding="same"), torch.randn(2, 7))
    (pad,) = calls(module, aten.pad.default)
    assert pad.meta["val"].shape == (2, 8)


TRANSPOSED: list[Function] = [
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
]


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_decomposed_convolution_gets_its_own_operator_back(rank: int, transposed: bool, bias: bool) -> None:
    options: dict[str, Any] = {"stride": 2, "padding": 1, "dilation": 2, "groups": 2, "bias": bias}
    if transposed:
        conv = TRANSPOSED[rank - 1](4, 6, 3, output_padding=1, **options)
        want = "conv_transpose1d.default" if rank == 1 else f"conv_transpose{rank}d.input"
    else:
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1](4, 6, 3, **options)
        want = f"conv{rank}d.default"
    module = same(conv, torch.randn(1, 4, *[9] * rank), decompose=True)
    assert targets(module) == [f"aten.{want}"]


WEIGHT = nn.Parameter(torch.randn(6, 5))


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w, b: x @ w,
        lambda x, w, b: torch.mm(x, w),
        lambda x, w, b: torch.addmm(b, x, w),
        lambda x, w, b: x @ w.t(),
        lambda x, w, b: x @ w.T,
        lambda x, w, b: x @ w.mT,
        lambda x, w, b: x @ w.transpose(0, 1),
        lambda x, w, b: x @ w.transpose(-1, -2),
        lambda x, w, b: x @ w.permute(1, 0),
        lambda x, w, b: x @ w.t().t().t(),
        lambda x, w, b: torch.addmm(b, x, w.t()),
        lambda x, w, b: F.linear(x, w.t(), b),
    ],
)
def test_products_with_a_constant_become_linear(function: Function) -> None:
    x = torch.randn(3, 6)
    for shape in ((6, 5), (5, 6)):
        try:
            function(x, torch.empty(shape), torch.empty(5))
        except RuntimeError:
            continue
        w = nn.Parameter(torch.randn(shape))
        module = same(Net(lambda self, x: function(x, self.w, self.b), w=w, b=nn.Parameter(torch.randn(5))), x)
        assert targets(module) == ["aten.linear.default"]
        held = constant_value(module, argument(calls(module)[0], "weight"))
        assert held is not None
        assert held.data_ptr() == w.data_ptr()  # a view: no weight is copied
        return
    pytest.fail("no shape fits")


@pytest.mark.parametrize("shape", [(6,), (2, 3, 6)], ids=str)
def test_matmul_of_any_rank_with_a_matrix(shape: tuple[int, ...]) -> None:
    module = same(Net(lambda self, x: x @ self.w, w=WEIGHT), torch.randn(shape))
    assert targets(module) == ["aten.linear.default"]


@pytest.mark.parametrize(
    ("function", "want"),
    [
        (lambda w, x: w @ x, ["transpose.int", "linear.default", "transpose.int"]),
        (lambda w, x: w @ x.mT.contiguous().transpose(1, 2), ["mT", "contiguous", "linear.default", "transpose.int"]),
        (lambda w, x: w.T.mT @ x[0], ["select.int", "transpose.int", "linear.default", "transpose.int"]),
        (lambda w, x: torch.mm(w, x[0]), ["select.int", "transpose.int", "linear.default", "transpose.int"]),
        (lambda w, x: w @ x[0, :, 0], ["select.int", "select.int", "linear.default"]),
    ],
)
def test_products_that_begin_with_a_constant_become_linear(function: Function, want: list[str]) -> None:
    module = same(Net(lambda self, x: function(self.w, x), w=nn.Parameter(torch.randn(5, 6))), torch.randn(2, 6, 3))
    names = [name.removeprefix("aten.") for name in targets(module) if "slice" not in name]
    assert [name.partition(".")[0] for name in names] == [name.partition(".")[0] for name in want]


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: torch.bmm(x, w.t().expand(2, 6, 5)),
        lambda x, w: torch.bmm(x, w.permute(1, 0).unsqueeze(0).expand(2, -1, -1).view(2, 6, 5)),
        lambda x, w: torch.matmul(x, w.t().expand(2, 6, 5)),
    ],
)
def test_products_with_one_matrix_for_a_whole_batch_become_linear(function: Function) -> None:
    module = same(Net(lambda self, x: function(x, self.w), w=nn.Parameter(torch.randn(5, 6))), torch.randn(2, 3, 6))
    assert targets(module) == ["aten.linear.default"]


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: torch.bmm(x, w.expand(2, 6, 6) * 1),
        lambda x, w: x @ w.t().contiguous(),
        lambda x, w: x[0] @ w.expand(2, 6, 6),
        lambda x, w: x[:1] @ w.expand(2, 6, 6),
        lambda x, w: x @ w.t().reshape(2, 18).view(6, 6),
    ],
)
def test_products_with_a_matrix_that_is_copied_stay(function: Function) -> None:
    module = same(Net(lambda self, x: function(x, self.w), w=nn.Parameter(torch.randn(6, 6))), torch.randn(2, 3, 6))
    assert "aten.linear.default" not in targets(module)


@pytest.mark.parametrize(
    ("equation", "shape"),
    [
        ("btd,dnh->btnh", (6, 2, 5)),
        ("btd,dnh->bnth", (6, 2, 5)),
        ("btd,nhd->tbhn", (2, 5, 6)),
        ("btd,od->bto", (5, 6)),
        ("btd,do->bot", (6, 5)),
        ("btd,tdo->bo", (3, 6, 5)),
        ("btd,d->bt", (6,)),
        ("...d,dh->...h", (6, 5)),
        ("btd,hd->hbt", (5, 6)),
        ("btd,bth->dh", (2, 3, 5)),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_einsums_with_a_constant_become_linear(equation: str, shape: tuple[int, ...], swapped: bool) -> None:
    if swapped:
        terms, _, result = equation.partition("->")
        equation = ",".join(reversed(terms.split(","))) + f"->{result}"

    def forward(self: Net, x: Tensor) -> Tensor:
        return torch.einsum(equation, *([self.w, x] if swapped else [x, self.w]))

    module = same(Net(forward, w=nn.Parameter(torch.randn(shape))), torch.randn(2, 3, 6))
    assert targets(module).count("aten.linear.default") == 1
    assert "aten.einsum.default" not in targets(module)


@pytest.mark.parametrize(
    ("dims", "shape"), [(1, (6, 5)), (([1, 2], [2, 0]), (6, 4, 3)), (([-1], [1]), (5, 6, 2))], ids=str
)
def test_tensordots_with_a_constant_become_linear(dims: Any, shape: tuple[int, ...]) -> None:
    weight = nn.Parameter(torch.randn(shape))
    module = same(Net(lambda self, x: torch.tensordot(x, self.w, dims=dims), w=weight), torch.randn(2, 3, 6))
    assert targets(module).count("aten.linear.default") == 1
    assert "aten.tensordot.default" not in targets(module)


@pytest.mark.parametrize(
    ("equation", "shape"),
    [
        ("btd,bdo->bto", (2, 6, 5)),  # a matrix for each item
        ("btd,o->btdo", (5,)),  # nothing is summed over
        ("btd,dd->bt", (6, 6)),
        ("btd,do->bt", (6, 5)),
        ("btd,dt->btd", (6, 3)),
    ],
)
def test_other_einsums_stay(equation: str, shape: tuple[int, ...]) -> None:
    model = Net(lambda self, x: torch.einsum(equation, x, self.w), w=nn.Parameter(torch.randn(shape)))
    assert targets(same(model, torch.randn(2, 3, 6))) == ["aten.einsum.default"]


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w, b: torch.addmm(b, x, w, beta=0.5),
        lambda x, w, b: torch.addmm(b, x, w, alpha=2),
        lambda x, w, b: torch.addmm(x[:, :5], x, w),
        lambda x, w, b: torch.addmm(b.expand(3, 5), x, w),
        lambda x, w, b: x @ (w * 2),
        lambda x, w, b: x @ w[:, 0],
    ],
)
def test_other_products_stay(function: Function) -> None:
    model = Net(lambda self, x: function(x, self.w, self.b), w=WEIGHT, b=nn.Parameter(torch.randn(5)))
    module = same(model, torch.randn(3, 6))
    assert "aten.linear.default" not in targets(module)


def test_decomposed_linear_is_found_again() -> None:
    module = same(nn.Linear(6, 5), torch.randn(2, 3, 6), decompose=True)
    assert targets(module).count("aten.linear.default") == 1
    assert "aten.addmm.default" not in targets(module)
