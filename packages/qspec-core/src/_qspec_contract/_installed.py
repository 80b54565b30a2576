"""Backends that distributions register, read from entry points."""

from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from _qspec_contract._contract import ANY_VERSION, contract_problem

__all__ = ["InstalledBackend", "installed_backends", "registered"]


@dataclass(frozen=True)
class InstalledBackend:
    """A backend that some installed distribution registers, loaded or not.

    Args:
        name: the entry point's name.
        distribution: distribution that registers it.
        version: that distribution's version.
        description: the distribution's summary, one line.
        problem: why it cannot be used, and what to do; empty if it can.
    """

    name: str
    distribution: str
    version: str
    description: str = ""
    problem: str = ""


def registered() -> list[tuple[EntryPoint, InstalledBackend]]:
    """Every entry point of every version of the contract, by name; none is loaded.

    A backend that two distributions register in the group of this contract has a problem that names both.
    """
    groups = sorted(group for group in entry_points().groups if group.startswith(ANY_VERSION))
    found = {
        (point.name, entry.distribution, group): (point, entry)
        for group in groups
        for point in entry_points(group=group)
        for entry in [_described(point)]
    }
    owners: dict[str, list[str]] = {}
    for _, entry in found.values():
        if not entry.problem:
            owners.setdefault(entry.name, []).append(entry.distribution)
    return [
        (point, _with_rivals(entry, owners.get(entry.name, [])))
        for point, entry in sorted(found.values(), key=lambda pair: (pair[1].name, pair[1].distribution))
    ]


def installed_backends() -> tuple[InstalledBackend, ...]:
    """Every registered backend, by name. None of them is imported."""
    return tuple(entry for _, entry in registered())


def _described(point: EntryPoint) -> InstalledBackend:
    if point.dist is None:
        return InstalledBackend(point.name, "?", "?", "", contract_problem(point.group, "it"))
    summary = (point.dist.metadata.get_all("Summary") or ("",))[0]
    owner = point.dist.name
    return InstalledBackend(point.name, owner, point.dist.version, summary, contract_problem(point.group, owner))


def _with_rivals(entry: InstalledBackend, owners: list[str]) -> InstalledBackend:
    if entry.problem or len(owners) < 2:
        return entry
    problem = f"{' and '.join(sorted(owners))} all register {entry.name!r}: uninstall all but one"
    return InstalledBackend(entry.name, entry.distribution, entry.version, entry.description, problem)
