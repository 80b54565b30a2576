"""The mutation tool: its mutants, that they parse, and that a failing test kills one."""

import ast
from pathlib import Path

import pytest

import mutants

TEXT = '''"""Docs: 1 + 1."""
from typing import Literal

LIMIT: Literal[3] = 3


def f(a: int, b: int) -> Literal[5]:
    """More."""
    é = "ü" if a < b and not b else "o"
    if a is None:
        raise ValueError(a + 1)
    return a - b + LIMIT + len(é)
'''


def test_each_operator_gets_its_mutant_and_nothing_else() -> None:
    found = [(mutant.before, mutant.after) for mutant in mutants.mutants("x.py", TEXT)]
    assert sorted(found) == sorted(
        [
            ("3", "(4)"),
            ("a < b", "(a <= b)"),
            ("a < b and not b", "(a < b or not b)"),
            ("not b", "(b)"),
            ('"ü" if a < b and not b else "o"', "('o' if a < b and (not b) else 'ü')"),
            ("a is None", "(a is not None)"),
            ("a - b", "(a + b)"),
            ("a - b + LIMIT", "(a - b - LIMIT)"),
            ("a - b + LIMIT + len(é)", "(a - b + LIMIT - len(é))"),
        ]
    )


def test_mutants_parse_and_differ_in_one_place() -> None:
    for mutant in mutants.mutants("x.py", TEXT):
        changed = mutant.applied(TEXT)
        ast.parse(changed)
        assert changed != TEXT
        assert len(changed) - len(TEXT) == len(mutant.after) - len(mutant.before)


def test_pool_is_large_and_each_file_has_tests() -> None:
    pool = mutants.everything()
    assert len(pool) > 300
    assert len(set(pool)) == len(pool)
    for mutant in pool:
        assert all(Path(path).exists() for stage in mutants.tests_of(mutant.path) for path in stage[:1])


def test_a_test_that_notices_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "src" / "qspec_core" / "_sharing"
    package.mkdir(parents=True)
    (package / "_a.py").write_text("def f(a):\n    return a + 1\n")
    test = tmp_path / "test_a.py"
    monkeypatch.setattr(mutants, "tests_of", lambda path: [[str(test)]])
    read = (
        "import os, pathlib\ntext = pathlib.Path(os.environ['PYTHONPATH'], 'qspec_core/_sharing/_a.py').read_text()\n"
    )
    (mutant, *_) = mutants.mutants("_sharing/_a.py", (package / "_a.py").read_text())
    for check, killed in (("assert 'a - 1' not in text", True), ("assert text", False)):
        test.write_text(f"{read}def test_a():\n    {check}\n")
        assert mutants.is_killed(mutant, tmp_path / "src", 60) is killed
        assert "a + 1" in (package / "_a.py").read_text()


def test_report_names_the_survivors() -> None:
    mutant = {"path": "p.py", "line": 3, "start": 0, "end": 1, "before": "a", "after": "(b)"}
    text = mutants.report([{"mutant": mutant, "killed": True}, {"mutant": mutant, "killed": False}])
    assert text.splitlines() == ["p.py:3: a  ->  (b)", "1 of 2 mutants killed (50.0%)"]
