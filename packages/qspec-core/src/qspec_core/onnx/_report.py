"""The findings of a check of a file."""

import io
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, Self

from qspec_core.onnx._errors import OnnxCheckError
from qspec_core.onnx._layers import OnnxLayer

__all__ = ["OnnxCheck", "OnnxFinding", "OnnxStatus"]

_WIDTH = 120


class OnnxStatus(Enum):
    """The result of one part of a check."""

    HOLDS = "holds"
    DIFFERS = "differs"
    SATURATES = "saturates"
    """The file is right; this CPU's kernels saturate sums of products of uint8 and int8 at 16 bits."""
    APPROXIMATES = "approximates"
    """The file is right; the runtime's kernels for weights alone round their activations to 8 bits."""
    NOT_RUN = "not run"


@dataclass(frozen=True)
class OnnxFinding:
    """One part of a check.

    Args:
        part: what was checked.
        status: the result.
        detail: the figures, or the reason.
    """

    part: str
    status: OnnxStatus
    detail: str

    def __str__(self) -> str:
        return f"{self.part}: {self.status.value} ({self.detail})"


@dataclass(frozen=True)
class OnnxCheck:
    """Result of checking an ONNX file against its converted graph.

    Args:
        path: the file.
        opset: its opset.
        findings: one for each part of the check.
        layers: the layers with quantized operands, and the kernels that ONNX Runtime runs them with; empty if it did
            not run.
        first_divergence: the first tensor that is not what its operator computes; empty if there is none, or if nobody
            looked.
    """

    path: str
    opset: int
    findings: tuple[OnnxFinding, ...]
    layers: tuple[OnnxLayer, ...] = ()
    first_divergence: str = ""

    @property
    def holds(self) -> bool:
        """Whether no part found a difference. Parts that were not run count as none."""
        return not any(finding.status is OnnxStatus.DIFFERS for finding in self.findings)

    def require(self) -> Self:
        """Return the check itself.

        Raises: OnnxCheckError: a part found a difference.
        """
        if self.holds:
            return self
        wrong = [str(finding) for finding in self.findings if finding.status is OnnxStatus.DIFFERS]
        raise OnnxCheckError(
            f"{self.path} does not compute what the converted graph computes",
            found="; ".join(wrong) + (f"; first at {self.first_divergence}" if self.first_divergence else ""),
            expected="equal parameters, and results within the bound of the check",
            remedy="write the file again with to_onnx; if it differs again, report the operator named here",
        )

    def finding(self, part: str) -> OnnxFinding:
        """The finding of one part, by its name.

        Raises: KeyError: there is no such part.
        """
        for found in self.findings:
            if found.part == part:
                return found
        raise KeyError(part)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `json.dumps` takes."""
        return {
            "path": self.path,
            "opset": self.opset,
            "holds": self.holds,
            "findings": [{**asdict(finding), "status": finding.status.value} for finding in self.findings],
            "layers": [asdict(layer) for layer in self.layers],
            "first_divergence": self.first_divergence,
        }

    def __str__(self) -> str:
        """Tables of the parts, and of the layers that do not run in integers."""
        from rich.console import Console  # takes as long to import as all of this package
        from rich.table import Table

        table = Table("part", "result", "detail", title=f"{self.path}, opset {self.opset}", title_justify="left")
        for finding in self.findings:
            table.add_row(finding.part, finding.status.value, finding.detail)
        if self.first_divergence:
            table.add_row("first divergence", "differs", self.first_divergence)
        lines = io.StringIO()
        console = Console(file=lines, width=_WIDTH)
        console.print(table)
        floats = [layer for layer in self.layers if not layer.is_integer]
        if floats:
            rest = Table("layer", "operator", "why it runs in float", title_justify="left", title="In ONNX Runtime")
            for layer in floats:
                rest.add_row(layer.name, layer.operator, layer.reason)
            console.print(rest)
        return lines.getvalue()
