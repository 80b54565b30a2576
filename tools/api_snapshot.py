"""API snapshot: the public names of each package, with signatures, against the committed packages/<name>/api.txt.

Public is what `__all__` lists, in the root module and in every submodule without a leading underscore. Each public
module belongs to a tier, which says who it is promised to. The root pyproject.toml lists the modules of each tier under
`tool.qspec.api.tiers`. A root module is for users. A submodule that is not listed has the tier of its parent. A module
without a tier or without `__all__` is an error, and so is a listed name that does not exist. `--update` rewrites the
snapshots.
"""

import argparse
import difflib
import importlib
import inspect
import pkgutil
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

__all__ = ["SnapshotError", "describe", "main", "snapshot", "tiers"]

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class SnapshotError(Exception):
    """A module breaks the rule that public is what is listed."""


def _modules(name: str) -> Iterator[ModuleType]:
    """The package and its public submodules, in alphabetical order."""
    module = importlib.import_module(name)
    yield module
    for info in sorted(pkgutil.iter_modules(getattr(module, "__path__", ())), key=_module_name):
        if not info.name.startswith("_"):
            yield from _modules(f"{name}.{info.name}")


def _module_name(info: pkgutil.ModuleInfo) -> str:
    return info.name


def _signature(value: object) -> str:
    """Signature of something callable; "(...)" where Python knows none."""
    try:
        return _ADDRESS.sub("", str(inspect.signature(value)))  # type: ignore[arg-type]  # a TypeError is handled
    except (TypeError, ValueError):
        return "(...)"


def _members(cls: type) -> Iterator[str]:
    """Public methods, properties and plain attributes that a class defines itself."""
    for name, value in sorted(vars(cls).items()):
        if name.startswith("_"):
            continue
        if isinstance(value, classmethod | staticmethod):
            yield f"    .{name}{_signature(value.__func__)}  [{type(value).__name__}]"
        elif inspect.isfunction(value):
            yield f"    .{name}{_signature(value)}"
        elif isinstance(value, property):
            yield f"    .{name}  [property]"
        else:
            yield f"    .{name}"


def describe(path: str, value: object) -> list[str]:
    """Lines that describe one public name: kind, signature and, for a class, what it defines."""
    if inspect.isclass(value):
        bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
        heading = f"class {path}{_signature(value)}" + (f" < {bases}" if bases else "")
        return [heading, *_members(value)]
    if inspect.ismodule(value):
        return [f"module {path}"]
    if callable(value):
        return [f"def {path}{_signature(value)}"]
    return [f"value {path}: {type(value).__name__}"]


def tiers() -> dict[str, str]:
    """The tier of each public module that is listed in the root pyproject.toml, by the module's name."""
    settings = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    listed: dict[str, list[str]] = settings["tool"]["qspec"]["api"]["tiers"]
    return {module: tier for tier, modules in listed.items() for module in modules}


def _tier(module: str, listed: Mapping[str, str]) -> str | None:
    """The module's own tier, or that of the nearest listed module around it; a root module that is not listed is for
    users."""
    while module not in listed:
        if "." not in module:
            return "users"
        module = module.rpartition(".")[0]
        if "." not in module:
            return None
    return listed[module]


def snapshot(roots: Sequence[str], listed: Mapping[str, str]) -> str:
    """Text of the snapshot of the packages named; a name that is listed twice is described where it comes first.

    Args:
        roots: names of packages.
        listed: tier of each public submodule.
    """
    sections: dict[str, list[str]] = {}
    first: dict[int, str] = {}
    for module in (module for root in roots for module in _modules(root)):
        tier = _tier(module.__name__, listed)
        if tier is None:
            raise SnapshotError(f"{module.__name__} is public and has no tier in the root pyproject.toml")
        lines = sections.setdefault(tier, [])
        names = getattr(module, "__all__", None)
        if names is None:
            raise SnapshotError(f"{module.__name__} is public and has no __all__")
        missing = [name for name in names if not hasattr(module, name)]
        if missing:
            raise SnapshotError(f"{module.__name__}.__all__ lists {', '.join(missing)}, which do not exist")
        lines += ["", f"[{module.__name__}]"]
        for name in sorted(names):
            path, value = f"{module.__name__}.{name}", getattr(module, name)
            known = first.setdefault(id(value), path)
            lines += describe(path, value) if known == path else [f"same {path} = {known}"]
    return "\n\n".join(f"# {tier}\n" + "\n".join(lines) for tier, lines in sections.items()) + "\n"


def _check(package: Path, update: bool) -> list[str]:
    """Lines that report the difference of one package; empty where there is none."""
    names = (path.parent.name for path in package.glob("src/*/__init__.py"))
    roots = sorted(name for name in names if not name.startswith("_"))
    stored = package / "api.txt"
    old = stored.read_text(encoding="utf-8") if stored.exists() else ""
    try:
        new = snapshot(sorted(roots, key=_cli_last), tiers())
    except SnapshotError as error:
        return [str(error)]
    if update:
        stored.write_text(new, encoding="utf-8")
        return []
    return list(difflib.unified_diff(old.splitlines(), new.splitlines(), str(stored), "as imported", lineterm="", n=1))


def _cli_last(root: str) -> tuple[bool, str]:
    return root.endswith("_cli"), root


def main(arguments: Sequence[str]) -> int:
    """Compare, or with --update rewrite, the snapshot of every package; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--update", action="store_true", help="rewrite the snapshots")
    parser.add_argument("packages", nargs="*", type=Path, help="package folders; all by default")
    options = parser.parse_args(arguments)
    packages = options.packages or sorted(Path("packages").iterdir())
    report = [line for package in packages for line in _check(package, options.update)]
    if report:
        report.append(
            "Public names changed. If that is meant: nox -s api -- --update, and a file in the package's changelog.d."
        )
    print("\n".join(report) if report else f"api: {len(packages)} packages as listed")
    return int(bool(report))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
