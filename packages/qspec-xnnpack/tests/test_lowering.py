"""Lowering as a whole: what is refused, what is missing, what the program takes."""

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qspec_core as qspec
from qspec_core import BackendError, GraphError, LoweringError, Result
from qspec_core.patterns import PatternTable
from qspec_xnnpack import (
    BACKEND,
    UntestedExecuTorchWarning,
    XNNPACKProgram,
    XNNPACKQuantizer,
    _executorch,
    _lowering,
    get_symmetric_quantization_config,
)
from qspec_xnnpack._rows import TABLE


class Block(nn.Module):
    """An inverted residual block with an uneven pad, then a head: the operators of a mobile network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU6())
        self.project = nn.Conv2d(8, 8, 1)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(F.pad(x, (0, 1, 0, 1)))
        x = self.project(self.depthwise(x)) + x
        return F.linear(self.drop(F.adaptive_avg_pool2d(x, 1).flatten(1)), self.head.weight, self.head.bias)


X = torch.linspace(-2, 2, 3 * 16 * 16).reshape(1, 3, 16, 16)


@pytest.fixture(scope="module")
def result(quantized: Callable[..., Result]) -> Result:
    torch.manual_seed(0)
    return quantized(Block().eval(), X)


@pytest.fixture(scope="module")
def program(result: Result, lowered: Callable[[Result], XNNPACKProgram]) -> XNNPACKProgram:
    return lowered(result)


def test_block_is_one_delegate_in_integers(
    result: Result,
    program: XNNPACKProgram,
    steps: Callable[[torch.fx.GraphModule], list[float]],
    kernels: Callable[[bytes], list[str]],
) -> None:
    assert (program.delegation.delegates, program.delegation.outside) == (1, ())
    assert kernels(program.buffer).count("XNNConvert") == 2
    # Each of the five layers before the head may round one value to its other side.
    with torch.no_grad():
        torch.testing.assert_close(program(X), result.converted(X), rtol=0, atol=3 * steps(result.converted)[0])


def test_outputs_of_two_calls_are_apart(program: XNNPACKProgram) -> None:
    first = program(X)
    kept = first.clone()
    program(-X)
    assert torch.equal(first, kept)


def test_channels_last_input_gives_the_same(program: XNNPACKProgram) -> None:
    assert torch.equal(program(X.to(memory_format=torch.channels_last)), program(X))


def test_channels_last_example_gives_the_same(result: Result, program: XNNPACKProgram) -> None:
    last = X.to(memory_format=torch.channels_last)
    other = BACKEND.lower(result.converted, (last,), "any")
    assert torch.equal(other(X), program(X))
    assert torch.equal(other(last), program(X))


def test_a_graph_made_on_another_device_runs_on_the_cpu(quantized: Callable[..., Result]) -> None:
    class Placed(nn.Module):
        """A linear layer over inputs to which their places are added."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.layer(x + torch.arange(4, device=x.device))
            return found

    x = torch.randn(2, 4)
    result = quantized(Placed().eval(), x)
    expected = result.lowered(x)
    (places,) = result.converted.graph.find_nodes(op="call_function", target=torch.ops.aten.arange.default)
    places.kwargs = {**places.kwargs, "device": torch.device("meta")}
    places.meta["val"] = places.meta["val"].to("meta")
    assert torch.equal(BACKEND.lower(result.converted, (x,), "any")(x), expected)


def test_lowering_leaves_the_converted_graph_alone(result: Result) -> None:
    graph = str(result.converted.graph)
    metas = [dict(node.meta) for node in result.converted.graph.nodes]
    BACKEND.lower(result.converted, (X,), "any")
    assert str(result.converted.graph) == graph
    assert [node.meta.keys() for node in result.converted.graph.nodes] == [meta.keys() for meta in metas]
    assert not any("qspec_row" in (node.meta.get("custom") or {}) for node in result.converted.graph.nodes)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch 2.13 warns of its own class
def test_program_copies_and_pickles(program: XNNPACKProgram) -> None:
    wanted = program(X)
    assert torch.equal(copy.deepcopy(program)(X), wanted)
    assert torch.equal(pickle.loads(pickle.dumps(program))(X), wanted)


@pytest.mark.parametrize(
    "inputs",
    [(X[..., :8],), (X.double(),), (X[0],), (), (X, X), (1.0,)],
    ids=["shape", "dtype", "rank", "0", "2", "number"],
)
def test_unfit_input_raises(program: XNNPACKProgram, inputs: tuple[object, ...]) -> None:
    with pytest.raises(GraphError) as caught:
        program(*inputs)
    assert "lower again" in caught.value.remedy


def test_package_runs_where_only_the_runtime_is(result: Result, tmp_path: Path) -> None:
    path = result.package(tmp_path / "block.pte")
    torch.save(X, tmp_path / "x.pt")
    code = (
        "import sys, torch; from executorch.runtime import Runtime\n"
        "program = Runtime.get().load_program(sys.argv[1]); method = program.load_method('forward')\n"
        "torch.save(method.execute((torch.load(sys.argv[2]),))[0], sys.argv[3]); assert 'qspec_core' not in sys.modules"
    )
    paths = [str(path), str(tmp_path / "x.pt"), str(tmp_path / "y.pt")]
    subprocess.run([sys.executable, "-c", code, *paths], check=True, capture_output=True)
    assert torch.equal(torch.load(tmp_path / "y.pt"), result.lowered(X))


def test_no_constant_is_written_twice(
    quantized: Callable[..., Result], lowered: Callable[[Result], XNNPACKProgram]
) -> None:
    """A layer of n weights takes about n bytes: neither float weights nor folded batch norms are left beside them."""
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Conv2d(3, 256, 1), nn.Conv2d(256, 256, 3, bias=False), nn.BatchNorm2d(256)).eval()
    result = quantized(wide, X[..., :4, :4])
    weights = 256 * 3 + 256 * 256 * 9
    assert weights < len(lowered(result).buffer) < 1.1 * weights


def with_row(table: PatternTable, name: str, **changes: object) -> PatternTable:
    return replace(table, rows=tuple(replace(r, **changes) if r.name == name else r for r in table.rows))  # type: ignore[arg-type]  # fields by name


class Sliced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x))[:, ::2]


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return F.relu(y * y)


def quantized_by(table: PatternTable, model: nn.Module) -> Result:
    quantizer = qspec.TableQuantizer(table).set_global(get_symmetric_quantization_config())
    return qspec.quantize(model, (X,), calibration=[(X,)], backend=BACKEND, quantizer=quantizer)


def test_refused_operator_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    table = with_row(TABLE, "slice", checks=())
    result = quantized_by(table, Sliced())
    monkeypatch.setattr(_lowering, "TABLE", table)
    with pytest.raises(LoweringError) as caught:
        result.lowered  # noqa: B018  # made when asked for
    assert caught.value.where.node == "slice_1"
    assert "slice" in caught.value.problem
    assert "slice_copy" in str(caught.value.found)


def test_operator_computed_in_float_inside_the_delegate_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    chains = next(row.chains for row in TABLE.rows if row.name == "add")
    table = with_row(TABLE, "mul", chains=chains)
    result = quantized_by(table, Product())
    monkeypatch.setattr(_lowering, "TABLE", table)
    with pytest.raises(LoweringError) as caught:
        result.lowered  # noqa: B018  # made when asked for
    assert "mul + relu" in caught.value.problem
    assert "in float" in str(caught.value.found)


def test_scales_along_a_dimension_that_the_kernel_cannot_take_are_an_error() -> None:
    """What another quantizer may write: a transposed convolution with a scale for each input channel."""
    operands = next(row.operands for row in TABLE.rows if row.name == "conv_transpose2d")
    other = tuple(replace(operand, ch_axis=0) if operand.ch_axis == 1 else operand for operand in operands)
    table = with_row(TABLE, "conv_transpose2d", operands=other)
    quantizer = qspec.TableQuantizer(table).set_global(get_symmetric_quantization_config(is_per_channel=True))
    model = nn.ConvTranspose2d(3, 4, 2).eval()
    result = qspec.quantize(model, (X,), calibration=[(X,)], backend=BACKEND, quantizer=quantizer)
    with pytest.raises(LoweringError) as caught:
        result.lowered  # noqa: B018  # made when asked for
    assert "conv_transpose2d" in caught.value.problem
    assert "per input channel" in str(caught.value.found)


def test_failure_of_the_runtime_is_an_error(program: XNNPACKProgram) -> None:
    execute = _executorch.load_program(program.buffer)
    with pytest.raises(LoweringError) as caught:
        execute((torch.zeros(1, 3, 999, 999),))
    assert "fails to run" in caught.value.problem


def test_layer_without_quantized_output_is_an_error(quantized: Callable[..., Result]) -> None:
    """What another quantizer may write: the partitioner takes a static convolution only in front of a quantize."""
    config = replace(get_symmetric_quantization_config(is_per_channel=True), output_activation=None)
    result = quantized(nn.Conv2d(3, 4, 1).eval(), X, quantizer=XNNPACKQuantizer().set_global(config))
    with pytest.raises(LoweringError) as caught:
        result.lowered  # noqa: B018  # made when asked for
    assert "convolution" in caught.value.problem


def test_missing_executorch_names_the_extra(result: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "executorch"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "executorch", None)
    with pytest.raises(BackendError) as caught:
        BACKEND.lower(result.converted, (X,), "any")
    assert caught.value.remedy == 'pip install "qspec-xnnpack[executorch]"'


def test_untested_version_warns_once(program: XNNPACKProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", str_version)
    monkeypatch.setattr(_executorch, "_warned", False)
    with pytest.warns(UntestedExecuTorchWarning, match=r"9\.9"):
        _executorch.load_program(program.buffer)
    _executorch.load_program(program.buffer)


def str_version(name: str) -> str:
    assert name == "executorch"
    return "9.9.0"


def test_runtime_that_refuses_a_program_is_an_error(quantized: Callable[..., Result]) -> None:
    """A scale of the output far below that of the products: XNNPACK creates no kernel."""
    config = get_symmetric_quantization_config()
    assert config.output_activation is not None
    tiny = qspec.MinMaxObserver.with_args(eps=1e-9)
    spec = replace(config.output_activation, observer_or_fake_quant_ctr=tiny)
    conv = nn.Conv2d(3, 4, 1, bias=False)
    dead = nn.Sequential(conv, nn.ReLU())
    nn.init.constant_(conv.weight, -1e3)
    quantizer = XNNPACKQuantizer().set_global(replace(config, input_activation=spec, output_activation=spec))
    result = quantized(dead.eval(), X.abs(), quantizer=quantizer)
    with pytest.raises(LoweringError) as caught:
        result.lowered  # noqa: B018  # made when asked for
    assert "runtime refuses" in caught.value.problem


def test_import_does_not_load_executorch() -> None:
    code = "import sys, qspec_xnnpack; sys.exit(any(m.partition('.')[0] == 'executorch' for m in sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_example_inputs_that_do_not_fit_raise(result: Result) -> None:
    with pytest.raises(GraphError) as caught:
        BACKEND.lower(result.converted, (X, X), "any")
    assert "exported with" in caught.value.remedy
