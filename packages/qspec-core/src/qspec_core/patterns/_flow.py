"""When activations are quantized, how a row meets integers, and where a device wants quantized outputs."""

from enum import Enum

__all__ = ["Flow", "Mode", "Outputs"]


class Flow(Enum):
    """Whether a row starts integers, joins them, or also shares the parameters of its input."""

    STARTS = "starts"  # its inputs are worth a quantize
    JOINS = "joins"  # it runs in integers where every input is an integer tensor already
    SHARES = "shares"  # it joins, and its output has the scale and zero point of its input


class Mode(Enum):
    """When activations are quantized."""

    STATIC = "static"
    DYNAMIC = "dynamic"
    WEIGHT_ONLY = "weight only"


class Outputs(Enum):
    """Which outputs a device wants quantized."""

    DEMAND = "demand"  # those that an integer kernel reads
    ALWAYS = "always"  # every output of an integer kernel
