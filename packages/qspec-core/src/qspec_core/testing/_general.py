"""Cases for every backend, independent of its rows: consistent tables, refused input."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from qspec_core._convert import convert_pt2e
from qspec_core._errors import BackendError, QSpecError
from qspec_core._prepare import prepare_pt2e
from qspec_core.backend import Backend
from qspec_core.graph import argument_names
from qspec_core.patterns import Mode, PatternTable, Row
from qspec_core.testing._errors import CheckName, ConformanceError, DeviceMissingError
from qspec_core.testing._kit import Lower

__all__ = ["RefusalCase", "TableCase", "converted_layers"]

Check = Callable[[PatternTable], list[str]]


def _names(table: PatternTable) -> list[str]:
    return [
        f"{count} rows named {name}" for name, count in Counter(row.name for row in table.rows).items() if count > 1
    ]


def _chains(table: PatternTable) -> list[str]:
    """Chains that come after a shorter one. If that is their beginning, they are never tried."""
    found = []
    for row in table.rows:
        lengths = [len(chain) for chain in row.chains]
        found += [f"row {row.name}: a longer chain after a shorter one"] if lengths != sorted(lengths)[::-1] else []
    return found


def _claims(table: PatternTable) -> list[str]:
    """Anchors and chains that occur twice in one mode with the same checks: the second one is never reached."""
    claims = Counter(claim for row in table.rows for claim in _claims_of(row))
    found = [f"{operators} is claimed {count} times" for (operators, _), count in claims.items() if count > 1]
    return list(dict.fromkeys(found))


def _claims_of(row: Row) -> list[tuple[str, object]]:
    return [
        (
            " + ".join(map(str, (row.anchor, *(post_op.target for post_op in chain)))),
            (mode, row.checks, tuple((post_op.other, post_op.check) for post_op in chain)),
        )
        for chain in row.chains
        for mode in row.modes
    ]


def _operands(table: PatternTable) -> list[str]:
    found = []
    for row in table.rows:
        known = argument_names(row.anchor)
        found += [f"row {row.name}: {row.anchor} has no {o.name!r}" for o in row.operands if o.name not in known]
        found += [] if row.activations or row.has_weight else [f"row {row.name}: no activation and no weight"]
    return found


def _float_only(table: PatternTable) -> list[str]:
    return [f"{op}: no reason" for op, reason in table.float_only.items() if not reason.strip()]


_REMEDY = "correct the table"


@dataclass(frozen=True)
class TableCase:
    """One rule that a table must follow."""

    name: str
    rule: str
    find: Check
    table: PatternTable

    def __str__(self) -> str:
        return f"table: {self.name}"

    @classmethod
    def all(cls, backend: Backend) -> tuple["TableCase", ...]:
        """All cases of this class for a backend."""
        table = backend.table
        return (
            cls("names", "no two rows have the same name", _names, table),
            cls("chains", "the chains of a row are listed longest first", _chains, table),
            cls("claims", "no anchor and chain is claimed twice", _claims, table),
            cls("operands", "every operand is an argument of the anchor", _operands, table),
            cls("float only", "every operator that stays in float has a reason", _float_only, table),
        )

    def check(self) -> None:
        """Raises: ConformanceError: the table breaks the rule."""
        found = self.find(self.table)
        if found:
            raise ConformanceError(
                f"the table breaks a rule: {self.rule}",
                check=CheckName.TABLE,
                found="; ".join(found),
                expected=self.rule,
                remedy=_REMEDY,
            )


class Bad(Enum):
    """Inputs that every backend's lowering must refuse."""

    TARGET = "an unknown target"
    FLOAT = "a float graph"
    PREPARED = "a prepared graph"
    MODULE = "a module that is not a graph"


_NO_TARGET = "no-such-target"


class _Layers(nn.Module):
    """A convolution and a linear layer: every backend has a row for at least one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.linear(self.conv(x))
        return result


@dataclass(frozen=True)
class RefusalCase:
    """An input that lowering must refuse with a `QSpecError`."""

    bad: Bad
    backend: Backend
    lower: Lower

    def __str__(self) -> str:
        return f"lowering refuses {self.bad.value}"

    @classmethod
    def all(cls, backend: Backend, lower: Lower) -> tuple["RefusalCase", ...]:
        """All cases of this class for a backend."""
        return tuple(cls(bad, backend, lower) for bad in Bad)

    def check(self) -> None:
        """Raises: ConformanceError, DeviceMissingError: as `Case.check`."""
        inputs = (torch.ones(1, 3, 6, 6),)
        target = _NO_TARGET if self.bad is Bad.TARGET else self.backend.targets[0]
        try:
            self.lower(self._given(inputs), inputs, target)
        except QSpecError as error:
            self._check_error(error)
        except Exception as error:  # an input that nobody checked can raise anything
            raise self._not_refused(f"{type(error).__name__}: {error}") from error
        else:
            raise self._not_refused("it was lowered")

    def _given(self, inputs: tuple[torch.Tensor, ...]) -> Any:  # on purpose not always an input that lowering takes
        model = _Layers().eval()
        if self.bad is Bad.MODULE:
            return model
        with torch.no_grad():
            exported = torch.export.export(model, inputs).module()
        if self.bad is Bad.FLOAT or not isinstance(exported, GraphModule):
            return exported
        prepared = _prepared(exported, self.backend, self.backend.targets[0], inputs)
        return prepared if self.bad is Bad.PREPARED else convert_pt2e(prepared)

    def _check_error(self, error: QSpecError) -> None:
        if self.bad is Bad.TARGET:
            if _NO_TARGET not in str(error):
                raise self._not_refused(f"an error that does not name the target: {error.problem}") from error
        elif isinstance(error, BackendError):
            raise DeviceMissingError(f"not lowered: {error.problem}", found=error.found, remedy=error.remedy) from error

    def _not_refused(self, found: str) -> ConformanceError:
        return ConformanceError(
            f"backend {self.backend.name!r} does not refuse {self.bad.value} to lower",
            check=CheckName.REFUSAL,
            found=found,
            expected="a QSpecError that names the input and a remedy",
            remedy="first check the target, and that the graph is from convert_pt2e",
        )


def converted_layers(backend: Backend, target: str, inputs: tuple[torch.Tensor, ...]) -> GraphModule:
    """A convolution and a linear layer, quantized for a backend.

    Args:
        backend: the backend.
        target: class of the deployment device.
        inputs: one image with three channels of six by six.
    """
    torch.manual_seed(0)
    with torch.no_grad():
        exported = torch.export.export(_Layers().eval(), inputs).module()
    return convert_pt2e(_prepared(exported, backend, target, inputs))


def _prepared(exported: Any, backend: Backend, target: str, inputs: tuple[torch.Tensor, ...]) -> GraphModule:
    quantizer = backend.quantizer(mode=min(backend.modes, key=_static_first), target=target)
    prepared = prepare_pt2e(exported, quantizer, allow_empty=True)
    with torch.no_grad():
        prepared(*inputs)
    return prepared


def _static_first(mode: Mode) -> tuple[bool, str]:
    return mode is not Mode.STATIC, mode.value
