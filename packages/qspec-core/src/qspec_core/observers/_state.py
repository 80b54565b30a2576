"""Save and load the state of a model's observers without the rest of the model."""

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn

from qspec_core._errors import CalibrationError

__all__ = ["get_observer_state_dict", "load_observer_state_dict"]

_KEY = "activation_post_process"
"""Part of the name of every observer that prepare inserts, as in PyTorch."""


def get_observer_state_dict(mod: nn.Module) -> "OrderedDict[str, Tensor]":
    """The entries of the state dict that belong to inserted observers, in order."""
    return OrderedDict((name, value) for name, value in mod.state_dict().items() if _KEY in name)


def load_observer_state_dict(mod: nn.Module, obs_dict: Mapping[str, Tensor]) -> None:
    """Load a state from `get_observer_state_dict` into a model that was prepared in the same way.

    The rest of the model stays as it is.

    Raises: CalibrationError: state of an observer is missing, or belongs to an observer that the model does not have.
    """
    expected = {name for name in mod.state_dict() if _KEY in name}
    given = {name for name in obs_dict if _KEY in name}
    if expected != given:
        raise CalibrationError(
            f"the observer state has {len(given)} entries, the model's observers have {len(expected)}"
            if len(given) != len(expected)
            else "the observer state has other entries than the model's observers",
            found=f"unknown: {sorted(given - expected)}, missing: {sorted(expected - given)}",
            remedy="load into a model prepared from the same graph with the same quantizer",
        )
    mod.load_state_dict({name: obs_dict[name] for name in given}, strict=False)
