"""Changelog fragments: packages/<name>/changelog.d/<issue>.<kind>.md, checked by name and content.

A fragment holds one sentence for users. Where public names moved, a list follows after an empty line:

    - `old.name` -> `new.name`
    - `other.name` -> private
    - `another.name` -> removed: why, or what to use in its place

`README.md` in the folder explains this to authors and is no fragment.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["KINDS", "main", "problems_of"]

KINDS = ("breaking", "feature", "fix", "change")
"""Kinds of a change; before version 1.0 a breaking one raises the minor version, every other one the patch."""

_NAME = re.compile(rf"\d+\.({'|'.join(KINDS)})(\.\d+)?\.md")
_MOVED = re.compile(r"- `([\w.]+)` -> (`[\w.]+`|private|removed: \S.*)")
_NEXT_SENTENCE = re.compile(r"[.!?]\s+[A-Z`]")


def problems_of(name: str, text: str) -> list[str]:
    """Problems of one fragment, by the file's name and its content."""
    found = []
    if _NAME.fullmatch(name) is None:
        found.append(f"is not named <issue>.<kind>.md or <issue>.<kind>.<number>.md; kinds are {', '.join(KINDS)}")
    sentence, _, moved = text.strip().partition("\n\n")
    if not sentence or sentence.startswith("- "):
        found.append("does not begin with a sentence")
    elif not sentence.endswith(".") or _NEXT_SENTENCE.search(sentence):
        found.append(f"begins with something other than one sentence: {sentence[:60]!r}")
    lines = moved.strip().splitlines()
    if moved and "breaking" not in name.split("."):
        found.append("lists moved names, which only a breaking change does")
    found += [f"has a line that is no move: {line[:60]!r}" for line in lines if _MOVED.fullmatch(line) is None]
    return found


def _moved_names(text: str) -> list[str]:
    return [match[1] for line in text.splitlines() if (match := _MOVED.fullmatch(line))]


def _problems_in(folder: Path) -> Iterator[str]:
    """Problems of all fragments of a folder, each with its path; a name that two lines move is one too."""
    if not folder.is_dir():
        yield f"{folder}: does not exist"
        return
    moved: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name == "README.md":
            continue
        text = path.read_text(encoding="utf-8")
        yield from (f"{path}: {problem}" for problem in problems_of(path.name, text))
        for name in _moved_names(text):
            if name in moved:
                yield f"{path}: moves {name}, which {moved[name].name} moves too"
            moved[name] = path


def main(arguments: Sequence[str]) -> int:
    """Check the fragments of all packages of the repository at the folder given, or at the current one."""
    packages = sorted((Path(arguments[0] if arguments else ".") / "packages").iterdir())
    found = [problem for package in packages for problem in _problems_in(package / "changelog.d")]
    print("\n".join(found) if found else f"changelog: the fragments of {len(packages)} packages are in order")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
