"""qspec-xpu: the Intel GPU backend of qspec. This version registers an empty pattern table and quantizes nothing."""

from qspec_xpu._backend import BACKEND

__all__ = ["BACKEND"]
