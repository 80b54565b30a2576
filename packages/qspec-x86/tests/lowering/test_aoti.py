"""torch.compile of the eager form, and packages compiled ahead of time: one build of each, as each takes a minute."""

import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import qspec_x86._lowering._aoti as aoti
from qspec_core import LoweringError, convert_pt2e, prepare_pt2e
from qspec_x86 import (
    LOWERING_KEY,
    default_quantizer,
    load_package,
    lower_eager,
    package,
)
from qspec_x86._torch import read_metadata


class Small(nn.Module):
    """A sum in a kernel, pooling, and linears: what each way of running finds hard."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.hidden = nn.Linear(8 * 16, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = nn.functional.max_pool2d(torch.relu(self.second(x) + x), 2).flatten(1)
        result: Tensor = self.head(torch.relu(self.hidden(x)))
        return result


class Made(NamedTuple):
    converted: GraphModule
    eager: GraphModule
    path: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    torch.manual_seed(0)
    example, sizes = torch.randn(3, 3, 8, 8), {0: torch.export.Dim("batch", min=1, max=8)}
    exported = torch.export.export(Small().eval(), (example,), dynamic_shapes=(sizes,)).module()
    assert isinstance(exported, GraphModule)
    prepared = prepare_pt2e(exported, default_quantizer(target="any"))
    with torch.no_grad():
        prepared(torch.randn(8, 3, 8, 8))
    converted = convert_pt2e(prepared)
    path = package(converted, (example,), tmp_path_factory.mktemp("package") / "small.pt2", "any")
    return Made(converted, lower_eager(converted, "any"), path)


def assert_close_to_a_step(found: Tensor, expected: Tensor) -> None:
    """The residual sum is one kernel in eager, float operators when compiled: ties may round to either side."""
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05 * float(expected.abs().max()))
    assert (found - expected).abs().mean() < 0.005 * expected.abs().max()


@torch.no_grad()
def test_compiled_equals_eager(made: Made) -> None:
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Inductor's own, which differ between versions of torch
        compiled = torch.compile(made.eager)
        for batch in (3, 1, 5):
            x = torch.randn(batch, 3, 8, 8)
            assert_close_to_a_step(compiled(x), made.eager(x))


@torch.no_grad()
def test_package_equals_eager_on_every_batch_and_layout(made: Made) -> None:
    loaded = load_package(made.path)
    for batch in (3, 1, 8):
        x = torch.randn(batch, 3, 8, 8)
        strided = torch.randn(batch, 8, 8, 6)[..., ::2].permute(0, 3, 2, 1)
        for given in (x, x.to(memory_format=torch.channels_last), strided, x.clone().requires_grad_()):
            assert_close_to_a_step(loaded(given), made.eager(given))


@pytest.mark.parametrize(
    "wrong",
    [torch.zeros(9, 3, 8, 8), torch.zeros(3, 3, 8, 7), torch.zeros(3, 3, 8, 8, dtype=torch.float64), torch.zeros(3, 8)],
    ids=["batch", "width", "dtype", "rank"],
)
def test_package_refuses_what_it_was_not_compiled_for(made: Made, wrong: Tensor) -> None:
    with pytest.raises(LoweringError) as caught:
        load_package(made.path)(wrong)
    assert "float32 (" in str(caught.value.expected)
    assert "1 to 8" in str(caught.value.expected)


def test_package_refuses_a_wrong_number_of_tensors(made: Made) -> None:
    with pytest.raises(LoweringError, match="takes 1 tensors, got 2"):
        load_package(made.path)(torch.zeros(3, 3, 8, 8), torch.zeros(1))


_FRESH = """
import sys, torch
run = torch._inductor.aoti_load_package(sys.argv[1])
x = torch.load(sys.argv[2])
torch.save(run(x), sys.argv[3])
assert not any(name.startswith("qspec") for name in sys.modules)
"""


def test_a_fresh_process_runs_the_package_without_qspec(made: Made, tmp_path: Path) -> None:
    x = torch.randn(4, 3, 8, 8)
    torch.save(x, tmp_path / "x.pt")
    arguments = [str(made.path), str(tmp_path / "x.pt"), str(tmp_path / "y.pt")]
    subprocess.run([sys.executable, "-I", "-c", _FRESH, *arguments], check=True, timeout=300)
    torch.testing.assert_close(torch.load(tmp_path / "y.pt"), load_package(made.path)(x), rtol=0, atol=0)


def change_metadata(made: Made, monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    """Let the package say something else of itself."""
    changed = {key: value.replace(old, new) for key, value in read_metadata(made.path).items()}
    assert changed != read_metadata(made.path)

    def read(path: Path) -> dict[str, str]:
        return changed

    monkeypatch.setattr(aoti, "read_metadata", read)


def yes(*_: object) -> bool:
    return True


def test_a_package_for_vnni_is_refused_where_sums_are_cut(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    change_metadata(made, monkeypatch, '"target": "any"', '"target": "vnni"')
    monkeypatch.setattr(aoti, "saturates", yes)
    with pytest.raises(LoweringError) as caught:
        load_package(made.path)
    assert caught.value.found == "target 'vnni'"


@pytest.mark.parametrize(("here", "runs"), [("DEFAULT", False), ("AVX2", True), ("AVX512", True), ("ZVECTOR", False)])
def test_a_package_for_any_cpu_needs_avx2(made: Made, monkeypatch: pytest.MonkeyPatch, here: str, runs: bool) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: here)
    if runs:
        assert load_package(made.path).signature.instructions == "AVX2"
        return
    with pytest.raises(LoweringError, match="instructions that this CPU does not have") as caught:
        load_package(made.path)
    assert caught.value.found == f"AVX2 needed; this CPU has {here}"


def test_a_package_for_one_cpu_is_refused_on_a_lesser_one(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    change_metadata(made, monkeypatch, '"instructions": "AVX2"', '"instructions": "AVX512"')
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    with pytest.raises(LoweringError) as caught:
        load_package(made.path)
    assert caught.value.found == "AVX512 needed; this CPU has AVX2"


def test_a_package_of_another_torch_is_refused(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    version = ".".join(torch.__version__.split(".")[:2])
    change_metadata(made, monkeypatch, version, "2.9")
    with pytest.raises(LoweringError) as caught:
        load_package(made.path)
    assert (caught.value.found, caught.value.expected) == ("torch 2.9", f"torch {version}")


def test_weights_of_4_bits_packed_for_another_cpu_are_refused(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    change_metadata(made, monkeypatch, '"packed_for": null', '"packed_for": "NEON"')
    with pytest.raises(LoweringError, match="packed for another class of CPU"):
        load_package(made.path)


def test_a_pickled_package_computes_the_same(made: Made, tmp_path: Path) -> None:
    first, x = load_package(made.path), torch.randn(3, 3, 8, 8)
    torch.save(first, tmp_path / "lowered.pt")
    second = torch.load(tmp_path / "lowered.pt", weights_only=False)
    assert torch.equal(second(x), first(x))
    assert torch.equal(pickle.loads(pickle.dumps(second))(x), first(x))
    assert second.write_package(tmp_path / "model.pt2").read_bytes() == made.path.read_bytes()


def test_a_file_that_is_no_package_or_cut_short_is_refused(made: Made, tmp_path: Path) -> None:
    whole = made.path.read_bytes()
    for name, data in (("half", whole[: len(whole) // 2]), ("empty", b""), ("text", b"hello")):
        (tmp_path / f"{name}.pt2").write_bytes(data)
        with pytest.raises(LoweringError, match="not a compiled package, or it is cut short"):
            load_package(tmp_path / f"{name}.pt2")
    with pytest.raises(LoweringError, match="no such package"):
        load_package(tmp_path / "absent.pt2")
    torch.export.save(torch.export.export(Small().eval(), (torch.randn(3, 3, 8, 8),)), tmp_path / "program.pt2")
    with pytest.raises(LoweringError):
        load_package(tmp_path / "program.pt2")


def test_a_package_says_what_lowering_did(made: Made) -> None:
    loaded, report = load_package(made.path), made.eager.meta[LOWERING_KEY]
    assert loaded.meta[LOWERING_KEY] == loaded.report
    assert loaded.report.target == "any"
    assert sorted(loaded.report.lowered) == sorted(report.lowered)
    assert loaded.report.summary() in repr(loaded)
    assert "weights quantized again" not in repr(loaded)


def test_packing_has_no_shape_of_ours_once_the_package_is_written(made: Made) -> None:
    geometry = ([1, 1], [0, 0], [1, 1], 1, None)
    with torch._subclasses.FakeTensorMode() as mode:
        weight = mode.from_tensor(torch.zeros(4, 4, 1, 1, dtype=torch.int8))
        scales = mode.from_tensor(torch.ones(4))
        with pytest.raises(RuntimeError, match="qconv_prepack"):
            torch.ops.onednn.qconv_prepack(weight, scales, 1.0, 0, *geometry)


@pytest.mark.parametrize("name", ["model.so", "model"])
def test_a_package_has_its_ending(made: Made, tmp_path: Path, name: str) -> None:
    with pytest.raises(LoweringError, match=r"must end in \.pt2"):
        package(made.converted, (torch.randn(3, 3, 8, 8),), tmp_path / name)


def test_example_inputs_that_do_not_fit_are_refused(made: Made, tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match="does not fit"):
        package(made.converted, (torch.randn(3, 4, 8, 8),), tmp_path / "model.pt2")
    with pytest.raises(LoweringError, match="takes 1 values, got 0"):
        package(made.converted, (), tmp_path / "model.pt2")


def test_a_package_with_a_cpp_library_of_its_own_is_refused(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two C++ libraries in one process: torch crashes on loading. Here the package needs another than is looked for."""
    path, x = tmp_path / "model.pt2", torch.randn(3, 3, 8, 8)
    package(made.converted, (x,), path)
    monkeypatch.setattr(aoti, "_CPP_LIBRARY", b"libanother++.so")
    with pytest.raises(LoweringError, match="linked its library statically"):
        load_package(path)
    with pytest.raises(LoweringError, match="linked its library statically"):
        package(made.converted, (x,), path)
    assert not path.exists()
