"""The README's program runs, and every name and path in the architecture page exists."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMESPACES = ("qspec_core", "qspec_core.patterns", "qspec_core.backend", "qspec_core.graph")
TERMS = {"activation", "lower", "checks", "int8", "_rows/"}  # words in code type that name no object of ours


def in_backticks(page: str) -> list[str]:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    return sorted(set(re.findall(r"`([^`]+)`", text)))


def resolve(dotted: str) -> object:
    """Import the longest module prefix, then read attributes."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for name in parts[end:]:
            found = getattr(found, name)
        return found
    raise ModuleNotFoundError(dotted)


@pytest.mark.parametrize("token", in_backticks("docs/architecture.md"))
def test_name_or_path_in_architecture_exists(token: str) -> None:
    if token.startswith(("nox ", "(")) or token in TERMS or " " in token:
        return
    if "/" in token:
        assert (ROOT / token).exists()
    elif token.startswith("qspec_"):
        resolve(token)
    elif re.fullmatch(r"[A-Za-z_.]+", token) and token not in ("quantized_decomposed",):
        assert any(_has(namespace, token) for namespace in NAMESPACES), f"{token} is in none of {NAMESPACES}"


def _has(namespace: str, dotted: str) -> bool:
    try:
        resolve(f"{namespace}.{dotted}")
    except (AttributeError, ModuleNotFoundError):
        return False
    return True


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
