"""Structure of a package: its rooms, its files, the imports between them, and circles of imports.

A room is a module or a package directly under the root of an import package. The `__init__` of the root is a file, but
not a room. An arrow stands for "imports at least once"; imports inside functions and under
`if TYPE_CHECKING` count too, because a reader has to follow them as well. `from a import b` leads to the module `a.b`
where there is one, else to `a`. Layers are the rooms on the longest chain of imports between rooms; rooms that import
each other in a circle count as one. The exit code is 1 if there is a circle of files.

    python tools/structure.py packages/qspec-core            # one package folder, or several
    python tools/structure.py --json packages/qspec-core
"""

import argparse
import ast
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["Structure", "main", "measure"]

Arrows = Mapping[str, set[str]]
"""The imports of each name."""


@dataclass(frozen=True)
class Structure:
    """Structure of one import package.

    Args:
        package: name of the root package.
        rooms: modules and packages directly under the root.
        files: modules in all, `__init__` files included.
        files_by_folder: modules in each folder, by its path in the package; "." is the root.
        layers: number of rooms on the longest chain of imports between rooms.
        longest_chain: that chain; rooms of a circle stand in one entry, joined by " + ".
        room_arrows: number of pairs of rooms of which the first imports the second.
        file_arrows: the same between files.
        room_circles: rooms that import each other, circle by circle.
        file_circles: files that import each other, circle by circle.
    """

    package: str
    rooms: int
    files: int
    files_by_folder: Mapping[str, int]
    layers: int
    longest_chain: tuple[str, ...]
    room_arrows: int
    file_arrows: int
    room_circles: tuple[tuple[str, ...], ...]
    file_circles: tuple[tuple[str, ...], ...]


def measure(root: Path) -> Structure:
    """Measure one import package, the folder with its root's `__init__.py`. Nothing is imported.

    Cost: O(size of the sources).
    """
    paths = {_module_name(path, root): path for path in sorted(root.rglob("*.py"))}
    files = {name: _imports(name, path, paths) - {name} for name, path in paths.items()}
    rooms: dict[str, set[str]] = {_room(name): set() for name in paths if name != root.name}
    for name, targets in files.items():
        if name != root.name:
            rooms[_room(name)] |= {_room(target) for target in targets if target != root.name} - {_room(name)}
    chain = _longest_chain(rooms)
    folders = Counter(path.parent.relative_to(root).as_posix() for path in paths.values())
    return Structure(
        package=root.name,
        rooms=len(rooms),
        files=len(files),
        files_by_folder=dict(sorted(folders.items())),
        layers=len(chain),
        longest_chain=chain,
        room_arrows=sum(map(len, rooms.values())),
        file_arrows=sum(map(len, files.values())),
        room_circles=_circles(rooms),
        file_circles=_circles(files),
    )


def _module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _room(module: str) -> str:
    """`package.room` of a module at any depth."""
    return ".".join(module.split(".")[:2])


def _imports(module: str, path: Path, known: Mapping[str, Path]) -> set[str]:
    """Modules of the same package that a file imports, anywhere in its text."""
    found: set[str] = set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = _source(node, package)
            joined = (f"{source}.{alias.name}" for alias in node.names)
            found.update(name if name in known else source for name in joined)
    return found & set(known)


def _source(node: ast.ImportFrom, package: str) -> str:
    """The absolute name of the module that an import statement names."""
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])


def _components(arrows: Arrows) -> list[tuple[str, ...]]:
    """Sets of names that reach each other (strongly connected components), each after all that it imports.

    Source: R. Tarjan, Depth-first search and linear graph algorithms, SIAM Journal on Computing 1 (1972).
    """
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    done: list[tuple[str, ...]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in sorted(arrows[name]):
            if target not in index:
                visit(target)
            if target in stack:
                low[name] = min(low[name], low[target])
        if low[name] == index[name]:
            cut = stack.index(name)
            done.append(tuple(stack[cut:]))
            del stack[cut:]

    for name in sorted(arrows):
        if name not in index:
            visit(name)
    return done


def _circles(arrows: Arrows) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(sorted(names)) for names in _components(arrows) if len(names) > 1)


def _longest_chain(arrows: Arrows) -> tuple[str, ...]:
    """The longest chain in which each name imports the next."""
    chains: dict[str, tuple[str, ...]] = {}
    for names in _components(arrows):
        below = {target for name in names for target in arrows[name]} - set(names)
        longest = max((chains[target] for target in sorted(below)), key=len, default=())
        chains |= dict.fromkeys(names, (" + ".join(sorted(names)), *longest))
    return max((chains[name] for name in sorted(chains)), key=len, default=())


def _roots(folder: Path) -> Iterator[Path]:
    """The import packages of a distribution's folder, or the folder itself if it is one."""
    if (folder / "__init__.py").exists():
        yield folder
        return
    yield from (path.parent for path in sorted(folder.glob("src/*/__init__.py")))


def _text(found: Structure) -> str:
    folders = ", ".join(f"{folder} {count}" for folder, count in found.files_by_folder.items())
    lines = [
        f"{found.package}: {found.rooms} rooms, {found.files} files, {found.layers} layers, "
        f"{found.room_arrows} import arrows between rooms, {found.file_arrows} between files",
        f"  files by folder: {folders}",
        f"  longest chain: {' > '.join(found.longest_chain).replace(f'{found.package}.', '')}",
    ]
    for kind, circles in (("rooms", found.room_circles), ("files", found.file_circles)):
        lines += [f"  circle of {kind}: {' <-> '.join(names)}" for names in circles]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Print the figures of the package folders given, by default of all; return 1 if files import in a circle."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("folders", nargs="*", type=Path, help="package folders; all under packages/ by default")
    options = parser.parse_args(arguments)
    folders = options.folders or sorted(Path("packages").iterdir())
    found = [measure(root.resolve()) for folder in folders for root in _roots(folder)]
    print(json.dumps([asdict(entry) for entry in found], indent=2) if options.json else "\n".join(map(_text, found)))
    return int(not found or any(entry.file_circles for entry in found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
