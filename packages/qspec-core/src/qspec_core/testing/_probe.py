"""The smallest module that exercises a row: the anchor and its chain, between integer layers if the row needs them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qspec_core._torch import OpOverload, schema_of
from qspec_core.graph import argument_names
from qspec_core.patterns import Flow, Mode, OtherRole, PatternTable, PostOp, PreOp, Role, Row
from qspec_core.testing._errors import CheckName, ConformanceError
from qspec_core.testing._samples import Integers, Sample

__all__ = ["TESTED", "Plan", "Probe", "call_positionally", "inputs_of", "integer_layer", "random_value"]

TESTED = "tested"
"""Path of the submodule that holds the anchor, its chain, and the operator that it absorbs."""
_KERNEL = 1

aten = torch.ops.aten
_CONVOLUTIONS = {rank + 2: getattr(aten, f"conv{rank}d").default for rank in (1, 2, 3)}
_CONVOLUTION_MODULES: dict[int, type[nn.Module]] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


@dataclass(frozen=True)
class Plan:
    """The content of a probe.

    Args:
        row: the row.
        chain: one of its chains.
        sample: the sample call of its anchor.
        others: a sample call of each operator of the chain, and of the absorbed operator.
        absorbed: the operand that absorbs an operator, with that operator; None for no absorbed operator.
        read: whether an integer layer reads the result.
    """

    row: Row
    chain: tuple[PostOp, ...]
    sample: Sample
    others: Mapping[OpOverload, Sample]
    absorbed: tuple[str, PreOp] | None = None
    read: bool = False

    @property
    def label(self) -> str:
        """The row that coverage must name for every operator under test."""
        return " + ".join((self.row.name, *(post_op.kernel for post_op in self.chain)))

    @property
    def operators(self) -> tuple[OpOverload, ...]:
        """Operators that the tested submodule calls."""
        before = () if self.absorbed is None else (self.absorbed[1].target,)
        return (*before, self.row.anchor, *(post_op.target for post_op in self.chain))

    @property
    def constants(self) -> dict[str, Role]:
        """Roles of the anchor's operands that do not change from call to call."""
        roles = {operand.name: operand.role for operand in self.row.operands}
        return {name: role for name, role in roles.items() if role in (Role.WEIGHT, Role.BIAS, Role.CONSTANT)}


def call_positionally(
    operator: OpOverload, values: Mapping[str, Any]
) -> Any:  # of any type that an operator takes or returns
    """Call an operator as models do: by position up to the first argument left out, then by keyword."""
    rest, args = dict(values), []
    for argument in schema_of(operator).arguments:
        if argument.name not in rest or argument.kwarg_only:
            break
        args.append(rest.pop(argument.name))
    return operator(*args, **rest)


class Anchored(nn.Module):
    """The submodule under test. Its inputs are the anchor's activations and the post-ops' second operands."""

    def __init__(self, plan: Plan, constants: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.plan = plan
        for name, value in constants.items():
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, activations: dict[str, Any], others: list[Tensor]) -> Tensor:
        plan = self.plan
        values = {name: activations.get(name, getattr(self, name, None)) for name in plan.sample.tensors}
        if plan.absorbed is not None:
            name, pre_op = plan.absorbed
            constants = plan.others[pre_op.target].constants
            values[name] = call_positionally(pre_op.target, {pre_op.operand: values[name], **constants})
        found = call_positionally(plan.row.anchor, {**values, **plan.sample.constants})
        result: Tensor = found[0] if isinstance(found, tuple) else found  # embedding_bag returns more than its sums
        rest = iter(others)
        for post_op in plan.chain:
            first, second = (*argument_names(post_op.target), "")[:2]
            tensors = {first: result} if post_op.other is None else {first: result, second: next(rest)}
            result = call_positionally(post_op.target, {**tensors, **plan.others[post_op.target].constants})
        return result


class Probe(nn.Module):
    """A plan as a module. Its inputs are the anchor's activations, then the second operands of the post-ops.

    Its first output is compared with that of the converted and the lowered module.

    Args:
        plan: its content.
        table: the device's rows; those that start integers give the layers around the tested part.
        generator: source of its weights.
    Raises: ConformanceError: no row of the table starts integers in the shapes of this row.
    """

    def __init__(self, plan: Plan, table: PatternTable, generator: torch.Generator) -> None:
        super().__init__()
        self.plan = plan
        shapes = dict(plan.sample.tensors)
        fixed = [name for name in shapes if name in plan.constants or name == "bias"]
        constants = {name: random_value(shapes[name], generator, plan.sample.dtype) for name in fixed}
        self.names = [name for name in shapes if name not in fixed]
        self.tested = Anchored(plan, constants)
        flat = [shape for name in self.names for shape in _shapes(shapes[name])]
        result = self._result([random_value(shape, generator, plan.sample.dtype) for shape in flat])
        self.other_shapes = [tuple(result.shape) for post_op in plan.chain if post_op.other is not None]
        floats = [post_op.other is OtherRole.FLOAT for post_op in plan.chain if post_op.other is not None]
        are_plain = [isinstance(shape, Integers) for shape in flat] + floats
        self.input_shapes = [*flat, *self.other_shapes]
        self.producers = nn.ModuleList(
            nn.Identity() if plain or plan.row.flow is Flow.STARTS else integer_layer(table, plan, _shape(shape))
            for shape, plain in zip(self.input_shapes, are_plain, strict=True)
        )
        # A second reader of the producer, an output, keeps the producer's row from fusing the anchor as its post-op.
        fusing = {chain[0].target for r in table.rows if r.flow is Flow.STARTS for chain in r.chains if chain}
        self.shows_producers = plan.row.flow is not Flow.STARTS and plan.row.anchor in fusing
        self.reader = integer_layer(table, plan, tuple(result.shape)) if plan.read else nn.Identity()
        _settle(self.producers, generator)
        _settle(self.reader, generator)
        self.eval()

    def _grouped(self, values: list[Tensor]) -> tuple[dict[str, Any], list[Tensor]]:
        """Split flat values into the anchor's activations, by name, and the rest."""
        rest = iter(values)
        activations: dict[str, Any] = {}
        for name in self.names:
            shape = self.plan.sample.tensors[name]
            taken = [next(rest) for _ in _shapes(shape)]
            activations[name] = taken if _is_list(shape) else taken[0]
        return activations, list(rest)

    def _result(self, values: list[Tensor]) -> Tensor:
        """Run the tested part with ones for second operands, to learn its shape."""
        activations, _ = self._grouped(values)
        with torch.no_grad():
            others: list[Any] = [torch.ones(()) for post_op in self.plan.chain if post_op.other is not None]
            result: Tensor = self.tested(activations, others)
        return result

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        values = [producer(value) for producer, value in zip(self.producers, inputs, strict=True)]
        result: Tensor = self.reader(self.tested(*self._grouped(values)))
        return (result, *values) if self.shows_producers else (result,)


def integer_layer(table: PatternTable, plan: Plan, shape: tuple[int, ...]) -> nn.Module:
    """A layer that the table starts integers with, and whose input and output have this shape.

    Raises: ConformanceError: the table starts no convolution of this rank and no linear layer.
    """
    starts = {r.anchor for r in table.rows if r.flow is Flow.STARTS and Mode.STATIC in r.modes and () in r.chains}
    if _CONVOLUTIONS.get(len(shape)) in starts:
        channels = shape[1]
        return _CONVOLUTION_MODULES[len(shape)](channels, channels, _KERNEL)
    if aten.linear.default in starts and shape:
        return nn.Linear(shape[-1], shape[-1])
    raise ConformanceError(
        f"row {plan.row.name} never gets integers: no row of the table starts them at rank {len(shape)}",
        check=CheckName.REACHED,
        found=", ".join(map(str, starts)) or "no static row that starts integers",
        expected="a row with Flow.STARTS for the convolution of this rank, or for linear",
        remedy="add such a row, or remove this one: it can never run in integers",
    )


def inputs_of(probe: Probe, generator: torch.Generator) -> tuple[Tensor, ...]:
    """One batch of random inputs."""
    return tuple(random_value(shape, generator, probe.plan.sample.dtype) for shape in probe.input_shapes)


def _settle(module: nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(random_value(tuple(parameter.shape), generator))


def random_value(
    shape: Any,  # one of the forms of Sample.tensors
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
) -> Any:  # a tensor, or a list of tensors
    """Random values of an operand of a sample."""
    if _is_list(shape):
        return [random_value(one, generator, dtype) for one in shape]
    if isinstance(shape, Integers):
        return torch.randint(shape.below, shape.shape, generator=generator)
    return torch.randn(shape, generator=generator).to(dtype)


def _is_list(shape: object) -> bool:
    return isinstance(shape, tuple) and bool(shape) and not isinstance(shape[0], int)


def _shapes(shape: Any) -> Iterator[Any]:  # as in _random
    """The shapes of an operand: one, or one for each tensor of a list."""
    yield from shape if _is_list(shape) else (shape,)


def _shape(shape: Any) -> tuple[int, ...]:  # as in _random
    return shape.shape if isinstance(shape, Integers) else tuple(shape)
