"""Programs from files that nobody vouches for: what is good loads, what would run code is refused and does not run."""

import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from core_support import toy_backend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qspec_core import ExportError, load_program, quantize

X = torch.randn(4, 6)
Entries = dict[str, bytes]


class Network(nn.Module):
    """Parameters, a buffer, a constant, and a size that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.register_buffer("shift", torch.ones(3))
        self.scale = torch.full((3,), 2.0)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x) * self.scale + self.shift
        return torch.relu(y).reshape(x.shape[0] * 3)


@pytest.fixture(scope="module", name="good")
def _good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("programs") / "good.pt2"
    sizes = {0: torch.export.Dim("batch")}
    torch.export.save(torch.export.export(Network().eval(), (X,), dynamic_shapes=(sizes,)), path)
    return path


def entries_of(path: Path) -> Entries:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path: Path, entries: Entries, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


class Bomb:
    """An object whose unpickling writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.marker), "w")


def bomb(marker: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save((((Bomb(marker),), {}),), buffer)
    return buffer.getvalue()


def model(entries: Entries, change: Callable[[str], str]) -> Entries:
    changed = change(entries["good/models/model.json"].decode())
    assert changed != entries["good/models/model.json"].decode()
    return {**entries, "good/models/model.json": changed.encode()}


def config(entries: Entries, folder: str, **fields: object) -> Entries:
    """Change the first payload that a configuration lists."""
    name = f"good/data/{folder}/model_{folder}_config.json"
    data = json.loads(entries[name])
    next(iter(data["config"].values())).update(fields)
    return {**entries, name: json.dumps(data).encode()}


def test_program_with_state_and_sizes_loads(good: Path) -> None:
    loaded, wanted = load_program(good).module(), torch.export.load(good).module()
    for size in (1, 4, 9):
        x = torch.randn(size, 6)
        assert torch.equal(loaded(x), wanted(x))


def test_quantized_program_loads(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    result = quantize(network, (X,), backend=toy_backend(), calibration=[(X,)])
    assert torch.equal(load_program(result.save(tmp_path / "a.pt2")).module()(X), result.converted(X))


UNPICKLED: dict[str, Callable[[Entries, bytes], Entries]] = {
    "example inputs": lambda found, data: {**found, "good/data/sample_inputs/model.pt": data},
    "a weight": lambda found, data: {**config(found, "weights", use_pickle=True), "good/data/weights/weight_0": data},
    "a constant": lambda found, data: {
        **config(found, "constants", use_pickle=True),
        "good/data/constants/tensor_0": data,
    },
    "an object": lambda found, data: {
        **config(found, "constants", path_name="opaque_obj_0"),
        "good/data/constants/opaque_obj_0": data,
    },
    "a script object": lambda found, data: {
        **config(found, "constants", path_name="custom_obj_0"),
        "good/data/constants/custom_obj_0": data,
    },
    "old constants": lambda found, data: {**found, "good/data/constants/model.pt": data},
    "old weights": lambda found, data: {**found, "good/data/weights/model.pt": data},
}


@pytest.mark.parametrize("place", UNPICKLED)
@pytest.mark.parametrize("kind", ["torch.save", "pickle"])
def test_nothing_is_unpickled(good: Path, tmp_path: Path, place: str, kind: str) -> None:
    marker = tmp_path / "ran"
    data = bomb(marker) if kind == "torch.save" else pickle.dumps(Bomb(marker))
    path = write(tmp_path / "good.pt2", UNPICKLED[place](entries_of(good), data))
    with pytest.raises(ExportError):
        load_program(path)
    assert not marker.exists()


EVALUATED = [
    ("torch.ops.aten.relu.default", "torch.os.system", "operator torch.os.system"),
    ("torch.ops.aten.relu.default", "torch.ops.load_library", "operator torch.ops.load_library"),
    ("torch.ops.aten.relu.default", "torch.ops.aten.from_file.default", "operator torch.ops.aten.from_file"),
    ("torch.ops.aten.relu.default", "torch.ops.aten.__class__.mro", "operator torch.ops.aten.__class__"),
    ("torch.ops.aten.relu.default", "_operator.methodcaller", "operator _operator.methodcaller"),
    ("torch.ops.aten.relu.default", "#pickle:loads", "operator #pickle:loads"),
    ("Integer(3)", "exec(chr(105))", "a size that calls or reads exec"),
    ("Integer(3)", "print(Integer(3))", "a size that calls or reads print"),
    ("Integer(3)", "Integer(3).evalf()", "a size with call"),
    ("Integer(3)", "[Integer(3)][0]", "a size with subscript"),
    ("Integer(3)", "__import__", "a size that calls or reads __import__"),
    ("Integer(3)", "Pow(Integer(9), Integer(99999999))", "a size without bound"),
    ("Integer(3)", "Symbol('a' * 999999999)", "a size with a text that is no name"),
    ("Integer(3)", "9**9**9**9", "a size without bound"),
    ("Integer(3)", "Pow(Integer(9), Mul(Integer(99), Integer(64)))", "a size without bound"),
    ('"in_spec": "', '"in_spec": "__enum__', "imports modules"),
]


@pytest.mark.parametrize(("old", "new", "found"), EVALUATED, ids=[new for _, new, _ in EVALUATED])
def test_nothing_is_evaluated(good: Path, tmp_path: Path, old: str, new: str, found: str) -> None:
    path = write(tmp_path / "good.pt2", model(entries_of(good), lambda text: text.replace(old, new)))
    with pytest.raises(ExportError) as caught:
        load_program(path)
    assert found in str(caught.value.found)


def test_compiled_code_is_refused(good: Path, tmp_path: Path) -> None:
    entries = {**entries_of(good), "good/data/aotinductor/model/x.so": b"ELF"}
    with pytest.raises(ExportError, match="no part of a program"):
        load_program(write(tmp_path / "good.pt2", entries))


def test_sizes_that_a_file_claims(good: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="compressed"):
        load_program(write(tmp_path / "packed.pt2", entries_of(good), zipfile.ZIP_DEFLATED))
    twice = tmp_path / "twice.pt2"
    shutil.copy(good, twice)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(twice, "a") as archive:
        archive.writestr("good/models/model.json", b"{}")
    with pytest.raises(ExportError, match="two of its entries have one name"):
        load_program(twice)
    deep = model(entries_of(good), lambda _: '{"a":' * 5_000 + "1" + "}" * 5_000)
    with pytest.raises(ExportError):
        load_program(write(tmp_path / "deep.pt2", deep))


@pytest.mark.parametrize("content", [b"", b"PK", b"not a program", b"PK\x05\x06" + bytes(18)])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.pt2"
    path.write_bytes(content)
    with pytest.raises(ExportError) as caught:
        load_program(path)
    assert "other.pt2" in caught.value.problem
    with pytest.raises(ExportError):
        load_program(tmp_path / "missing.pt2")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_file_loads_or_is_refused(good: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(good.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    kept = data.draw(st.sampled_from([len(content), len(content) - 1, len(content) // 2]))
    path = tmp_path / "damaged.pt2"
    path.write_bytes(bytes(content[:kept]))
    try:
        program = load_program(path)
    except ExportError:
        return
    assert isinstance(program, torch.export.ExportedProgram)
