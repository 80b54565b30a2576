import textwrap

import pytest

from size_check import findings_of


def texts(source: str) -> list[str]:
    return [finding.text for finding in findings_of("m.py", textwrap.dedent(source))]


def function_of(lines: int) -> str:
    return "def f():\n" + "    x = 1\n" * (lines - 1)


@pytest.mark.parametrize(("lines", "count"), [(400, 0), (401, 1)])
def test_file_length(lines: int, count: int) -> None:
    assert len(texts("# comment\n" * lines)) == count


@pytest.mark.parametrize(("lines", "count"), [(50, 0), (51, 1)])
def test_function_length_counts_code(lines: int, count: int) -> None:
    assert len(texts(function_of(lines))) == count


def test_docstring_comments_and_blank_lines_are_not_code() -> None:
    body = function_of(49).removeprefix("def f():\n")
    source = f'def f():\n    """One.\n\n    Two.\n    """\n    # why\n\n{body}    return """a\n# string"""\n'
    assert texts(source) == ["m.py:1: f: 51 lines of code, 50 allowed"]


def test_methods_and_inner_functions_are_checked() -> None:
    source = "class C:\n" + textwrap.indent(function_of(51), "    ")
    assert [finding.key for finding in findings_of("m.py", source)] == ["m.py:C.f"]


DEEP = """
def f(a):
    for i in a:
        while i:
            with i:
                if i:
                    pass
                {tail}
"""


def test_nesting_of_four_passes() -> None:
    assert texts(DEEP.format(tail="elif a:\n                    pass")) == []


def test_nesting_of_five_fails() -> None:
    assert texts(DEEP.format(tail="else:\n                    for j in i: pass")) == [
        "m.py:2: f: nested 5 deep, 4 allowed"
    ]
