"""A generated package conforms; the same package with one mistake is caught by a named check."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from generated_device import generated

from qspec_cli._scaffold import Kind
from qspec_core import QSpecError
from qspec_core.backend import Backend
from qspec_core.testing import Case, CheckName, ConformanceError, conformance_cases

LINEAR, LOWERING, KERNELS = "_rows/_linear.py", "_lowering/__init__.py", "_kernels.py"
COMPILER, CONFORMANCE, BACKEND, CONFIG = "_lowering/_compiler.py", "_conformance.py", "_backend.py", "_config.py"
LABELS = "    lowered.module.meta[LOWERED_KEY] = dict(lowered.lowered)\n    return lowered.module\n"

# The float model, as far as it can be had from the converted graph: no activation is rounded.
FLOAT_MODEL = """
    from qspec_core import ops
    from qspec_core.graph import copy_graph_module
    module = copy_graph_module(converted)
    for node in list(module.graph.nodes):
        if ops.is_dequantize(node) and ops.is_quantize(node.args[0]):
            node.replace_all_uses_with(node.args[0].args[0])
    module.graph.eliminate_dead_code()
    module.recompile()
"""
HIDDEN = """
    class Hidden(nn.Module):
        def forward(self, *inputs):
            from torch.utils._python_dispatch import _disable_current_modes
            with _disable_current_modes():
                return module(*inputs)
    hidden = Hidden()
    hidden.meta = {LOWERED_KEY: dict(lowered.lowered)}
    return hidden
"""
WRITES_TO_ITS_ARGUMENT = """
    import torch
    first = next(node for node in lowered.module.graph.nodes if node.op == "placeholder")
    last = lowered.module.graph.output_node()
    with lowered.module.graph.inserting_before(last):
        lowered.module.graph.call_function(torch.ops.aten.mul_.Scalar, (first, 2.0))
    lowered.module.recompile()
"""
CHANGES_WEIGHTS = """
    class Scaling(TableQuantizer):
        def annotate(self, model):
            import torch
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.01)
            return super().annotate(model)
    return Scaling(TABLE, target=target).set_global(CONFIG)
"""
RETURN = "    return TableQuantizer(TABLE, target=target).set_global(CONFIG)\n"
NO_SAMPLE_IN_ANY_MODE = """
import torch
from qspec_core.testing import Sample
KIT = Kit(ran=ran, samples={
    torch.ops.aten.linear.default: Sample({"input": (5, 8), "weight": (6, 8)}, modes=frozenset())
})
"""
ONE_ELEMENT = """
import torch
from qspec_core.testing import Sample
KIT = Kit(ran=ran, samples={torch.ops.aten.linear.default: Sample({"input": (1, 8), "weight": (1, 8)})})
"""
ROUNDED = "def _rounded(values: Tensor, scale: float, zero_point: int, relu: bool) -> Tensor:\n"
DRIFTING = f"CALLS = []\n\n\n{ROUNDED}    CALLS.append(1)\n    zero_point += len(CALLS)\n"
CHAINS = "    chains=((RELU,), ()),  # longest first\n"
RRELU = '    chains=((PostOp(aten.rrelu.default, "rrelu"),), ()),\n'
NO_MODES = "    chains=((RELU,), ()),\n    modes=frozenset(),\n"
TABLE = "TABLE = PatternTable(rows=(LINEAR, ADD)"
AGAIN = """
from dataclasses import replace
AGAIN = replace(LINEAR, name="again", checks=(lambda node: None,))
TABLE = PatternTable(rows=(LINEAR, AGAIN, ADD)"""
SAVE = "        save_file(tensors, path, metadata={_KEY: json.dumps(program)})\n"
CUT = f"{SAVE}        path.write_bytes(path.read_bytes()[:100])\n"
ERASE = "    lowering.module.graph.erase_node(integers)\n"
MARK = f'    converted.meta["seen"] = 1\n{LABELS}'
KIT, KEPT = "KIT = Kit(ran=ran)", "value.detach().clone()"
X, UNSIGNED = "(x.to(torch.int32) - x_zero_point)", "(x.view(torch.uint8).to(torch.int32) - x_zero_point)"
SCALES, BIAS, CLAMP = (
    "weight_scales *",
    "values if bias is None else values + bias",
    "values.clamp(min=0) if relu else values",
)
STEPS = "torch.round(values / scale)"
OF_MODULE = FLOAT_MODEL + LABELS.replace("lowered.module", "module")
ROWS = "_rows/__init__.py"


@dataclass(frozen=True)
class Fault:
    """A mistake: a text of a file of the package, and what stands there in its place.

    Args:
        name: becomes the name of the backend.
        check: the check that must fail.
        file: below the package's module.
        old: occurs once.
        new: in its place.
        kind: of the package.
    """

    name: str
    check: CheckName
    file: str
    old: str
    new: str
    kind: Kind = Kind.KERNELS


FAULTS = (
    # Coverage is claimed, and no kernel runs.
    Fault("no_kernel", CheckName.KERNELS, LINEAR, "    lowering.replace_quantizes(match.tail, integers)\n", ERASE),
    Fault("admits_it", CheckName.REPORTED, LOWERING, "dict(lowered.lowered)", "{}"),
    Fault("declines", CheckName.REPORTED, LINEAR, "if result is None or w.ch_axis != 0:", "if True:"),
    # The lowered program is the float model, in sight and out of sight.
    Fault("float_model", CheckName.KERNELS, LOWERING, LABELS, OF_MODULE),
    Fault("hidden_float_model", CheckName.GRID, LOWERING, LABELS, f"{FLOAT_MODEL}{HIDDEN}"),
    # Arithmetic.
    Fault("axis_of_row", CheckName.REPORTED, LINEAR, 'weight("weight", ch_axis=0)', 'weight("weight", ch_axis=1)'),
    Fault("axis_of_kernel", CheckName.CONVERTED, KERNELS, SCALES, "weight_scales.roll(1) *"),
    Fault("transposed", CheckName.RUNS, KERNELS, "weight.to(torch.int32).t()", "weight.to(torch.int32)"),
    Fault("unsigned", CheckName.CONVERTED, KERNELS, X, UNSIGNED),
    Fault("two_percent", CheckName.GAIN, KERNELS, STEPS, "torch.round(values * 1.02 / scale)"),
    Fault("two_percent_less", CheckName.GAIN, KERNELS, STEPS, "torch.round(values * 0.98 / scale)"),
    Fault("zero_point", CheckName.CONVERTED, KERNELS, "+ zero_point, -128", "+ zero_point + 1, -128"),
    Fault("no_bias", CheckName.CONVERTED, KERNELS, BIAS, "values"),
    # Inputs and state.
    Fault("marks_the_graph", CheckName.UNCHANGED, LOWERING, LABELS, MARK),
    Fault("writes_to_argument", CheckName.UNCHANGED, LOWERING, LABELS, f"{WRITES_TO_ITS_ARGUMENT}{LABELS}"),
    Fault("changes_weights", CheckName.UNCHANGED, BACKEND, RETURN, CHANGES_WEIGHTS),
    Fault("drifts", CheckName.REPEATS, KERNELS, ROUNDED, DRIFTING),
    # Rows that no test reaches, and samples that prove nothing.
    Fault("row_without_mode", CheckName.REACHED, LINEAR, CHAINS, NO_MODES),
    Fault("sample_without_mode", CheckName.REACHED, CONFORMANCE, KIT, NO_SAMPLE_IN_ANY_MODE),
    Fault("one_element", CheckName.SAMPLE, CONFORMANCE, KIT, ONE_ELEMENT),
    Fault("no_sample", CheckName.SAMPLE, LINEAR, CHAINS, RRELU),
    Fault("row_after_its_like", CheckName.COVERAGE, ROWS, TABLE, AGAIN),
    Fault("nothing_starts", CheckName.REACHED, ROWS, "rows=(LINEAR, ADD)", "rows=(ADD,)"),
    Fault("operand", CheckName.TABLE, LINEAR, 'activation("input")', 'activation("inputs")'),
    # What lowering must refuse.
    Fault("takes_any_target", CheckName.REFUSAL, LOWERING, "    if target not in TARGETS:", "    if False:"),
    # Files.
    Fault("truncated_file", CheckName.PACKAGE, COMPILER, SAVE, CUT, Kind.COMPILER),
    Fault("no_file", CheckName.PACKAGE, COMPILER, SAVE, "", Kind.COMPILER),
    Fault("other_weights", CheckName.PACKAGE, COMPILER, KEPT, f"{KEPT}.neg()", Kind.COMPILER),
    Fault("no_loader", CheckName.PACKAGE, CONFORMANCE, ", load=load_program", "", Kind.COMPILER),
)


def device(fault: Fault | None, folder: Path, kind: Kind = Kind.KERNELS) -> Backend:
    """The backend of a generated package, with a fault in it."""
    if fault is None:
        return generated(f"device_{kind}", folder, kind)
    return generated(fault.name, folder, fault.kind, (fault.file, fault.old, fault.new))


@pytest.fixture(autouse=True)
def _path_restored() -> Iterator[None]:
    before = list(sys.path)
    yield
    sys.path[:] = before


def failed_checks(cases: tuple[Case, ...]) -> Iterator[CheckName]:
    for case in cases:
        try:
            case.check()
        except ConformanceError as error:
            yield error.check
        except QSpecError:  # what core refuses before the kit compares anything
            continue


@pytest.mark.parametrize("kind", Kind)
def test_a_generated_package_conforms(kind: Kind, tmp_path: Path) -> None:
    cases = conformance_cases(device(None, tmp_path / "package", kind))
    assert len(cases) == 15 + (kind is Kind.COMPILER)
    for case in cases:
        case.check()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_mistake_is_caught_by_its_check(fault: Fault, tmp_path: Path) -> None:
    failed = list(failed_checks(conformance_cases(device(fault, tmp_path / "package"))))
    assert fault.check in failed
