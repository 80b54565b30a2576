"""The kit on a small device that is correct, and on devices with one fault each."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import core_support as core
import pytest
import torch
from simulated_device import simulate
from torch import Tensor, nn
from torch.fx import GraphModule

from qspec_core import (
    Backend,
    BackendError,
    GraphError,
    QSpecError,
    QuantizationConfig,
    QuantizationSpec,
    TableQuantizer,
)
from qspec_core import ops as decomposed
from qspec_core._coverage import COVERAGE_KEY
from qspec_core.backend import Backend as Contract
from qspec_core.graph import is_call, observer_nodes, replace_argument, require_exported
from qspec_core.lowering import match_converted
from qspec_core.observers import MinMaxObserver, PerChannelMinMaxObserver
from qspec_core.patterns import (
    DELEGATED,
    Flow,
    Mode,
    Outputs,
    PatternTable,
    PostOp,
    Reason,
    Row,
    activation,
    constant,
)
from qspec_core.testing import Case, ConformanceError, DeviceMissingError, Sample, conformance_cases
from qspec_core.testing._checks import check_coverage, check_weights
from qspec_core.testing._general import Bad
from qspec_core.testing._probe import Plan, Probe

aten = torch.ops.aten
STATIC = frozenset({Mode.STATIC})
LINEAR = replace(core.LINEAR, chains=((core.HARDTANH,), ()), modes=frozenset({Mode.STATIC, Mode.DYNAMIC}))
CONV2D = replace(core.CONV2D, chains=((core.ADD, core.RELU), (core.FLOAT_ADD,), ()), modes=STATIC)
RELU = Row("relu", aten.relu.default, (activation("self"),), Flow.JOINS, DELEGATED)
PRELU = Row("prelu", aten.prelu.default, (activation("self"), constant("weight")), Flow.JOINS, DELEGATED)
ROWS = (CONV2D, LINEAR, core.ADD_ROW, core.CAT, core.POOL, core.VIEW, RELU, PRELU)

Edit = Callable[[GraphModule], object]


def lowering_of(edit: Edit | None = None, rows: tuple[Row, ...] = ROWS) -> Any:
    """A device that simulates the converted graph, with something done to its program."""

    def lower(converted: GraphModule, inputs: tuple[Any, ...], target: str) -> nn.Module:
        if target != "any":
            raise BackendError(f"no target {target!r}", remedy="name 'any'")
        module = require_exported(converted, "lower")
        if observer_nodes(module) or not any(decomposed.is_dequantize(node) for node in module.graph.nodes):
            raise GraphError("not converted", remedy="convert it")
        simulated = simulate(module, core.table(rows))
        if edit is not None:
            edit(simulated.program)
            simulated.program.recompile()
        return simulated

    return lower


lower = lowering_of()


def quantizer_of(rows: tuple[Row, ...], outputs: Outputs = Outputs.DEMAND, edit: Edit | None = None) -> Any:
    """A factory of quantizers over some rows, with something done to the graph before it is annotated."""

    class Edited(TableQuantizer):
        def transform_for_annotation(self, model: GraphModule) -> GraphModule:
            model = super().transform_for_annotation(model)
            if edit is not None:
                edit(model)
            return model

    def make(*, mode: Mode, target: str) -> TableQuantizer:
        config = core.CONFIG if mode is Mode.STATIC else core.DYNAMIC
        return Edited(core.table(rows, outputs)).set_global(config)

    return make


def device(rows: tuple[Row, ...] = ROWS, outputs: Outputs = Outputs.DEMAND, **fields: Any) -> Backend:
    """The device; `fields` replace those of its backend."""
    given: dict[str, Any] = {
        "name": "small",
        "table": core.table(rows, outputs),
        "quantizer": quantizer_of(rows, outputs),
        "lower": lowering_of(None, rows),
        "conformance": "simulated_device:KIT",
        "modes": frozenset({Mode.STATIC, Mode.DYNAMIC}),
    }
    return Contract(**given | fields)


def the_case(backend: Backend, name: str, **options: Any) -> Case:
    (case,) = (case for case in conformance_cases(backend, **options) if str(case) == name)
    return case


def failure(case: Case) -> str:
    with pytest.raises(ConformanceError) as caught:
        case.check()
    assert isinstance(caught.value, AssertionError)
    assert caught.value.remedy
    return str(caught.value)


@pytest.mark.parametrize("outputs", Outputs, ids=str)
def test_names_are_distinct_and_cover_rows_chains_and_modes(outputs: Outputs) -> None:
    names = [str(case) for case in conformance_cases(device(outputs=outputs))]
    assert len(set(names)) == len(names)
    for row in ROWS:
        for chain in row.chains:
            label = " + ".join((row.name, *(post_op.kernel for post_op in chain)))
            for mode in row.modes & {Mode.STATIC, Mode.DYNAMIC}:
                assert any(name.startswith(f"{label}, {mode.value}") for name in names)


@pytest.mark.parametrize("case", conformance_cases(device()), ids=str)
def test_a_correct_device(case: Case) -> None:
    case.check()


@pytest.mark.parametrize("case", conformance_cases(device(outputs=Outputs.ALWAYS)), ids=str)
def test_a_device_that_always_quantizes_outputs(case: Case) -> None:
    case.check()


LINEAR_CASE = "linear + hardtanh, static"
READ_CASE = "linear + hardtanh, static, read by integers"


def test_a_row_that_declines_every_call_fails() -> None:
    def declines(node: torch.fx.Node) -> Reason:
        return Reason.unsupported("never")

    backend = device((CONV2D, replace(LINEAR, checks=(declines,))))
    message = failure(the_case(backend, LINEAR_CASE))
    assert "row 'linear + hardtanh' did not quantize" in message
    assert "unsupported argument: never" in message


def test_a_row_after_another_that_takes_its_call_fails() -> None:
    backend = device((replace(LINEAR, name="greedy"), LINEAR))
    assert "by row greedy + hardtanh" in failure(the_case(backend, LINEAR_CASE))


def test_a_quantizer_that_leaves_the_weight_in_float_fails() -> None:
    def make(*, mode: Mode, target: str) -> TableQuantizer:
        return TableQuantizer(core.table(ROWS)).set_global(replace(core.CONFIG, weight=None))

    assert "is not found again in the converted graph" in failure(the_case(device(quantizer=make), LINEAR_CASE))


def with_weight(spec: QuantizationSpec) -> Backend:
    def make(*, mode: Mode, target: str) -> TableQuantizer:
        return TableQuantizer(core.table(ROWS)).set_global(QuantizationConfig(core.ACT, core.ACT, spec, None))

    return device(quantizer=make)


def test_another_channel_axis_than_the_rows_fails() -> None:
    operands = tuple(replace(o, ch_axis=1) if o.ch_axis == 0 else o for o in LINEAR.operands)
    other = tuple(replace(row, operands=operands) if row is LINEAR else row for row in ROWS)
    assert "ch_axis=1" in failure(the_case(device(quantizer=quantizer_of(other)), LINEAR_CASE))


def test_weights_on_a_grid_that_is_far_too_coarse_fail() -> None:
    spec = replace(core.WEIGHT, observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=10.0))
    assert "do not represent its values" in failure(the_case(with_weight(spec), LINEAR_CASE))


def quantized_probe() -> tuple[Probe, GraphModule, PatternTable]:
    table = core.table((LINEAR,))
    sample = Sample({"input": (5, 8), "weight": (6, 8), "bias": (6,)})
    probe = Probe(Plan(LINEAR, (), sample, {}), table, torch.Generator().manual_seed(0))
    x = torch.randn(5, 8)
    return probe, core.quantized(core.export(probe, x), (x,)), table


def test_a_float_copy_of_the_weight_fails() -> None:
    probe, converted, table = quantized_probe()
    check_weights(converted, table, probe)
    converted.register_buffer("copy", probe.get_parameter("tested.weight").detach().half().clone())
    with pytest.raises(ConformanceError, match="still holds operand 'weight' as floats") as caught:
        check_weights(converted, table, probe)
    assert "copy: torch.float16" in str(caught.value.found)


def test_wrong_integers_fail() -> None:
    probe, converted, table = quantized_probe()
    (match,) = match_converted(converted, table)
    stored = match.operand("weight").args[0]
    getattr(converted, stored.target)[0, 0] += 1
    with pytest.raises(ConformanceError, match="do not represent its values"):
        check_weights(converted, table, probe)


def test_coverage_that_json_changes_fails() -> None:
    probe, converted, _ = quantized_probe()
    check_coverage(converted, probe.plan)
    converted.meta[COVERAGE_KEY]["entries"][0]["code"] = ("a", "tuple")
    with pytest.raises(ConformanceError, match="does not survive JSON"):
        check_coverage(converted, probe.plan)


def halve_the_clamp(module: GraphModule) -> None:
    for node in (node for node in module.graph.nodes if is_call(node, aten.hardtanh.default)):
        replace_argument(node, "max_val", 0.5)


def test_a_quantizer_that_computes_something_else_fails() -> None:
    backend = device(quantizer=quantizer_of(ROWS, edit=halve_the_clamp))
    assert "further from the float one than its steps allow" in failure(the_case(backend, LINEAR_CASE))


def test_a_range_that_is_far_too_wide_fails() -> None:
    wide = replace(core.ACT, observer_or_fake_quant_ctr=MinMaxObserver.with_args(eps=1.0))

    def make(*, mode: Mode, target: str) -> TableQuantizer:
        return TableQuantizer(core.table(ROWS)).set_global(replace(core.CONFIG, input_activation=wide))

    assert "a range does not fit" in failure(the_case(device(quantizer=make), LINEAR_CASE))


def test_a_quantizer_that_changes_the_given_model_fails() -> None:
    def scale_weights(module: GraphModule) -> None:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(1.01)

    backend = device(quantizer=quantizer_of(ROWS, edit=scale_weights))
    message = failure(the_case(backend, LINEAR_CASE))
    assert "quantization changed its input module" in message
    assert "tensor tested.weight" in message


def test_a_lowering_that_changes_the_given_graph_fails() -> None:
    def marks(converted: GraphModule, inputs: tuple[Any, ...], target: str) -> nn.Module:
        converted.meta["lowered for"] = target
        lowered: nn.Module = lower(converted, inputs, target)
        return lowered

    assert "lowering changed its input module" in failure(the_case(device(lower=marks), LINEAR_CASE))


def shift_zero_points(module: GraphModule) -> None:
    for node in (node for node in module.graph.nodes if node.target is decomposed.DEQUANTIZE):
        replace_argument(node, "zero_point", node.args[2] + 1)


def read_nan(module: GraphModule) -> None:
    output = module.graph.output_node()
    (last,) = output.all_input_nodes
    with module.graph.inserting_before(output):
        output.replace_input_with(last, module.graph.call_function(aten.div.Tensor, (last, 0.0)))


def read_one_row(module: GraphModule) -> None:
    output = module.graph.output_node()
    (last,) = output.all_input_nodes
    with module.graph.inserting_before(output):
        output.replace_input_with(last, module.graph.call_function(aten.slice.Tensor, (last, 0, 0, 1)))


@pytest.mark.parametrize("name", [LINEAR_CASE, READ_CASE, "max_pool2d, static, read by integers"])
@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (shift_zero_points, "does not compute what the converted one does"),
        (read_nan, "gives NaN or infinity"),
        (read_one_row, "returns a tensor of another shape"),
    ],
)
def test_a_wrong_kernel_fails(name: str, edit: Edit, says: str) -> None:
    assert says in failure(the_case(device(lower=lowering_of(edit)), name))


def test_a_kernel_without_its_clamp_fails() -> None:
    backend = device(lower=lowering_of(halve_the_clamp))
    assert "the lowered module does not compute" in failure(the_case(backend, LINEAR_CASE))


def test_a_result_that_is_no_tensor_fails() -> None:
    class Text(nn.Module):
        def forward(self, *inputs: Tensor) -> str:
            return "four"

    def texts(converted: GraphModule, inputs: tuple[Any, ...], target: str) -> nn.Module:
        return Text()

    def ran(lowered: nn.Module) -> Mapping[str, str]:
        return {"linear": "linear + hardtanh"}

    assert "is not a tensor" in failure(the_case(device(lower=texts), LINEAR_CASE, ran=ran))


def test_a_row_that_the_device_did_not_run_fails() -> None:
    def nothing(lowered: nn.Module) -> Mapping[str, str]:
        return {}

    def anything(lowered: nn.Module) -> Mapping[str, str]:
        return {"linear": "linear + hardtanh"}

    assert "does not run it in integers" in failure(the_case(device(), LINEAR_CASE, ran=nothing))
    the_case(device(), LINEAR_CASE, ran=anything).check()


def test_a_row_without_a_sample_fails_until_it_has_one() -> None:
    rrelu = PostOp(aten.rrelu.default, "rrelu")
    row = replace(LINEAR, chains=((rrelu,), ()), modes=STATIC)
    backend = device((row,))
    (case,) = (case for case in conformance_cases(backend) if "no sample" in str(case))
    assert "samples={aten.rrelu.default: Sample(...)}" in failure(case)
    alike = {aten.rrelu.default: Sample({"self": (2,)}, {"lower": 0.5, "upper": 0.5})}
    named = [case for case in conformance_cases(backend, samples=alike) if str(case).startswith("linear + rrelu")]
    assert "no error rule of aten.rrelu.default" in failure(named[0])

    def contracts(call: Any) -> Tensor:
        return torch.as_tensor(call.errors["self"])

    known = {aten.rrelu.default: replace(alike[aten.rrelu.default], error=contracts)}
    for case in conformance_cases(backend, samples=known):
        case.check()


def test_a_row_that_no_integers_can_reach_fails() -> None:
    assert "never gets integers" in failure(the_case(device((core.POOL,)), "max_pool2d, static, read by integers"))
    lonely = device((replace(LINEAR, modes=frozenset({Mode.WEIGHT_ONLY})),))
    assert "no mode in common" in failure(the_case(lonely, "linear, unreachable"))


def test_a_missing_runtime_is_told_apart() -> None:
    def absent(converted: GraphModule, inputs: tuple[Any, ...], target: str) -> nn.Module:
        raise BackendError("the runtime is not installed", remedy="install it")

    with pytest.raises(DeviceMissingError, match="the runtime is not installed"):
        the_case(device(lower=absent), LINEAR_CASE).check()
    with pytest.raises(DeviceMissingError, match="the runtime is not installed"):
        the_case(device(lower=absent), "lowering refuses a float graph").check()
    broken = device(lower=absent, quantizer=quantizer_of(ROWS, edit=halve_the_clamp))
    assert "further from the float one" in failure(the_case(broken, LINEAR_CASE))


@pytest.mark.parametrize("bad", [bad.value for bad in Bad])
def test_a_lowering_that_takes_anything_fails(bad: str) -> None:
    def anything(converted: GraphModule, inputs: tuple[Any, ...], target: str) -> nn.Module:
        return converted

    def crashes(converted: GraphModule, inputs: tuple[Any, ...], target: str) -> nn.Module:
        raise KeyError(target)

    assert "it was lowered" in failure(the_case(device(lower=anything), f"lowering refuses {bad}"))
    assert "KeyError" in failure(the_case(device(lower=crashes), f"lowering refuses {bad}"))


def test_a_refusal_must_name_the_target() -> None:
    def vague(converted: GraphModule, inputs: tuple[Any, ...], target: str) -> nn.Module:
        raise QSpecError("no", remedy="none")

    assert "does not name the target" in failure(the_case(device(lower=vague), "lowering refuses an unknown target"))


@pytest.mark.parametrize(
    ("rule", "rows", "says"),
    [
        ("names", (LINEAR, replace(CONV2D, name="linear")), "2 rows named linear"),
        ("chains", (replace(LINEAR, chains=((), (core.RELU,))),), "a longer chain after a shorter one"),
        ("claims", (replace(LINEAR, chains=((core.RELU,), (core.RELU,), ())),), "claimed 2 times"),
        ("claims", (LINEAR, replace(LINEAR, name="again")), "aten.linear.default is claimed 2 times"),
        ("operands", (replace(core.POOL, operands=(activation("input"),)),), "has no 'input'"),
        ("operands", (replace(core.POOL, operands=()),), "no activation and no weight"),
    ],
)
def test_a_table_that_contradicts_itself_fails(rule: str, rows: tuple[Row, ...], says: str) -> None:
    assert says in failure(the_case(device(rows), f"table: {rule}"))


def test_an_operator_that_stays_float_without_a_reason_fails() -> None:
    table = core.table((LINEAR,), float_only={aten.mul.Tensor: " "})
    assert "no reason" in failure(the_case(device(table=table), "table: float only"))


def test_dynamic_rows_are_run_dynamically() -> None:
    names = {str(case) for case in conformance_cases(device((LINEAR,)))}
    assert {"linear, dynamic", "linear + hardtanh, dynamic, rank 3, no bias"} <= names
