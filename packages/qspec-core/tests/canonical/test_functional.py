"""In-place operators become functional exactly where no later reader sees the difference."""

import pytest
import torch
import torch.nn.functional as F
from core_support import Net, calls, canonical, export, targets
from torch import Tensor, nn


def linear(self: Net, x: Tensor) -> Tensor:
    result: Tensor = self.linear(x)  # type: ignore[operator]  # a submodule by name
    return result


def check(function: object, *, functional: bool | None, inputs: int = 1, grad: bool = True) -> torch.fx.GraphModule:
    """Compare a model with in-place operators with its canonical form, twice, inputs and buffers included."""
    model = Net(function, linear=nn.Linear(4, 4), buffer=torch.randn(3, 4))  # type: ignore[arg-type]  # any forward
    with torch.set_grad_enabled(grad):
        exported = export(model, *(torch.randn(3, 4) for _ in range(inputs)))
        module = canonical(exported)
        for _ in range(2):
            given = [torch.randn(3, 4) for _ in range(inputs)]
            mine, theirs = [x.clone() for x in given], [x.clone() for x in given]
            assert torch.equal(module(*mine), exported(*theirs))
            assert all(map(torch.equal, mine, theirs))
    left = [name for name in targets(module) if "_." in name]
    assert functional is None or (not left) == functional, left
    return module


def legal_relu(self: Net, x: Tensor) -> Tensor:
    return F.relu_(linear(self, x)) + 1


def legal_add(self: Net, x: Tensor) -> Tensor:
    return linear(self, x).add_(x).relu_()


def legal_view(self: Net, x: Tensor) -> Tensor:
    return linear(self, x).view(4, 3).relu_()


def legal_earlier_reader(self: Net, x: Tensor) -> Tensor:
    y = linear(self, x)
    z = y + 1
    return z * y.relu_()


def legal_square(self: Net, x: Tensor) -> Tensor:
    y = linear(self, x)
    return y.mul_(y)


def later_reader(self: Net, x: Tensor) -> Tensor:
    y = linear(self, x)
    z = y.relu_()
    return y + z


def returned(self: Net, x: Tensor) -> Tensor:
    y = linear(self, x)
    y.relu_()
    return y


def chain_on_an_old_value(self: Net, x: Tensor) -> Tensor:
    y = linear(self, x)
    z = y.relu_().add_(1)
    return y + z


LEGAL = [legal_relu, legal_add, legal_view, legal_earlier_reader, legal_square]
GIVEN_THE_RESULT = [later_reader, returned, chain_on_an_old_value]  # torch.export lets later readers read the result


@pytest.mark.parametrize("function", [*LEGAL, *GIVEN_THE_RESULT])
def test_functional_where_nothing_reads_the_old_value(function: object) -> None:
    check(function, functional=True)


def later_reader_of_a_view(self: Net, x: Tensor) -> Tensor:
    y = linear(self, x)
    flat = y.view(-1)
    z = y.relu_()
    return z.view(-1) * 2 + flat


def later_reader_of_a_view_of_a_view(self: Net, x: Tensor) -> Tensor:
    y = linear(self, x)
    flat = y.view(4, 3).t()
    z = y.relu_()
    return z.sum() + flat


def later_reader_of_the_base(self: Net, x: Tensor) -> Tensor:
    y = linear(self, x)
    z = y.view(-1).relu_()
    return z.view(3, 4) + y


def later_reader_of_a_part(self: Net, x: Tensor) -> Tensor:
    y = linear(self, x)
    first, _ = y.chunk(2, 1)
    first.relu_()
    return y * 1


def alias_by_dropout(self: Net, x: Tensor) -> Tensor:
    y = linear(self, x)
    F.dropout(y, 0.5, False).relu_()
    return y * 1


@pytest.mark.parametrize(
    "function",
    [
        later_reader_of_a_view,
        later_reader_of_a_view_of_a_view,
        later_reader_of_the_base,
        later_reader_of_a_part,
    ],
)
def test_stays_where_a_later_reader_sees_the_write(function: object) -> None:
    check(function, functional=False, grad=False)


def test_alias_by_dropout_keeps_its_values() -> None:
    """The write may become functional if torch exported the later reader after it, as 2.14 does and 2.13 does not."""
    check(alias_by_dropout, functional=None, grad=False)


def test_stays_where_a_later_node_reads_the_written_one_itself() -> None:
    exported = export(Net(lambda self, x: F.relu_(linear(self, x)) * x, linear=nn.Linear(4, 4)), torch.randn(3, 4))
    (first,) = calls(exported, torch.ops.aten.linear.default)
    (relu,) = calls(exported, torch.ops.aten.relu_.default)
    (product,) = calls(exported, torch.ops.aten.mul.Tensor)
    product.replace_input_with(relu, first)
    exported.recompile()
    x = torch.randn(3, 4)
    with torch.no_grad():
        assert torch.equal(canonical(exported)(x), exported(x))
    assert "aten.relu_.default" in targets(canonical(exported))


def mutated_input(self: Net, x: Tensor) -> Tensor:
    return x.mul_(2) + 1


def mutated_view_of_an_input(self: Net, x: Tensor) -> Tensor:
    return x.view(-1).mul_(2) + 1


def mutated_buffer(self: Net, x: Tensor) -> Tensor:
    return self.get_buffer("buffer").add_(x) + 1


def mutated_view_of_a_buffer(self: Net, x: Tensor) -> Tensor:
    buffer = self.get_buffer("buffer")
    buffer[0].copy_(x[0])
    return x + buffer


@pytest.mark.parametrize(
    "function", [mutated_input, mutated_view_of_an_input, mutated_buffer, mutated_view_of_a_buffer]
)
def test_writes_to_inputs_and_buffers_stay(function: object) -> None:
    check(function, functional=False, grad=False)


def test_copy_of_a_module_does_not_write_to_its_buffers() -> None:
    for function in (mutated_buffer, mutated_view_of_a_buffer):
        exported = export(Net(function, linear=nn.Linear(4, 4), buffer=torch.zeros(3, 4)), torch.randn(3, 4))
        canonical(exported)(torch.randn(3, 4))
        assert not exported.get_buffer("buffer").any()


def narrower(self: Net, x: Tensor) -> Tensor:
    return linear(self, x).half().add_(x)


def test_stays_where_the_functional_form_gives_another_dtype() -> None:
    check(narrower, functional=False)


def masked(self: Net, x: Tensor) -> Tensor:
    return linear(self, x).masked_fill_(x > 0, 0.0)


def test_masks_and_indices_do_not_count_as_another_dtype() -> None:
    check(masked, functional=True)


def test_operator_without_functional_form_stays() -> None:
    module = check(lambda self, x: linear(self, x).zero_() + x, functional=True)
    assert len(calls(module, torch.ops.aten.zero.default)) == 1
    check(lambda self, x: linear(self, x).uniform_(0.0, 0.0) + x, functional=True)
