"""Import backends in processes of their own, to see whether they load."""

import subprocess
import sys
from dataclasses import replace

from _qspec_contract._installed import InstalledBackend

__all__ = ["probe"]

_CODE = """
import sys
from qspec_core import BackendError, get_backend
try:
    get_backend(sys.argv[1])
except BackendError as error:
    sys.exit("\\n" + " ".join(str(part) for part in (error.problem, error.found or "", error.remedy) if part))
"""
_LINES_SHOWN = 3


def probe(entry: InstalledBackend, *, timeout_s: float = 60.0) -> InstalledBackend:
    """Load a backend in another process, and write down why it does not load.

    A backend that raises, that ends the process or that does not return does no harm to the caller.

    Args:
        entry: a backend from `installed_backends`; one with a problem is returned as it is.
        timeout_s: seconds after which the process is stopped.
    Returns: the entry, with the problem if there is one.
    """
    if entry.problem:
        return entry
    command = [sys.executable, "-c", _CODE, entry.name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return replace(entry, problem=f"its import did not end within {timeout_s:g} s")
    if done.returncode == 0:
        return entry
    said = " ".join(done.stderr.split("\n\n")[-1].strip().splitlines()[-_LINES_SHOWN:])
    return replace(entry, problem=said or f"its import ended the process with code {done.returncode}")
