"""A smaller case that fails alike."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from fuzz.networks import Case, Network
from fuzz.trial import Outcome

__all__ = ["shrunk"]


def shrunk(case: Case, outcome: Outcome, run: Callable[[Case], Outcome], seconds: float) -> tuple[Case, Outcome]:
    """Make a case smaller as long as its outcome keeps its key.

    Args:
        case: a case with a finding.
        outcome: the finding.
        run: runs a case.
        seconds: time after which no further case is tried.
    Returns: the smallest case found, with its outcome.
    """
    end = time.monotonic() + seconds
    smaller = True
    while smaller:
        smaller = False
        for network in _candidates(case.network):
            if time.monotonic() > end:
                return case, outcome
            candidate = replace(case, network=network)
            found = run(candidate)
            if found.is_finding and _alike(found, outcome):
                case, outcome, smaller = candidate, found, True
                break
    return case, outcome


def _alike(found: Outcome, outcome: Outcome) -> bool:
    if outcome.kind == "diverges":  # the operator that is named may move as the graph shrinks
        return found.kind == outcome.kind
    return found.key == outcome.key


def _candidates(network: Network) -> Iterator[Network]:
    """Smaller networks, those that save most first."""
    seen = {network}
    for candidate in _all_candidates(network):
        if candidate.steps and candidate not in seen:
            seen.add(candidate)
            yield candidate


def _all_candidates(network: Network) -> Iterator[Network]:
    for step in network.steps[:-1]:
        yield network.ending_at([step.name])
    if len(network.results) > 1:
        for name in network.results:
            yield network.ending_at([name])
    for step in network.steps:
        yield network.without(step)
    if network.dtype != "float32":
        yield replace(network, dtype="float32")
    if network.dynamic:
        yield replace(network, dynamic=False)
    used = {name for step in network.steps for name in step.reads} | set(network.results)
    kept = tuple(item for item in network.inputs if item.name in used)
    if kept and len(kept) < len(network.inputs):
        yield replace(network, inputs=kept)
    for item in network.inputs:
        plain = item.value.partition(" * ")[2]
        if plain:
            inputs = tuple(replace(other, value=plain) if other is item else other for other in network.inputs)
            yield replace(network, inputs=inputs)
