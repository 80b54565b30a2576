"""The state of all observers of a model, apart from that of the model."""

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn

from qspec_core._errors import CalibrationError

__all__ = ["get_observer_state_dict", "load_observer_state_dict"]

_KEY = "activation_post_process"
"""Text in the names of observers that prepare inserts, as users of PyTorch know them."""


def get_observer_state_dict(mod: nn.Module) -> "OrderedDict[str, Tensor]":
    """Entries of the state dict that belong to inserted observers, in order."""
    return OrderedDict((name, value) for name, value in mod.state_dict().items() if _KEY in name)


def load_observer_state_dict(mod: nn.Module, obs_dict: Mapping[str, Tensor]) -> None:
    """Load what `get_observer_state_dict` returned into a model prepared alike; the rest stays.

    Raises: CalibrationError: an observer's state is missing, or there is state of an observer that the model lacks.
    """
    expected = {name for name in mod.state_dict() if _KEY in name}
    given = {name for name in obs_dict if _KEY in name}
    if expected != given:
        raise CalibrationError(
            "the observer state is of a model prepared otherwise",
            found=f"unknown: {sorted(given - expected)}, missing: {sorted(expected - given)}",
            remedy="load into a model prepared from the same graph with the same quantizer",
        )
    mod.load_state_dict({name: obs_dict[name] for name in given}, strict=False)
