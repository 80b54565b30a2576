from pathlib import Path

import pytest

import changelog_check
from changelog_check import problems_of

ROOT = Path(__file__).parents[2]
SENTENCE = "`prepare_pt2e` takes half the time.\n"
MOVED = "Names moved.\n\n- `a.old` -> `b.new`\n- `a.other` -> private\n- `a.last` -> removed: read `b.mode`\n"


def test_fragments_of_this_repository_are_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert changelog_check.main([str(ROOT)]) == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *((f"16.{kind}.md", SENTENCE) for kind in changelog_check.KINDS),
        ("16.fix.2.md", "A sentence\nover two lines, e.g. this one."),
        ("16.breaking.md", MOVED),
    ],
)
def test_fragment_in_order(name: str, text: str) -> None:
    assert problems_of(name, text) == []


@pytest.mark.parametrize("name", ["16.md", "16.news.md", "fix.md", "16.fix.txt", "16.fix.md.orig", "16.fix.a.md"])
def test_name_is_refused(name: str) -> None:
    assert [problem.split(" md")[0][:12] for problem in problems_of(name, SENTENCE)] == ["is not named"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "does not begin with a sentence"),
        (" \n", "does not begin with a sentence"),
        ("- `a.old` -> `b.new`\n", "does not begin with a sentence"),
        ("No full stop\n", "something other than one sentence"),
        ("One sentence. And another.\n", "something other than one sentence"),
        (MOVED + "- a.bare -> `b.new`\n", "no move: '- a.bare"),
        (MOVED + "More prose.\n", "no move: 'More prose.'"),
        (MOVED + "- `a.gone` -> removed\n", "no move: '- `a.gone`"),
    ],
)
def test_content_is_refused(text: str, problem: str) -> None:
    (found,) = problems_of("16.breaking.md", text)
    assert problem in found


def test_moves_are_breaking() -> None:
    assert problems_of("16.fix.md", MOVED) == ["lists moved names, which only a breaking change does"]


def test_command_finds_missing_folder_and_double_move(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "packages" / "one" / "changelog.d"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("not a fragment")
    assert changelog_check.main([str(tmp_path)]) == 0
    (folder / "16.breaking.md").write_text(MOVED)
    (folder / "16.breaking.2.md").write_text("More moved.\n\n- `a.old` -> private\n")
    (tmp_path / "packages" / "two").mkdir()
    assert changelog_check.main([str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "moves a.old, which 16.breaking.2.md moves too" in printed
    assert "does not exist" in printed
