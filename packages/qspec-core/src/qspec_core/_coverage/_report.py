"""Coverage: the report of every floating-point operator of a model, as plain data that prints and serializes."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from qspec_core._errors import GraphError
from qspec_core.graph._layers import EMBEDDINGS, LAYERS, NORMALIZATIONS, RECURRENT, RECURRENT_CELLS
from qspec_core.patterns import ReasonCode

__all__ = ["Coverage", "CoverageEntry", "CoverageStatus"]

_LAYERS = frozenset(map(str, LAYERS))
_KINDS = (
    ("convolution and linear layers", _LAYERS),
    ("recurrent layers", frozenset(map(str, (*RECURRENT, *RECURRENT_CELLS)))),
    ("embeddings", frozenset(map(str, EMBEDDINGS))),
    ("normalizations", frozenset(map(str, NORMALIZATIONS))),
)
"""Kinds of operators that hold weights, in the order of the summary."""
_OTHER_KIND = "other operators with weights"


class CoverageStatus(StrEnum):
    """The outcome for an operator."""

    QUANTIZED = "quantized"
    FOLDED = "folded"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class CoverageEntry:
    """One floating-point operator.

    Args:
        node: name of its node.
        operator: the operator called.
        module: path of the module it was traced in; "" for the root.
        status: quantized, folded into another operator, or skipped.
        row: label of the row that quantized it, or how it was folded; "" if it was skipped.
        code: value of the `ReasonCode` if it was skipped, else "".
        detail: the reason's detail; for a quantized operator, remarks about how it is quantized, with "; " between
            them. In each, what follows ": " are the figures of this operator.
        weight_bytes: bytes of the float constants (parameters, buffers that are not written to) that it reads, in the
            float model. A tensor that several operators read counts for the first of them only; if some of them are
            quantized and some are not, for the first of either.
        integer_weight_bytes: the part of `weight_bytes` that is stored as integers.
        multiply_adds: multiply-adds of one call with the example inputs; 0 for an operator without products, and where
            a size is not known.
        integer_multiply_adds: `multiply_adds`, if its activations are integers too; else 0.
    """

    node: str
    operator: str
    module: str
    status: CoverageStatus
    row: str = ""
    code: str = ""
    detail: str = ""
    weight_bytes: int = 0
    integer_weight_bytes: int = 0
    multiply_adds: int = 0
    integer_multiply_adds: int = 0

    @property
    def kind(self) -> str:
        """Its kind among operators that hold weights, as the summary names it; "" if it holds none."""
        found = next((name for name, operators in _KINDS if self.operator in operators), None)
        return found if found is not None else _OTHER_KIND if self.weight_bytes else ""

    @property
    def is_layer(self) -> bool:
        """Whether it is a convolution or a linear layer."""
        return self.operator in _LAYERS

    @property
    def remarks(self) -> tuple[str, ...]:
        """The remarks about a quantized operator, without figures."""
        if self.status is not CoverageStatus.QUANTIZED or not self.detail:
            return ()
        return tuple(remark.partition(": ")[0] for remark in self.detail.split("; "))

    def with_remark(self, remark: str, figures: str) -> "CoverageEntry":
        """The same entry with one more remark."""
        added = f"{remark}: {figures}"
        return replace(self, detail=f"{self.detail}; {added}" if self.detail else added)

    @property
    def reason(self) -> str:
        """Why it was skipped, in one line; "" if it was not."""
        return f"{self.code}: {self.detail}" if self.detail and self.code else self.code

    def __str__(self) -> str:
        outcome = f"by row {self.row}" if self.status is CoverageStatus.QUANTIZED else self.row or self.reason
        outcome += f"; {self.detail}" if self.remarks else ""
        place = f" in {self.module}" if self.module else ""
        return f"{self.node} ({self.operator}){place}: {self.status.value}, {outcome}"


@dataclass(frozen=True)
class Coverage:
    """Every floating-point operator of a model, in graph order; operators folded into others come last."""

    entries: tuple[CoverageEntry, ...]

    def __iter__(self) -> Iterator[CoverageEntry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def with_status(self, status: CoverageStatus) -> tuple[CoverageEntry, ...]:
        """Entries of one status."""
        return tuple(entry for entry in self.entries if entry.status is status)

    @property
    def quantized(self) -> tuple[CoverageEntry, ...]:
        """Operators that some row quantized."""
        return self.with_status(CoverageStatus.QUANTIZED)

    @property
    def skipped(self) -> tuple[CoverageEntry, ...]:
        """Operators that stay in float."""
        return self.with_status(CoverageStatus.SKIPPED)

    @property
    def layers(self) -> tuple[CoverageEntry, ...]:
        """Convolutions and linear layers, folded ones included. Recurrent layers and embeddings are not among them."""
        return tuple(entry for entry in self.entries if entry.is_layer)

    @property
    def quantized_layers(self) -> tuple[CoverageEntry, ...]:
        """Convolutions and linear layers that some row quantized."""
        return tuple(entry for entry in self.layers if entry.status is CoverageStatus.QUANTIZED)

    @property
    def integer_weight_share(self) -> float:
        """The part of the bytes of weights that is stored as integers, from 0 to 1; 0 for a model without weights."""
        return self._share(sum(e.integer_weight_bytes for e in self), sum(e.weight_bytes for e in self))

    @property
    def integer_multiply_add_share(self) -> float:
        """The part of the multiply-adds that takes integers, from 0 to 1; 0 for a model without products."""
        return self._share(sum(e.integer_multiply_adds for e in self), sum(e.multiply_adds for e in self))

    @staticmethod
    def _share(part: int, whole: int) -> float:
        return part / whole if whole else 0.0

    def summary(self) -> str:
        """A headline, then one line for each reason, the most frequent first, one for each remark about quantized
        operators, and one for each way in which layers were folded.

        The headline counts the operators that hold weights, by kind, gives the shares of bytes and of multiply-adds in
        integers, and counts all operators.
        """
        reasons = Counter((entry.operator, entry.reason) for entry in self.skipped)
        gone = Counter((entry.operator, entry.row) for entry in self.layers if entry.status is CoverageStatus.FOLDED)
        remarks = Counter((e.operator, f"quantized, {remark}") for e in self.quantized for remark in e.remarks)
        told = (*reasons.most_common(), *remarks.most_common(), *gone.most_common())
        lines = [f"  {count} x {operator}: {reason}" for (operator, reason), count in told]
        return "\n".join([self._headline(), *lines])

    def _headline(self) -> str:
        counts = [f"{len(self.quantized_layers)} of {len(self.layers)} {_KINDS[0][0]} quantized"]
        for kind in (*(name for name, _ in _KINDS[1:]), _OTHER_KIND):
            held = [e for e in self if e.kind == kind and e.status is not CoverageStatus.FOLDED]
            if held:
                counts.append(f"{len([e for e in held if e.status is CoverageStatus.QUANTIZED])} of {len(held)} {kind}")
        parts = [", ".join(counts)]
        weights, work = (sum(getattr(e, name) for e in self) for name in ("weight_bytes", "multiply_adds"))
        shares = [f"{self.integer_weight_share:.1%} of {weights:,} bytes of weights"] if weights else []
        shares += [f"{self.integer_multiply_add_share:.1%} of {work:,} multiply-adds"] if work else []
        parts += [f"{' and '.join(shares)} in integers"] if shares else []
        parts.append(
            f"{len(self.quantized)} operators quantized, {len(self.with_status(CoverageStatus.FOLDED))} folded, "
            f"{len(self.skipped)} skipped"
        )
        return "; ".join(parts)

    def explain(self, name: str) -> str:
        """Describe a node's operator, or the operators of a module and of the modules in it, one line each.

        Args:
            name: a node's name or a module's path.
        Raises: GraphError: no entry has that name or path.
        """
        found = [e for e in self.entries if name in (e.node, e.module) or e.module.startswith(f"{name}.")]
        if not found:
            raise GraphError(
                f"coverage has no operator or module {name!r}",
                found=name,
                remedy="name a node or a module path of the exported model; iterate over the coverage to see them",
            )
        return "\n".join(map(str, found))

    def compare(self, other: "Coverage") -> tuple[tuple[CoverageEntry | None, CoverageEntry | None], ...]:
        """Entries that differ in status, row, reason or remarks, as pairs of (this, other). None: one has no
        such node."""
        mine, theirs = ({entry.node: entry for entry in cover} for cover in (self, other))
        names = dict.fromkeys((*mine, *theirs))
        return tuple((mine.get(n), theirs.get(n)) for n in names if _outcome(mine.get(n)) != _outcome(theirs.get(n)))

    def with_skipped(self, details: Mapping[str, str], code: ReasonCode) -> "Coverage":
        """The same coverage in which the nodes named in `details` are skipped, for a reason of this code."""
        entries = (
            replace(
                entry,
                status=CoverageStatus.SKIPPED,
                row="",
                code=code.value,
                detail=details[entry.node],
                integer_multiply_adds=0,
            )
            if entry.node in details
            else entry
            for entry in self.entries
        )
        return Coverage(tuple(entries))

    def to_dict(self) -> dict[str, Any]:
        """Plain data that JSON can hold; `from_dict` reads it back."""
        return {"entries": [vars(entry) | {"status": entry.status.value} for entry in self.entries]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Coverage":
        """Read the data that `to_dict` wrote."""
        return cls(
            tuple(CoverageEntry(**entry | {"status": CoverageStatus(entry["status"])}) for entry in data["entries"])
        )

    def __str__(self) -> str:
        return self.summary()


def _outcome(entry: CoverageEntry | None) -> tuple[object, ...] | None:
    """The fields that `Coverage.compare` compares."""
    if entry is None:
        return None
    return entry.operator, entry.module, entry.status.value, entry.row, entry.reason, entry.remarks
