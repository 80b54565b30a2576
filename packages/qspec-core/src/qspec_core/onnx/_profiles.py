"""Profiles: how a file is written for the consumer that reads it."""

from dataclasses import dataclass

from qspec_core.onnx._errors import OnnxExportError

__all__ = ["PROFILES", "Profile", "profile_of"]


@dataclass(frozen=True)
class Profile:
    """The forms that one consumer fuses.

    Args:
        name: the consumer.
        clips_floats: a range narrower than its dtype is a Clip before the QuantizeLinear, not one of integers after it.
        has_dynamic_quantize: the consumer runs DynamicQuantizeLinear.
    """

    name: str
    clips_floats: bool = False
    has_dynamic_quantize: bool = True


PROFILES = {profile.name: profile for profile in (Profile("plain"),)}


def profile_of(name: str | None) -> Profile:
    """The profile of a name; None for the plain one.

    Raises: OnnxExportError: there is no such profile.
    """
    found = PROFILES.get("plain" if name is None else name)
    if found is None:
        raise OnnxExportError(
            f"there is no profile {name!r}",
            found=name,
            expected=", ".join(PROFILES),
            remedy="name one of the profiles listed, or None",
        )
    return found
