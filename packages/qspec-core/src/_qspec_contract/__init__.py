"""The backends that are installed, from the metadata of their distributions alone.

Needs no torch and imports no backend, so that `qspec backends` answers at once. `qspec_core.backend` builds on it.
"""

from _qspec_contract._contract import CONTRACT_VERSION, ENTRY_POINT_GROUP
from _qspec_contract._installed import InstalledBackend, installed_backends, registered
from _qspec_contract._probe import probe

__all__ = [
    "CONTRACT_VERSION",
    "ENTRY_POINT_GROUP",
    "InstalledBackend",
    "installed_backends",
    "probe",
    "registered",
]
