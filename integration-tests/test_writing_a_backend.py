"""A person who types the commands of docs/writing-a-backend.md and makes its edits gets green tests and a scorecard."""

import json
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from environments import Environment

PAGE = Path(__file__).parents[1] / "docs" / "writing-a-backend.md"
MOST_STEPS = 30
MOST_LINES_OF_A_ROW = 15


@dataclass(frozen=True)
class Step:
    """One command or edit of the page.

    Args:
        kind: console, append, replace or run; "" for a text that a file of the package holds.
        text: the block, without the line that names the file.
        file: path in the package; "" for a command.
    """

    kind: str
    text: str
    file: str = ""


def steps() -> Iterator[Step]:
    for language, kind, text in re.findall(r"^```(\w+) ?(\w*)\n(.*?)^```", PAGE.read_text(), flags=re.DOTALL | re.M):
        if language == "console":
            yield from (Step("console", line.removeprefix("$ ")) for line in text.splitlines())
        elif kind == "run":
            yield Step(kind, text)
        else:
            first, _, rest = text.partition("\n")
            yield Step(kind, rest, first.removeprefix("# "))


class Typist:
    """Types commands in a shell's folder, with an environment's programs."""

    def __init__(self, environment: Environment, folder: Path, core: Path) -> None:
        self.environment = environment
        self.folder = folder
        self.core = core

    def take(self, step: Step) -> None:
        """Do what the step says."""
        path = self.folder / step.file
        if step.kind == "console":
            self.type(*shlex.split(step.text))
        elif step.kind == "run":
            self.environment.run("python", "-W", "ignore", "-c", step.text, folder=self.folder)
        elif step.kind == "append":
            path.write_text(path.read_text() + step.text)
        elif step.kind == "replace":
            old, new = (part.strip("\n") for part in step.text.split("# becomes\n"))
            assert path.read_text().count(old) == 1
            path.write_text(path.read_text().replace(old, new))
        else:
            assert step.text in path.read_text()

    def type(self, program: str, *arguments: str) -> None:
        if program == "cd":
            self.folder = (self.folder / arguments[0]).resolve()
        elif program == "pip":  # the wheel at hand in place of the one on the package index
            wanted = [item.replace("qspec-core", f"{self.core}") for item in arguments[1:]]
            self.environment.install(*wanted, folder=self.folder)
        else:
            self.environment.run(program, *arguments, folder=self.folder)


def test_the_page_has_few_steps() -> None:
    counted = [step for step in steps() if step.kind and step.kind != "run"]
    assert 10 < len(counted) <= MOST_STEPS


def test_a_row_is_short() -> None:
    edits = [s for s in steps() if s.kind in ("append", "replace") and s.file.endswith("_elementwise.py")]
    lines = [line for step in edits for line in step.text.split("# becomes\n")[-1].splitlines() if line.strip()]
    assert len(lines) <= MOST_LINES_OF_A_ROW


def test_every_step_of_the_page_works(
    make_environment: Callable[..., Environment], wheels: dict[str, Path], tmp_path: Path
) -> None:
    typist = Typist(make_environment(with_torch=True), tmp_path, wheels["qspec-core"])
    for step in steps():
        typist.take(step)
    card = json.loads((tmp_path / "qspec-toy" / "scorecard.json").read_text())
    assert card["failures"] == []
    assert {row["row"] for row in card["rows"]} == {"linear", "linear + relu", "add", "add + relu", "view"}
    assert "<svg" in (tmp_path / "qspec-toy" / "scorecard.svg").read_text()


@pytest.mark.parametrize("kind", ["kernels", "compiler"])
def test_a_generated_package_conforms_as_a_wheel(
    kind: str, make_environment: Callable[..., Environment], wheels: dict[str, Path], tmp_path: Path
) -> None:
    environment = make_environment(with_torch=True)
    environment.install(str(wheels["qspec-core"]), "pytest", "numpy")
    environment.run("qspec", "new-backend", "maker", "--kind", kind, "--output", str(tmp_path / "source"))
    build = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(tmp_path / "source"))
    environment.run("python", *build)
    (wheel,) = tmp_path.glob("qspec_maker-*.whl")
    environment.install(str(wheel))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    printed = environment.run("pytest", "-q", "--pyargs", "qspec_core.testing", "--backend", "maker", folder=elsewhere)
    assert re.search(r"^1[56] passed", printed, flags=re.M)
    listed = json.loads(environment.run("qspec", "backends", "--json"))
    assert [(entry["name"], entry["problem"]) for entry in listed] == [("maker", "")]


def test_another_suite_may_have_an_option_backend(
    make_environment: Callable[..., Environment], wheels: dict[str, Path], tmp_path: Path
) -> None:
    environment = make_environment(with_torch=True)
    environment.install(str(wheels["qspec-core"]), "pytest")
    (tmp_path / "conftest.py").write_text("def pytest_addoption(parser):\n    parser.addoption('--backend')\n")
    (tmp_path / "test_own.py").write_text(
        "def test(pytestconfig):\n    assert pytestconfig.getoption('backend') == 'x'\n"
    )
    assert "1 passed" in environment.run("pytest", "-q", "--backend", "x", folder=tmp_path)
