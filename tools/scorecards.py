"""Run the conformance kit of each backend and compare the result with the scorecard committed beside the package.

    python tools/scorecards.py [NAME ...] [--update]

`packages/qspec-NAME/scorecard.json` holds what counts, `scorecard.txt` the same as a table, `scorecard.svg` a badge. A
case that passes or fails, a row, or a layer that is quantized or not is a difference. Nothing depends on the machine's
speed.
"""

import argparse
import difflib
import sys
from pathlib import Path

from qspec_core.backend import get_backend
from qspec_core.testing import scorecard

__all__ = ["main", "names"]

ROOT = Path(__file__).parents[1]


def names() -> list[str]:
    """The backends of this repository."""
    folders = sorted(path.parent.name for path in ROOT.glob("packages/qspec-*/pyproject.toml"))
    return [folder.removeprefix("qspec-") for folder in folders if folder != "qspec-core"]


def _check(name: str, update: bool) -> list[str]:
    """Differences from the committed scorecard, which `update` writes; and the cases that failed."""
    card = scorecard(get_backend(name))
    folder = ROOT / "packages" / f"qspec-{name}"
    path = folder / "scorecard.json"
    print(card)
    if update:
        path.write_text(card.to_json(), encoding="utf-8")
        (folder / "scorecard.txt").write_text(f"{card}\n", encoding="utf-8")
        (folder / "scorecard.svg").write_text(card.to_svg(), encoding="utf-8")
        return list(card.failures)
    before = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = difflib.unified_diff(before, card.to_json().splitlines(), str(path), "now", lineterm="", n=3)
    return [*found, *card.failures]


def main(arguments: list[str]) -> int:
    """Check or rewrite scorecards; 1 if one differs or a case failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="backends; all of them by default")
    parser.add_argument("--update", action="store_true", help="rewrite the scorecards")
    options = parser.parse_args(arguments)
    problems = [line for name in options.names or names() for line in _check(name, options.update)]
    print("\n".join([*problems, f"{len(problems)} lines differ or fail"]))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
