"""The cases of a backend: one for each row, chain, mode and sample, and the general ones."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from torch.fx import GraphModule

from qspec_core._convert import convert_pt2e
from qspec_core._errors import BackendError
from qspec_core._prepare import prepare_pt2e
from qspec_core._quantizer import Quantizer, TableQuantizer
from qspec_core._torch import OpOverload
from qspec_core.backend import Backend
from qspec_core.patterns import Flow, Mode, Outputs, PostOp, PreOp, Row
from qspec_core.testing._checks import (
    Snapshot,
    check_agreement,
    check_coverage,
    check_ranges,
    check_weights,
    tested_match,
)
from qspec_core.testing._errors import CheckName, ConformanceError, DeviceMissingError
from qspec_core.testing._general import RefusalCase, TableCase
from qspec_core.testing._kit import Load, Lower, Ran, kit_of
from qspec_core.testing._lowered import check_same, raises_are_failures, require_useful_sample, run_lowered
from qspec_core.testing._package import PackageCase
from qspec_core.testing._probe import Plan, Probe, inputs_of
from qspec_core.testing._rules import RULES
from qspec_core.testing._samples import ErrorRule, Sample, Samples, merge_samples
from qspec_core.testing._walk import Other, walk
from qspec_core.testing._watch import check_kernels

__all__ = ["Case", "ConvertedRow", "conformance_cases", "converted_rows"]

_BATCHES = 2


class Case(Protocol):
    """One test of a backend. `str(case)` is its name."""

    def check(self) -> None:
        """Test it.

        Raises:
            ConformanceError: the backend does not do what its table says.
            DeviceMissingError: the backend's runtime is missing here; all checks before lowering passed.
        """
        ...


@dataclass(frozen=True)
class Device:
    """A backend, with the options of the kit.

    Args:
        backend: the backend.
        targets: classes of deployment device whose lowered form can run here.
        lower: the function that lowers.
        ran: labels of the rows that a lowered module runs in integers; None if the backend does not say.
        rules: the error rule of each operator.
        simulates: whether `lower` may be a simulator in plain torch, whose operators prove nothing.
    """

    backend: Backend
    targets: tuple[str, ...]
    lower: Lower
    ran: Ran | None
    rules: Mapping[OpOverload, ErrorRule]
    simulates: bool = False


@dataclass(frozen=True)
class UntestableCase:
    """A row that the kit has no sample for. The case fails, because every row must be tested."""

    name: str
    row: Row
    operators: tuple[OpOverload, ...]

    def __str__(self) -> str:
        return self.name

    def check(self) -> None:
        """Raises: ConformanceError: always."""
        missing = ", ".join(map(str, self.operators))
        raise ConformanceError(
            f"row {self.row.name} cannot be tested: there is no sample call of {missing}",
            check=CheckName.SAMPLE,
            found=f"no sample of {missing}",
            expected="a Sample for the anchor, each post-op and each absorbed operator",
            remedy="pass samples={" + ", ".join(f"{operator}: Sample(...)" for operator in self.operators) + "}",
        )


@dataclass(frozen=True)
class UnreachableCase:
    """A row without a chain, or in a mode that the backend does not have or no sample is for. The case fails."""

    row: Row
    backend: Backend
    label: str = ""

    def __str__(self) -> str:
        return f"{self.label or self.row.name}, unreachable"

    def check(self) -> None:
        """Raises: ConformanceError: always."""
        raise ConformanceError(
            f"no sample of row {self.label} is for that mode"
            if self.label
            else f"row {self.row.name} has no mode in common with backend {self.backend.name!r}, or no chain",
            check=CheckName.REACHED,
            found=f"modes {_modes(self.row.modes)}, {len(self.row.chains)} chains",
            expected=f"one of the backend's modes: {_modes(self.backend.modes)}; at least the chain ()",
            remedy="add the mode to the backend or to a Sample, or drop the row",
        )


def _modes(modes: frozenset[Mode]) -> str:
    return ", ".join(sorted(mode.value for mode in modes)) or "none"


@dataclass(frozen=True)
class ConvertedRow:
    """A converted graph that exercises one chain of a row.

    Args:
        name: name of the case that it belongs to.
        row: the row.
        converted: the graph.
        inputs: one batch of its inputs.
    """

    name: str
    row: Row
    converted: GraphModule
    inputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class RowCase:
    """One chain of one row, in one mode, for one sample and every target."""

    device: Device
    plan: Plan
    mode: Mode

    def __str__(self) -> str:
        plan = self.plan
        parts = [plan.label, self.mode.value]
        parts += [plan.sample.name] if plan.sample.name else []
        parts += [f"absorbs {plan.absorbed[1].target}"] if plan.absorbed is not None else []
        parts += ["read by integers"] if plan.read else []
        return ", ".join(parts)

    def check(self) -> None:
        """Quantize the probe for each target and run all checks.

        Raises: ConformanceError, DeviceMissingError: as `Case.check`.
        """
        probe, exported, batches = self._probe()
        missing: BackendError | None = None
        for target in self.device.targets:
            converted = self._converted(probe, exported, batches, target)
            try:
                self._check_lowered(converted, batches, target)
            except BackendError as error:
                missing = error
        if missing is not None:
            raise DeviceMissingError(
                f"not lowered: {missing.problem}", found=missing.found, remedy=missing.remedy
            ) from missing

    def converted(self, target: str) -> ConvertedRow:
        """The converted probe for a target, with a batch of its inputs.

        Raises: ConformanceError: a check before lowering fails.
        """
        probe, exported, batches = self._probe()
        converted = self._converted(probe, exported, batches, target)
        return ConvertedRow(str(self), self.plan.row, converted, batches[0])

    def _probe(self) -> tuple[Probe, GraphModule, list[tuple[Tensor, ...]]]:
        """The smallest module that exercises the row, its graph, and batches of inputs."""
        generator = torch.Generator().manual_seed(0)
        probe = Probe(self.plan, self.device.backend.table, generator)
        batches = [inputs_of(probe, generator) for _ in range(_BATCHES)]
        return probe, _export(probe, batches[0]), batches

    def _converted(
        self, probe: Probe, exported: GraphModule, batches: list[tuple[Tensor, ...]], target: str
    ) -> GraphModule:
        """Quantize, and run all checks before lowering."""
        before = Snapshot.of(exported)
        backend, config = self.device.backend, self.plan.sample.config
        quantizer: Quantizer = backend.quantizer(mode=self.mode, target=target)
        if config is not None:
            quantizer = TableQuantizer(backend.table, target=target).set_global(config)
        prepared = prepare_pt2e(exported, quantizer, allow_empty=True)
        with torch.no_grad():
            for batch in batches:
                prepared(*batch)
        converted = convert_pt2e(prepared)
        before.check(exported, "quantization")
        check_coverage(converted, self.plan)
        tested_match(converted, self.device.backend.table, self.plan)
        check_weights(converted, self.device.backend.table, probe)
        runs = [walk(converted, batch, self.device.rules, Other.FLOAT) for batch in batches]
        check_ranges(runs, self.plan)
        for batch, run in zip(batches, runs, strict=True):
            with torch.no_grad():
                floats = probe(*batch)[0]
            require_useful_sample(floats, self.plan)
            check_agreement(floats, run, self.plan)
        return converted

    def _check_lowered(self, converted: GraphModule, batches: list[tuple[Tensor, ...]], target: str) -> None:
        before = Snapshot.of(converted)
        with raises_are_failures(self.plan):
            lowered = self.device.lower(converted, batches[0], target)
        before.check(converted, "lowering")
        if self.device.ran is not None:
            self._check_ran(converted, self.device.ran(lowered))
        if not self.device.simulates:
            with raises_are_failures(self.plan):
                check_kernels(lowered, batches[0], self.plan, reports=self.device.ran is not None)
        for batch in batches:
            with raises_are_failures(self.plan):
                found = run_lowered(lowered, batch, self.plan)
            check_same(found, walk(converted, batch, self.device.rules, Other.LOWERED), self.plan)

    def _check_ran(self, converted: GraphModule, ran: Mapping[str, str]) -> None:
        _, match = tested_match(converted, self.device.backend.table, self.plan)
        if ran.get(match.anchor.name) != self.plan.label:
            raise ConformanceError(
                f"row {self.plan.label!r} was quantized, but the device does not run it in integers",
                check=CheckName.REPORTED,
                where=match.anchor,
                found=ran.get(match.anchor.name, "not lowered"),
                expected=self.plan.label,
                remedy="lower the call, or add a check to the row that refuses it at annotation",
            )


def _export(probe: Probe, inputs: tuple[Tensor, ...]) -> GraphModule:
    with torch.no_grad():
        module = torch.export.export(probe, inputs).module()
    if not isinstance(module, GraphModule):
        raise ConformanceError(
            "torch.export gave no graph module", check=CheckName.COVERAGE, remedy="check the version of torch"
        )
    return module


@dataclass(frozen=True)
class _Planner:
    """Makes the cases of a table's rows."""

    device: Device
    samples: Mapping[OpOverload, tuple[Sample, ...]]

    @cached_property
    def _first(self) -> dict[OpOverload, Sample]:
        return {operator: samples[0] for operator, samples in self.samples.items() if samples}

    def cases(self, row: Row) -> Iterator[Case]:
        modes = sorted((mode for mode in row.modes & self.device.backend.modes), key=_value)
        if not modes or not row.chains:
            yield UnreachableCase(row, self.device.backend)
        for mode in modes:
            for chain in row.chains:
                yield from self._of_chain(row, chain, mode)
            for name, pre_op in _absorbed(row, mode):
                yield from self._of_absorbed(row, name, pre_op, mode)

    def _missing(self, row: Row, *others: OpOverload) -> tuple[OpOverload, ...]:
        wanted = dict.fromkeys((row.anchor, *others))
        return tuple(operator for operator in wanted if operator not in self._first)

    def _of_chain(self, row: Row, chain: tuple[PostOp, ...], mode: Mode) -> Iterator[Case]:
        missing = self._missing(row, *(post_op.target for post_op in chain))
        if missing:
            label = " + ".join((row.name, *(post_op.kernel for post_op in chain)))
            yield UntestableCase(f"{label}, {mode.value}, no sample", row, missing)
            return
        samples = [sample for sample in self.samples[row.anchor] if mode in sample.modes]
        if not samples:
            label = " + ".join((row.name, *(post_op.kernel for post_op in chain)))
            yield UnreachableCase(row, self.device.backend, f"{label}, {mode.value}")
        for sample in samples:
            for read in self._reads(row, mode):
                yield RowCase(self.device, Plan(row, chain, sample, self._first, None, read), mode)

    def _of_absorbed(self, row: Row, name: str, pre_op: PreOp, mode: Mode) -> Iterator[Case]:
        missing = self._missing(row, pre_op.target)
        if missing:
            yield UntestableCase(f"{row.name}, {mode.value}, absorbing, no sample", row, missing)
            return
        plan = Plan(row, row.chains[-1], self._first[row.anchor], self._first, (name, pre_op))
        yield RowCase(self.device, plan, mode)

    def _reads(self, row: Row, mode: Mode) -> tuple[bool, ...]:
        """Whether to test with an integer reader, without one, or both.

        A device that quantizes on demand writes integers for an integer reader and floats without one.
        """
        if row.flow is not Flow.STARTS:
            return (True,)
        on_demand = self.device.backend.table.outputs is Outputs.DEMAND
        return (False, True) if mode is Mode.STATIC and on_demand else (False,)


def _absorbed(row: Row, mode: Mode) -> Iterator[tuple[str, PreOp]]:
    for operand in row.operands:
        for pre_op in operand.absorbs:
            if pre_op.absorbs_in(mode):
                yield operand.name, pre_op


def _value(mode: Mode) -> str:
    return mode.value


def conformance_cases(
    backend: Backend,
    *,
    samples: Samples | None = None,
    targets: Sequence[str] | None = None,
    lower: Lower | None = None,
    ran: Ran | None = None,
    load: Load | None = None,
) -> tuple[Case, ...]:
    """Generate the tests that a backend must pass: for each row, chain and mode, and for the backend as a whole.

        @pytest.mark.parametrize("case", conformance_cases(BACKEND), ids=str)
        def test_conformance(case):
            case.check()

    Args:
        backend: the backend.
        samples, targets, lower, ran, load: as in `Kit`; None for those of the backend's own kit. Another `lower` may be
            a simulator in plain torch: `ran` alone says which rows it runs, and no file is packaged.
    Returns: the cases, rows in the table's order. A row without a sample gets a case that fails.
    Raises: BackendError: the backend has no such target.
    """
    kit = kit_of(backend)
    wanted = kit.targets if targets is None else tuple(targets)
    chosen = tuple(backend.resolve_target(name) for name in (backend.targets if wanted is None else wanted))
    merged = merge_samples(kit.samples if samples is None else samples)
    own = {op: sample.error for op, found in merged.items() for sample in found if sample.error is not None}
    own_lowering = lower is None  # a file is made by the backend's own
    lower = lower if lower is not None else kit.lower if kit.lower is not None else backend.lower
    ran = kit.ran if ran is None else ran
    simulates = not own_lowering and ran is not None
    device = Device(backend, chosen, lower, ran, {**own, **RULES}, simulates)  # no sample replaces a rule of core
    planner = _Planner(device, merged)
    rows = tuple(case for row in backend.table.rows for case in planner.cases(row))
    load = kit.load if load is None else load
    packages = PackageCase.all(backend, chosen, load) if own_lowering else ()
    return TableCase.all(backend) + RefusalCase.all(device.backend, device.lower) + packages + rows


def converted_rows(backend: Backend, *, target: str | None = None) -> Iterator[ConvertedRow]:
    """The converted graphs of a backend's rows, for tools that read converted graphs: exporters, checks, reports.

    Args:
        backend: the backend. Rows without a sample are left out.
        target: class of deployment device; None for the backend's default.
    Raises:
        BackendError: the backend has no such target.
        ConformanceError: a row does not do what the table says.
    """
    chosen = backend.resolve_target(target)
    for case in conformance_cases(backend, targets=(chosen,)):
        if isinstance(case, RowCase):
            yield case.converted(chosen)
