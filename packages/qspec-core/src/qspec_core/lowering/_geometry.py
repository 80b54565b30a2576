"""Arguments of a convolution."""

from dataclasses import dataclass

__all__ = ["Geometry"]


@dataclass(frozen=True)
class Geometry:
    """Stride, padding and dilation of each spatial dimension, and the number of groups."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def arguments(self) -> tuple[list[int], list[int], list[int], int]:
        """Arguments in the order of the kernels."""
        return list(self.stride), list(self.padding), list(self.dilation), self.groups
