"""The README's program runs, and every name, path and link in the pages exists."""

import dataclasses
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = ("docs/architecture.md", "docs/backend-contract.md", "docs/glossary.md")
NAMESPACES = ("qspec_core", "qspec_core.patterns", "qspec_core.backend", "qspec_core.graph")
# Words in code type that name no object of ours: attributes, files and operators of torch, options, folders.
TERMS = {
    *("__all__", "_rows/", "bias_correction=True", "choose_qparams", "convert", "conv2d", "fold_quantize=True"),
    *("linear", "lower", "meta", "mm", "no_grad", "pyproject.toml", "qspec", "qspec.backends.v1", "val"),
    *("DeprecationWarning", "backend=", "mode", "package", "target"),  # Python, and arguments
    *("lower(converted, example_inputs, target)", "package(converted, example_inputs, path, target)"),
    *("quantized_decomposed", "tool.qspec.api.tiers", "torch.compile", "torch.export", ".pt2", ".pte"),
}
COMMANDS = ("nox ", "python ", "qspec ")


def in_backticks(page: str) -> list[str]:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    return sorted(set(re.findall(r"`([^`]+)`", text)))


def resolve(dotted: str) -> object:
    """Import the longest module prefix, then read attributes; a dataclass's field without a default counts as one."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for name in parts[end:]:
            found = getattr(found, name) if hasattr(found, name) else _field(found, name)
        return found
    raise ModuleNotFoundError(dotted)


def _field(owner: object, name: str) -> dataclasses.Field[object]:
    known = {field.name: field for field in dataclasses.fields(owner)} if dataclasses.is_dataclass(owner) else {}
    if name not in known:
        raise AttributeError(f"{owner!r} has no attribute or field {name!r}")
    return known[name]


@pytest.mark.parametrize(
    ("page", "token"), [(page, token) for page in PAGES for token in in_backticks(page)], ids=lambda value: str(value)
)
def test_name_or_path_in_page_exists(page: str, token: str) -> None:
    if token in TERMS or token.startswith(COMMANDS):
        return
    if "/" in token:
        assert (ROOT / token).exists()
    elif (ROOT / "packages" / token).is_dir():  # the name of a distribution
        return
    elif token.startswith(("qspec_", "_qspec_")):
        resolve(token)
    else:
        assert any(_has(namespace, token) for namespace in NAMESPACES), f"{token} is in none of {NAMESPACES}"


def _has(namespace: str, dotted: str) -> bool:
    try:
        resolve(f"{namespace}.{dotted}")
    except (AttributeError, ModuleNotFoundError):
        return False
    return True


def test_every_module_of_core_is_in_the_architecture_page() -> None:
    """The tables of modules and of public modules name what is there, no more and no less."""
    folder = ROOT / "packages/qspec-core/src/qspec_core"
    names = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    text = (ROOT / "docs/architecture.md").read_text()
    modules, _, rest = text.partition("## Modules of core")[2].partition("## The public surface")
    surface = rest.partition("## Every pass")[0]
    public = {name for name in names if not name.startswith("_")}
    assert set(re.findall(r"`qspec_core\.(\w+)`", modules)) == names - {"__init__"}
    assert set(re.findall(r"`qspec_core\.(\w+)`", surface)) == public


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))], ids=lambda path: path.name)
def test_links_to_files_resolve(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_program_in_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len([line for line in program.splitlines() if line.strip()]) <= 15
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    exec(compile(program, "README.md", "exec"), scope)  # the program as a reader would run it
    assert "2 of 2 convolution and linear layers quantized" in capsys.readouterr().out
    assert tuple(scope["y"].shape) == (1, 10)  # type: ignore[attr-defined]  # a tensor
    assert (tmp_path / "model.pt2").stat().st_size > 0
    assert (tmp_path / "model_x86.pt2").stat().st_size > 0
