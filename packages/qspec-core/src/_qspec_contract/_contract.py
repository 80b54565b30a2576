"""The version of the backend contract, which the name of the entry-point group carries."""

import re

__all__ = ["ANY_VERSION", "CONTRACT_VERSION", "ENTRY_POINT_GROUP", "contract_problem"]

CONTRACT_VERSION = 1
ANY_VERSION = "qspec.backends."
ENTRY_POINT_GROUP = f"{ANY_VERSION}v{CONTRACT_VERSION}"


def contract_problem(group: str, distribution: str) -> str:
    """Why a backend that is registered in this group cannot be used, and what to upgrade; empty if it can.

    Args:
        group: name of an entry-point group that begins with `qspec.backends.`.
        distribution: the distribution that registers the backend.
    """
    if group == ENTRY_POINT_GROUP:
        return ""
    version = re.fullmatch(r"v(\d+)", group.removeprefix(ANY_VERSION))
    ours = f"this qspec-core has contract v{CONTRACT_VERSION}"
    if version is None:
        return f"its group {group!r} names no version of the contract, {ours}: repair {distribution}"
    older = int(version[1]) < CONTRACT_VERSION
    return f"made for contract v{version[1]}, {ours}: upgrade {distribution if older else 'qspec-core'}"
