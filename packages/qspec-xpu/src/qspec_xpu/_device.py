"""The device: whether this machine has one, and the error that says what is missing."""

import torch

from qspec_core import BackendError

__all__ = ["missing_device", "require_device"]


def missing_device() -> str | None:
    """The part that this machine lacks to run on an Intel GPU; None if it lacks nothing."""
    if torch.version.xpu is None:
        return f"torch {torch.__version__} is built without XPU support"
    if not torch.xpu.is_available():
        return f"torch {torch.__version__} finds no Intel GPU: there is none, or its driver (Level Zero) is missing"
    return None


def require_device(step: str) -> None:
    """Raise unless this machine has an Intel GPU that torch can use.

    Raises: BackendError: with what is missing, and what works without.
    """
    missing = missing_device()
    if missing is not None:
        raise BackendError(
            f"{step} needs an Intel GPU",
            found=missing,
            expected="a torch built for XPU, a GPU, and its driver",
            remedy="save the quantized program with result.save and lower it on a machine with the GPU; quantizing, "
            "saving and lower_portable work without one",
        )
