"""Reasons: why an operator is not quantized, or a match is not lowered."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Self

__all__ = ["Note", "Reason", "ReasonCode"]


class ReasonCode(StrEnum):
    """Why an operator is not quantized. The values are stable: they are written into coverage files."""

    NO_ROW = "no row"
    EXCLUDED = "excluded by configuration"
    NOT_SELECTED = "not selected by any configuration"
    UNSUPPORTED_ARGUMENT = "unsupported argument"
    UNSUPPORTED_MODE = "unsupported mode"
    NOT_FLOATING_POINT = "not floating point"
    INPUT_NOT_QUANTIZED = "input not quantized"
    NO_INTEGER_READER = "no integer reader"
    NO_INTEGER_KERNEL = "no integer kernel"
    ALREADY_QUANTIZED = "already quantized"
    DIVERGED = "kernel differs from the converted graph"
    NOT_ANNOTATED = "not annotated by the quantizer"


@dataclass(frozen=True)
class Reason:
    """Why a row declines a node, or why a node stays in float."""

    code: ReasonCode
    detail: str = ""

    @classmethod
    def unsupported(cls, detail: str) -> Self:
        """The kernel does not take this call, for the cause in `detail`."""
        return cls(ReasonCode.UNSUPPORTED_ARGUMENT, detail)

    def __str__(self) -> str:
        return f"{self.code.value}: {self.detail}" if self.detail else self.code.value


@dataclass(frozen=True)
class Note:
    """A remark of a row's `lower` about a match that it lowered, for the backend's report."""

    text: str
